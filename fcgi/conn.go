package fcgi

import (
	"errors"
	"io"
	"net"
	"os"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"wsgigate/environ"
	"wsgigate/environ/wire"
)

const (
	// readBuffer is how much one read may bring; web servers send a usual request
	// in one piece of 1 to 2 KiB, and bodies in records of up to 64 KiB.
	readBuffer = 32 << 10

	// takeOverAfter is how long a handler may run while nobody reads its
	// connection. Past it another goroutine reads on, to see an abort.
	takeOverAfter = 10 * time.Millisecond

	// freshWait is how long a new connection may say nothing before it counts as
	// idle, so that a shutdown closes it.
	freshWait = time.Second

	// lingerTime and lingerBytes bound how much unread input is thrown away before a
	// connection is closed. Closed with unread input, the kernel would send a
	// reset, which can overtake the response.
	lingerTime  = 2 * time.Second
	lingerBytes = 4 << 20
)

// conn is one connection of a web server.
//
// One goroutine at a time is its reader and runs loop. The reader calls the
// handler itself if it has nothing else to do, which is nearly always; if that takes
// longer, a timer's goroutine becomes the reader (see takeOver). All other requests
// have a goroutine of their own. serveConn returns when all of them have ended.
type conn struct {
	s      *Server
	w      *wire.Conn
	limits *environ.Limits

	// The reader's own.
	buf         []byte // in() = buf[start:fill] is not parsed yet
	start, fill int
	rec         record // the record that comes in
	left, pad   int    // bytes of it still to come
	now         time.Time
	heard       time.Time // when the last bytes came
	fresh       bool      // nothing has come yet
	spare       *request
	timer       *time.Timer

	turn   atomic.Uint64 // odd while the reader runs a handler; see runInline
	shared bool          // other goroutines had to do with this conn; the reader's
	ended  chan struct{} // gets one value when the last reader has ended
	aside  sync.WaitGroup

	mu      sync.Mutex // guards the following
	open    []*request // between BEGIN_REQUEST and the final write
	active  int        // requests that are owed an end
	running int        // active, and aborted ones whose handler still runs
	last    bool       // no more requests: close when active is 0
	cut     bool       // close so that the peer can tell
	unread  bool       // the peer may still be sending
	idle    bool       // the accept loop was told so
	since   time.Time  // when active became 0

	gone atomic.Bool // the connection is lost: nothing can be sent any more
	wmu  sync.Mutex  // one write at a time
}

var connPool = sync.Pool{New: func() any {
	c := &conn{buf: make([]byte, readBuffer), spare: new(request), ended: make(chan struct{}, 1)}
	c.timer = time.AfterFunc(time.Hour, c.takeOver)
	c.timer.Stop()
	return c
}}

// serveConn answers the requests of one connection. The caller closes it.
func (s *Server) serveConn(w *wire.Conn) {
	c := connPool.Get().(*conn)
	c.reset(s, w)
	if !c.loop() {
		<-c.ended
	}
	c.aside.Wait()
	if !c.shared {
		c.s, c.w = nil, nil
		connPool.Put(c)
	}
}

func (c *conn) reset(s *Server, w *wire.Conn) {
	c.s, c.w, c.limits = s, w, &s.rules.Limits
	c.start, c.fill, c.left, c.pad = 0, 0, 0, 0
	c.now, c.fresh = time.Now(), true
	c.since = c.now
	c.active, c.running = 0, 0
	c.last, c.cut, c.unread, c.idle = false, false, false, false
	c.gone.Store(false)
	w.SetWriteTimeout(c.limits.WriteTimeout)
}

// loop reads and acts until the connection ends. It returns false if it has lost
// the reader's part to another goroutine.
func (c *conn) loop() (reader bool) {
	for {
		r, err := c.parse()
		if err == nil && r == nil {
			if !c.mayRead() {
				c.hangUp()
				return true
			}
			err = c.read()
		}
		switch {
		case err != nil:
			c.lose(err)
			return true
		case r == nil:
		case c.alone():
			if !c.runInline(r) {
				return false
			}
		default:
			c.shared = true
			c.aside.Add(1)
			go c.runAside(r)
		}
	}
}

// alone reports whether the one open request is all there is to do: then it has
// its whole input, and its handler can run in the reader's goroutine.
func (c *conn) alone() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.running == 1 && c.start == c.fill && c.open[0].inputDone.Load()
}

// runInline calls the handler in the reader's goroutine. It returns false if it
// took so long that another goroutine has become the reader.
//
// turn decides: it is odd for the time of the call, and whoever makes it even
// again is the reader. It only ever grows, so that a timer that fires late
// cannot end another call's time.
func (c *conn) runInline(r *request) bool {
	turn := c.turn.Add(1)
	c.timer.Reset(takeOverAfter)
	c.answer(r)
	if !c.turn.CompareAndSwap(turn, turn+1) {
		c.retire(r, false)
		return false
	}
	c.timer.Stop()
	c.retire(r, true)
	c.spare = r
	return true
}

// takeOver becomes the reader if a handler runs in the reader's goroutine. The
// timer calls it in a goroutine of its own, which ends with the connection or when
// it is taken over itself.
func (c *conn) takeOver() {
	turn := c.turn.Load()
	if turn%2 == 0 || !c.turn.CompareAndSwap(turn, turn+1) {
		return
	}
	c.aside.Add(1)
	defer c.aside.Done()
	c.shared = true
	if c.loop() {
		c.ended <- struct{}{}
	}
}

// runAside calls the handler in a goroutine of its own, which ends with the request.
func (c *conn) runAside(r *request) {
	defer c.aside.Done()
	c.answer(r)
	c.retire(r, false)
}

// answer calls the handler and ends the response.
func (c *conn) answer(r *request) {
	c.call(r)
	r.closeInput()
	if c.release(r) {
		r.out.finish()
	}
}

func (c *conn) call(r *request) {
	defer func() {
		if v := recover(); v != nil {
			c.s.Log.Error("panic in a handler", "id", r.ID, "panic", v, "stack", string(debug.Stack()))
			r.out.Abort(errPanic)
		}
	}()
	c.s.Handler.ServeGateway(&r.out, &r.Request)
}

var errPanic = errors.New("fcgi: handler panicked")

// release frees the request's id. It returns false if the request was ended
// already, by an abort or the loss of the connection.
func (c *conn) release(r *request) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.remove(r)
}

// remove takes r off the open requests. c.mu is held.
func (c *conn) remove(r *request) bool {
	for i, other := range c.open {
		if other == r {
			n := len(c.open) - 1
			c.open[i] = c.open[n]
			c.open[n] = nil
			c.open = c.open[:n]
			return true
		}
	}
	return false
}

// find returns the open request of that id, or nil.
func (c *conn) find(id uint16) *request {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, r := range c.open {
		if r.id == id {
			return r
		}
	}
	return nil
}

// admit opens a request. It returns false if the connection takes no more now.
func (c *conn) admit(id uint16) (*request, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.last || c.running >= c.limits.MaxRequestsPerConn {
		return nil, false
	}
	if c.idle {
		c.idle = false
		if !c.w.SetIdle(false) {
			return nil, false // a shutdown closed it
		}
	}
	r := c.spare
	if c.spare = nil; r == nil {
		r = new(request)
	}
	c.open = append(c.open, r)
	c.active++
	c.running++
	return r, true
}

// retire settles what a request that has its end leaves behind. Unless the
// caller is the reader, which sees to it itself, it ends a connection that has
// nothing more to do.
func (c *conn) retire(r *request, reader bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.running--
	if r.out.dead.Load() {
		return // an abort or the loss of the connection settled the rest
	}
	c.settle(r, r.out.cut)
	if !reader && c.active == 0 {
		c.rest()
	}
}

// leaves reports whether the server is shutting down and the connection has only one
// request left, which is being answered.
func (c *conn) leaves() bool {
	return c.w.Leaving() && c.onlyRequest()
}

// onlyRequest reports whether the request that is being answered is the only one.
func (c *conn) onlyRequest() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.active == 1
}

// settle counts r's end, clean or cut. c.mu is held.
func (c *conn) settle(r *request, cut bool) {
	c.active--
	c.last = c.last || !r.keep || r.out.last
	c.unread = c.unread || !r.inputDone.Load()
	if cut {
		c.cut, c.last = true, true
	}
	if c.active == 0 {
		c.since = time.Now()
	}
}

// rest is for a connection without requests whose reader is waiting in a read:
// it is idle, or its end has come. c.mu is held.
func (c *conn) rest() {
	switch {
	case !c.last:
		c.idle = true
		if !c.w.SetIdle(true) {
			_ = c.w.Close()
		}
	case c.cut:
		_ = c.w.Reset()
	case !c.unread:
		_ = c.w.Close()
	default: // the reader throws away what still comes
		w := c.w
		time.AfterFunc(lingerTime, func() { _ = w.Close() })
		c.shutWrite()
	}
}

// shutWrite tells the peer that nothing more follows.
func (c *conn) shutWrite() {
	c.wmu.Lock()
	defer c.wmu.Unlock()
	_ = c.w.CloseWrite()
}

// mayRead reports whether there is a reason to read on, and until when.
func (c *conn) mayRead() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.last && c.active == 0 {
		return false
	}
	if c.active == 0 && !c.fresh {
		c.idle = true // perhaps again: what came was no request, and a shutdown may have let it come
		if !c.w.SetIdle(true) {
			return false
		}
	}
	c.w.SetReadDeadline(c.deadline())
	return true
}

// deadline is when the reader must act next. c.mu is held.
func (c *conn) deadline() time.Time {
	switch {
	case c.fresh && !c.idle:
		return c.since.Add(min(freshWait, c.limits.HeaderTimeout))
	case c.fresh:
		return c.since.Add(c.limits.HeaderTimeout)
	case c.active == 0 && (c.start < c.fill || c.left > 0):
		return earlier(c.since.Add(c.limits.IdleTimeout), c.heard.Add(c.limits.HeaderTimeout))
	case c.active == 0:
		return c.since.Add(c.limits.IdleTimeout)
	}
	next := c.now.Add(c.limits.IdleTimeout) // only to look again
	for _, r := range c.open {
		if !r.deadline.IsZero() {
			next = earlier(next, r.deadline)
		}
	}
	return next
}

func earlier(a, b time.Time) time.Time {
	if b.Before(a) {
		return b
	}
	return a
}

// read gets the next bytes. An expired deadline is no error unless it is the
// whole connection's.
func (c *conn) read() error {
	if c.start > 0 {
		c.fill = copy(c.buf, c.buf[c.start:c.fill])
		c.start = 0
	}
	n, err := c.w.Read(c.buf[c.fill:])
	c.fill += n
	c.now = time.Now()
	if n > 0 {
		c.fresh, c.heard = false, c.now
		return nil
	}
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return c.expire()
	}
	return err
}

// errIdle ends a connection on which nothing was asked for too long.
var errIdle = errors.New("fcgi: idle for too long")

// expire acts on the deadlines that have passed.
func (c *conn) expire() error {
	c.mu.Lock()
	if c.active == 0 {
		defer c.mu.Unlock()
		if c.fresh && !c.idle && c.since.Add(c.limits.HeaderTimeout).After(c.now) {
			c.idle = true
			if c.w.SetIdle(true) {
				return nil
			}
		} else if c.idle && c.deadline().After(c.now) {
			return nil // it became idle only while the reader waited
		}
		return errIdle
	}
	var due []*request
	for _, r := range c.open {
		if !r.deadline.IsZero() && !r.deadline.After(c.now) {
			due = append(due, r)
			c.last = true // the peer is stuck, or means harm
		}
	}
	c.mu.Unlock()
	for _, r := range due {
		r.deadline = time.Time{}
		c.fail(r, environ.Errorf(408, "fcgi: the web server paused for too long"))
	}
	return nil
}

// hangUp ends a connection that has nothing more to do.
func (c *conn) hangUp() {
	c.mu.Lock()
	unread, cut := c.unread || c.start < c.fill || c.left > 0, c.cut
	c.mu.Unlock()
	switch {
	case c.gone.Load():
	case cut:
		_ = c.w.Reset()
	case unread:
		c.shutWrite()
		c.w.SetReadDeadline(time.Now().Add(lingerTime))
		for n := 0; n < lingerBytes; {
			got, err := c.w.Read(c.buf)
			if err != nil {
				return
			}
			n += got
		}
	}
}

// lose ends all requests of a connection that cannot be used any more: the web
// server closed it, or broke the protocol.
func (c *conn) lose(err error) {
	c.gone.Store(true)
	c.mu.Lock()
	lost := c.open
	c.open = nil
	c.last = true
	for _, r := range lost {
		r.out.dead.Store(true)
		c.active--
		if !r.started {
			c.running--
		}
	}
	c.mu.Unlock()
	for _, r := range lost {
		r.breakInput(errBodyCut(r.stdin.total))
		if r.started {
			r.Cancel(environ.ErrClientGone)
		} else {
			r.closeInput()
		}
	}
	if !quiet(err) {
		c.s.Log.Warn("connection closed", "peer", c.peer(), "error", err)
	}
	if !errors.Is(err, io.EOF) {
		_ = c.w.Reset()
	}
}

// quiet reports whether an error is only the end of a connection.
func quiet(err error) bool {
	for _, end := range []error{io.EOF, net.ErrClosed, errIdle, syscall.ECONNRESET} {
		if errors.Is(err, end) {
			return true
		}
	}
	return false
}

func (c *conn) peer() string {
	if addr := c.w.RemoteAddr(); addr.IsValid() {
		return addr.String()
	}
	return "unix"
}
