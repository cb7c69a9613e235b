package fcgi

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"sync/atomic"
	"testing"

	"wsgigate/environ"
	"wsgigate/environ/wire"
)

func TestClient(t *testing.T) {
	s := start(t, "unix", &Server{Handler: environ.HandlerFunc(func(w environ.ResponseWriter, r *environ.Request) {
		w.WriteErrors([]byte("a note\n"))
		reflect(t)(w, r)
	})})
	out, errs, err := s.roundTrip(t, nil, "")
	if err != nil || errs != "a note\n" || !strings.Contains(out, `length=0 body=""`) {
		t.Errorf("%q %q %v", out, errs, err)
	}
	out, _, err = s.roundTrip(t, strings.NewReader("hello"), "5")
	if err != nil || !strings.Contains(out, `length=5 body="hello"`) {
		t.Errorf("%q %v", out, err)
	}
	out, _, err = s.roundTrip(t, strings.NewReader("hello"), "6")
	if err != nil || !strings.HasPrefix(out, "Status: 400 ") {
		t.Errorf("%q %v", out, err)
	}
}

// TestClientLarge sends and gets much at the same time.
func TestClientLarge(t *testing.T) {
	s := start(t, "tcp", &Server{
		Rules: environ.Rules{Limits: environ.Limits{ReadAhead: 1000}},
		Handler: environ.HandlerFunc(func(w environ.ResponseWriter, r *environ.Request) {
			_ = w.WriteHeader(header(t))
			if _, err := io.Copy(w, r.Body); err != nil {
				w.Abort(err)
			}
		}),
	})
	body := pattern(10 << 20)
	out, _, err := s.roundTrip(t, bytes.NewReader(body), fmt.Sprint(len(body)))
	if _, got, _ := strings.Cut(out, "\r\n\r\n"); err != nil || sha256.Sum256([]byte(got)) != sha256.Sum256(body) {
		t.Errorf("%d bytes, %v", len(got), err)
	}
}

func TestClientKeepConn(t *testing.T) {
	var conns atomic.Int32
	handler := reflect(t)
	s := start(t, "unix", &Server{Handler: environ.HandlerFunc(func(w environ.ResponseWriter, r *environ.Request) {
		conns.Add(1)
		handler(w, r)
	})})
	c := &Client{Addr: s.addr, KeepConn: true}
	defer c.Close()
	var env environ.Environ
	env.Add("REQUEST_METHOD", "GET")
	env.Add("PATH_INFO", "/")
	env.Add("SERVER_SOFTWARE", "nginx/1.22.1") // which is told that a request was the last
	var first *wire.Conn
	for range 5 {
		var out bytes.Buffer
		if _, err := c.RoundTrip(context.Background(), &env, environ.Responder, nil, &out, io.Discard); err != nil {
			t.Fatal(err)
		}
		if first == nil {
			first = c.conn
		}
		if c.conn == nil || c.conn != first {
			t.Error("the connection was not kept")
		}
	}
	if conns.Load() != 5 {
		t.Errorf("%d requests", conns.Load())
	}

	down := s.beginShutdown(t)
	if _, err := c.RoundTrip(context.Background(), &env, environ.Responder, nil, io.Discard, io.Discard); err != nil {
		t.Errorf("on a connection of a server that shuts down: %v", err)
	}
	if c.conn != nil {
		t.Error("the connection was kept although its server is leaving")
	}
	if err := <-down; err != nil {
		t.Error(err)
	}
}

func TestClientRoles(t *testing.T) {
	s := start(t, "unix", &Server{Handler: reflect(t)})
	var env environ.Environ
	env.Add("REQUEST_METHOD", "GET")
	var out bytes.Buffer
	_, err := (&Client{Addr: s.addr}).RoundTrip(context.Background(), &env, environ.Authorizer, nil, &out, io.Discard)
	if err != nil || !strings.Contains(out.String(), "role=AUTHORIZER") {
		t.Errorf("%q %v", out.String(), err)
	}
}

// TestClientFaults: an application that breaks off, or refuses.
func TestClientFaults(t *testing.T) {
	whole := appendStream(nil, typeStdout, 1, []byte("Status: 200 OK\r\n\r\n"))
	for name, test := range map[string]struct {
		answer []byte
		want   error
	}{
		"nothing":          {nil, io.ErrUnexpectedEOF},
		"half a record":    {whole[:12], io.ErrUnexpectedEOF},
		"no END_REQUEST":   {append(whole, end(typeStdout, 1)...), io.ErrUnexpectedEOF},
		"other id's end":   {appendEnd(whole, 2, 0, requestComplete), io.ErrUnexpectedEOF},
		"CANT_MPX_CONN":    {appendEnd(nil, 1, 0, cantMultiplex), errStatus[cantMultiplex]},
		"OVERLOADED":       {appendEnd(nil, 1, 0, overloaded), errStatus[overloaded]},
		"UNKNOWN_ROLE":     {appendEnd(nil, 1, 0, unknownRole), errStatus[unknownRole]},
		"not FastCGI":      {[]byte("HTTP/1.1 400 Bad Request\r\n"), errVersion},
		"unknown types":    {appendEnd(append(appendUnknown(nil, 9), appendStream(nil, 99, 1, []byte("?"))...), 1, 3, requestComplete), nil},
		"short END":        {append(appendRecord(nil, typeEndRequest, 1, 4, 0), 0, 0, 0, 0), errors.ErrUnsupported},
		"unknown status":   {appendEnd(nil, 1, 0, 77), errors.ErrUnsupported},
		"answer, then end": {appendEnd(whole, 1, 7, requestComplete), nil},
	} {
		t.Run(name, func(t *testing.T) {
			l, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			defer l.Close()
			served := make(chan struct{})
			go func() {
				defer close(served)
				c, err := l.Accept()
				if err != nil {
					return
				}
				defer c.Close()
				_, _ = io.ReadFull(c, make([]byte, len(appendOpening(new(environ.Environ), 0, false))+headerLen))
				_, _ = c.Write(test.answer)
			}()
			addr, err := wire.ParseAddr(l.Addr().String())
			if err != nil {
				t.Fatal(err)
			}
			_, err = (&Client{Addr: addr}).RoundTrip(context.Background(), new(environ.Environ), environ.Responder, nil, io.Discard, io.Discard)
			switch {
			case test.want == nil && err != nil, test.want != nil && err == nil:
				t.Errorf("got %v", err)
			case test.want != nil && test.want != errors.ErrUnsupported && !errors.Is(err, test.want):
				t.Errorf("got %v, want %v", err, test.want)
			}
			<-served
		})
	}
}

// TestClientBodyFails: a body that cannot be read must not look complete.
func TestClientBodyFails(t *testing.T) {
	st := newStage()
	s := start(t, "unix", &Server{Handler: st})
	broken := io.MultiReader(strings.NewReader("some"), errReader{})
	if _, _, err := s.roundTrip(t, broken, ""); err == nil {
		t.Error("no error")
	}
	if st.calls.Load() > 0 {
		t.Error("the handler was called")
	}
}

type errReader struct{}

func (errReader) Read([]byte) (int, error) { return 0, errors.New("disk on fire") }

func TestClientContext(t *testing.T) {
	st := newStage()
	s := start(t, "unix", &Server{Handler: st})
	ctx, cancel := context.WithCancel(context.Background())
	failed := make(chan error, 1)
	go func() {
		var env environ.Environ
		env.Add("REQUEST_METHOD", "GET")
		_, err := (&Client{Addr: s.addr}).RoundTrip(ctx, &env, environ.Responder, nil, io.Discard, io.Discard)
		failed <- err
	}()
	st.called(t, 1)
	cancel()
	if err := <-failed; !errors.Is(err, context.Canceled) {
		t.Errorf("%v", err)
	}
	st.wasCancelled(t, environ.ErrClientGone)
}
