package scgi

import (
	"sync"
	"time"

	"wsgigate/environ"
	"wsgigate/environ/wire"
)

// watchAfter is how long a Handler runs before the connection is watched. Nearly
// all are done by then and cost only the timer.
const watchAfter = 10 * time.Millisecond

// watcher cancels a request when the peer closes its connection while the Handler
// runs. It reads the connection from a goroutine of its own, the timer's, which
// is only allowed once the body is read, and which stop ends.
type watcher struct {
	timer *time.Timer

	mu      sync.Mutex
	armed   bool
	conn    *wire.Conn // while armed
	req     *environ.Request
	reading chan struct{} // closed when the goroutine ends; nil: there is none
}

func (w *watcher) init() {
	w.timer = time.AfterFunc(time.Hour, w.run)
	w.timer.Stop()
}

// arm begins the wait. The body has been read.
func (w *watcher) arm(x *exchange) {
	x.conn.SetReadTimeout(0)
	w.mu.Lock()
	defer w.mu.Unlock()
	w.armed, w.conn, w.req = true, x.conn, &x.req
	w.timer.Reset(watchAfter)
}

// run waits for the peer to close. A timer of the last request that runs late
// begins early, which does no harm. Bytes behind the body mean nothing in SCGI;
// after them the connection is not watched any more.
func (w *watcher) run() {
	w.mu.Lock()
	if !w.armed || w.reading != nil {
		w.mu.Unlock()
		return
	}
	conn, req, done := w.conn, w.req, make(chan struct{})
	w.reading = done
	w.mu.Unlock()
	defer close(done)
	var surplus [1]byte
	if _, err := conn.Read(surplus[:]); err != nil {
		req.Cancel(environ.ErrClientGone)
	}
}

// stop ends the watch; when it returns the request is no longer touched. It may
// have to close the connection for that.
func (w *watcher) stop() {
	w.mu.Lock()
	conn, reading := w.conn, w.reading
	armed := w.armed
	w.armed, w.conn, w.req, w.reading = false, nil, nil, nil
	w.mu.Unlock()
	if armed {
		w.timer.Stop()
	}
	if reading != nil {
		_ = conn.Close()
		<-reading
	}
}
