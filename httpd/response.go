package httpd

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"

	"wsgigate/environ"
)

var (
	_ environ.ResponseWriter = (*exchange)(nil)
	_ environ.FileSender     = (*exchange)(nil)
)

var (
	serverField = []string{"wsgigate"}
	closeField  = []string{"close"}
)

// WriteHeader gives net/http the header fields. The status waits for the first
// byte of the body, so that until then an abort can still become a 500.
func (x *exchange) WriteHeader(h *environ.Header) error {
	if x.status != 0 {
		return errors.New("httpd: WriteHeader was called twice")
	}
	if h.Status() < 200 {
		return fmt.Errorf("httpd: an application cannot send status %d", h.Status())
	}
	fields := x.w.Header()
	x.copyFields(fields, h)
	if !h.HasServer() {
		fields["Server"] = serverField
	}
	if _, ok := fields["Content-Type"]; !ok {
		fields["Content-Type"] = nil // or net/http would guess one from the body
	}
	x.status = h.Status()
	x.bodyless = !h.BodyAllowed([]byte(x.hr.Method))
	return nil
}

// copyFields adds h's fields, with the names as they are spelled but for those
// that net/http looks for. All values share one string and one slice.
func (x *exchange) copyFields(fields http.Header, h *environ.Header) {
	b := x.buffer[:0]
	for _, value := range h.All() {
		b = append(b, value...)
	}
	x.buffer = b
	rest := string(b)
	values := make([]string, h.Len())
	i := 0
	for name, value := range h.All() {
		values[i], rest = rest[:len(value)], rest[len(value):]
		key := fieldKey(name)
		if old, ok := fields[key]; ok {
			fields[key] = append(old, values[i])
		} else {
			fields[key] = values[i : i+1 : i+1]
		}
		i++
	}
}

// fieldKey returns the map key for a field's name. Of these fields net/http must
// not send a second one of its own, or must know the value.
func fieldKey(name []byte) string {
	for _, known := range [...]string{"Content-Type", "Content-Length", "Date"} {
		if len(name) == len(known) && bytes.EqualFold(name, []byte(known)) {
			return known
		}
	}
	return string(name)
}

// commit passes the status on: what follows cannot be taken back.
//
// The connection is kept only if all of the body was read by then. In full
// duplex net/http would look for the next head behind a body that it failed to
// read (request smuggling by a bad trailer). A server that shuts down keeps none.
func (x *exchange) commit() {
	if x.committed {
		return
	}
	x.committed = true
	if x.bodyLeft.Load() || x.guard.server.leaving.Load() {
		x.w.Header()["Connection"] = closeField
	}
	x.w.WriteHeader(x.status)
}

// Write appends to the body.
func (x *exchange) Write(p []byte) (int, error) {
	if err := x.ready(); err != nil {
		return 0, err
	}
	if x.bodyless || len(p) == 0 {
		return len(p), nil
	}
	x.commit()
	return x.w.Write(p)
}

// ready reports why a body cannot be written now.
func (x *exchange) ready() error {
	switch {
	case x.ended:
		return errors.New("httpd: write after Abort")
	case x.status == 0:
		return errors.New("httpd: write before WriteHeader")
	}
	return nil
}

// SendFile appends a part of a file, with sendfile(2) where the response has a
// Content-Length.
func (x *exchange) SendFile(f *os.File, off, n int64) (int64, error) {
	if err := x.ready(); err != nil {
		return 0, err
	}
	if x.bodyless || n <= 0 {
		return n, nil
	}
	x.commit()
	part := &filePart{f, off, n}
	if rf, ok := x.w.(io.ReaderFrom); ok {
		return rf.ReadFrom(part)
	}
	return io.Copy(x.w, part)
}

// Flush sends what was written so far, the header too.
func (x *exchange) Flush() error {
	if err := x.ready(); err != nil {
		return err
	}
	x.commit()
	return x.w.(interface{ FlushError() error }).FlushError()
}

// WriteErrors drops the text: HTTP has no way for it.
func (x *exchange) WriteErrors([]byte) {}

// Abort answers 500 if nothing was committed yet; else the connection will be
// cut.
func (x *exchange) Abort(err error) {
	if x.ended {
		return
	}
	x.fail(environ.Errorf(500, "httpd: %w", err))
}

// fail answers with the error's page in place of what there is, if that is still
// possible, and otherwise has the connection cut.
func (x *exchange) fail(err error) {
	if x.committed {
		x.ended, x.cut = true, true
		return
	}
	clear(x.w.Header())
	x.status = 0
	environ.Fail(x, &x.req, err)
	x.commit()
	x.ended = true
}
