package wire

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Listener is a listening stream socket.
type Listener struct {
	file *os.File
	raw  syscall.RawConn
	addr net.Addr
	tcp  bool

	path   string // of the socket file that Close removes, if it is still
	device uint64 // this one
	inode  uint64
	left   string // path after Leave

	closing sync.Once
}

// Listen opens a listening socket. The socket file of a unix socket gets its
// mode before anybody can connect. A file that is already there is removed only
// if it is a socket of this user's that nobody listens on.
func Listen(a Addr) (*Listener, error) {
	switch {
	case a.IsFD:
		return inherited(a.FD)
	case a.Systemd:
		return nil, fmt.Errorf("listen on %s: only what systemd starts has its sockets", a)
	case a.Path != "":
		return listenUnix(a)
	}
	ln, err := net.Listen("tcp", a.String())
	if err != nil {
		return nil, fmt.Errorf("listen on %s: %w", a, err)
	}
	defer ln.Close()
	fd, err := duplicate(ln.(*net.TCPListener))
	if err != nil {
		return nil, fmt.Errorf("listen on %s: %w", a, err)
	}
	return newListener(fd, ln.Addr())
}

// FileListener takes over a listening socket that another program opened
// (descriptor 0 under mod_fcgid, lighttpd and spawn-fcgi). It duplicates f.
func FileListener(f *os.File) (*Listener, error) { return inherited(int(f.Fd())) }

func inherited(fd int) (*Listener, error) {
	listening, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_ACCEPTCONN)
	if err != nil || listening == 0 {
		return nil, fmt.Errorf("descriptor %d is not a listening socket: the web server, spawn-fcgi or systemd must open it before it starts wsgigate", fd)
	}
	dup, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 3)
	if err != nil {
		return nil, fmt.Errorf("descriptor %d: %w", fd, os.NewSyscallError("fcntl", err))
	}
	sa, err := unix.Getsockname(dup)
	if err != nil {
		return nil, fmt.Errorf("descriptor %d: %w", fd, os.NewSyscallError("getsockname", err))
	}
	return newListener(dup, netAddr(sa))
}

// Inherit takes over a listening socket that another process has opened for the
// same address. It duplicates f. The socket file, if there is one, is this
// listener's from then on, with the owner and mode that a asks for.
func Inherit(f *os.File, a Addr) (*Listener, error) {
	l, err := FileListener(f)
	if err != nil {
		return nil, fmt.Errorf("inherit %s: %w", a, err)
	}
	if a.Path == "" {
		return l, nil
	}
	if err := l.adopt(a); err != nil {
		_ = l.file.Close()
		return nil, fmt.Errorf("inherit %s: %w", a, err)
	}
	return l, nil
}

// netAddr turns a system address into one of package net.
func netAddr(sa unix.Sockaddr) net.Addr {
	switch sa := sa.(type) {
	case *unix.SockaddrInet4:
		return net.TCPAddrFromAddrPort(netip.AddrPortFrom(netip.AddrFrom4(sa.Addr), uint16(sa.Port)))
	case *unix.SockaddrInet6:
		return net.TCPAddrFromAddrPort(netip.AddrPortFrom(netip.AddrFrom16(sa.Addr).Unmap(), uint16(sa.Port)))
	case *unix.SockaddrUnix:
		return &net.UnixAddr{Name: sa.Name, Net: "unix"}
	}
	return &net.UnixAddr{Net: "unix"}
}

// newListener takes over a listening descriptor.
func newListener(fd int, addr net.Addr) (*Listener, error) {
	if err := unix.SetNonblock(fd, true); err != nil {
		return nil, os.NewSyscallError("fcntl", err)
	}
	file := os.NewFile(uintptr(fd), "listener")
	raw, err := file.SyscallConn()
	if err != nil {
		return nil, err
	}
	_, tcp := addr.(*net.TCPAddr)
	return &Listener{file: file, raw: raw, addr: addr, tcp: tcp}, nil
}

// duplicate returns another descriptor for the same socket.
func duplicate(s syscall.Conn) (fd int, err error) {
	raw, err := s.SyscallConn()
	if err != nil {
		return -1, err
	}
	controlErr := raw.Control(func(old uintptr) { fd, err = unix.FcntlInt(old, unix.F_DUPFD_CLOEXEC, 3) })
	return fd, errors.Join(controlErr, err)
}

// File returns the socket, to hand it to another process. It stays the listener's,
// and is closed by NetListener.
func (l *Listener) File() *os.File { return l.file }

// Leave keeps the socket file when the listener is closed, because another process
// listens on the same socket.
func (l *Listener) Leave() { l.left, l.path = l.path, "" }

// Sweep removes the socket file that Leave has kept if nobody listens on
// it: the other process did not want it.
func (l *Listener) Sweep() {
	if l.left == "" || !l.own(l.left) {
		return
	}
	if err := removeDead(l.left, -1); err == nil {
		l.left = ""
	}
}

// Addr returns the address that the listener has in fact.
func (l *Listener) Addr() net.Addr { return l.addr }

// NetListener returns the same socket as a net.Listener, which owns it from then on
// but for the socket file, which Close still removes.
func (l *Listener) NetListener() (net.Listener, error) {
	ln, err := net.FileListener(l.file)
	if err != nil {
		return nil, err
	}
	_ = l.file.Close()
	return ln, nil
}

// Close stops listening and removes the socket file if it is still this listener's.
func (l *Listener) Close() error {
	err := net.ErrClosed
	l.closing.Do(func() {
		l.unlink()
		err = l.file.Close()
	})
	return err
}

func (l *Listener) unlink() {
	if l.path == "" {
		return
	}
	if l.own(l.path) {
		_ = os.Remove(l.path)
	}
	l.path = ""
}

// own reports whether the file is still the one that was bound.
func (l *Listener) own(path string) bool {
	var st unix.Stat_t
	return unix.Lstat(path, &st) == nil && st.Dev == l.device && st.Ino == l.inode
}

// accept waits for a connection.
func (l *Listener) accept() (c *Conn, err error) {
	rawErr := l.raw.Read(func(fd uintptr) bool {
		c, err = l.acceptOnce(int(fd))
		return err != unix.EAGAIN
	})
	if rawErr != nil {
		return nil, net.ErrClosed
	}
	return c, err
}

func (l *Listener) acceptOnce(fd int) (*Conn, error) {
	const flags = unix.SOCK_NONBLOCK | unix.SOCK_CLOEXEC
	if !l.tcp {
		// The peer of a unix socket has no address worth asking for.
		n, _, errno := unix.RawSyscall6(unix.SYS_ACCEPT4, uintptr(fd), 0, 0, flags, 0, 0)
		if errno != 0 {
			return nil, errno
		}
		return &Conn{fd: int(n)}, nil
	}
	n, sa, err := unix.Accept4(fd, flags)
	if err != nil {
		return nil, err
	}
	// Answers are written whole, so there is nothing to gain from waiting for more.
	_ = unix.SetsockoptInt(n, unix.IPPROTO_TCP, unix.TCP_NODELAY, 1)
	c := &Conn{fd: n}
	if addr, ok := netAddr(sa).(*net.TCPAddr); ok {
		c.remote = addr.AddrPort()
	}
	return c, nil
}

// Dial connects to an address.
func Dial(ctx context.Context, a Addr) (*Conn, error) {
	network, address := "tcp", a.String()
	if a.Path != "" {
		network, address = "unix", a.Path
	}
	var d net.Dialer
	nc, err := d.DialContext(ctx, network, address)
	if err != nil {
		return nil, err
	}
	defer nc.Close()
	fd, err := duplicate(nc.(syscall.Conn))
	if err != nil {
		return nil, fmt.Errorf("connect to %s: %w", a, err)
	}
	c, err := NewConn(fd)
	if err != nil {
		return nil, err
	}
	if addr, ok := nc.RemoteAddr().(*net.TCPAddr); ok {
		c.remote = addr.AddrPort()
	}
	return c, nil
}

// wake makes a waiting accept return, without closing: what has connected by
// then can still be taken with acceptLast.
func (l *Listener) wake() {
	l.unlink() // nobody new finds it
	_ = l.file.SetReadDeadline(time.Unix(1, 0))
}

// acceptLast takes a connection that is already there, or returns EAGAIN.
func (l *Listener) acceptLast() (c *Conn, err error) {
	controlErr := l.raw.Control(func(fd uintptr) { c, err = l.acceptOnce(int(fd)) })
	if controlErr != nil {
		return nil, controlErr
	}
	return c, err
}
