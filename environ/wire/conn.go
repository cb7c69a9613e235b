package wire

import (
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"runtime"
	"sync"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Conn is a connected stream socket. It tries each operation at once and joins
// the runtime's poller only when it first has to wait: a web server that does
// not keep connections has usually sent its whole request before accept
// returns, and then three of ten system calls are never made.
//
// One goroutine may read while another writes. Close may be called by any.
type Conn struct {
	fd     int
	remote netip.AddrPort

	mu     sync.Mutex // guards the following
	users  int        // operations on fd outside of the poller
	closed bool
	poller *poller // set once the descriptor has joined the runtime's poller

	reader, writer side

	server     *Server // whose list it is on; nil for a client's
	prev, next *Conn
	idle       bool // guarded by server.mu, and so is the next
	idleSince  time.Time
}

// poller is the descriptor as the runtime's poller knows it.
type poller struct {
	file *os.File
	raw  syscall.RawConn
}

// side is one direction of a Conn: its bounds, and the operation that runs. The
// operation's arguments are kept here, not in a closure, so that it allocates nothing.
type side struct {
	timeout  time.Duration
	deadline time.Time
	armed    time.Time // the deadline that the poller has, zero: none

	attempt func(s *side, fd int) (int, error)
	buf     []byte
	bufs    [][]byte
	iov     []unix.Iovec // bufs in the system's form
	file    int          // sendfile's source
	off     int64
	count   int64

	n     int
	err   error
	retry func(fd uintptr) bool // runs attempt for the poller; made once
}

// NewConn takes over a connected stream socket.
func NewConn(fd int) (*Conn, error) {
	if err := unix.SetNonblock(fd, true); err != nil {
		return nil, os.NewSyscallError("fcntl", err)
	}
	unix.CloseOnExec(fd)
	return &Conn{fd: fd}, nil
}

// RemoteAddr returns the peer's address, zero for a unix socket.
func (c *Conn) RemoteAddr() netip.AddrPort { return c.remote }

// SetReadTimeout bounds each Read from now on; 0 is no bound.
func (c *Conn) SetReadTimeout(d time.Duration) { c.reader.timeout = d }

// SetReadDeadline bounds all reads until it is changed, besides the timeout of
// each; the zero time is no bound.
func (c *Conn) SetReadDeadline(t time.Time) { c.reader.deadline = t }

// SetWriteTimeout bounds how long a write waits for the peer to take another
// byte; 0 is no bound.
func (c *Conn) SetWriteTimeout(d time.Duration) { c.writer.timeout = d }

// Read reads what is there, or waits for it. Its errors are io.EOF,
// os.ErrDeadlineExceeded, net.ErrClosed and the system's.
func (c *Conn) Read(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	s := &c.reader
	s.attempt, s.buf = read, p
	n, err := c.run(s)
	if n == 0 && err == nil {
		return 0, io.EOF
	}
	return n, err
}

// Write writes all of p or returns an error.
func (c *Conn) Write(p []byte) (int, error) {
	s, done := &c.writer, 0
	for done < len(p) {
		s.attempt, s.buf = write, p[done:]
		n, err := c.run(s)
		done += n
		if err != nil {
			return done, err
		}
	}
	return done, nil
}

// maxIovecs is how many buffers one writev(2) takes (IOV_MAX is 1024).
const maxIovecs = 64

// Writev writes all of bufs, in as few calls as the system allows, or returns
// an error. It consumes bufs.
func (c *Conn) Writev(bufs [][]byte) (int64, error) {
	s, done := &c.writer, int64(0)
	for len(bufs) > 0 {
		s.attempt, s.bufs = writev, bufs[:min(len(bufs), maxIovecs)]
		n, err := c.run(s)
		done += int64(n)
		if err != nil {
			return done, err
		}
		bufs = consume(bufs, n)
	}
	return done, nil
}

// consume drops the first n bytes of bufs.
func consume(bufs [][]byte, n int) [][]byte {
	for len(bufs) > 0 && n >= len(bufs[0]) {
		n -= len(bufs[0])
		bufs = bufs[1:]
	}
	if n > 0 {
		bufs[0] = bufs[0][n:]
	}
	return bufs
}

// SendFile writes n bytes of f from offset off with sendfile(2). It does not move
// f's position. A file that is shorter than that is io.ErrUnexpectedEOF.
func (c *Conn) SendFile(f *os.File, off, n int64) (int64, error) {
	source, err := f.SyscallConn()
	if err != nil {
		return 0, err
	}
	s, done := &c.writer, int64(0)
	controlErr := source.Control(func(in uintptr) {
		for done < n && err == nil {
			var sent int
			s.attempt, s.file, s.off, s.count = sendfile, int(in), off+done, n-done
			sent, err = c.run(s)
			done += int64(sent)
			if sent == 0 && err == nil {
				err = io.ErrUnexpectedEOF
			}
		}
	})
	if err == nil {
		err = controlErr
	}
	return done, err
}

// maxSendfile is how many bytes one sendfile(2) is asked for.
const maxSendfile = 1 << 30

// The attempts on a socket never block, so they are made without telling the
// scheduler: announced as calls that may block, they let the runtime hand the
// processor to another thread whenever the kernel preempts this one in them.

func read(s *side, fd int) (int, error) {
	return result(unix.RawSyscall(unix.SYS_READ, uintptr(fd), uintptr(unsafe.Pointer(unsafe.SliceData(s.buf))), uintptr(len(s.buf))))
}

func write(s *side, fd int) (int, error) {
	return result(unix.RawSyscall(unix.SYS_WRITE, uintptr(fd), uintptr(unsafe.Pointer(unsafe.SliceData(s.buf))), uintptr(len(s.buf))))
}

func writev(s *side, fd int) (int, error) {
	s.iov = s.iov[:0]
	for _, b := range s.bufs {
		if len(b) == 0 {
			continue
		}
		v := unix.Iovec{Base: unsafe.SliceData(b)}
		v.SetLen(len(b))
		s.iov = append(s.iov, v)
	}
	n, err := result(unix.RawSyscall(unix.SYS_WRITEV, uintptr(fd), uintptr(unsafe.Pointer(unsafe.SliceData(s.iov))), uintptr(len(s.iov))))
	clear(s.iov)
	return n, err
}

func result(n, _ uintptr, errno unix.Errno) (int, error) {
	if errno != 0 {
		return 0, errno
	}
	return int(n), nil
}

// sendfile may wait for a disk.
func sendfile(s *side, fd int) (int, error) {
	off := s.off
	return unix.Sendfile(fd, s.file, &off, int(min(s.count, maxSendfile)))
}

func closeWrite(_ *side, fd int) (int, error) { return 0, unix.Shutdown(fd, unix.SHUT_WR) }

// CloseWrite tells the peer that nothing more follows.
func (c *Conn) CloseWrite() error {
	c.writer.attempt = closeWrite
	_, err := c.run(&c.writer)
	return err
}

// Cork holds back what is written from now on until CloseWrite or Close, so that a TCP
// peer gets the last bytes and the end at once (tcp(7), TCP_CORK). A unix socket has
// nothing like it.
func (c *Conn) Cork() {
	if c.remote.IsValid() && c.acquire() == nil {
		_ = unix.SetsockoptInt(c.fd, unix.IPPROTO_TCP, unix.TCP_CORK, 1) // without it the end comes a little later
		c.release()
	}
}

// Reset closes the connection so that the peer can tell it from an orderly end:
// a TCP peer gets RST. A unix socket can only be closed.
func (c *Conn) Reset() error {
	if c.remote.IsValid() && c.acquire() == nil {
		_ = unix.SetsockoptLinger(c.fd, unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1})
		c.release()
	}
	return c.Close()
}

// pending reports whether bytes have come that nobody has read.
func (c *Conn) pending() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return false
	}
	var b [1]byte
	n, _, err := unix.Recvfrom(c.fd, b[:], unix.MSG_PEEK|unix.MSG_DONTWAIT)
	return err == nil && n > 0
}

// sealed lets the peer of a unix socket send nothing more: its next write fails, so
// it knows that nobody has seen what it wanted to say. It reports whether bytes
// came before. Over TCP the system has no such call, and a request that crosses
// the end of an idle connection is its client's to repeat (RFC 9112, section 9.3.1).
func (c *Conn) sealed() bool {
	if c.remote.IsValid() || c.acquire() != nil {
		return false
	}
	_ = unix.Shutdown(c.fd, unix.SHUT_RD)
	c.release()
	return c.pending()
}

func (c *Conn) isClosed() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.closed
}

// Close closes the connection and wakes whoever reads or writes it. Only the
// first call does anything; the others return net.ErrClosed.
func (c *Conn) Close() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return net.ErrClosed
	}
	c.closed = true
	if c.poller != nil {
		return c.poller.file.Close()
	}
	if c.users == 0 {
		return closeSocket(c.fd)
	}
	return nil // the last user closes it
}

// acquire keeps the descriptor open, so that its number cannot come to mean
// another one, until release.
func (c *Conn) acquire() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return net.ErrClosed
	}
	c.users++
	return nil
}

func (c *Conn) release() {
	c.mu.Lock()
	c.users--
	last := c.closed && c.users == 0
	p := c.poller
	c.mu.Unlock()
	if last && p == nil {
		_ = closeSocket(c.fd)
	}
}

// closeSocket closes a descriptor that never lingers.
func closeSocket(fd int) error {
	_, err := result(unix.RawSyscall(unix.SYS_CLOSE, uintptr(fd), 0, 0))
	return os.NewSyscallError("close", err)
}

// run makes the side's attempt, waiting as often as it would block.
func (c *Conn) run(s *side) (n int, err error) {
	c.mu.Lock()
	p := c.poller
	if c.closed {
		c.mu.Unlock()
		return 0, net.ErrClosed
	}
	if p == nil {
		c.users++
	}
	c.mu.Unlock()
	if p == nil {
		n, err = s.once(c.fd)
		if err == unix.EAGAIN && s == &c.reader {
			runtime.Gosched() // the peer connected a moment ago: its bytes are about to come
			n, err = s.once(c.fd)
		}
		if err == unix.EAGAIN {
			p, err = c.join()
		}
		c.release()
	}
	if p != nil && err == nil {
		n, err = c.wait(s, p)
	}
	s.buf, s.bufs = nil, nil
	return max(n, 0), err
}

// once makes the attempt, again if a signal interrupted it.
func (s *side) once(fd int) (int, error) {
	for {
		n, err := s.attempt(s, fd)
		if err != unix.EINTR {
			return n, err
		}
	}
}

// join makes the descriptor known to the runtime's poller, which owns it from
// then on. The caller has acquired it.
func (c *Conn) join() (*poller, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return nil, net.ErrClosed
	}
	if c.poller == nil {
		file := os.NewFile(uintptr(c.fd), "connection")
		raw, err := file.SyscallConn()
		if err != nil {
			return nil, err
		}
		c.poller = &poller{file, raw}
	}
	return c.poller, nil
}

// wait repeats the attempt whenever the poller says that it may succeed.
func (c *Conn) wait(s *side, p *poller) (int, error) {
	if s.retry == nil {
		s.retry = func(fd uintptr) bool {
			s.n, s.err = s.once(int(fd))
			return s.err != unix.EAGAIN
		}
	}
	var err error
	if s == &c.reader {
		s.arm(p.file.SetReadDeadline)
		err = p.raw.Read(s.retry)
	} else {
		s.arm(p.file.SetWriteDeadline)
		err = p.raw.Write(s.retry)
	}
	switch {
	case err == nil:
		return s.n, s.err
	case errors.Is(err, os.ErrDeadlineExceeded):
		return 0, err
	default: // the poller's own word for a closed descriptor is not exported
		return 0, net.ErrClosed
	}
}

// arm tells the poller until when this side may wait. A deadline costs as much as
// a short write, so one is left alone that is a little early: a timeout may be
// an eighth shorter than it says.
func (s *side) arm(set func(time.Time) error) {
	until, slack := s.deadline, time.Duration(0)
	if s.timeout > 0 {
		if t := time.Now().Add(s.timeout); until.IsZero() || t.Before(until) {
			until, slack = t, s.timeout/8
		}
	}
	if early := until.Sub(s.armed); early >= 0 && early <= slack {
		return
	}
	s.armed = until
	_ = set(until) // the file is pollable: only a closed one fails, and then so does the operation
}
