package fcgi

import (
	"bytes"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"wsgigate/environ"
)

// respond makes one request of a handler and returns what came, and the error that
// ended it.
func respond(t *testing.T, network string, handler environ.HandlerFunc) (*answer, error) {
	t.Helper()
	s := start(t, network, &Server{Handler: handler})
	p := s.dial(t)
	p.send(ask{id: 1}.bytes())
	got, err := p.answers(1)
	return got[1], err
}

// TestWriteSizes: whatever the sizes of the writes, the body arrives.
func TestWriteSizes(t *testing.T) {
	all := pattern(3 << 20)
	for _, network := range []string{"unix", "tcp"} {
		for _, sizes := range [][]int{
			{0}, {1}, {7, 8, 9}, {maxHeld - 1}, {maxHeld, 1}, {maxHeld + 1}, {alignedContent - 1}, {alignedContent}, {alignedContent + 1},
			{maxContent}, {maxContent + 1}, {100, 200 << 10, 100}, {2 << 20, 3}, {5, alignedContent*batch + 5}, {16 << 10, 16 << 10, 16 << 10},
		} {
			total := 0
			for _, n := range sizes {
				total += n
			}
			a, err := respond(t, network, func(w environ.ResponseWriter, _ *environ.Request) {
				_ = w.WriteHeader(header(t))
				rest := all
				for _, n := range sizes {
					if got, err := w.Write(rest[:n]); got != n || err != nil {
						t.Errorf("Write: %d, %v", got, err)
					}
					rest = rest[n:]
				}
			})
			if _, body, _ := strings.Cut(a.out, "\r\n\r\n"); err != nil || body != string(all[:total]) {
				t.Errorf("%s %v: %d bytes, %v", network, sizes, len(body), err)
			}
		}
	}
}

// TestFlush: what is flushed arrives while the handler goes on, and what is
// small and not flushed waits for the end.
func TestFlush(t *testing.T) {
	next := make(chan struct{})
	s := start(t, "unix", &Server{Handler: environ.HandlerFunc(func(w environ.ResponseWriter, _ *environ.Request) {
		_ = w.Flush() // before the header: nothing
		_ = w.WriteHeader(header(t))
		for _, block := range []string{"", "one", "two"} {
			_, _ = io.WriteString(w, block)
			_ = w.Flush()
			<-next
		}
	})})
	p := s.dial(t)
	p.send(ask{id: 1}.bytes())
	for _, want := range []string{"Status: 200 OK\r\n\r\n", "one", "two"} {
		if f, err := p.next(); err != nil || string(f.body) != want {
			t.Errorf("%q %v, want %q", f.body, err, want)
		}
		next <- struct{}{}
	}
	p.answer(1)
}

func TestSendFile(t *testing.T) {
	all := pattern(1 << 20)
	name := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(name, all, 0o600); err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(name)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for _, network := range []string{"unix", "tcp"} {
		for _, n := range []int64{0, 1, 5000, minSendfile - 1, minSendfile, minSendfile + 3, 1<<20 - 1000} {
			a, err := respond(t, network, func(w environ.ResponseWriter, _ *environ.Request) {
				_ = w.WriteHeader(header(t))
				_, _ = io.WriteString(w, "before")
				w.WriteErrors([]byte("note"))
				if got, err := w.(environ.FileSender).SendFile(f, 1000, n); got != n || err != nil {
					t.Errorf("SendFile: %d, %v", got, err)
				}
				_, _ = io.WriteString(w, "after")
			})
			want := "before" + string(all[1000:1000+n]) + "after"
			if _, body, _ := strings.Cut(a.out, "\r\n\r\n"); err != nil || body != want || a.errs != "note" {
				t.Errorf("%s %d: %d bytes, errors %q, %v", network, n, len(body), a.errs, err)
			}
		}
	}
	if at, err := f.Seek(0, io.SeekCurrent); err != nil || at != 0 {
		t.Errorf("the file's position moved to %d, %v", at, err)
	}
}

// TestSendFileShort: a file that is shorter than announced must not look whole.
func TestSendFileShort(t *testing.T) {
	name := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(name, make([]byte, 300<<10), 0o600); err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(name)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for _, network := range []string{"unix", "tcp"} {
		a, err := respond(t, network, func(w environ.ResponseWriter, _ *environ.Request) {
			_ = w.WriteHeader(header(t))
			_, err := w.(environ.FileSender).SendFile(f, 0, 400<<10)
			if !errors.Is(err, io.ErrUnexpectedEOF) {
				t.Errorf("SendFile: %v", err)
			}
			w.Abort(err)
		})
		if err == nil || a.outEnd || a.end {
			t.Errorf("%s: the answer has an end: %v", network, err)
		}
	}
}

// TestAbort: before anything was sent it is an error page, after that there is no
// clean end, and the reset tells a TCP peer more than the close does.
func TestAbort(t *testing.T) {
	gone := environ.Errorf(502, "worker died")
	for _, network := range []string{"unix", "tcp"} {
		a, err := respond(t, network, func(w environ.ResponseWriter, _ *environ.Request) {
			_ = w.WriteHeader(header(t))
			_, _ = io.WriteString(w, "half")
			w.Abort(gone)
			if _, err := w.Write([]byte("more")); err == nil {
				t.Error("Write after Abort")
			}
			w.Abort(errors.New("again"))
		})
		if err != nil || !strings.HasPrefix(a.out, "Status: 502 ") || strings.Contains(a.out, "half") || !a.outEnd {
			t.Errorf("%s, before: %+v %v", network, a, err)
		}
		a, err = respond(t, network, func(w environ.ResponseWriter, _ *environ.Request) {
			_ = w.WriteHeader(header(t, "Content-Length", "8"))
			_, _ = io.WriteString(w, "half")
			_ = w.Flush()
			w.Abort(gone)
		})
		if err == nil || a.outEnd || a.end {
			t.Errorf("%s, after: %+v %v", network, a, err)
		}
		if reset := !errors.Is(err, io.EOF); network == "tcp" && !reset {
			t.Errorf("no reset: %v", err)
		}
	}
}

func TestPanic(t *testing.T) {
	s := start(t, "unix", &Server{Handler: environ.HandlerFunc(func(w environ.ResponseWriter, r *environ.Request) {
		if string(r.Environ.Get("PATH_INFO")) == "/late" {
			_ = w.WriteHeader(header(t))
			_ = w.Flush()
		}
		panic("a bug")
	})})
	p := s.dial(t)
	p.send(ask{id: 1, keep: true}.bytes())
	if got := p.answer(1); !strings.HasPrefix(got.out, "Status: 500 ") {
		t.Errorf("%+v", got)
	}
	p.send(ask{id: 1, keep: true, params: path("/late")}.bytes())
	if got, err := p.answers(1); err == nil || got[1].outEnd {
		t.Errorf("%+v %v", got[1], err)
	}
	if !strings.Contains(s.log.String(), "a bug") {
		t.Error("the panic is not in the log")
	}
}

func TestSilentHandler(t *testing.T) {
	a, err := respond(t, "unix", func(w environ.ResponseWriter, _ *environ.Request) {
		if _, err := w.Write([]byte("x")); err == nil {
			t.Error("Write before WriteHeader")
		}
	})
	if err != nil || !strings.HasPrefix(a.out, "Status: 500 ") {
		t.Errorf("%+v %v", a, err)
	}
}

func TestHeaderTwice(t *testing.T) {
	a, err := respond(t, "unix", func(w environ.ResponseWriter, _ *environ.Request) {
		_ = w.WriteHeader(header(t))
		if w.WriteHeader(header(t)) == nil {
			t.Error("WriteHeader twice")
		}
	})
	if err != nil || a.out != "Status: 200 OK\r\n\r\n" {
		t.Errorf("%+v %v", a, err)
	}
}

func TestHeadHasNoBody(t *testing.T) {
	s := start(t, "unix", &Server{Handler: page(t)})
	p := s.dial(t)
	p.send(ask{id: 1, params: []string{"REQUEST_METHOD", "HEAD", "PATH_INFO", "/"}}.bytes())
	if got := p.answer(1); !strings.HasSuffix(got.out, "\r\n\r\n") {
		t.Errorf("%+v", got)
	}
}

// TestErrors: wsgi.errors reaches the web server, bounded and without control
// characters, and never makes the handler wait (FAULTS 48).
func TestErrors(t *testing.T) {
	a, err := respond(t, "unix", func(w environ.ResponseWriter, _ *environ.Request) {
		w.WriteErrors([]byte("line\n"))
		w.WriteErrors(nil)
		_ = w.WriteHeader(header(t))
		_ = w.Flush()
		w.WriteErrors([]byte("\ttab \x1b[31m \r \x00 \x7f \xc3\xa9"))
		_, _ = w.Write(make([]byte, maxHeld+1))
	})
	if want := "line\n\ttab \\x1b[31m \\x0d \\x00 \\x7f \xc3\xa9"; err != nil || a.errs != want {
		t.Errorf("%q %v", a.errs, err)
	}
	a, err = respond(t, "unix", func(w environ.ResponseWriter, _ *environ.Request) {
		_ = w.WriteHeader(header(t))
		line := bytes.Repeat([]byte("\x1b"), 1<<10)
		for range 10 << 10 {
			w.WriteErrors(line)
		}
		_, _ = io.WriteString(w, "body")
	})
	if err != nil || len(a.errs) != maxErrors || !strings.HasSuffix(a.out, "body") {
		t.Errorf("%d bytes of errors, %v", len(a.errs), err)
	}
}

// TestErrorsBeside: WriteErrors may be called beside the other methods.
func TestErrorsBeside(t *testing.T) {
	a, err := respond(t, "unix", func(w environ.ResponseWriter, _ *environ.Request) {
		done := make(chan struct{})
		go func() {
			defer close(done)
			for range 100 {
				w.WriteErrors([]byte("e"))
			}
		}()
		_ = w.WriteHeader(header(t))
		for range 100 {
			_, _ = io.WriteString(w, "b")
			_ = w.Flush()
		}
		<-done
	})
	if err != nil || strings.Count(a.errs, "e") != 100 || strings.Count(a.out, "b") != 100 {
		t.Errorf("%+v %v", a, err)
	}
}

// TestUnreadInput: over TCP a close with unread input resets the connection; the
// answer must not be lost by that.
func TestUnreadInput(t *testing.T) {
	for range 5 {
		s := start(t, "tcp", &Server{Handler: page(t), Rules: environ.Rules{Limits: environ.Limits{ReadAhead: 1000}}})
		p := s.dial(t)
		body := make([]byte, 1<<20)
		go func() { _, _ = p.Write(ask{id: 1, body: string(body), length: "auto"}.bytes()) }()
		time.Sleep(5 * time.Millisecond) // the answer is there before it is read
		if got := p.answer(1); len(got.out) < 2048 {
			t.Errorf("%d bytes", len(got.out))
		}
		if rest, err := p.closed(); err != nil || len(rest) > 0 {
			t.Errorf("%q %v", rest, err)
		}
	}
}
