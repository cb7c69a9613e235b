package cgi

import (
	"errors"
	"fmt"
	"io"
	"time"

	"wsgigate/environ"
)

// exchange is the request and its response.
type exchange struct {
	req            environ.Request
	stdout, stderr io.Writer
	nph            bool

	state    state
	bodyless bool   // no body may follow the header
	sent     bool   // bytes of the response have left
	out      []byte // those that have not
	err      error  // why the response is not whole
}

var _ environ.ResponseWriter = (*exchange)(nil)

type state uint8

const (
	fresh state = iota // no header yet
	begun              // WriteHeader was called
	ended              // failed or aborted: no more writes
)

// keepBack is how many bytes of a response are kept back until Flush or the
// Handler's return.
const keepBack = 16 << 10

var (
	errState = errors.New("cgi: WriteHeader must be called once, before the body")
	errEnded = errors.New("cgi: response was aborted")
)

// WriteHeader begins the response.
func (x *exchange) WriteHeader(h *environ.Header) error {
	switch {
	case x.state != fresh:
		return errState
	case h.Status() < 200:
		return fmt.Errorf("cgi: an application cannot send status %d", h.Status())
	}
	x.state = begun
	x.bodyless = !h.BodyAllowed(x.req.Method())
	if x.nph {
		x.out = appendNPH(x.out, h)
	} else {
		x.out = h.AppendCGI(x.out)
	}
	return nil
}

// appendNPH appends the header of a whole HTTP response, whose body ends with
// the connection.
func appendNPH(out []byte, h *environ.Header) []byte {
	out = h.AppendHTTP(out)
	out = append(out[:len(out)-len("\r\n")], "Connection: close\r\n"...)
	if !h.HasDate() {
		out = time.Now().UTC().AppendFormat(out, "Date: Mon, 02 Jan 2006 15:04:05 GMT\r\n")
	}
	if !h.HasServer() {
		out = append(out, "Server: wsgigate\r\n"...)
	}
	return append(out, "\r\n"...)
}

// Write appends to the body.
func (x *exchange) Write(p []byte) (int, error) {
	if err := x.ready(); err != nil {
		return 0, err
	}
	if x.bodyless {
		return len(p), nil
	}
	if len(x.out)+len(p) <= keepBack {
		x.out = append(x.out, p...)
		return len(p), nil
	}
	if err := x.send(p); err != nil {
		return 0, err
	}
	return len(p), nil
}

// ready reports why a body cannot be written now.
func (x *exchange) ready() error {
	switch x.state {
	case fresh:
		return errState
	case ended:
		return errEnded
	}
	return nil
}

// send writes what was kept back, and p, to stdout.
func (x *exchange) send(p []byte) error {
	for _, part := range [][]byte{x.out, p} {
		if len(part) == 0 {
			continue
		}
		x.sent = true
		if _, err := x.stdout.Write(part); err != nil {
			x.state, x.err = ended, fmt.Errorf("cgi: writing the response: %w", err)
			return x.err
		}
	}
	x.out = x.out[:0]
	return nil
}

// Flush sends what was written so far, the header too.
func (x *exchange) Flush() error {
	if err := x.ready(); err != nil {
		return err
	}
	return x.send(nil)
}

// WriteErrors writes to stderr, which is the web server's error log.
func (x *exchange) WriteErrors(p []byte) { _, _ = x.stderr.Write(p) }

// Abort answers 500 if nothing was sent yet; else Serve returns err and writes
// nothing more.
func (x *exchange) Abort(err error) {
	if x.state != ended {
		x.fail(environ.Errorf(500, "cgi: response cut short: %w", err))
	}
}

// fail answers with the error's page in place of what there is, if that is still
// possible.
func (x *exchange) fail(err error) {
	if x.sent {
		x.state, x.err, x.out = ended, err, nil
		return
	}
	x.state, x.out = fresh, x.out[:0]
	environ.Fail(x, &x.req, err)
	_ = x.send(nil)
	x.state = ended
}
