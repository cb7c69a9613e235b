package fcgi

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"wsgigate/environ"
)

// stage is a handler that a test steers.
type stage struct {
	calls     atomic.Int32
	cancelled chan error // what Cancel was called with
	proceed   chan struct{}
}

func newStage() *stage {
	return &stage{cancelled: make(chan error, 300), proceed: make(chan struct{})}
}

// await blocks until the request is cancelled or the test lets it go on.
func (s *stage) await(r *environ.Request) error {
	gone := make(chan error, 1)
	r.OnCancel(func(err error) { gone <- err })
	defer r.OnCancel(nil)
	select {
	case err := <-gone:
		s.cancelled <- err
		return err
	case <-s.proceed:
		return nil
	}
}

// ServeGateway waits, then answers with the request's path, in spite of a cancel.
func (s *stage) ServeGateway(w environ.ResponseWriter, r *environ.Request) {
	s.calls.Add(1)
	_ = s.await(r)
	var h environ.Header
	_ = h.SetStatus(200, "OK")
	_ = w.WriteHeader(&h)
	_, _ = w.Write(r.Environ.Get("PATH_INFO"))
}

func (s *stage) wasCancelled(t *testing.T, want error) {
	t.Helper()
	select {
	case err := <-s.cancelled:
		if !errors.Is(err, want) {
			t.Errorf("cancelled with %v, want %v", err, want)
		}
	case <-time.After(patience):
		t.Fatal("the handler was not cancelled")
	}
}

func (s *stage) called(t *testing.T, n int32) {
	t.Helper()
	eventually(t, fmt.Sprintf("%d calls of the handler", n), func() bool { return s.calls.Load() == n })
}

func path(name string) []string {
	return []string{"REQUEST_METHOD", "GET", "SCRIPT_NAME", "", "PATH_INFO", name}
}

// TestClientGone: row 37, a closed connection is an abort.
func TestClientGone(t *testing.T) {
	for name, request := range map[string][]byte{
		"plain":     ask{id: 1}.bytes(),
		"kept":      ask{id: 1, keep: true}.bytes(),
		"two":       append(ask{id: 1, keep: true}.bytes(), ask{id: 2, keep: true}.bytes()...),
		"two plain": append(ask{id: 1}.bytes(), ask{id: 2, keep: true}.bytes()...)[:len(ask{id: 1}.bytes())],
	} {
		t.Run(name, func(t *testing.T) {
			st := newStage()
			s := start(t, "unix", &Server{Handler: st})
			p := s.dial(t)
			p.send(request)
			st.called(t, int32(bytes.Count(request, []byte("GATEWAY_INTERFACE"))))
			_ = p.Close()
			for range st.calls.Load() {
				st.wasCancelled(t, environ.ErrClientGone)
			}
		})
	}
}

// TestClientGoneInBody: a body that ends with its connection is an error, and
// the request is cancelled.
func TestClientGoneInBody(t *testing.T) {
	read := make(chan error, 1)
	s := start(t, "unix", &Server{
		Rules: environ.Rules{Limits: environ.Limits{ReadAhead: 10}},
		Handler: environ.HandlerFunc(func(w environ.ResponseWriter, r *environ.Request) {
			_, err := io.Copy(io.Discard, r.Body)
			read <- err
			w.Abort(err)
		}),
	})
	for _, a := range []ask{{id: 1, body: "more than ten bytes", length: "50"}, {id: 1, body: "more than ten bytes"}} {
		p := s.dial(t)
		b := a.bytes()
		p.send(b[:len(b)-headerLen])
		_ = p.Close()
		if err := <-read; !errors.Is(err, io.ErrUnexpectedEOF) || environ.StatusOf(err) != 400 {
			t.Errorf("body ended with %v", err)
		}
	}
}

// TestAbortRequest: row 38. An abort gets one END_REQUEST at once; what the
// handler says later is for nobody, above all not for the id's next request.
func TestAbortRequest(t *testing.T) {
	st := newStage()
	s := start(t, "unix", &Server{Handler: st})
	p := s.dial(t)
	for i := range int32(3) {
		p.send(ask{id: 1, keep: true, params: path("/old")}.bytes())
		st.called(t, 2*i+1)
		p.send(end(typeAbortRequest, 1))
		if got := p.answer(1); got.out != "" || got.status != requestComplete {
			t.Errorf("aborted request was answered with %+v", got)
		}
		st.wasCancelled(t, environ.ErrAborted)
		p.send(ask{id: 1, keep: true, params: path("/new")}.bytes())
		st.called(t, 2*i+2)
		st.proceed <- struct{}{}
		if got := p.answer(1); !strings.HasSuffix(got.out, "\r\n\r\n/new") {
			t.Errorf("next request was answered with %+v", got)
		}
	}
}

// TestAbortBeforeHandler: an abort ends a request at every stage of its coming in.
func TestAbortBeforeHandler(t *testing.T) {
	s := start(t, "unix", &Server{Handler: reflect(t)})
	a := ask{id: 3, keep: true, body: "body", length: "auto"}
	whole := a.bytes()
	p := s.dial(t)
	for _, n := range []int{16, len(a.opening()) - headerLen, len(a.opening()), len(whole) - headerLen} {
		p.send(append(whole[:n:n], end(typeAbortRequest, 3)...))
		if got := p.answer(3); got.out != "" || got.status != requestComplete {
			t.Errorf("%d bytes: %+v", n, got)
		}
	}
	p.send(whole)
	if got := p.answer(3); !strings.Contains(got.out, `body="body"`) {
		t.Errorf("%+v", got)
	}
}

// TestAbortEndsConnection: without FCGI_KEEP_CONN the connection ends, too.
func TestAbortEndsConnection(t *testing.T) {
	st := newStage()
	s := start(t, "tcp", &Server{Handler: st})
	p := s.dial(t)
	p.send(ask{id: 1}.bytes())
	st.called(t, 1)
	p.send(end(typeAbortRequest, 1))
	p.answer(1)
	p.mustClose()
	st.wasCancelled(t, environ.ErrAborted)
}

// TestSlowHeaders: row 39.
func TestSlowHeaders(t *testing.T) {
	limits := environ.Limits{HeaderTimeout: 200 * time.Millisecond}
	s := start(t, "unix", &Server{Handler: newStage(), Rules: environ.Rules{Limits: limits}})
	whole := ask{id: 1}.bytes()
	stalled := map[int]*peer{} // by the bytes that they sent
	for _, n := range []int{0, 3, 12, 16, 200, len(whole) - 2*headerLen} {
		stalled[n] = s.dial(t)
		stalled[n].send(whole[:n])
	}
	for n, p := range stalled {
		rest, err := p.closed()
		if err != nil || n >= 16 != bytes.Contains(rest, []byte("Status: 408")) {
			t.Errorf("%d bytes: %q, %v", n, rest, err)
		}
	}
	// One byte every few milliseconds does not help.
	p := s.dial(t)
	for i := range whole {
		if _, err := p.Write(whole[i : i+1]); err != nil {
			break
		}
		time.Sleep(2 * time.Millisecond)
	}
	if got := p.answer(1); !strings.HasPrefix(got.out, "Status: 408 ") {
		t.Errorf("a header that took long: %+v", got)
	}
}

// TestSlowBody: row 40. No handler is called for a body that stops below the
// bound; one that stops later breaks in the handler's hands.
func TestSlowBody(t *testing.T) {
	read := make(chan error, 1)
	s := start(t, "unix", &Server{
		Rules: environ.Rules{Limits: environ.Limits{BodyTimeout: 30 * time.Millisecond, ReadAhead: 100}},
		Handler: environ.HandlerFunc(func(w environ.ResponseWriter, r *environ.Request) {
			_, err := io.Copy(io.Discard, r.Body)
			read <- err
			w.Abort(err)
		}),
	})
	for _, n := range []int{0, 50, 200} {
		p := s.dial(t)
		b := ask{id: 1, body: strings.Repeat("x", n), length: "300"}.bytes()
		p.send(b[:len(b)-headerLen])
		if got := p.answer(1); !strings.HasPrefix(got.out, "Status: 408 ") {
			t.Errorf("%d bytes: %+v", n, got)
		}
		p.mustClose()
		select {
		case err := <-read:
			if n < 100 || environ.StatusOf(err) != 408 {
				t.Errorf("handler was called for a body of %d bytes: %v", n, err)
			}
		default:
			if n >= 100 {
				t.Errorf("handler was not called for a body of %d bytes", n)
			}
		}
	}
}

// TestSlowReader: row 41, a peer that takes nothing does not hold a handler.
func TestSlowReader(t *testing.T) {
	for _, network := range []string{"unix", "tcp"} {
		wrote := make(chan error, 1)
		h := header(t)
		s := start(t, network, &Server{
			Rules: environ.Rules{Limits: environ.Limits{WriteTimeout: 30 * time.Millisecond}},
			Handler: environ.HandlerFunc(func(w environ.ResponseWriter, r *environ.Request) {
				_ = w.WriteHeader(h)
				_, err := w.Write(make([]byte, 64<<20))
				wrote <- err
			}),
		})
		p := s.dial(t)
		p.send(ask{id: 1}.bytes())
		select {
		case err := <-wrote:
			if !errors.Is(err, environ.ErrClientGone) {
				t.Errorf("%s: Write returned %v", network, err)
			}
		case <-time.After(patience):
			t.Fatal("the handler is held")
		}
		if _, err := p.answers(1); err == nil {
			t.Error("a response that was given up has an end")
		}
	}
}

// TestHugeParams: rows 42 and S5. All are answered or cut, and the handler never
// sees them.
func TestHugeParams(t *testing.T) {
	st := newStage()
	s := start(t, "unix", &Server{Handler: st, Rules: environ.Rules{Limits: environ.Limits{MaxHeaders: 4096, MaxFields: 100}}})
	long := appendPair(nil, "HTTP_X", strings.Repeat("x", 5000))
	many := bytes.Repeat(appendPair(nil, "A", ""), 101)
	for name, pairs := range map[string][]byte{
		"name length 0x7fffffff":   {0xff, 0xff, 0xff, 0xff, 1},
		"value length 0x7fffffff":  {1, 0xff, 0xff, 0xff, 0xff, 'x'},
		"both lengths":             {0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff},
		"sum passes 32 bits":       {0xff, 0xff, 0xff, 0xff, 0x80, 0, 0, 2},
		"one value over the limit": long,
		"too many pairs":           many,
	} {
		for _, keep := range []bool{false, true} {
			p := s.dial(t)
			flags := byte(0)
			if keep {
				flags = flagKeepConn
			}
			p.send(appendStream(appendBegin(nil, 1, wireResponder, flags), typeParams, 1, pairs))
			if got := p.answer(1); !strings.HasPrefix(got.out, "Status: 431 ") {
				t.Errorf("%s: %+v", name, got)
			}
			p.mustClose()
		}
	}
	// Endless ones.
	p := s.dial(t)
	p.send(appendBegin(nil, 1, wireResponder, 1))
	pair := appendPair(nil, "HTTP_X", strings.Repeat("x", 100))
	for i := 0; ; i++ {
		if _, err := p.Write(appendStream(nil, typeParams, 1, pair)); err != nil {
			break
		}
		if i > 1<<20 {
			t.Fatal("endless PARAMS are taken")
		}
	}
	if st.calls.Load() > 0 {
		t.Error("the handler was called")
	}
}

// TestPartialPair: PARAMS that end within a pair.
func TestPartialPair(t *testing.T) {
	s := start(t, "unix", &Server{Handler: newStage()})
	for _, pairs := range []string{"\x01", "\x01\x01", "\x01\x01a", "\x80\x00\x00"} {
		p := s.dial(t)
		p.send(append(appendStream(appendBegin(nil, 1, wireResponder, 0), typeParams, 1, []byte(pairs)), end(typeParams, 1)...))
		if got := p.answer(1); !strings.HasPrefix(got.out, "Status: 400 ") {
			t.Errorf("%q: %+v", pairs, got)
		}
	}
}

// TestManyOpenRequests: row 43.
func TestManyOpenRequests(t *testing.T) {
	const bound = 20
	s := start(t, "unix", &Server{Handler: reflect(t), Rules: environ.Rules{Limits: environ.Limits{MaxRequestsPerConn: bound}}})
	p := s.dial(t)
	go func() {
		var all []byte
		for id := 1; id <= 65535; id++ {
			all = appendBegin(all, uint16(id), wireResponder, 1)
		}
		_, _ = p.Write(all)
	}()
	for id := bound + 1; id <= 65535; id++ {
		f, err := p.next()
		if err != nil || f.kind != typeEndRequest || int(f.id) != id || protocolStatus(f.body[4]) != cantMultiplex {
			t.Fatalf("id %d: %+v %v", id, f, err)
		}
	}
	// The first ones are not disturbed, and make room for others.
	a := ask{id: 1, keep: true}
	for range 3 {
		p.send(a.bytes()[16:])
		p.answer(1)
		p.send(a.bytes()[:16])
	}
}

// TestAbortedHandlersCount: handlers that go on after an abort count as open, so
// that a peer cannot pile them up.
func TestAbortedHandlersCount(t *testing.T) {
	hold := make(chan struct{})
	var calls atomic.Int32
	s := start(t, "unix", &Server{
		Rules: environ.Rules{Limits: environ.Limits{MaxRequestsPerConn: 3}},
		Handler: environ.HandlerFunc(func(environ.ResponseWriter, *environ.Request) {
			calls.Add(1)
			<-hold
		}),
	})
	defer close(hold)
	p := s.dial(t)
	for i := range 5 {
		p.send(append(ask{id: 1, keep: true}.bytes(), end(typeAbortRequest, 1)...))
		got := p.answer(1)
		if want := i >= 3; (got.status == cantMultiplex) != want {
			t.Errorf("request %d: %+v", i, got)
		}
	}
	eventually(t, "three calls", func() bool { return calls.Load() == 3 })
}

// TestBodyLimit: row 44.
func TestBodyLimit(t *testing.T) {
	for name, limits := range map[string]environ.Limits{
		"before the handler": {MaxBody: 1000},
		"in the handler":     {MaxBody: 200 << 10, ReadAhead: 1000},
	} {
		t.Run(name, func(t *testing.T) {
			h := header(t)
			var whole atomic.Int32
			s := start(t, "unix", &Server{
				Rules: environ.Rules{Limits: limits},
				Handler: environ.HandlerFunc(func(w environ.ResponseWriter, r *environ.Request) {
					if n, err := io.Copy(io.Discard, r.Body); err != nil {
						environ.Fail(w, r, err)
					} else {
						whole.Store(int32(n))
						_ = w.WriteHeader(h)
					}
				}),
			})
			for _, keep := range []bool{false, true} {
				p := s.dial(t)
				p.send(ask{id: 1, keep: keep}.opening())
				go func(p *peer) { // an endless body
					block := appendStream(nil, typeStdin, 1, make([]byte, 32<<10))
					for {
						if _, err := p.Write(block); err != nil {
							return
						}
					}
				}(p)
				if got := p.answer(1); !strings.HasPrefix(got.out, "Status: 413 ") {
					t.Errorf("endless body: %+v", got)
				}
				_ = p.Close()

				p = s.dial(t)
				p.send(ask{id: 1, keep: keep, length: fmt.Sprint(limits.MaxBody + 1)}.opening())
				if got := p.answer(1); !strings.HasPrefix(got.out, "Status: 413 ") {
					t.Errorf("CONTENT_LENGTH: %+v", got)
				}

				p = s.dial(t)
				p.send(ask{id: 1, keep: keep, body: strings.Repeat("x", int(limits.MaxBody))}.bytes())
				if got := p.answer(1); !strings.HasPrefix(got.out, "Status: 200 ") || int64(whole.Load()) != limits.MaxBody {
					t.Errorf("body of the very limit: %+v, %d bytes", got, whole.Load())
				}
			}
		})
	}
}

// TestContentLength: row 45.
func TestContentLength(t *testing.T) {
	var calls atomic.Int32
	inner := reflect(t)
	s := start(t, "unix", &Server{Handler: environ.HandlerFunc(func(w environ.ResponseWriter, r *environ.Request) {
		calls.Add(1)
		inner(w, r)
	})})
	for _, test := range []struct{ length, body, want string }{
		{"5", "12345", "200"}, {"0", "", "200"}, {"", "12345", "200"}, {"005", "12345", "200"},
		{"5", "1234", "400"}, {"5", "", "400"}, {"5", "123456", "400"}, {"0", "1", "400"},
		{"+5", "12345", "400"}, {"-5", "12345", "400"}, {"0x5", "12345", "400"}, {" 5", "12345", "400"}, {"5,5", "12345", "400"},
		{"99999999999999999999", "", "413"}, {"2147483647", "", "413"}, {"4294967295", "", "413"},
	} {
		for _, keep := range []bool{false, true} {
			p := s.dial(t)
			before := calls.Load()
			p.send(ask{id: 1, keep: keep, body: test.body, params: append([]string{"CONTENT_LENGTH", test.length}, realistic...)}.bytes())
			if got := p.answer(1); !strings.HasPrefix(got.out, "Status: "+test.want) {
				t.Errorf("CONTENT_LENGTH %q, body %q: %+v", test.length, test.body, got)
			}
			if called := calls.Load() > before; called != (test.want == "200") {
				t.Errorf("CONTENT_LENGTH %q, body %q: handler called: %v", test.length, test.body, called)
			}
			if keep { // the connection still is good
				p.send(ask{id: 1}.bytes())
				p.answer(1)
			}
		}
	}
	p := s.dial(t)
	p.send(ask{id: 1, body: "12345", length: "5", params: append([]string{"CONTENT_LENGTH", "5"}, realistic...)}.bytes())
	if got := p.answer(1); !strings.HasPrefix(got.out, "Status: 400") {
		t.Errorf("CONTENT_LENGTH twice: %+v", got)
	}
}

// TestContentLengthLate: row 45 when the handler already has the request.
func TestContentLengthLate(t *testing.T) {
	s := start(t, "unix", &Server{Handler: reflect(t), Rules: environ.Rules{Limits: environ.Limits{ReadAhead: 10}}})
	for body, want := range map[int]string{99: "400", 100: "200", 101: "400", 100000: "400"} {
		p := s.dial(t)
		p.send(ask{id: 1, body: strings.Repeat("x", body), length: "100"}.bytes())
		if got := p.answer(1); !strings.HasPrefix(got.out, "Status: "+want) {
			t.Errorf("%d bytes: %.50q", body, got.out)
		}
	}
}

// TestTruncated: row 47. A connection that ends anywhere within a request ends
// cleanly, and the handler is not called.
func TestTruncated(t *testing.T) {
	st := newStage()
	s := start(t, "unix", &Server{Handler: st})
	whole := ask{id: 1, body: "body", length: "auto"}.bytes()
	for n := 0; n < len(whole); n += 1 + n%7 {
		p := s.dial(t)
		p.send(whole[:n])
		_ = p.Conn.(interface{ CloseWrite() error }).CloseWrite()
		p.mustClose()
	}
	if n := st.calls.Load(); n > 0 {
		t.Errorf("the handler was called %d times", n)
	}
}

// TestPacketSplits delivers a request in pieces that the server cannot see as
// one: each read gets one packet.
func TestPacketSplits(t *testing.T) {
	s := &Server{Handler: page(t)}
	whole := ask{id: 1, body: "body", length: "auto"}.bytes()
	for _, size := range []int{1, 2, 3, 7, 8, 9, 100, len(whole)} {
		fd, done := pair(t, s, unix.SOCK_SEQPACKET)
		for rest := whole; len(rest) > 0; {
			n := min(size, len(rest))
			if _, err := unix.Write(fd, rest[:n]); err != nil {
				t.Fatal(err)
			}
			rest = rest[n:]
		}
		buf := make([]byte, 8192)
		n, err := unix.Read(fd, buf)
		if err != nil || !bytes.HasPrefix(buf[headerLen:n], []byte("Status: 200 OK")) || !bytes.HasSuffix(buf[:n], appendEnd(nil, 1, 0, 0)) {
			t.Errorf("packets of %d bytes: %q %v", size, buf[:n], err)
		}
		_ = unix.Close(fd)
		<-done
	}
}

// TestCutAnswer: an answer that breaks off ends with something that is no FastCGI, and
// without END_REQUEST, so that no web server takes it for whole.
func TestCutAnswer(t *testing.T) {
	for _, keep := range []bool{false, true} {
		s := start(t, "unix", &Server{Handler: environ.HandlerFunc(func(w environ.ResponseWriter, _ *environ.Request) {
			_ = w.WriteHeader(header(t))
			_, _ = w.Write([]byte("begun"))
			_ = w.Flush()
			w.Abort(errors.New("cut"))
		})})
		p := s.dial(t)
		p.send(ask{id: 1, keep: keep}.bytes())
		got, err := p.closed()
		if err != nil || !bytes.Contains(got, []byte("begun")) || !bytes.HasSuffix(got, zeros[:]) || bytes.Contains(got, appendEnd(nil, 1, 0, requestComplete)) {
			t.Errorf("keep %v: %q, %v", keep, got, err)
		}
	}
}
