// Package wire is the stream sockets under the FastCGI and SCGI transports:
// addresses, listeners, the accept loop, and connections that cost as few system
// calls as a web server without kept connections allows.
//
//	listener -> Server.Serve -> one goroutine for each Conn -> the transport
package wire

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// Server accepts connections and keeps account of them. The zero value accepts
// from unix sockets and, over TCP, from loopback.
type Server struct {
	// Allow has the peers that a TCP listener accepts; nil means loopback only.
	Allow []netip.Prefix

	// Log gets refused peers and failed accepts; nil means slog.Default.
	Log *slog.Logger

	// LastRequests is how long a connection may have been idle that Shutdown leaves
	// open for one more request. Its peer may be sending one: a transport that
	// keeps connections tells its peer, with the answer, that it was the last
	// (see Conn.Leaving). 0 closes idle connections at once.
	LastRequests time.Duration

	closing   atomic.Bool // set under mu
	mu        sync.Mutex
	listeners []*Listener
	conns     *Conn // doubly linked list
	active    sync.WaitGroup

	next    chan job     // to a goroutine that rests
	resting atomic.Int32 // how many do

	dismissed bool // next is closed; guarded by mu
}

// acceptBackoff is how long accept rests after an error such as EMFILE, at first
// and at most. Meanwhile connections wait in the kernel's queue.
const (
	acceptBackoffMin = 5 * time.Millisecond
	acceptBackoffMax = time.Second
)

// Serve accepts connections from l and calls handle for each in a goroutine of
// its own; when that returns, the connection is closed. Serve itself
// returns net.ErrClosed after Shutdown, or the error that accept cannot recover from.
func (s *Server) Serve(l *Listener, handle func(*Conn)) error {
	if !s.addListener(l) {
		_ = l.Close()
		return net.ErrClosed
	}
	rest := time.Duration(0)
	for {
		c, err := l.accept()
		switch {
		case err == nil:
			rest = 0
			s.start(c, handle)
		case s.closing.Load():
			s.drain(l, handle)
			s.active.Done()
			return net.ErrClosed
		case err == unix.ECONNABORTED || err == unix.EINTR:
		case transient(err):
			if rest = min(max(rest*2, acceptBackoffMin), acceptBackoffMax); rest == acceptBackoffMin {
				s.log().Warn("accept failed, trying again", "addr", l.Addr().String(), "error", err)
			}
			time.Sleep(rest)
		default:
			s.active.Done()
			return err
		}
	}
}

// transient reports whether accept may succeed later: a limit on descriptors or
// memory was met.
func transient(err error) bool {
	return errors.Is(err, unix.EMFILE) || errors.Is(err, unix.ENFILE) || errors.Is(err, unix.ENOBUFS) || errors.Is(err, unix.ENOMEM)
}

func (s *Server) addListener(l *Listener) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closing.Load() {
		return false
	}
	if s.next == nil {
		s.next = make(chan job)
	}
	s.listeners = append(s.listeners, l)
	s.active.Add(1)
	return true
}

// drain takes what had connected before the listener was woken for its end.
func (s *Server) drain(l *Listener, handle func(*Conn)) {
	for {
		c, err := l.acceptLast()
		if err != nil {
			break
		}
		s.start(c, handle)
	}
	_ = l.Close()
}

// start runs handle for one connection.
func (s *Server) start(c *Conn, handle func(*Conn)) {
	if c.remote.IsValid() && !s.allowed(c.remote.Addr()) {
		s.log().Warn("peer refused: not in the allowed addresses", "peer", c.remote.String())
		_ = c.Reset()
		return
	}
	s.add(c)
	j := job{c, handle}
	select {
	case s.next <- j:
	default:
		go s.work(j)
	}
}

// job is a connection and who serves it.
type job struct {
	conn   *Conn
	handle func(*Conn)
}

func (s *Server) run(j job) {
	defer s.remove(j.conn)
	j.handle(j.conn)
}

// maxResting is how many goroutines are kept for the next connections. A new one
// would have to grow its stack first, which costs a tenth of a short request.
const maxResting = 128

// work serves one connection after the other.
func (s *Server) work(j job) {
	for more := true; more; {
		s.run(j)
		more = s.resting.Add(1) <= maxResting
		if more {
			j, more = <-s.next
		}
		s.resting.Add(-1)
	}
}

func (s *Server) allowed(ip netip.Addr) bool {
	if s.Allow == nil {
		return ip.IsLoopback()
	}
	for _, prefix := range s.Allow {
		if prefix.Contains(ip) {
			return true
		}
	}
	return false
}

func (s *Server) add(c *Conn) {
	s.mu.Lock()
	defer s.mu.Unlock()
	c.server = s
	c.next = s.conns
	if s.conns != nil {
		s.conns.prev = c
	}
	s.conns = c
	s.active.Add(1)
}

func (s *Server) remove(c *Conn) {
	_ = c.Close()
	s.mu.Lock()
	defer s.mu.Unlock()
	if c.prev != nil {
		c.prev.next = c.next
	} else {
		s.conns = c.next
	}
	if c.next != nil {
		c.next.prev = c.prev
	}
	c.prev, c.next = nil, nil
	s.active.Done()
}

// SetIdle tells the server whether the connection waits for its next request.
// It returns false if the caller must end: the server is shutting down and
// nothing more is to come, or, when a request has come, the server has closed the
// connection already. That request must not be run, for it cannot be answered.
func (c *Conn) SetIdle(idle bool) bool {
	s := c.server
	if s == nil {
		return true
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if idle && !c.idle && s.LastRequests > 0 {
		c.idleSince = time.Now()
	}
	c.idle = idle
	if !s.closing.Load() {
		return true
	}
	return idle && s.LastRequests > 0 || !idle && !c.isClosed()
}

// Leaving reports whether the server is shutting down, so that the request which
// is being answered should be the connection's last.
func (c *Conn) Leaving() bool { return c.server != nil && c.server.closing.Load() }

// Shutdown closes the listeners and the idle connections and waits until the
// others have ended; at the end of ctx it closes them and returns ctx's error. A
// connection to which something has come is not idle, though its reader has yet
// to see it.
func (s *Server) Shutdown(ctx context.Context) error {
	s.mu.Lock()
	s.closing.Store(true)
	for _, l := range s.listeners {
		l.wake()
	}
	s.mu.Unlock()

	done := make(chan struct{})
	go func() {
		s.active.Wait()
		s.dismiss()
		close(done)
	}()
	tick := time.NewTicker(lookEvery)
	defer tick.Stop()
	for {
		s.closeIdle()
		select {
		case <-done:
			return nil
		case <-tick.C:
		case <-ctx.Done():
			s.resetAll()
			<-done
			return ctx.Err()
		}
	}
}

// lookEvery is how often Shutdown looks for connections that have fallen idle.
const lookEvery = 10 * time.Millisecond

// closeIdle closes the connections that have been idle for long enough.
func (s *Server) closeIdle() {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := time.Now()
	for c := s.conns; c != nil; c = c.next {
		if c.idle && now.Sub(c.idleSince) >= s.LastRequests && !c.pending() && !c.sealed() {
			_ = c.Close()
		}
	}
}

func (s *Server) resetAll() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for c := s.conns; c != nil; c = c.next {
		_ = c.Reset()
	}
}

// dismiss ends the goroutines that rest: nothing is accepted any more.
func (s *Server) dismiss() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.next != nil && !s.dismissed {
		close(s.next)
		s.dismissed = true
	}
}

func (s *Server) log() *slog.Logger {
	if s.Log != nil {
		return s.Log
	}
	return slog.Default()
}
