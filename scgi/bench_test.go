package scgi

import (
	"testing"

	"golang.org/x/sys/unix"

	"wsgigate/environ"
	"wsgigate/environ/wire"
)

var hello = []byte("Hello, world!\n")

var helloHeader = func() *environ.Header {
	h := new(environ.Header)
	_ = h.SetStatus(200, "OK")
	_ = h.Add("Content-Type", "text/plain")
	_ = h.Add("Content-Length", "14")
	return h
}()

func sayHello(w environ.ResponseWriter, r *environ.Request) {
	_ = w.WriteHeader(helloHeader)
	_, _ = w.Write(hello)
}

// roundTrip gives the server a connected socket that already holds a request, and
// returns the number of bytes of the answer.
func roundTrip(t testing.TB, s *Server, request []byte, answer []byte) int {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fds[1])
	if _, err := unix.Write(fds[1], request); err != nil {
		t.Fatal(err)
	}
	c, err := wire.NewConn(fds[0])
	if err != nil {
		t.Fatal(err)
	}
	s.serve(c)
	_ = c.Close()
	n, err := unix.Read(fds[1], answer)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// TestAllocations holds what one request costs.
func TestAllocations(t *testing.T) {
	s := &Server{Handler: environ.HandlerFunc(sayHello)}
	s.once.Do(s.init)
	request, answer := []byte(realistic), make([]byte, 4096)
	n := testing.AllocsPerRun(200, func() { roundTrip(t, s, request, answer) })
	if n > mostAllocations {
		t.Errorf("%v allocations for a request, want at most %d", n, mostAllocations)
	}
}

func BenchmarkRequest(b *testing.B) {
	s := &Server{Handler: environ.HandlerFunc(sayHello)}
	s.once.Do(s.init)
	request, answer := []byte(realistic), make([]byte, 4096)
	b.ReportAllocs()
	for b.Loop() {
		roundTrip(b, s, request, answer)
	}
}
