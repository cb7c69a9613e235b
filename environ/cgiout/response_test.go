package cgiout

import (
	"bytes"
	"errors"
	"strings"
	"testing"

	"wsgigate/environ"
)

// sink is an output that counts writes and fails once it has taken max bytes.
type sink struct {
	bytes.Buffer
	writes, max int
}

func (s *sink) Write(p []byte) (int, error) {
	s.writes++
	if s.max > 0 && s.Len()+len(p) > s.max {
		return 0, errFull
	}
	return s.Buffer.Write(p)
}

// vectorSink is a sink that takes two buffers in one call.
type vectorSink struct{ sink }

func (s *vectorSink) Writev(bufs [][]byte) (int64, error) {
	n, err := s.sink.Write(bytes.Join(bufs, nil))
	return int64(n), err
}

var errFull = errors.New("full")

// whole is a Response as a transport embeds it.
type whole struct{ Response }

func (w *whole) WriteErrors([]byte) {}
func (w *whole) Abort(err error)    { w.Replace(w, err) }

func begin(t *testing.T, out interface{ Write([]byte) (int, error) }, method string) *whole {
	t.Helper()
	w, r := &whole{}, &environ.Request{}
	r.Environ.Add("REQUEST_METHOD", method)
	w.Begin(out, r, (*environ.Header).AppendCGI)
	if _, err := w.Write(nil); !errors.Is(err, ErrState) {
		t.Errorf("write before the header: %v", err)
	}
	var h environ.Header
	if err := h.SetStatus(200, "OK"); err != nil {
		t.Fatal(err)
	}
	if err := w.WriteHeader(&h); err != nil {
		t.Fatal(err)
	}
	if err := w.WriteHeader(&h); !errors.Is(err, ErrState) {
		t.Errorf("second header: %v", err)
	}
	return w
}

const head = "Status: 200 OK\r\n\r\n"

func TestSmallWritesAreKeptBack(t *testing.T) {
	var out sink
	w := begin(t, &out, "GET")
	for range 3 {
		_, _ = w.Write([]byte("abc"))
	}
	if out.writes != 0 {
		t.Error("written before Flush")
	}
	if err := w.Flush(); err != nil || out.String() != head+"abcabcabc" || out.writes != 1 {
		t.Errorf("%v, %q in %d writes", err, out.String(), out.writes)
	}
	if err := w.Flush(); err != nil || out.writes != 1 {
		t.Errorf("%v, %d writes", err, out.writes)
	}
}

func TestLargeWriteGoesWithTheHeader(t *testing.T) {
	large := strings.Repeat("x", KeepBack)
	var out vectorSink
	w := begin(t, &out, "GET")
	if _, err := w.Write([]byte(large)); err != nil || out.writes != 1 || out.String() != head+large {
		t.Errorf("%v, %d bytes in %d writes", err, out.Len(), out.writes)
	}
	var plain sink
	w = begin(t, &plain, "GET")
	if _, err := w.Write([]byte(large)); err != nil || plain.String() != head+large {
		t.Errorf("%v, %d bytes", err, plain.Len())
	}
}

func TestRoom(t *testing.T) {
	var out sink
	w := begin(t, &out, "GET")
	if w.Room(KeepBack) != nil {
		t.Error("room where there is none")
	}
	w.Filled(copy(w.Room(10), "short"))
	if err := w.Flush(); err != nil || out.String() != head+"short" {
		t.Errorf("%v, %q", err, out.String())
	}
}

func TestHeadHasNoBody(t *testing.T) {
	var out sink
	w := begin(t, &out, "HEAD")
	if n, err := w.Write([]byte("body")); n != 4 || err != nil || !w.Bodyless() {
		t.Errorf("%d, %v", n, err)
	}
	if err := w.Flush(); err != nil || out.String() != head {
		t.Errorf("%v, %q", err, out.String())
	}
}

func TestReplace(t *testing.T) {
	var out sink
	w := begin(t, &out, "GET")
	_, _ = w.Write([]byte("part"))
	if !w.Replace(w, environ.Errorf(503, "busy")) || !strings.HasPrefix(out.String(), "Status: 503 ") || strings.Contains(out.String(), "part") || w.Err() != nil {
		t.Errorf("%q, %v", out.String(), w.Err())
	}
	if _, err := w.Write([]byte("late")); !errors.Is(err, ErrEnded) {
		t.Errorf("late write: %v", err)
	}
	w = begin(t, &sink{}, "GET")
	_ = w.Flush()
	if w.Replace(w, errFull) || w.Err() != errFull || !w.Ended() {
		t.Errorf("replaced what was sent, %v", w.Err())
	}
}

func TestFailedWriteEndsTheResponse(t *testing.T) {
	out := &sink{max: 30}
	w := begin(t, out, "GET")
	if err := w.Flush(); err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write(make([]byte, KeepBack+1)); !errors.Is(err, errFull) || !errors.Is(w.Err(), errFull) {
		t.Errorf("%v, %v", err, w.Err())
	}
	if _, err := w.Write(nil); !errors.Is(err, ErrEnded) {
		t.Errorf("write after the failure: %v", err)
	}
}
