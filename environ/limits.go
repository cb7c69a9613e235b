package environ

import (
	"cmp"
	"io"
	"time"
)

// Limits bounds what one request may take. Every transport obeys them; the zero
// value of a field means its default (see WithDefaults).
type Limits struct {
	// MaxHeaders is the size in bytes of all names and values of a request. Past
	// it: 431, or a closed connection where the protocol cannot answer yet.
	MaxHeaders int

	// MaxFields is their number. Past it: 431. Front servers send 20 to 60.
	MaxFields int

	// MaxBody is the size in bytes of a request body. Past it: 413.
	MaxBody int64

	// ReadAhead is how many bytes of a body are read before a worker is taken, so
	// that a slow sender holds a connection and not a worker.
	ReadAhead int

	// ResponseBuffer is how many bytes of a response wait in the gateway for a slow
	// client before the worker has to wait too.
	ResponseBuffer int

	// HeaderTimeout is how long a client may take for the whole header of a
	// request. Past it: 408 or a closed connection.
	HeaderTimeout time.Duration

	// BodyTimeout is how long a client may pause within a body. Past it: 408
	// if nothing was answered yet.
	BodyTimeout time.Duration

	// WriteTimeout is how long a client may refuse to take any byte of a response.
	// Past it the request is cancelled and the connection closed.
	WriteTimeout time.Duration

	// IdleTimeout is how long a kept connection may wait for its next request.
	IdleTimeout time.Duration

	// MaxRequestsPerConn is how many multiplexed requests one FastCGI connection
	// may have at once. Past it: FCGI_CANT_MPX_CONN.
	MaxRequestsPerConn int
}

// WithDefaults returns a copy with every zero field set to its default.
func (l Limits) WithDefaults() Limits {
	l.MaxHeaders = cmp.Or(l.MaxHeaders, 64<<10)
	l.MaxFields = cmp.Or(l.MaxFields, 1000)
	l.MaxBody = cmp.Or(l.MaxBody, 1<<30)
	l.ReadAhead = cmp.Or(l.ReadAhead, 1<<20)
	l.ResponseBuffer = cmp.Or(l.ResponseBuffer, 1<<20)
	l.HeaderTimeout = cmp.Or(l.HeaderTimeout, 30*time.Second)
	l.BodyTimeout = cmp.Or(l.BodyTimeout, 60*time.Second)
	l.WriteTimeout = cmp.Or(l.WriteTimeout, 60*time.Second)
	l.IdleTimeout = cmp.Or(l.IdleTimeout, 10*time.Minute)
	l.MaxRequestsPerConn = cmp.Or(l.MaxRequestsPerConn, 256)
	return l
}

// BoundBody returns a reader of a body whose length is not known beforehand: a
// read past max bytes fails with a 413.
func BoundBody(body io.Reader, max int64) io.Reader { return &boundedBody{body, max} }

type boundedBody struct {
	body io.Reader
	left int64 // -1 once the limit is passed
}

func (b *boundedBody) Read(p []byte) (int, error) {
	if b.left < 0 {
		return 0, errBodyTooLarge
	}
	if int64(len(p)) > b.left+1 {
		p = p[:b.left+1] // one more tells an exact fit from an overrun
	}
	n, err := b.body.Read(p)
	if int64(n) > b.left {
		n, b.left = int(b.left), -1
		return n, errBodyTooLarge
	}
	b.left -= int64(n)
	return n, err
}

// ExactBody returns a reader of a body that must have n bytes: an end before
// that is io.ErrUnexpectedEOF, as a 400, and so are bytes after it.
func ExactBody(body io.Reader, n int64) io.Reader { return &exactBody{body: body, want: n, n: n} }

type exactBody struct {
	body    io.Reader
	want, n int64 // n is what is left; -1 once the end was seen
	err     error // of a body that is too long: a reader that goes on must not see an end
}

func (b *exactBody) Read(p []byte) (int, error) {
	switch {
	case b.n < 0:
		return 0, io.EOF
	case b.n == 0:
		return b.readEnd()
	case int64(len(p)) > b.n:
		p = p[:b.n]
	}
	n, err := b.body.Read(p)
	b.n -= int64(n)
	if err == io.EOF && b.n > 0 {
		return n, Errorf(400, "body ends after %d of %d bytes: %w", b.want-b.n, b.want, io.ErrUnexpectedEOF)
	}
	if err == io.EOF {
		b.n = -1
	}
	return n, err
}

// readEnd asks for one byte more than there may be.
func (b *exactBody) readEnd() (int, error) {
	if b.err != nil {
		return 0, b.err
	}
	var one [1]byte
	n, err := b.body.Read(one[:])
	if n > 0 {
		b.err = Errorf(400, "body is longer than its CONTENT_LENGTH %d", b.want)
		return 0, b.err
	}
	if err == io.EOF {
		b.n = -1
	}
	return 0, err
}

var errBodyTooLarge = Errorf(413, "body larger than the limit")
