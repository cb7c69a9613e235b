package httpd

import (
	"bufio"
	"context"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"wsgigate/environ"
)

// TestShutdownLosesNoRequest: clients that keep their connections and never try a
// request twice meet a server that shuts down. Every request that they send is
// answered; the last answer says that it is.
func TestShutdownLosesNoRequest(t *testing.T) {
	t.Parallel()
	s := &Server{Handler: environ.HandlerFunc(func(w environ.ResponseWriter, _ *environ.Request) {
		var h environ.Header
		_ = h.SetStatus(200, "OK")
		_ = h.Add("Content-Length", "2")
		_ = w.WriteHeader(&h)
		_, _ = w.Write([]byte("ok"))
	})}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan error, 1)
	go func() { served <- s.Serve(l) }()

	const clients = 16
	var answered atomic.Int64
	var group sync.WaitGroup
	for range clients {
		c, err := net.Dial("tcp", l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		group.Go(func() {
			defer c.Close()
			answered.Add(keepAsking(t, c))
		})
	}
	s.awaitOpen(clients)
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	if err := s.Shutdown(ctx); err != nil {
		t.Error(err)
	}
	group.Wait()
	if err := <-served; err != net.ErrClosed {
		t.Errorf("Serve returned %v", err)
	}
	if answered.Load() < clients {
		t.Errorf("%d requests of %d clients", answered.Load(), clients)
	}
}

// awaitOpen waits until so many connections are open.
func (s *Server) awaitOpen(n int) {
	open := func() int {
		s.mu.Lock()
		defer s.mu.Unlock()
		return len(s.conns)
	}
	for deadline := time.Now().Add(10 * time.Second); open() < n && time.Now().Before(deadline); {
		time.Sleep(time.Millisecond)
	}
}

// TestShutdownAfterLongAnswer: an answer that began before the shutdown could not say
// that it is the last. The client's next request, right behind it, is answered, however
// long the shutdown has lasted by then.
func TestShutdownAfterLongAnswer(t *testing.T) {
	t.Parallel()
	begun, proceed := make(chan bool, 2), make(chan bool, 2)
	s := &Server{Handler: environ.HandlerFunc(func(w environ.ResponseWriter, _ *environ.Request) {
		var h environ.Header
		_ = h.SetStatus(200, "OK")
		_ = h.Add("Content-Length", "2")
		_ = w.WriteHeader(&h)
		_ = w.Flush()
		begun <- true
		<-proceed
		_, _ = w.Write([]byte("ok"))
	})}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan error, 1)
	go func() { served <- s.Serve(l) }()
	c, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	answered := make(chan int64, 1)
	go func() { answered <- keepAsking(t, c) }()
	<-begun
	down := make(chan error, 1)
	go func() { down <- s.Shutdown(context.Background()) }()
	if err := <-served; err != net.ErrClosed {
		t.Errorf("Serve returned %v", err)
	}
	time.Sleep(lastRequests + 2*lookEvery) // the fault was seen past that
	proceed <- true
	proceed <- true
	if n := <-answered; n != 2 {
		t.Errorf("%d answers, want 2: the second says that it is the last", n)
	}
	if err := <-down; err != nil {
		t.Error(err)
	}
}

// keepAsking sends one request after the other until an answer says that the
// connection ends, and returns how many were answered.
func keepAsking(t *testing.T, c net.Conn) (answered int64) {
	_ = c.SetDeadline(time.Now().Add(20 * time.Second))
	in := bufio.NewReader(c)
	for {
		if _, err := c.Write([]byte("GET / HTTP/1.1\r\nHost: x\r\n\r\n")); err != nil {
			t.Errorf("after %d answers: %v", answered, err)
			return answered
		}
		response, err := http.ReadResponse(in, nil)
		if err != nil {
			t.Errorf("after %d answers: %v", answered, err)
			return answered
		}
		_ = response.Body.Close()
		answered++
		if response.Close {
			return answered
		}
	}
}
