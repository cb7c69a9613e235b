package scgi

import (
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"wsgigate/environ"
)

var (
	_ environ.ResponseWriter = (*exchange)(nil)
	_ environ.FileSender     = (*exchange)(nil)
)

// state is how far a response is.
type state uint8

const (
	fresh  state = iota // no header yet
	begun               // WriteHeader was called
	broken              // the peer took no more, or the response was aborted
)

// smallAnswer is how many bytes of a response are kept back until Flush or the
// Handler's return, so that a small answer is one write.
const smallAnswer = 16 << 10

var (
	errState  = errors.New("scgi: WriteHeader must be called once, before the body")
	errBroken = errors.New("scgi: response was aborted")
)

// WriteHeader begins the response.
func (x *exchange) WriteHeader(h *environ.Header) error {
	switch {
	case x.state != fresh:
		return errState
	case h.Status() < 200:
		return fmt.Errorf("scgi: an application cannot send status %d", h.Status())
	}
	x.state = begun
	x.bodyless = !h.BodyAllowed(x.req.Method())
	x.out = h.AppendCGI(x.out)
	return nil
}

// Write appends to the body.
func (x *exchange) Write(p []byte) (int, error) {
	if err := x.ready(); err != nil {
		return 0, err
	}
	if x.bodyless {
		return len(p), nil
	}
	if len(x.out)+len(p) <= smallAnswer {
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
	case broken:
		return errBroken
	}
	return nil
}

// send sends what was kept back, and p.
func (x *exchange) send(p []byte) error {
	var err error
	switch {
	case len(x.out)+len(p) == 0:
		return nil
	case len(p) == 0:
		_, err = x.conn.Write(x.out)
	case len(x.out) == 0:
		_, err = x.conn.Write(p)
	default:
		_, err = x.conn.Writev([][]byte{x.out, p})
	}
	x.sent = true
	x.out = x.out[:0]
	if err != nil {
		x.state = broken
		return fmt.Errorf("scgi: writing the response: %w", err)
	}
	return nil
}

// Flush sends what was written so far, the header too.
func (x *exchange) Flush() error {
	if err := x.ready(); err != nil {
		return err
	}
	return x.send(nil)
}

// SendFile appends a part of a file: a small one by a copy that leaves with the
// header, others by sendfile(2).
func (x *exchange) SendFile(f *os.File, off, n int64) (int64, error) {
	if err := x.ready(); err != nil {
		return 0, err
	}
	if x.bodyless || n <= 0 {
		return n, nil
	}
	if at := len(x.out); int64(at)+n <= smallAnswer {
		got, err := f.ReadAt(x.out[at:at+int(n)], off)
		x.out = x.out[:at+got]
		if int64(got) == n {
			return n, nil
		}
		if err == io.EOF {
			err = io.ErrUnexpectedEOF
		}
		return int64(got), fmt.Errorf("scgi: reading the file: %w", err)
	}
	if err := x.send(nil); err != nil {
		return 0, err
	}
	x.sent = true
	sent, err := x.conn.SendFile(f, off, n)
	if err != nil {
		return sent, fmt.Errorf("scgi: sending the file: %w", err)
	}
	return sent, nil
}

// WriteErrors drops the text: SCGI has no way for it.
func (x *exchange) WriteErrors([]byte) {}

// Abort answers 500 if nothing was sent yet; else it resets the connection.
func (x *exchange) Abort(err error) {
	if x.state == broken {
		return
	}
	x.fail(environ.Errorf(500, "scgi: %w", err))
}

// fail answers with the error's page in place of what there is, if that is still
// possible, and else makes sure that the peer can tell that the response is cut.
func (x *exchange) fail(err error) {
	if !x.sent {
		x.state, x.out = fresh, x.out[:0]
		environ.Fail(x, &x.req, err)
		_ = x.send(nil)
	} else {
		_ = x.conn.Reset()
	}
	x.state = broken
}

// finish sends the rest and reads, within bounds, what the peer still sends.
func (x *exchange) finish() {
	if x.state == begun && x.send(nil) != nil {
		return
	}
	if x.bodyLeft <= 0 || x.conn.CloseWrite() != nil {
		return
	}
	x.conn.SetReadDeadline(time.Now().Add(drainTime))
	x.conn.SetReadTimeout(drainPause)
	_, _ = io.CopyN(io.Discard, x.conn, x.bodyLeft)
}
