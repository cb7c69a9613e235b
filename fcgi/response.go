package fcgi

import (
	"bytes"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"

	"wsgigate/environ"
)

const (
	// maxHeld is how many bytes of output wait for Flush or the handler's return. A
	// usual page goes with its header and its end in one write.
	maxHeld = 16 << 10

	// maxKeptOutput is the largest output buffer kept for the next request.
	maxKeptOutput = 64 << 10

	// batch is how many records one writev takes.
	batch = 16

	// maxErrors is how many bytes of wsgi.errors one request may send to the web
	// server; the gateway's own log has all of it.
	maxErrors = 64 << 10
)

// response is the environ.ResponseWriter of one request.
type response struct {
	c  *conn
	r  *request
	id uint16

	out    []byte // waits to be sent; one STDOUT record in it may be open
	record int    // where that begins, -1 if none is open

	begun  bool // WriteHeader was called
	sent   bool // some of it was sent
	noBody bool
	cut    bool  // it must not have a clean end
	last   bool  // the connection ends with it
	err    error // of every further call
	dead   atomic.Bool

	errs errorText

	bufs  [2*batch + 2][]byte
	heads [batch * headerLen]byte
}

var _ environ.ResponseWriter = (*response)(nil)

var (
	errHeaderTwice = errors.New("fcgi: WriteHeader called twice")
	errNoHeader    = errors.New("fcgi: Write before WriteHeader")
	errSilent      = errors.New("fcgi: handler returned without a response")
	errEnded       = errors.New("fcgi: response was aborted")
)

func (w *response) reset(c *conn, r *request, id uint16) {
	if cap(w.out) > maxKeptOutput {
		w.out = nil
	}
	w.c, w.r, w.id = c, r, id
	w.out, w.record = w.out[:0], -1
	w.begun, w.sent, w.noBody, w.cut, w.last, w.err = false, false, false, false, false, nil
	w.dead.Store(false)
	w.errs.reset()
}

// WriteHeader holds the header back until there is more, or Flush.
func (w *response) WriteHeader(h *environ.Header) error {
	switch {
	case w.err != nil:
		return w.err
	case w.begun:
		return errHeaderTwice
	}
	w.begun = true
	w.noBody = !h.BodyAllowed(w.r.Method())
	w.openRecord()
	w.out = h.AppendCGI(w.out)
	if w.held() > alignedContent {
		block := append([]byte(nil), w.out[w.record+headerLen:]...)
		w.out = appendStream(w.out[:w.record], typeStdout, w.id, block)
		w.record = -1
	}
	return nil
}

// Write holds small pieces back and sends large ones from where they are.
func (w *response) Write(p []byte) (int, error) {
	switch {
	case w.err != nil:
		return 0, w.err
	case !w.begun:
		return 0, errNoHeader
	case w.noBody || len(p) == 0:
		return len(p), nil
	case len(w.out)+len(p) <= maxHeld:
		w.openRecord()
		w.out = append(w.out, p...)
		return len(p), nil
	}
	return w.writeLarge(p)
}

// Flush sends what is held back.
func (w *response) Flush() error {
	if w.err != nil {
		return w.err
	}
	w.closeRecord()
	w.out = w.errs.take(w.out)
	if len(w.out) == 0 {
		return nil
	}
	return w.sendHeld()
}

// WriteErrors sends text to the web server's error log, with the next output. It
// never waits.
func (w *response) WriteErrors(p []byte) { w.errs.add(w.id, p) }

// Abort replaces a response of which nothing was sent by an error page; any
// other gets no end, and the connection's loss tells the web server.
func (w *response) Abort(err error) {
	if w.err == errEnded {
		return
	}
	if !w.sent && w.err == nil {
		w.out, w.record, w.begun = w.out[:0], -1, false
		environ.Fail(w, &w.r.Request, err)
	} else {
		w.cut = true
	}
	w.err = errEnded
}

// finish sends the rest of the response and its end, together.
//
// FastCGI has no word for "this was the connection's last request", and a web
// server that took the connection for its next request while it is being closed would
// lose that. But nginx keeps a connection only if nothing follows END_REQUEST
// (ngx_http_fastcgi_input_filter, 1.22), so an empty management record behind it says
// the same. Others look whether the connection has ended before they use it again: they
// must see that as soon as they see END_REQUEST. Apache would take the record for the
// next answer's beginning.
func (w *response) finish() {
	if !w.begun && w.err == nil {
		w.c.s.Log.Error("no response", "id", w.r.ID, "error", errSilent)
		environ.Fail(w, &w.r.Request, errSilent)
	}
	if w.cut {
		w.breakOff()
		return
	}
	w.closeRecord()
	w.out = w.errs.take(w.out)
	w.out = appendRecord(w.out, typeStdout, w.id, 0, 0)
	if w.errs.any() {
		w.out = appendRecord(w.out, typeStderr, w.id, 0, 0)
	}
	w.out = appendEnd(w.out, w.id, 0, requestComplete)
	if w.last = w.r.keep && w.c.leaves(); w.last {
		w.c.w.Cork()
	}
	if w.last && w.behindNginx() {
		w.out = appendRecord(w.out, typeGetValuesResult, 0, 0, 0)
	}
	_ = w.sendHeld() // the connection knows that it is lost
	if w.last {
		w.c.shutWrite()
	}
}

// behindNginx reports whether the web server says that it is nginx, as its parameter
// files make it do.
func (w *response) behindNginx() bool {
	return bytes.HasPrefix(w.r.Environ.Get("SERVER_SOFTWARE"), []byte("nginx"))
}

// breakOff makes sure that the web server does not take the end of the connection for
// the end of the response, by a record that no version of FastCGI has. nginx does so
// over a unix socket, which cannot be reset, unless fastcgi_keep_conn is on (1.22): it
// ended the body, and kept its client waiting for the rest of the Content-Length.
func (w *response) breakOff() {
	if w.c.onlyRequest() {
		w.out = append(w.out[:0], zeros[:headerLen]...)
		_ = w.sendHeld()
	}
}

func (w *response) openRecord() {
	if w.record < 0 {
		w.record = len(w.out)
		w.out = append(w.out, zeros[:headerLen]...)
	}
}

// held is how much content the open record has.
func (w *response) held() int { return len(w.out) - w.record - headerLen }

// closeRecord completes the open record.
func (w *response) closeRecord() {
	if w.record < 0 {
		return
	}
	n := w.held()
	pad := padTo8(n)
	putRecord(w.out[w.record:], typeStdout, w.id, n, pad)
	w.out = append(w.out, zeros[:pad]...)
	w.record = -1
}

// writeLarge sends p behind what is held back, without copying it.
func (w *response) writeLarge(p []byte) (int, error) {
	if w.errs.waiting.Load() { // in front of it
		if err := w.Flush(); err != nil {
			return 0, err
		}
	}
	w.openRecord()
	done := 0
	for done < len(p) {
		n, bufs := w.gather(p[done:])
		if err := w.send(bufs); err != nil {
			return done, err
		}
		done += n
		w.out, w.record = w.out[:0], -1
	}
	return done, nil
}

// gather builds up to batch records of p, the first of which is the open one if
// there is one. n is how much of p they take.
func (w *response) gather(p []byte) (n int, bufs [][]byte) {
	bufs = w.bufs[:0]
	for i := 0; i < batch && n < len(p); i++ {
		held := 0
		head := w.heads[i*headerLen : (i+1)*headerLen]
		if i == 0 && w.record >= 0 {
			held, head = w.held(), w.out[w.record:]
			bufs = append(bufs, w.out)
		} else {
			bufs = append(bufs, head)
		}
		take := min(len(p)-n, alignedContent-held)
		pad := padTo8(held + take)
		putRecord(head, typeStdout, w.id, held+take, pad)
		bufs = append(bufs, p[n:n+take])
		if pad > 0 { // only the last one
			bufs = append(bufs, zeros[:pad])
		}
		n += take
	}
	return n, bufs
}

// sendHeld sends out, in which no record is open.
func (w *response) sendHeld() error {
	w.bufs[0] = w.out
	err := w.send(w.bufs[:1])
	w.out = w.out[:0]
	return err
}

// send writes whole records, unless the response was aborted.
func (w *response) send(bufs [][]byte) error {
	w.beforeSend()
	c := w.c
	c.wmu.Lock()
	defer c.wmu.Unlock()
	if err := w.sendable(); err != nil {
		return err
	}
	var err error
	if len(bufs) == 1 {
		_, err = c.w.Write(bufs[0])
	} else {
		_, err = c.w.Writev(bufs)
	}
	if err != nil {
		return w.lost(err)
	}
	return nil
}

// beforeSend notes that something is sent. From then on the peer must be able
// to get rid of its body.
func (w *response) beforeSend() {
	if w.sent {
		return
	}
	w.sent = true
	if !w.r.inputDone.Load() {
		w.r.stdin.release()
		w.r.data.release()
	}
}

// sendable returns an error if nobody waits for the response. c.wmu is held.
func (w *response) sendable() error {
	if w.dead.Load() || w.c.gone.Load() {
		w.err = environ.ErrClientGone
		return w.err
	}
	return nil
}

// lost gives the connection up after a failed write. c.wmu is held.
func (w *response) lost(err error) error {
	w.c.gone.Store(true)
	_ = w.c.w.Reset() // wakes the reader
	w.err = fmt.Errorf("fcgi: %w: %w", environ.ErrClientGone, err)
	return w.err
}

// errorText is a request's wsgi.errors as STDERR records that wait for the next
// output. It is the one part of a response that several goroutines may use.
type errorText struct {
	mu      sync.Mutex
	out     []byte
	total   int
	some    atomic.Bool // total > 0
	waiting atomic.Bool // out is not empty
}

func (e *errorText) reset() {
	e.out, e.total = e.out[:0], 0
	e.some.Store(false)
	e.waiting.Store(false)
}

func (e *errorText) any() bool { return e.some.Load() }

func (e *errorText) add(id uint16, p []byte) {
	if len(p) == 0 {
		return
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	room := maxErrors - e.total
	if room == 0 {
		return
	}
	text := environ.AppendVisible(nil, p[:min(len(p), room)])
	text = text[:min(len(text), room)]
	e.total += len(text)
	e.out = appendStream(e.out, typeStderr, id, text)
	e.some.Store(true)
	e.waiting.Store(true)
}

// take moves the records to the end of dst.
func (e *errorText) take(dst []byte) []byte {
	if !e.waiting.Load() {
		return dst
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	dst = append(dst, e.out...)
	e.out = e.out[:0]
	e.waiting.Store(false)
	return dst
}
