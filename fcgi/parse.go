package fcgi

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"time"

	"wsgigate/environ"
)

// maxWhole is the largest content of a record that is taken as a whole. GET_VALUES
// with all names that there are has 51 bytes.
const maxWhole = 16 << 10

// The ways to break the protocol that end a connection, since nothing that
// follows can be trusted.
var (
	errBegin     = errors.New("fcgi: BEGIN_REQUEST of a wrong size")
	errInUse     = errors.New("fcgi: BEGIN_REQUEST for an id in use")
	errBadValues = errors.New("fcgi: malformed GET_VALUES")
)

func (c *conn) in() []byte { return c.buf[c.start:c.fill] }

// parse acts on the bytes in the buffer. It returns a request as soon as one is
// ready for its handler, and nil when it needs more bytes.
func (c *conn) parse() (ready *request, err error) {
	for ready == nil && err == nil {
		in := c.in()
		switch {
		case c.left > 0 && (len(in) >= c.left || !c.whole() && len(in) > 0):
			n := min(len(in), c.left)
			c.start += n
			c.left -= n
			ready, err = c.content(in[:n])
		case c.left > 0:
			return nil, nil
		case c.pad > 0 && len(in) > 0:
			n := min(len(in), c.pad)
			c.start += n
			c.pad -= n
		case c.pad > 0 || len(in) < headerLen:
			return nil, nil
		default:
			ready, err = c.header(in)
		}
	}
	return ready, err
}

// header takes the next record's header and, since the empty record of a stream
// is its end, acts on records without content.
func (c *conn) header(in []byte) (*request, error) {
	rec, err := parseRecord(in)
	if err != nil {
		return nil, err
	}
	c.start += headerLen
	c.rec, c.left, c.pad = rec, int(rec.content), int(rec.padding)
	switch {
	case rec.id == 0 && rec.kind != typeGetValues:
		return nil, c.reply(appendUnknown(nil, rec.kind))
	case rec.id != 0 && rec.kind == typeAbortRequest:
		return nil, c.abort(rec.id)
	case c.whole() && c.left > maxWhole:
		return nil, fmt.Errorf("fcgi: record of type %d with %d bytes", rec.kind, rec.content)
	case c.left == 0:
		return c.content(nil)
	}
	return nil, nil
}

// whole reports whether the record's content is needed in one piece.
func (c *conn) whole() bool {
	return c.rec.id == 0 && c.rec.kind == typeGetValues || c.rec.id != 0 && c.rec.kind == typeBeginRequest
}

// content takes a piece of a record's content, or the end of a stream if p is
// empty. What is for no open request is ignored (section 3.3).
func (c *conn) content(p []byte) (*request, error) {
	if c.rec.id == 0 {
		if c.rec.kind != typeGetValues {
			return nil, nil // was answered with UNKNOWN_TYPE
		}
		values, err := c.s.appendValues(nil, p)
		if err != nil {
			return nil, err
		}
		return nil, c.reply(values)
	}
	switch c.rec.kind {
	case typeBeginRequest:
		return nil, c.begin(p)
	case typeParams, typeStdin, typeData:
		if r := c.find(c.rec.id); r != nil {
			return c.feed(r, p), nil
		}
	}
	return nil, nil
}

// begin opens a request (section 5.1).
func (c *conn) begin(p []byte) error {
	if len(p) != beginLen {
		return errBegin
	}
	id, keep := c.rec.id, p[2]&flagKeepConn != 0
	if c.find(id) != nil {
		return errInUse
	}
	var role environ.Role
	switch binary.BigEndian.Uint16(p) {
	case wireResponder:
		role = environ.Responder
	case wireAuthorizer:
		role = environ.Authorizer
	case wireFilter:
		role = environ.Filter
	default:
		if !keep {
			c.takeNoMore()
		}
		return c.reply(appendEnd(nil, id, 0, unknownRole))
	}
	r, ok := c.admit(id)
	if !ok {
		return c.reply(appendEnd(nil, id, 0, cantMultiplex))
	}
	r.begin(c, id, role, keep)
	return nil
}

// takeNoMore makes the connection end with the requests that it has.
func (c *conn) takeNoMore() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.last, c.unread = true, true
}

// feed gives a request a piece of one of its streams, or the end of it. It
// returns the request if it is ready for its handler.
func (c *conn) feed(r *request, p []byte) *request {
	var err error
	switch {
	case c.rec.kind == typeParams:
		err = c.feedParams(r, p)
	case !r.paramsEnd:
		err = environ.Errorf(400, "fcgi: body before the end of PARAMS")
	default:
		err = c.feedBody(r, p)
	}
	if err != nil {
		c.fail(r, err)
		return nil
	}
	if !r.ready(c.limits) {
		return nil
	}
	r.openInput(c.limits)
	return r
}

func (c *conn) feedParams(r *request, p []byte) error {
	if r.paramsEnd {
		return environ.Errorf(400, "fcgi: PARAMS after their end")
	}
	var err error
	if len(p) > 0 {
		err = r.params.feed(&r.Environ, c.limits, p)
	} else if err = r.params.end(); err == nil {
		r.deadline = c.now.Add(c.limits.BodyTimeout)
		return r.endParams(&c.s.rules)
	}
	if err != nil {
		c.takeNoMore() // a peer that passes these bounds is not to be trusted with more
	}
	return err
}

func (c *conn) feedBody(r *request, p []byte) error {
	s, end := &r.stdin, &r.stdinEnd
	if c.rec.kind == typeData {
		s, end = &r.data, &r.dataEnd
	}
	if *end || r.Role == environ.Authorizer && len(p) > 0 || r.Role != environ.Filter && c.rec.kind == typeData {
		return nil // after the end, or a stream that the role does not have
	}
	if len(p) > 0 {
		bound, wait := c.room(r)
		s.write(p, bound, wait)
		if wait {
			c.now = time.Now() // the sender is not to blame for the time that passed
		}
		r.deadline = c.now.Add(c.limits.BodyTimeout)
		return r.checkInput(c.limits)
	}
	*end = true
	if err := r.checkInput(c.limits); err != nil {
		return err
	}
	s.end(io.EOF)
	if r.inputEnd() {
		r.inputDone.Store(true)
		r.deadline = time.Time{}
	}
	return nil
}

// minRoom is the least part of the memory for bodies that a request gets.
const minRoom = 16 << 10

// room is how many bytes of r's body may wait in memory, and whether the reader may
// wait for r's handler to read them: only if there is nobody whom it would keep
// waiting. Requests that share a connection share the memory, too.
func (c *conn) room(r *request) (bound int, wait bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	wait = !r.keep && r.started && c.running == 1
	if c.running == 1 {
		return c.limits.ReadAhead, wait
	}
	return max(c.limits.ReadAhead/c.running, min(minRoom, c.limits.ReadAhead)), wait
}

// fail ends a request because of what the web server sent, or did not send. If the
// handler has the request already, its body breaks with the error.
func (c *conn) fail(r *request, err error) {
	if r.started {
		r.breakInput(err)
		return
	}
	c.s.Log.Warn("request refused", "id", r.ID, "peer", c.peer(), "status", environ.StatusOf(err), "error", err)
	r.closeInput()
	c.release(r)
	environ.Fail(&r.out, &r.Request, err)
	r.out.finish()
	c.retire(r, true)
}

// abort ends a request at the web server's wish (section 5.4): it gets its
// END_REQUEST at once, and nothing that the handler still says is sent.
func (c *conn) abort(id uint16) error {
	r := c.find(id)
	if r == nil || !c.kill(r) {
		return nil
	}
	if err := c.reply(appendEnd(nil, id, 0, requestComplete)); err != nil {
		return err
	}
	c.mu.Lock()
	c.settle(r, false)
	if !r.started {
		c.running--
	}
	c.mu.Unlock()
	if r.started {
		r.breakInput(&environ.Error{Status: 400, Err: environ.ErrAborted})
		r.Cancel(environ.ErrAborted)
	} else {
		r.closeInput()
	}
	return nil
}

// kill frees the request's id and silences its response, unless that has its end
// already.
func (c *conn) kill(r *request) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.remove(r) {
		return false
	}
	r.out.dead.Store(true)
	return true
}

// reply sends a record that belongs to no response.
func (c *conn) reply(p []byte) error {
	c.wmu.Lock()
	defer c.wmu.Unlock()
	_, err := c.w.Write(p)
	return err
}
