package scgi

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"time"

	"wsgigate/environ"
	"wsgigate/environ/cgiout"
	"wsgigate/environ/wire"
)

// exchange is one request and its response. It is reused.
type exchange struct {
	conn   *wire.Conn
	limits *environ.Limits
	req    environ.Request
	in     []byte // what the first reads brought
	watch  watcher

	body     []byte // the beginning of the body, of in
	bodyLeft int64  // bytes of the body that are not yet read from conn

	cgiout.Response
}

// firstRead is the size of the buffer for a head and a small body. Heads are 0.5
// to 4 KiB.
const firstRead = 16 << 10

// freshWait is how long a new connection may say nothing before it counts as
// idle, so that a shutdown closes it.
const freshWait = time.Second

var exchanges = sync.Pool{New: func() any {
	x := &exchange{in: make([]byte, firstRead)}
	x.watch.init()
	return x
}}

func (x *exchange) begin(c *wire.Conn, limits *environ.Limits) {
	x.conn, x.limits = c, limits
	x.body, x.bodyLeft = nil, 0
	x.Begin(c, &x.req, (*environ.Header).AppendCGI)
	r := &x.req
	r.Reset()
	r.ID = environ.NextID()
	r.Start = time.Now()
	r.Transport = "scgi"
	r.Body = environ.NoBody
	c.SetWriteTimeout(limits.WriteTimeout)
}

// release gives x back; nothing may use its request any more.
func (x *exchange) release() {
	x.watch.stop()
	x.conn, x.limits, x.body = nil, nil, nil
	exchanges.Put(x)
}

// peer names the other side for the log.
func (x *exchange) peer() string {
	if addr := x.conn.RemoteAddr(); addr.IsValid() {
		return addr.String()
	}
	return "unix"
}

// readHead reads up to the end of the variables, and what of the body comes
// along. io.EOF means that the peer sent nothing at all.
func (x *exchange) readHead() error {
	// Each variable has two NULs besides what MaxHeaders counts.
	limit := x.limits.MaxHeaders + 2*x.limits.MaxFields
	have, size, start := 0, 0, 0
	for size == 0 || have < size {
		n, err := x.readMore(have)
		if err == io.EOF && have > 0 {
			err = io.ErrUnexpectedEOF
		}
		if err != nil {
			return fmt.Errorf("scgi: reading the head after %d bytes: %w", have, err)
		}
		have += n
		if size == 0 {
			if size, start, err = headSize(x.in[:have], limit); err != nil {
				return err
			}
		}
		if size > len(x.in) {
			x.in = append(make([]byte, 0, size), x.in[:have]...)[:size]
		}
	}
	x.body = x.in[size:have]
	return parseVariables(&x.req.Environ, x.in[start:size], x.limits.MaxFields)
}

// readMore reads behind the bytes that it has.
func (x *exchange) readMore(have int) (int, error) {
	until := x.req.Start.Add(x.limits.HeaderTimeout)
	if have == 0 && x.limits.HeaderTimeout > freshWait {
		x.conn.SetReadDeadline(x.req.Start.Add(freshWait))
		n, err := x.conn.Read(x.in)
		if !errors.Is(err, os.ErrDeadlineExceeded) {
			return n, err
		}
		return x.readIdle(until)
	}
	x.conn.SetReadDeadline(until)
	return x.conn.Read(x.in[have:])
}

// readIdle waits for the first bytes of a connection that a shutdown may close:
// then it returns io.EOF, as if the peer had thought better of it.
func (x *exchange) readIdle(until time.Time) (int, error) {
	if !x.conn.SetIdle(true) {
		return 0, io.EOF
	}
	x.conn.SetReadDeadline(until)
	n, err := x.conn.Read(x.in)
	if errors.Is(err, net.ErrClosed) || err == nil && !x.conn.SetIdle(false) {
		return 0, io.EOF
	}
	return n, err
}

// prepare settles the environ and the body, which has CONTENT_LENGTH bytes.
func (x *exchange) prepare(rules *environ.Rules) error {
	r := &x.req
	if size := r.Environ.Size(); size > x.limits.MaxHeaders {
		return environ.Errorf(431, "scgi: variables of %d bytes, the limit is %d", size, x.limits.MaxHeaders)
	}
	x.bodyLeft = x.limits.MaxBody // until the length is known
	if err := environ.Prepare(r, rules); err != nil {
		return err
	}
	x.bodyLeft = r.ContentLength - int64(len(x.body))
	if x.bodyLeft < 0 {
		return environ.Errorf(400, "scgi: %d bytes follow the body of %d", -x.bodyLeft, r.ContentLength)
	}
	if r.ContentLength > 0 {
		r.Body = (*bodyReader)(x)
	}
	x.conn.SetReadDeadline(time.Time{})
	if x.bodyLeft == 0 {
		x.watch.arm(x)
	} else {
		x.conn.SetReadTimeout(x.limits.BodyTimeout)
	}
	return nil
}

// bodyReader reads the body: what came with the head, then the connection, never
// past CONTENT_LENGTH. The last bytes come together with io.EOF, which saves the
// application that asks for more a round trip.
type bodyReader exchange

func (b *bodyReader) Read(p []byte) (n int, err error) {
	if len(b.body) > 0 {
		n = copy(p, b.body)
		b.body = b.body[n:]
	} else if b.bodyLeft > 0 {
		n, err = b.conn.Read(p[:min(int64(len(p)), b.bodyLeft)])
		b.bodyLeft -= int64(n)
		if err == nil && b.bodyLeft == 0 {
			b.watch.arm((*exchange)(b))
		}
	}
	switch {
	case err == nil && len(b.body) == 0 && b.bodyLeft == 0:
		return n, io.EOF
	case err == nil:
		return n, nil
	case err == io.EOF:
		return n, environ.Errorf(400, "scgi: body ends %d bytes early: %w", b.bodyLeft, io.ErrUnexpectedEOF)
	case errors.Is(err, os.ErrDeadlineExceeded):
		return n, environ.Errorf(408, "scgi: peer sent no more of the body: %w", err)
	default:
		return n, environ.Errorf(400, "scgi: reading the body: %w", err)
	}
}
