package wire

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// pair returns both ends of a connection.
func pair(t *testing.T) (*Conn, *Conn) {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM, 0)
	if err != nil {
		t.Fatal(err)
	}
	var ends [2]*Conn
	for i, fd := range fds {
		if ends[i], err = NewConn(fd); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { ends[i].Close() })
	}
	return ends[0], ends[1]
}

func TestConnLargeTransferWaits(t *testing.T) {
	a, b := pair(t)
	want := bytes.Repeat([]byte("0123456789abcdef"), 1<<16)
	done := make(chan error, 1)
	go func() {
		_, err := a.Writev([][]byte{want[:10], want[10:1000], want[1000:]})
		if err == nil {
			err = a.CloseWrite()
		}
		done <- err
	}()
	got, err := io.ReadAll(b)
	if err != nil || !bytes.Equal(got, want) {
		t.Fatalf("read %d bytes, %v; want %d", len(got), err, len(want))
	}
	if err := <-done; err != nil {
		t.Fatal(err)
	}
}

func TestConnTimeouts(t *testing.T) {
	a, _ := pair(t)
	a.SetReadTimeout(10 * time.Millisecond)
	if _, err := a.Read(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("read: %v", err)
	}
	a.SetReadTimeout(0)
	a.SetReadDeadline(time.Now().Add(10 * time.Millisecond))
	if _, err := a.Read(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("read with deadline: %v", err)
	}
	a.SetWriteTimeout(10 * time.Millisecond)
	if _, err := a.Write(make([]byte, 8<<20)); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("write: %v", err)
	}
}

func TestConnDeadlineIsCleared(t *testing.T) {
	a, b := pair(t)
	a.SetReadTimeout(10 * time.Millisecond)
	_, _ = a.Read(make([]byte, 1))
	a.SetReadTimeout(0)
	go func() {
		time.Sleep(30 * time.Millisecond)
		_, _ = b.Write([]byte("x"))
	}()
	if n, err := a.Read(make([]byte, 1)); n != 1 || err != nil {
		t.Fatalf("read %d, %v", n, err)
	}
}

func TestConnCloseWakesReader(t *testing.T) {
	for _, joined := range []bool{false, true} {
		a, _ := pair(t)
		if joined {
			a.SetReadTimeout(time.Millisecond)
			_, _ = a.Read(make([]byte, 1))
			a.SetReadTimeout(0)
		}
		done := make(chan error, 1)
		go func() {
			_, err := a.Read(make([]byte, 1))
			done <- err
		}()
		time.Sleep(5 * time.Millisecond)
		a.Close()
		if err := <-done; !errors.Is(err, net.ErrClosed) {
			t.Errorf("joined %v: %v", joined, err)
		}
		if err := a.Close(); !errors.Is(err, net.ErrClosed) {
			t.Errorf("second close: %v", err)
		}
		if _, err := a.Write([]byte("x")); !errors.Is(err, net.ErrClosed) {
			t.Errorf("write after close: %v", err)
		}
	}
}

func TestConnPeerGone(t *testing.T) {
	a, b := pair(t)
	b.Close()
	if _, err := a.Read(make([]byte, 1)); err != io.EOF {
		t.Errorf("read: %v", err)
	}
	if _, err := a.Write([]byte("x")); !errors.Is(err, syscall.EPIPE) {
		t.Errorf("write: %v", err)
	}
}

func TestSendFileLeavesPosition(t *testing.T) {
	a, b := pair(t)
	f, err := os.Create(filepath.Join(t.TempDir(), "file"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteString("0123456789"); err != nil {
		t.Fatal(err)
	}
	if n, err := a.SendFile(f, 3, 4); n != 4 || err != nil {
		t.Fatalf("sent %d, %v", n, err)
	}
	got := make([]byte, 10)
	if n, _ := b.Read(got); string(got[:n]) != "3456" {
		t.Errorf("got %q", got[:n])
	}
	if at, _ := f.Seek(0, io.SeekCurrent); at != 10 {
		t.Errorf("position is %d", at)
	}
	if n, err := a.SendFile(f, 8, 4); n != 2 || !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("past the end: %d, %v", n, err)
	}
}

func TestReadWriteAllocations(t *testing.T) {
	a, b := pair(t)
	buf := make([]byte, 100)
	msg := []byte("hello")
	if n := testing.AllocsPerRun(100, func() {
		_, _ = a.Write(msg)
		_, _ = b.Read(buf)
	}); n != 0 {
		t.Errorf("%v allocations for a write and a read", n)
	}
}

func TestParseAddr(t *testing.T) {
	for _, tc := range []struct {
		in   string
		want Addr
		err  string
	}{
		{in: "unix:/run/a.sock", want: Addr{Path: "/run/a.sock"}},
		{in: "unix:a.sock,mode=0660,user=www,group=7", want: Addr{Path: "a.sock", Mode: 0o660, User: "www", Group: "7"}},
		{in: ":8000", want: Addr{Host: "127.0.0.1", Port: 8000}},
		{in: "[::1]:80", want: Addr{Host: "::1", Port: 80}},
		{in: "fd:0", want: Addr{IsFD: true}},
		{in: "fd:3", want: Addr{IsFD: true, FD: 3}},
		{in: "unix:", err: "path is missing"},
		{in: "unix:" + strings.Repeat("x", 108), err: "choose a shorter one"},
		{in: "unix:/a,mode=9", err: "octal"},
		{in: "unix:/a,colour=red", err: "known are"},
		{in: "/run/a.sock", err: "unix:/run/a.sock"},
		{in: "8000", err: ":PORT"},
		{in: "h:http", err: "not a number"},
		{in: "fd:x", err: "fd:3"},
	} {
		got, err := ParseAddr(tc.in)
		if tc.err != "" {
			if err == nil || !strings.Contains(err.Error(), tc.err) {
				t.Errorf("%q: error %v, want %q", tc.in, err, tc.err)
			}
			continue
		}
		if err != nil || got != tc.want {
			t.Errorf("%q: %+v, %v", tc.in, got, err)
		}
	}
}

func TestLoopback(t *testing.T) {
	for addr, want := range map[string]bool{":1": true, "localhost:1": true, "127.8.0.1:1": true, "[::1]:1": true, "unix:/a": true, "0.0.0.0:1": false, "10.0.0.1:1": false, "[::]:1": false} {
		a, err := ParseAddr(addr)
		if err != nil || a.Loopback() != want {
			t.Errorf("%s: %v, %v", addr, a.Loopback(), err)
		}
	}
}

// FAULTS row 55: only a dead socket of one's own is removed.
func TestSocketFile(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "s")
	listen := func() error {
		l, err := Listen(Addr{Path: path})
		if err == nil {
			defer l.Close()
			st, statErr := os.Lstat(path)
			if statErr != nil || st.Mode().Perm() != 0o600 {
				t.Errorf("socket file: %v, %v", st.Mode(), statErr)
			}
		}
		return err
	}
	expect := func(what, message string) {
		t.Helper()
		err := listen()
		if message == "" && err != nil || message != "" && (err == nil || !strings.Contains(err.Error(), message)) {
			t.Errorf("%s: %v, want %q", what, err, message)
		}
	}
	expect("nothing there", "")
	if _, err := os.Lstat(path); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the socket file stays after Close: %v", err)
	}

	dead, err := net.ListenUnix("unix", &net.UnixAddr{Name: path})
	if err != nil {
		t.Fatal(err)
	}
	expect("live", "another process listens")
	dead.SetUnlinkOnClose(false)
	dead.Close()
	if os.Geteuid() == 0 {
		if err := os.Chown(path, 12345, -1); err != nil {
			t.Fatal(err)
		}
		expect("foreign", "belongs to user 12345")
		if err := os.Chown(path, 0, -1); err != nil {
			t.Fatal(err)
		}
	}
	expect("stale", "")

	if err := os.WriteFile(path, []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	expect("a file", "not a socket")
	os.Remove(path)
	if err := os.Symlink(filepath.Join(dir, "elsewhere"), path); err != nil {
		t.Fatal(err)
	}
	expect("a symbolic link", "symbolic link")
	os.Remove(path)

	l, err := Listen(Addr{Path: path, Mode: 0o660})
	if err != nil {
		t.Fatal(err)
	}
	if st, err := os.Lstat(path); err != nil || st.Mode().Perm() != 0o660 {
		t.Errorf("mode %v, %v", st.Mode(), err)
	}
	os.Remove(path)
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	l.Close()
	if _, err := os.Lstat(path); err != nil {
		t.Errorf("Close removed a file that is not its socket: %v", err)
	}
}

func TestInheritedDescriptor(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	f, err := l.(*net.TCPListener).File()
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	got, err := FileListener(f)
	if err != nil || got.Addr().String() != l.Addr().String() {
		t.Fatalf("%v, %v", got, err)
	}
	got.Close()
	r, w, _ := os.Pipe()
	defer r.Close()
	defer w.Close()
	if _, err := FileListener(r); err == nil || !strings.Contains(err.Error(), "not a listening socket") {
		t.Errorf("pipe: %v", err)
	}
}

// serve runs an echo server on l until the test ends.
func serve(t *testing.T, s *Server, l *Listener, handle func(*Conn)) {
	t.Helper()
	done := make(chan error, 1)
	go func() { done <- s.Serve(l, handle) }()
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		if err := s.Shutdown(ctx); err != nil {
			t.Errorf("shutdown: %v", err)
		}
		if err := <-done; !errors.Is(err, net.ErrClosed) {
			t.Errorf("serve: %v", err)
		}
	})
}

func echo(c *Conn) {
	buf := make([]byte, 100)
	for {
		if !c.SetIdle(true) {
			return
		}
		n, err := c.Read(buf)
		if err != nil || !c.SetIdle(false) {
			return
		}
		if _, err := c.Write(buf[:n]); err != nil {
			return
		}
	}
}

func TestServerEchoAndIdleShutdown(t *testing.T) {
	for _, addr := range []Addr{{Host: "127.0.0.1"}, {Path: filepath.Join(t.TempDir(), "s")}} {
		l, err := Listen(addr)
		if err != nil {
			t.Fatal(err)
		}
		if addr.Path == "" {
			addr.Port = l.Addr().(*net.TCPAddr).AddrPort().Port()
		}
		serve(t, &Server{}, l, echo)
		c, err := Dial(context.Background(), addr)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close() // stays open: Shutdown must end it
		buf := make([]byte, 10)
		for range 3 {
			if _, err := c.Write([]byte("ping")); err != nil {
				t.Fatal(err)
			}
			if n, err := c.Read(buf); err != nil || string(buf[:n]) != "ping" {
				t.Fatalf("%q, %v", buf[:n], err)
			}
		}
	}
}

// TestShutdownBesideRequest: what has come to an idle connection is answered;
// what has been read from it when the shutdown closes it is known to be lost.
func TestShutdownBesideRequest(t *testing.T) {
	for _, readFirst := range []bool{false, true} {
		addr := Addr{Path: filepath.Join(t.TempDir(), "s")}
		l, err := Listen(addr)
		if err != nil {
			t.Fatal(err)
		}
		s := &Server{}
		idle, proceed, claimed := make(chan bool, 1), make(chan bool), make(chan bool, 1)
		serve(t, s, l, func(c *Conn) {
			buf := make([]byte, 10)
			idle <- c.SetIdle(true)
			if readFirst {
				_, _ = c.Read(buf)
				idle <- true
			}
			<-proceed
			if !readFirst {
				_, _ = c.Read(buf)
			}
			claimed <- c.SetIdle(false)
			_, _ = c.Write(buf[:4])
		})
		c, err := Dial(context.Background(), addr)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		<-idle
		if _, err := c.Write([]byte("ping")); err != nil {
			t.Fatal(err)
		}
		if readFirst {
			<-idle
		}
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		down := make(chan error, 1)
		go func() { down <- s.Shutdown(ctx) }()
		for !s.closing.Load() {
			time.Sleep(time.Millisecond)
		}
		proceed <- true
		if got := <-claimed; got == readFirst {
			t.Errorf("read first %v: SetIdle(false) is %v", readFirst, got)
		}
		buf := make([]byte, 10)
		if n, _ := c.Read(buf); (n == 4) == readFirst {
			t.Errorf("read first %v: answer %q", readFirst, buf[:n])
		}
		if err := <-down; err != nil {
			t.Error(err)
		}
	}
}

func TestShutdownAnswersWhatConnectedBefore(t *testing.T) {
	l, err := Listen(Addr{Host: "127.0.0.1"})
	if err != nil {
		t.Fatal(err)
	}
	var clients []net.Conn
	for range 20 {
		c, err := net.Dial("tcp", l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		_, _ = c.Write([]byte("hi"))
		clients = append(clients, c)
	}
	s := &Server{}
	served := make(chan error, 1)
	go func() {
		served <- s.Serve(l, func(c *Conn) {
			buf := make([]byte, 10)
			n, _ := c.Read(buf)
			_, _ = c.Write(buf[:n])
		})
	}()
	for !func() bool { s.mu.Lock(); defer s.mu.Unlock(); return len(s.listeners) == 1 }() {
		time.Sleep(time.Millisecond)
	}
	if err := s.Shutdown(context.Background()); err != nil {
		t.Fatal(err)
	}
	<-served
	for i, c := range clients {
		if got, err := io.ReadAll(c); string(got) != "hi" {
			t.Errorf("client %d: %q, %v", i, got, err)
		}
	}
}

func TestShutdownForcesAtDeadline(t *testing.T) {
	l, err := Listen(Addr{Host: "127.0.0.1"})
	if err != nil {
		t.Fatal(err)
	}
	s := &Server{}
	entered := make(chan struct{})
	go s.Serve(l, func(c *Conn) {
		close(entered)
		_, _ = c.Read(make([]byte, 1))
	})
	c, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	<-entered
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Millisecond)
	defer cancel()
	if err := s.Shutdown(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("shutdown: %v", err)
	}
}

// FAULTS row S11: peers outside the allowed addresses are refused.
func TestServerRefusesPeers(t *testing.T) {
	for _, tc := range []struct {
		allow []netip.Prefix
		want  bool
	}{
		{nil, true},
		{[]netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")}, false},
		{[]netip.Prefix{netip.MustParsePrefix("10.0.0.0/8"), netip.MustParsePrefix("127.0.0.0/8")}, true},
	} {
		l, err := Listen(Addr{Host: "127.0.0.1"})
		if err != nil {
			t.Fatal(err)
		}
		serve(t, &Server{Allow: tc.allow}, l, echo)
		c, err := net.Dial("tcp", l.Addr().String())
		n := 0
		if err == nil { // a refusal may be as quick as connect
			_, _ = c.Write([]byte("x"))
			n, err = c.Read(make([]byte, 1))
			c.Close()
		}
		if (n == 1) != tc.want {
			t.Errorf("%v: read %d, %v", tc.allow, n, err)
		}
	}
	outside := &Server{}
	if outside.allowed(netip.MustParseAddr("10.0.0.1")) {
		t.Error("a peer that is not loopback is accepted by default")
	}
}

func TestReset(t *testing.T) {
	l, err := Listen(Addr{Host: "127.0.0.1"})
	if err != nil {
		t.Fatal(err)
	}
	serve(t, &Server{}, l, func(c *Conn) {
		_, _ = c.Read(make([]byte, 1))
		_ = c.Reset()
	})
	c, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	_, _ = c.Write([]byte("x"))
	if _, err := c.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("read: %v", err)
	}
}

// FAULTS row 50: no descriptors left, accept backs off and recovers.
func TestAcceptBackoff(t *testing.T) {
	for _, errno := range []error{unix.EMFILE, unix.ENFILE, unix.ENOBUFS, unix.ENOMEM} {
		if !transient(errno) {
			t.Errorf("%v is not taken for a passing state", errno)
		}
	}
	var old unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &old); err != nil {
		t.Fatal(err)
	}
	defer unix.Setrlimit(unix.RLIMIT_NOFILE, &old)
	l, err := Listen(Addr{Host: "127.0.0.1"})
	if err != nil {
		t.Fatal(err)
	}
	serve(t, &Server{}, l, echo)
	c, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: 3, Max: old.Max}); err != nil {
		t.Fatal(err)
	}
	c2, err := rawDial(t, l.Addr().(*net.TCPAddr), &old)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(c2)
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: 3, Max: old.Max}); err != nil {
		t.Fatal(err)
	}
	time.Sleep(50 * time.Millisecond) // accept fails meanwhile
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &old); err != nil {
		t.Fatal(err)
	}
	_, _ = unix.Write(c2, []byte("x"))
	buf := make([]byte, 1)
	if n, err := unix.Read(c2, buf); n != 1 || err != nil {
		t.Errorf("after recovery: %d, %v", n, err)
	}
}

// rawDial connects with a limit that allows one more descriptor for a moment.
func rawDial(t *testing.T, addr *net.TCPAddr, limit *unix.Rlimit) (int, error) {
	t.Helper()
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, limit); err != nil {
		t.Fatal(err)
	}
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return -1, err
	}
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: 3, Max: limit.Max}); err != nil {
		t.Fatal(err)
	}
	sa := &unix.SockaddrInet4{Port: addr.Port}
	copy(sa.Addr[:], addr.IP.To4())
	return fd, unix.Connect(fd, sa)
}
