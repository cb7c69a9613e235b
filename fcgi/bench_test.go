package fcgi

import (
	"io"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"wsgigate/environ"
	"wsgigate/environ/wire"
)

// page is a handler that answers a small page and allocates nothing.
func page(t testing.TB) environ.HandlerFunc {
	h := header(t, "Content-Type", "text/html; charset=utf-8", "Content-Length", "2048")
	body := make([]byte, 2048)
	return func(w environ.ResponseWriter, r *environ.Request) {
		_ = w.WriteHeader(h)
		_, _ = w.Write(body)
	}
}

// pair serves one end of a socket pair and returns the other. The server's end is
// done when the channel closes.
func pair(t testing.TB, s *Server, kind int) (fd int, done chan struct{}) {
	t.Helper()
	s.once.Do(s.init)
	fds, err := unix.Socketpair(unix.AF_UNIX, kind|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	c, err := wire.NewConn(fds[1])
	if err != nil {
		t.Fatal(err)
	}
	done = make(chan struct{})
	go func() {
		defer close(done)
		s.serveConn(c)
		_ = c.Close()
	}()
	return fds[0], done
}

// exchange sends a request and reads its answer, which takes one read.
func rawExchange(t testing.TB, fd int, request, buf []byte) []byte {
	if _, err := unix.Write(fd, request); err != nil {
		t.Fatal(err)
	}
	n, err := unix.Read(fd, buf)
	if err != nil || n == 0 {
		t.Fatalf("read %d: %v", n, err)
	}
	return buf[:n]
}

// TestAllocations holds that a usual request on a kept connection costs none.
func TestAllocations(t *testing.T) {
	s := &Server{Handler: page(t)}
	for name, request := range map[string][]byte{
		"get":  ask{id: 1, keep: true}.bytes(),
		"post": ask{id: 1, keep: true, body: string(make([]byte, 2048)), length: "auto"}.bytes(),
	} {
		fd, done := pair(t, s, unix.SOCK_STREAM)
		buf := make([]byte, 16<<10)
		for range 10 {
			rawExchange(t, fd, request, buf)
		}
		if n := testing.AllocsPerRun(200, func() { rawExchange(t, fd, request, buf) }); n > 0 && !raceEnabled {
			t.Errorf("%s: %v allocations per request", name, n)
		}
		_ = unix.Close(fd)
		<-done
	}
}

func BenchmarkKept(b *testing.B) {
	b.ReportAllocs()
	fd, done := pair(b, &Server{Handler: page(b)}, unix.SOCK_STREAM)
	request := ask{id: 1, keep: true}.bytes()
	buf := make([]byte, 16<<10)
	for b.Loop() {
		rawExchange(b, fd, request, buf)
	}
	_ = unix.Close(fd)
	<-done
}

// BenchmarkFresh has the cost of a connection for each request, as nginx without
// fastcgi_keep_conn has it.
func BenchmarkFresh(b *testing.B) {
	b.ReportAllocs()
	s := start(b, "unix", &Server{Handler: page(b)})
	request := ask{id: 1}.bytes()
	buf := make([]byte, 16<<10)
	to := &unix.SockaddrUnix{Name: s.addr.Path}
	for b.Loop() {
		fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			b.Fatal(err)
		}
		if err := unix.Connect(fd, to); err != nil {
			b.Fatal(err)
		}
		rawExchange(b, fd, request, buf)
		_ = unix.Close(fd)
	}
}

// BenchmarkRequest has what the server does besides system calls.
func BenchmarkRequest(b *testing.B) {
	b.ReportAllocs()
	s := &Server{Handler: page(b)}
	s.once.Do(s.init)
	null, err := unix.Open(os.DevNull, unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		b.Fatal(err)
	}
	w, err := wire.NewConn(null)
	if err != nil {
		b.Fatal(err)
	}
	defer w.Close()
	c := connPool.Get().(*conn)
	c.reset(s, w)
	request := ask{id: 1, keep: true}.bytes()
	for b.Loop() {
		c.start, c.fill = 0, copy(c.buf, request)
		r, err := c.parse()
		if err != nil || r == nil {
			b.Fatal(err)
		}
		c.runInline(r)
	}
}

func BenchmarkLargeBody(b *testing.B) {
	h := header(b)
	block := make([]byte, 64<<10)
	benchmarkDownload(b, 1<<20, func(w environ.ResponseWriter, _ *environ.Request) {
		_ = w.WriteHeader(h)
		for range 16 {
			_, _ = w.Write(block)
		}
	})
}

func BenchmarkSendFile(b *testing.B) {
	h := header(b)
	const size = 10 << 20
	f, err := os.Create(filepath.Join(b.TempDir(), "file"))
	if err != nil {
		b.Fatal(err)
	}
	defer f.Close()
	if _, err := f.Write(make([]byte, size)); err != nil {
		b.Fatal(err)
	}
	benchmarkDownload(b, size, func(w environ.ResponseWriter, _ *environ.Request) {
		_ = w.WriteHeader(h)
		if n, err := w.(environ.FileSender).SendFile(f, 0, size); n != size || err != nil {
			b.Error(n, err)
		}
	})
}

func benchmarkDownload(b *testing.B, size int64, handler environ.HandlerFunc) {
	for _, network := range []string{"unix", "tcp"} {
		b.Run(network, func(b *testing.B) {
			b.ReportAllocs()
			b.SetBytes(size)
			s := start(b, network, &Server{Handler: handler})
			request := ask{id: 1}.bytes()
			buf := make([]byte, 64<<10)
			for b.Loop() {
				p := s.dial(b)
				p.send(request)
				if n, err := io.CopyBuffer(io.Discard, struct{ io.Reader }{p}, buf); n < size || err != nil {
					b.Fatal(n, err)
				}
				_ = p.Close()
			}
		})
	}
}
