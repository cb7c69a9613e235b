package httpd

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"wsgigate/environ"
)

// guard is the connection as net/http sees it. It refuses bad framing, bounds
// how long a client may pause within a body or while it should read, sends
// files, and tells the request in hand when the client goes away.
//
// net/http reads from one goroutine at a time and writes from one goroutine
// at a time, so only current and gone need the mutex.
type guard struct {
	net.Conn
	server *Server
	scan   scanner

	readBy    time.Time    // the read deadline that Read has set, zero if net/http's own holds
	writeBy   time.Time    // the write deadline that Write has set
	lingering atomic.Bool  // unread input must be drained before Close
	idleSince atomic.Int64 // Server.age; 0 while it has a request
	muted     bool         // the guard has answered and nothing may follow
	awaiting  bool         // no request has been given to the Handler since the last answer

	remoteAddr, remotePort string
	localAddr, localPort   string

	mu      sync.Mutex
	current *environ.Request
	gone    error
}

var (
	_ net.Conn      = (*guard)(nil)
	_ io.ReaderFrom = (*guard)(nil)
)

// lineSlack is how much more than MaxHeaders a line may have before the scanner
// refuses it: net/http reads up to 4 KiB more, from a 4 KiB buffer, before it
// answers 431 itself.
const lineSlack = 16 << 10

// A connection with unread input is drained before it is closed, or the reset
// would destroy the answer on its way to a client that sends first and reads
// then. The times are those of nginx's lingering_close; besides, no more than
// MaxBody bytes are drained, or a flood would keep a processor busy for drainTime.
const (
	drainTime  = 30 * time.Second
	drainPause = 5 * time.Second
	drainBytes = 64 << 10 // for one read
)

func newGuard(c net.Conn, s *Server) *guard {
	g := &guard{Conn: c, server: s}
	g.scan.max = s.limits.MaxHeaders + lineSlack
	g.remoteAddr, g.remotePort = splitAddr(c.RemoteAddr())
	g.localAddr, g.localPort = splitAddr(c.LocalAddr())
	return g
}

// splitAddr returns the address and port of a TCP socket, else nothing.
func splitAddr(a net.Addr) (host, port string) {
	tcp, ok := a.(*net.TCPAddr)
	if !ok {
		return "", ""
	}
	ap := tcp.AddrPort()
	return ap.Addr().Unmap().String(), fmt.Sprint(ap.Port())
}

// Read reads what net/http may see. Past a violation it fails for ever: net/http
// then answers 400, or a body read fails, and closes.
//
// net/http watches the connection with reads of one byte while a handler runs,
// and interrupts them by a deadline in the past, which a deadline of ours must
// not replace. It reads nothing else by single bytes.
func (g *guard) Read(p []byte) (int, error) {
	if g.scan.bad != nil {
		return 0, fmt.Errorf("httpd: %w", g.scan.bad)
	}
	within, watching := g.scan.withinBody(), len(p) == 1
	if within && !watching {
		g.renewRead()
	}
	n, err := g.Conn.Read(p)
	ok := g.scan.scan(p[:n])
	switch {
	case g.scan.bad != nil:
		g.refuse()
		if ok == 0 {
			return 0, fmt.Errorf("httpd: %w", g.scan.bad)
		}
		return ok, nil
	case err == nil:
	case !errors.Is(err, os.ErrDeadlineExceeded):
		if !within || err != io.EOF {
			g.clientGone()
		}
	case !watching && g.scan.withinHead():
		g.headTimeout()
	}
	return n, err
}

// headTimeout answers a client that sent a part of a head and no more. net/http
// would take the beginning of a line for a line, and answer 400.
func (g *guard) headTimeout() {
	g.awaiting = false // a connection that was opened in vain is no refusal
	_, _ = g.Write([]byte("HTTP/1.1 408 Request Timeout\r\nServer: wsgigate\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"))
	g.muted = true
}

func (g *guard) refuse() {
	g.lingering.Store(true)
	g.server.log().Warn("httpd: request refused", "remote", g.remoteAddr, "reason", g.scan.bad)
}

// logRefusal logs an answer that net/http gives by itself to a head that it does not
// take, which nobody else hears of. It has a Fprintf of its own for each, and says why in
// the status line, if at all.
func (g *guard) logRefusal(answer []byte) {
	line, _, _ := bytes.Cut(answer, []byte("\r\n"))
	if reason, ok := bytes.CutPrefix(line, []byte("HTTP/1.1 ")); ok {
		g.awaiting = false
		g.server.log().Warn("httpd: request refused", "remote", g.remoteAddr, "reason", string(reason))
	}
}

// renewRead bounds the wait for the next bytes of a body. net/http clears
// the deadline when it has seen the body's end.
func (g *guard) renewRead() {
	if by, ok := renewed(g.readBy, g.server.limits.BodyTimeout); ok {
		_ = g.Conn.SetReadDeadline(by)
		g.readBy = by
	}
}

// renewed returns a new deadline if less than three quarters of the timeout are
// left until the old one: a deadline costs more than a small write.
func renewed(by time.Time, timeout time.Duration) (time.Time, bool) {
	now := time.Now()
	if by.Sub(now) > timeout-timeout/4 {
		return by, false
	}
	return now.Add(timeout), true
}

// SetReadDeadline sets net/http's own deadline: for a head, an idle connection,
// or to interrupt a read.
func (g *guard) SetReadDeadline(t time.Time) error {
	g.readBy = time.Time{}
	return g.Conn.SetReadDeadline(t)
}

// SetWriteDeadline does nothing: net/http only ever clears it (WriteTimeout is
// not set), and Write has its own.
func (g *guard) SetWriteDeadline(time.Time) error { return nil }

// Write writes all of p unless the client takes no byte for WriteTimeout.
func (g *guard) Write(p []byte) (int, error) {
	if g.muted {
		return 0, net.ErrClosed
	}
	if g.awaiting && g.scan.bad == nil {
		g.logRefusal(p)
	}
	total := 0
	for {
		g.renewWrite()
		n, err := g.Conn.Write(p[total:])
		total += n
		if n == 0 || !errors.Is(err, os.ErrDeadlineExceeded) {
			return total, err
		}
		g.writeBy = time.Time{} // some bytes went: another period
	}
}

func (g *guard) renewWrite() {
	if by, ok := renewed(g.writeBy, g.server.limits.WriteTimeout); ok {
		_ = g.Conn.SetWriteDeadline(by)
		g.writeBy = by
	}
}

// CloseWrite ends the stream to the client; net/http uses it before it closes a
// connection with unread input.
func (g *guard) CloseWrite() error {
	g.lingering.Store(true)
	if c, ok := g.Conn.(interface{ CloseWrite() error }); ok {
		return c.CloseWrite()
	}
	return nil
}

// Close closes the connection, after a bounded drain if there is unread input. A
// second Close, of the server that cannot wait, ends the drain.
func (g *guard) Close() error {
	if g.lingering.CompareAndSwap(true, false) && !g.server.closing.Load() {
		g.drain()
	}
	return g.Conn.Close()
}

func (g *guard) drain() {
	if c, ok := g.Conn.(interface{ CloseWrite() error }); !ok || c.CloseWrite() != nil {
		return
	}
	buf := make([]byte, drainBytes)
	left := g.server.limits.MaxBody
	for end := time.Now().Add(drainTime); left > 0 && time.Now().Before(end); {
		_ = g.Conn.SetReadDeadline(time.Now().Add(drainPause))
		n, err := g.Conn.Read(buf)
		if err != nil {
			return
		}
		left -= int64(n)
	}
}

// cut makes the coming Close a reset where the socket allows, so that a client
// which takes the end of the connection for the end of the body can tell.
func (g *guard) cut() {
	g.lingering.Store(false)
	if c, ok := g.Conn.(*net.TCPConn); ok {
		_ = c.SetLinger(0)
	}
}

// clientGone cancels the request in hand.
func (g *guard) clientGone() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.gone = environ.ErrClientGone
	if g.current != nil {
		g.current.Cancel(g.gone)
	}
}

// hold makes r, which may be nil, the request in hand.
func (g *guard) hold(r *environ.Request) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.current = r
	if r != nil && g.gone != nil {
		r.Cancel(g.gone)
	}
}
