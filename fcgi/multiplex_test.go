package fcgi

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"wsgigate/environ"
)

// digest answers with the length and digest of a body, which it reads once it may.
type digest struct {
	*stage
	t testing.TB
}

func (d digest) ServeGateway(w environ.ResponseWriter, r *environ.Request) {
	d.calls.Add(1)
	if d.await(r) != nil {
		return
	}
	sum := sha256.New()
	n, err := io.Copy(sum, r.Body)
	if err != nil {
		w.Abort(err)
		return
	}
	_ = w.WriteHeader(header(d.t))
	fmt.Fprintf(w, "%d %x", n, sum.Sum(nil))
}

func pattern(n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(i * 7 >> 3)
	}
	return b
}

// TestUnreadBodyStopsNobody: one request whose body nobody reads, and behind its 3
// MiB another request, GET_VALUES and an abort of a third. Then the body is
// read, whole, from memory and from a file without a name.
func TestUnreadBodyStopsNobody(t *testing.T) {
	spool := t.TempDir()
	t.Setenv("TMPDIR", spool)
	st := newStage()
	slow, aborted := digest{st, t}, newStage()
	s := start(t, "unix", &Server{
		Rules: environ.Rules{Limits: environ.Limits{ReadAhead: 100 << 10}},
		Handler: environ.HandlerFunc(func(w environ.ResponseWriter, r *environ.Request) {
			switch string(r.Environ.Get("PATH_INFO")) {
			case "/slow":
				slow.ServeGateway(w, r)
			case "/aborted":
				aborted.ServeGateway(w, r)
			default:
				reflect(t)(w, r)
			}
		}),
	})
	body := pattern(3 << 20)
	p := s.dial(t)
	a := ask{id: 1, keep: true, params: path("/slow"), length: "auto", body: string(body)}
	p.send(a.bytes())
	p.send(ask{id: 2, keep: true, params: path("/aborted")}.bytes())
	p.send(ask{id: 3, keep: true, params: path("/quick")}.bytes())
	if got := p.answer(3); !strings.Contains(got.out, "PATH_INFO=/quick\n") {
		t.Errorf("%+v", got)
	}
	p.send(end(typeAbortRequest, 2))
	p.answer(2)
	aborted.wasCancelled(t, environ.ErrAborted)
	if files, err := os.ReadDir(spool); err != nil || len(files) > 0 {
		t.Errorf("files left in the spool: %v %v", files, err)
	}
	st.proceed <- struct{}{}
	if got, want := p.answer(1).out, fmt.Sprintf("%d %x", len(body), sha256.Sum256(body)); !strings.HasSuffix(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
}

// TestSpoolFails: without a spool the one request ends, and nobody else's.
func TestSpoolFails(t *testing.T) {
	t.Setenv("TMPDIR", filepath.Join(t.TempDir(), "missing"))
	st := newStage()
	s := start(t, "unix", &Server{
		Handler: digest{st, t},
		Rules:   environ.Rules{Limits: environ.Limits{ReadAhead: 1000}},
	})
	p := s.dial(t)
	p.send(ask{id: 1, keep: true, length: "auto", body: string(pattern(100 << 10))}.bytes())
	p.send(ask{id: 2, keep: true, length: "auto", body: "x"}.bytes())
	st.called(t, 2)
	close(st.proceed)
	got, err := p.answers(1, 2)
	if err != nil {
		t.Fatal(err)
	}
	if !strings.HasPrefix(got[1].out, "Status: 500 ") || !strings.HasPrefix(got[2].out, "Status: 200 ") {
		t.Errorf("%+v %+v", got[1], got[2])
	}
}

// TestBackPressure: a body that nobody reads holds its connection and takes no
// memory; the response gets through all the same (FAULTS 20).
func TestBackPressure(t *testing.T) {
	for _, network := range []string{"unix", "tcp"} {
		t.Run(network, func(t *testing.T) {
			st := newStage()
			s := start(t, network, &Server{Handler: st, Rules: environ.Rules{Limits: environ.Limits{ReadAhead: 64 << 10}}})
			p := s.dial(t)
			const size = 100 << 20
			p.send(ask{id: 1, length: fmt.Sprint(size), params: path("/x")}.opening())
			var sent atomic.Int64
			stopped := make(chan struct{})
			go func() {
				defer close(stopped)
				block := appendStream(nil, typeStdin, 1, make([]byte, alignedContent))
				for sent.Load() < size {
					n, err := p.Write(block)
					sent.Add(int64(n))
					if err != nil {
						return
					}
				}
			}()
			st.called(t, 1)
			last := int64(-1)
			eventually(t, "the sender is held", func() bool {
				time.Sleep(20 * time.Millisecond)
				now := sent.Load()
				held := now == last
				last = now
				return held
			})
			if last > 16<<20 {
				t.Errorf("%d bytes were taken", last)
			}
			st.proceed <- struct{}{}
			if got := p.answer(1); !strings.HasSuffix(got.out, "/x") {
				t.Errorf("%+v", got)
			}
			_ = p.Close()
			<-stopped
		})
	}
}

// TestHeldSender: the time in which the sender was held does not count as its
// pause.
func TestHeldSender(t *testing.T) {
	const pause = 50 * time.Millisecond
	st := newStage()
	s := start(t, "unix", &Server{
		Handler: digest{st, t},
		Rules:   environ.Rules{Limits: environ.Limits{ReadAhead: 1000, BodyTimeout: 4 * pause}},
	})
	body := pattern(100 << 10)
	p := s.dial(t)
	b := ask{id: 1, length: "auto", body: string(body)}.bytes()
	rest := 1000 + headerLen
	p.send(b[:len(b)-rest])
	st.called(t, 1)
	time.Sleep(6 * pause)
	st.proceed <- struct{}{}
	time.Sleep(pause)
	p.send(b[len(b)-rest:])
	if got, want := p.answer(1).out, fmt.Sprintf("%d %x", len(body), sha256.Sum256(body)); !strings.HasSuffix(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
}

// TestOutputBeforeInput: row 21, a peer that reads nothing before it has sent its
// whole body, and a handler that reads nothing before it has sent its whole answer.
func TestOutputBeforeInput(t *testing.T) {
	const size = 8 << 20
	h := header(t)
	read := make(chan string, 1)
	s := start(t, "unix", &Server{
		Rules: environ.Rules{Limits: environ.Limits{ReadAhead: 64 << 10}},
		Handler: environ.HandlerFunc(func(w environ.ResponseWriter, r *environ.Request) {
			_ = w.WriteHeader(h)
			_, _ = w.Write(make([]byte, size))
			sum := sha256.New()
			n, err := io.Copy(sum, r.Body)
			read <- fmt.Sprintf("%d %x %v", n, sum.Sum(nil), err)
		}),
	})
	body := pattern(size)
	p := s.dial(t)
	p.send(ask{id: 1, length: "auto", body: string(body)}.bytes())
	if got := p.answer(1); len(got.out) < size {
		t.Errorf("%d bytes", len(got.out))
	}
	if got, want := <-read, fmt.Sprintf("%d %x <nil>", size, sha256.Sum256(body)); got != want {
		t.Errorf("body %s, want %s", got, want)
	}
}

// TestInterleaved runs many requests with bodies and answers of many sizes on one
// connection at once.
func TestInterleaved(t *testing.T) {
	h := header(t)
	s := start(t, "tcp", &Server{
		Rules: environ.Rules{Limits: environ.Limits{ReadAhead: 5000}},
		Handler: environ.HandlerFunc(func(w environ.ResponseWriter, r *environ.Request) {
			_ = w.WriteHeader(h)
			if _, err := io.Copy(w, r.Body); err != nil {
				w.Abort(err)
			}
		}),
	})
	p := s.dial(t)
	bodies := map[uint16][]byte{}
	var ids []uint16
	var streams [][]byte
	for id := uint16(1); id <= 30; id++ {
		bodies[id] = bytes.Repeat([]byte{byte(id)}, int(id)*1500)
		ids = append(ids, id)
		var b []byte
		b = append(b, ask{id: id, keep: true, length: fmt.Sprint(len(bodies[id]))}.opening()...)
		for piece := range slices.Chunk(bodies[id], 700) {
			b = appendStream(b, typeStdin, id, piece)
		}
		streams = append(streams, append(b, end(typeStdin, id)...))
	}
	go func() { // one record of each stream in turn
		for left := true; left; {
			left = false
			for i, b := range streams {
				if len(b) > 0 {
					rec, _ := parseRecord(b)
					n := headerLen + int(rec.content) + int(rec.padding)
					_, _ = p.Write(b[:n])
					streams[i] = b[n:]
					left = true
				}
			}
		}
	}()
	got, err := p.answers(ids...)
	if err != nil {
		t.Fatal(err)
	}
	for id, a := range got {
		if _, body, _ := strings.Cut(a.out, "\r\n\r\n"); body != string(bodies[id]) {
			t.Errorf("request %d: %d bytes, want %d", id, len(body), len(bodies[id]))
		}
	}
}

// TestTakeOver: requests that arrive while a handler runs in its connection's
// goroutine are served, again and again.
func TestTakeOver(t *testing.T) {
	st := newStage()
	s := start(t, "unix", &Server{Handler: environ.HandlerFunc(func(w environ.ResponseWriter, r *environ.Request) {
		if string(r.Environ.Get("PATH_INFO")) == "/slow" {
			st.ServeGateway(w, r)
		} else {
			reflect(t)(w, r)
		}
	})})
	p := s.dial(t)
	for i := range int32(5) {
		p.send(ask{id: 1, keep: true, params: path("/slow")}.bytes())
		st.called(t, i+1)
		for range 3 {
			p.send(ask{id: 2, keep: true}.bytes())
			p.answer(2)
		}
		st.proceed <- struct{}{}
		p.answer(1)
		p.send(ask{id: 1, keep: true}.bytes())
		p.answer(1)
	}
}

// TestTakeOverRace ends handlers at about the moment when another goroutine
// takes their connection over.
func TestTakeOverRace(t *testing.T) {
	h := header(t)
	s := start(t, "unix", &Server{Handler: environ.HandlerFunc(func(w environ.ResponseWriter, r *environ.Request) {
		until := time.Now().Add(takeOverAfter - 200*time.Microsecond + time.Duration(r.ID%8)*50*time.Microsecond)
		for time.Now().Before(until) {
			runtime.Gosched()
		}
		_ = w.WriteHeader(h)
		_, _ = w.Write([]byte("ok"))
	})})
	p := s.dial(t)
	for range 60 {
		p.send(ask{id: 1, keep: true}.bytes())
		if got := p.answer(1); !strings.HasSuffix(got.out, "\r\n\r\nok") {
			t.Fatalf("%+v", got)
		}
	}
	p.send(ask{id: 1}.bytes())
	p.answer(1)
	p.mustClose()
}

// TestCutAmongOthers: a response that is cut ends its connection, but only when the
// others on it are complete.
func TestCutAmongOthers(t *testing.T) {
	h := header(t)
	st := newStage()
	s := start(t, "tcp", &Server{Handler: environ.HandlerFunc(func(w environ.ResponseWriter, r *environ.Request) {
		if string(r.Environ.Get("PATH_INFO")) != "/cut" {
			st.ServeGateway(w, r)
			return
		}
		_ = w.WriteHeader(h)
		_, _ = w.Write([]byte("half"))
		_ = w.Flush()
		w.Abort(errors.New("no more"))
	})})
	p := s.dial(t)
	p.send(ask{id: 1, keep: true, params: path("/whole")}.bytes())
	p.send(ask{id: 2, keep: true, params: path("/cut")}.bytes())
	if f, err := p.next(); err != nil || f.id != 2 || !bytes.HasSuffix(f.body, []byte("half")) {
		t.Fatalf("%+v %v", f, err)
	}
	eventually(t, "a new request is turned away", func() bool {
		p.send(appendBegin(nil, 3, wireResponder, 1))
		p.send(end(typeAbortRequest, 3))
		f, err := p.next()
		if err != nil || f.kind != typeEndRequest || f.id != 3 {
			t.Fatalf("%+v %v", f, err)
		}
		return protocolStatus(f.body[4]) == cantMultiplex
	})
	st.proceed <- struct{}{}
	if got := p.answer(1); !strings.HasSuffix(got.out, "/whole") {
		t.Errorf("%+v", got)
	}
	if rest, err := p.closed(); err == nil || len(rest) > 0 {
		t.Errorf("the connection ended cleanly after a cut response: %q", rest)
	}
}

// TestIdle: a kept connection is closed after the idle timeout, however its last
// request ended.
func TestIdle(t *testing.T) {
	st := newStage()
	close(st.proceed)
	s := start(t, "unix", &Server{Handler: st, Rules: environ.Rules{Limits: environ.Limits{IdleTimeout: 50 * time.Millisecond}}})
	p := s.dial(t)
	p.send(ask{id: 1, keep: true}.bytes())
	p.answer(1)
	p.mustClose()

	p = s.dial(t) // the requests run beside the reader
	p.send(append(ask{id: 1, keep: true}.bytes(), ask{id: 2, keep: true}.bytes()...))
	if _, err := p.answers(1, 2); err != nil {
		t.Error(err)
	}
	p.mustClose()
}

// TestShutdown: idle connections are closed, running requests finish, and their web
// server is told not to keep the connection.
func TestShutdown(t *testing.T) {
	for _, slow := range []bool{false, true} {
		st := newStage()
		s := start(t, "unix", &Server{Handler: st})
		idle, busy := s.dial(t), s.dial(t)
		idle.send(ask{id: 1, keep: true}.bytes())
		st.proceed <- struct{}{}
		idle.answer(1)
		if slow {
			time.Sleep(2 * takeOverAfter)
		}
		busy.send(ask{id: 1, keep: true, params: path("/busy")}.bytes())
		st.called(t, 2)
		if slow {
			time.Sleep(2 * takeOverAfter)
		}
		down := make(chan error, 1)
		go func() {
			ctx, cancel := context.WithTimeout(context.Background(), patience)
			defer cancel()
			down <- s.Shutdown(ctx)
		}()
		idle.mustClose()
		st.proceed <- struct{}{}
		if got := busy.answer(1); !strings.HasSuffix(got.out, "/busy") {
			t.Errorf("%+v", got)
		}
		busy.mustClose()
		if err := <-down; err != nil {
			t.Error(err)
		}
	}
}

// TestShutdownLastRequest: a web server that has used its kept connection a moment ago
// may use it once more while the server shuts down. nginx is told that it was the last
// time; others, who would take that for the next answer, see the connection's end.
func TestShutdownLastRequest(t *testing.T) {
	for software, last := range map[string][]byte{
		"nginx/1.22.1":           appendRecord(nil, typeGetValuesResult, 0, 0, 0),
		"Apache/2.4.71 (Debian)": nil,
		"":                       nil,
	} {
		s := start(t, "unix", &Server{Handler: reflect(t)})
		p := s.dial(t)
		p.send(ask{id: 1, keep: true}.bytes())
		p.answer(1)
		down := s.beginShutdown(t)
		p.send(ask{id: 1, keep: true, params: append(path("/last"), "SERVER_SOFTWARE", software)}.bytes())
		if got := p.answer(1); !strings.Contains(got.out, "PATH_INFO=/last\n") {
			t.Errorf("%q: %+v", software, got)
		}
		p.mustSay(last)
		p.mustClose()
		if err := <-down; err != nil {
			t.Error(err)
		}
	}
}

// TestShutdownUnderLoad: every request that ran on a kept connection is answered,
// whenever the shutdown comes.
func TestShutdownUnderLoad(t *testing.T) {
	for range 5 {
		var ran, answered atomic.Int64
		answer := reflect(t)
		s := start(t, "unix", &Server{Handler: environ.HandlerFunc(func(w environ.ResponseWriter, r *environ.Request) {
			ran.Add(1)
			answer(w, r)
		})})
		var clients sync.WaitGroup
		for range 16 {
			p := s.dial(t)
			clients.Go(func() {
				for {
					if _, err := p.Write(ask{id: 1, keep: true}.bytes()); err != nil {
						return
					}
					if _, err := p.answers(1); err != nil {
						return
					}
					answered.Add(1)
				}
			})
		}
		eventually(t, "load", func() bool { return answered.Load() > 200 })
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		if err := s.Shutdown(ctx); err != nil {
			t.Error(err)
		}
		cancel()
		clients.Wait()
		if ran.Load() != answered.Load() {
			t.Errorf("%d requests ran, %d were answered", ran.Load(), answered.Load())
		}
	}
}

// TestShutdownSilent: a connection that never said anything does not hold a
// shutdown up.
func TestShutdownSilent(t *testing.T) {
	s := start(t, "unix", &Server{Handler: reflect(t)})
	p := s.dial(t)
	started := time.Now()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	if err := s.Shutdown(ctx); err != nil {
		t.Error(err)
	}
	p.mustClose()
	if d := time.Since(started); d > 2*freshWait {
		t.Errorf("took %v", d)
	}
}
