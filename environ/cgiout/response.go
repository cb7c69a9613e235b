// Package cgiout is the response half that CGI and SCGI have in common: a header
// in the form of RFC 3875, section 6, then the body, on a stream whose end is the
// response's end.
package cgiout

import (
	"errors"
	"fmt"
	"io"

	"wsgigate/environ"
)

// KeepBack is how many bytes of a response are kept back until Flush or the
// Handler's return, so that a small answer is one write.
const KeepBack = 16 << 10

// The errors of a Handler that breaks the rules of [environ.ResponseWriter].
var (
	ErrState = errors.New("cgiout: WriteHeader must be called once, before the body")
	ErrEnded = errors.New("cgiout: response has ended")
)

// Response is a response under way. The embedding transport adds the rest of
// [environ.ResponseWriter].
type Response struct {
	out    io.Writer
	req    *environ.Request
	append func(h *environ.Header, dst []byte) []byte

	state    state
	bodyless bool   // no body may follow the header
	sent     bool   // bytes have left
	kept     []byte // those that have not
	vector   [2][]byte
	err      error // why the response is not whole
}

type state uint8

const (
	fresh state = iota // no header yet
	begun              // WriteHeader was called
	ended              // failed or aborted: no more writes
)

// vectorWriter is an io.Writer that can write two buffers in one call.
type vectorWriter interface {
	Writev(bufs [][]byte) (int64, error)
}

// Begin makes x ready for the response to r, on out. form appends the header:
// (*environ.Header).AppendCGI, or the full response of an NPH script.
func (x *Response) Begin(out io.Writer, r *environ.Request, form func(*environ.Header, []byte) []byte) {
	*x = Response{out: out, req: r, append: form, kept: x.kept[:0]}
}

// Begun reports whether there is a response.
func (x *Response) Begun() bool { return x.state != fresh }

// Err returns why the response is not whole, or nil.
func (x *Response) Err() error { return x.err }

// Ended reports whether the response takes no more: it failed or was aborted.
func (x *Response) Ended() bool { return x.state == ended }

// Bodyless reports whether what is written is dropped (HEAD, 204, 304).
func (x *Response) Bodyless() bool { return x.bodyless }

// WriteHeader begins the response.
func (x *Response) WriteHeader(h *environ.Header) error {
	switch {
	case x.state != fresh:
		return ErrState
	case h.Status() < 200:
		return fmt.Errorf("cgiout: an application cannot send status %d", h.Status())
	}
	x.state = begun
	x.bodyless = !h.BodyAllowed(x.req.Method())
	x.kept = x.append(h, x.kept)
	return nil
}

// Ready returns the error of a write that comes too early or too late.
func (x *Response) Ready() error {
	switch x.state {
	case fresh:
		return ErrState
	case ended:
		return ErrEnded
	}
	return nil
}

// Write appends to the body.
func (x *Response) Write(p []byte) (int, error) {
	if err := x.Ready(); err != nil {
		return 0, err
	}
	if x.bodyless {
		return len(p), nil
	}
	if len(x.kept)+len(p) <= KeepBack {
		x.kept = append(x.kept, p...)
		return len(p), nil
	}
	if err := x.send(p); err != nil {
		return 0, err
	}
	return len(p), nil
}

// Room returns n bytes at the end of what is kept back, for the caller to fill
// and to say with Filled how many it did; nil if they do not fit.
func (x *Response) Room(n int64) []byte {
	at := int64(len(x.kept))
	if at+n > KeepBack {
		return nil
	}
	if int64(cap(x.kept)) < at+n {
		x.kept = append(make([]byte, 0, KeepBack), x.kept...)
	}
	return x.kept[at : at+n]
}

// Filled adds the first n bytes of Room to the body.
func (x *Response) Filled(n int) { x.kept = x.kept[:len(x.kept)+n] }

// Flush sends what was written so far, the header too.
func (x *Response) Flush() error {
	if err := x.Ready(); err != nil {
		return err
	}
	return x.send(nil)
}

// send writes what was kept back, and p.
func (x *Response) send(p []byte) error {
	var err error
	v, ok := x.out.(vectorWriter)
	switch {
	case len(x.kept)+len(p) == 0:
		return nil
	case len(p) == 0:
		_, err = x.out.Write(x.kept)
	case len(x.kept) == 0:
		_, err = x.out.Write(p)
	case ok:
		x.vector = [2][]byte{x.kept, p}
		_, err = v.Writev(x.vector[:])
	default:
		if _, err = x.out.Write(x.kept); err == nil {
			_, err = x.out.Write(p)
		}
	}
	x.sent = true
	x.kept = x.kept[:0]
	if err != nil {
		x.state, x.err = ended, fmt.Errorf("cgiout: writing the response: %w", err)
	}
	return x.err
}

// Replace answers with err's page in place of what there is, and reports whether
// that was still possible. Either way the response has ended. w is the whole
// ResponseWriter that x is a part of.
func (x *Response) Replace(w environ.ResponseWriter, err error) bool {
	possible := !x.sent
	if !possible {
		x.err = err
	} else {
		x.state, x.kept = fresh, x.kept[:0]
		environ.Fail(w, x.req, err)
		_ = x.Flush()
	}
	x.state = ended
	return possible
}
