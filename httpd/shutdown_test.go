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
	for deadline := time.Now().Add(10 * time.Second); answered.Load() == 0 && s.conns.Load() < clients && time.Now().Before(deadline); {
		time.Sleep(time.Millisecond)
	}
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
