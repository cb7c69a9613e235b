package pyrunner

import (
	"errors"
	"io"
	"os"

	"wsgigate/environ"
)

// requestBody is wsgi.input on its way to the worker: what was read before a
// slot was taken, and then the rest, when the worker asks for it.
type requestBody struct {
	source io.Reader
	buf    []byte // read ahead; its memory is kept between requests if it is small
	ahead  []byte // the part of buf that the worker does not have yet
	ended  bool   // nothing follows ahead
	err    error  // what broke the body
}

// keepAhead is the capacity of a read-ahead buffer that is worth keeping.
const keepAhead = 32 << 10

func (b *requestBody) reset() {
	buf := b.buf[:0]
	if cap(buf) > keepAhead {
		buf = nil
	}
	*b = requestBody{buf: buf}
}

// readAhead reads the body, up to limit bytes of it, so that a slow sender does
// not hold a worker. It leaves a body alone whose client waits for "100 Continue".
func (b *requestBody) readAhead(r *environ.Request, limit int) error {
	b.source = r.Body
	if r.ContentLength == 0 || r.Body == nil {
		b.ended = true
		return nil
	}
	if r.ExpectContinue {
		return nil
	}
	if b.buf == nil {
		b.buf = make([]byte, 0, maxInline+1) // one more, so that the end is seen
	}
	for !b.ended && len(b.buf) < limit {
		if len(b.buf) == cap(b.buf) {
			bigger := make([]byte, len(b.buf), min(cap(b.buf)*4, limit))
			copy(bigger, b.buf)
			b.buf = bigger
		}
		n, err := b.source.Read(b.buf[len(b.buf):cap(b.buf)])
		b.buf = b.buf[:len(b.buf)+n]
		if err == io.EOF {
			b.ended = true
		} else if err != nil {
			return bodyError(err)
		}
	}
	b.ahead = b.buf
	return nil
}

// bodyError gives an error of a body the status that the client sees.
func bodyError(err error) error {
	if _, ok := errors.AsType[*environ.Error](err); ok {
		return err
	}
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return environ.Errorf(408, "body too slow: %w", err)
	}
	return environ.Errorf(400, "body ended early: %w", err)
}

// takeInline returns what travels with the request.
func (b *requestBody) takeInline() []byte {
	n := min(len(b.ahead), maxInline)
	inline := b.ahead[:n]
	b.ahead = b.ahead[n:]
	return inline
}

// more reports whether the worker has to ask for the rest.
func (b *requestBody) more() bool { return !b.ended || len(b.ahead) > 0 }

// appendRead appends the BODY frame that answers a READ for up to max bytes.
// It may wait for the client.
func (b *requestBody) appendRead(dst []byte, request uint32, max int, extra uint8) []byte {
	start := len(dst)
	dst = beginFrame(dst, frameBody, extra, request)
	switch {
	case len(b.ahead) > 0:
		n := min(len(b.ahead), max)
		dst = append(dst, b.ahead[:n]...)
		b.ahead = b.ahead[n:]
	case !b.ended:
		dst = b.appendSource(dst, max)
	}
	switch {
	case b.err != nil:
		dst[start+1] |= flagBroken
		dst = append(dst[:start+headLen], b.err.Error()...)
	case !b.more():
		dst[start+1] |= flagLast
	}
	return endFrame(dst, start)
}

// appendSource reads from the client.
func (b *requestBody) appendSource(dst []byte, max int) []byte {
	if free := cap(dst) - len(dst); free < max {
		bigger := make([]byte, len(dst), len(dst)+max)
		copy(bigger, dst)
		dst = bigger
	}
	for b.err == nil {
		n, err := b.source.Read(dst[len(dst) : len(dst)+max])
		dst = dst[:len(dst)+n]
		if err == io.EOF {
			b.ended = true
			break
		}
		if err != nil {
			b.err = bodyError(err)
		}
		if n > 0 {
			break
		}
	}
	return dst
}
