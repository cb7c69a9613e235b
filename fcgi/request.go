package fcgi

import (
	"strconv"
	"sync/atomic"
	"time"

	"wsgigate/environ"
)

// request is one request from BEGIN_REQUEST to its end.
type request struct {
	environ.Request
	out response

	id   uint16
	keep bool // FCGI_KEEP_CONN

	params      params
	stdin, data stream
	dataWant    int64 // FCGI_DATA_LENGTH, of a Filter

	paramsEnd bool
	stdinEnd  bool
	dataEnd   bool
	started   bool        // the handler has it
	inputDone atomic.Bool // nothing more will come; the reader writes it

	deadline time.Time // of the header or of the body's next bytes; zero if nothing is awaited
}

func (r *request) begin(c *conn, id uint16, role environ.Role, keep bool) {
	r.Request.Reset()
	r.Request.Role = role
	r.Transport = "fastcgi"
	r.ID = environ.NextID()
	r.Start = c.now
	r.out.reset(c, r, id)
	r.id, r.keep = id, keep
	r.params.reset()
	r.stdin.reset()
	r.data.reset()
	r.dataWant = 0
	r.paramsEnd, r.stdinEnd, r.dataEnd, r.started = false, false, false, false
	r.inputDone.Store(false)
	r.deadline = c.now.Add(c.limits.HeaderTimeout)
}

// endParams settles the environ once all variables are there.
func (r *request) endParams(rules *environ.Rules) error {
	if err := r.params.end(); err != nil {
		return err
	}
	r.paramsEnd = true
	if err := environ.Prepare(&r.Request, rules); err != nil {
		return err
	}
	switch r.Role {
	case environ.Authorizer:
		// The web server keeps the body for the responder and leaves out
		// CONTENT_LENGTH (section 6.3); if it does not, there still is no body.
		r.ContentLength = 0
		r.Environ.Del("CONTENT_LENGTH")
	case environ.Filter:
		return r.parseDataLength(rules.Limits.MaxBody)
	}
	return nil
}

// parseDataLength takes FCGI_DATA_LENGTH, which a Filter must have (section 6.4).
func (r *request) parseDataLength(max int64) error {
	value := r.Environ.Text("FCGI_DATA_LENGTH")
	n, err := strconv.ParseUint(value, 10, 63)
	if err != nil {
		return environ.Errorf(400, "fcgi: FCGI_DATA_LENGTH %.40q is not a number of bytes", value)
	}
	if int64(n) > max {
		return environ.Errorf(413, "fcgi: FCGI_DATA_LENGTH %d is over the limit of %d bytes", n, max)
	}
	r.dataWant = int64(n)
	return nil
}

// inputEnd reports whether everything that the web server sends has come.
func (r *request) inputEnd() bool {
	return r.paramsEnd && r.stdinEnd && (r.dataEnd || r.Role != environ.Filter)
}

// ready reports whether it is time to call the handler: nothing is awaited, or
// as much of the body is there as may be read ahead.
func (r *request) ready(limits *environ.Limits) bool {
	switch {
	case r.started || !r.paramsEnd:
		return false
	case r.Role == environ.Authorizer:
		return true
	}
	return r.inputEnd() || r.stdin.total+r.data.total >= int64(limits.ReadAhead)
}

// checkInput compares what came with what was announced, as far as it is known
// before the handler is called.
func (r *request) checkInput(limits *environ.Limits) error {
	if r.Role == environ.Authorizer {
		return nil
	}
	if err := checkLength("STDIN", r.stdin.total, r.ContentLength, r.stdinEnd, limits.MaxBody); err != nil {
		return err
	}
	if r.Role != environ.Filter {
		return nil
	}
	return checkLength("DATA", r.data.total, r.dataWant, r.dataEnd, limits.MaxBody)
}

// checkLength compares a stream's bytes so far with its announced length, -1 if
// there was none.
func checkLength(name string, got, want int64, end bool, max int64) error {
	switch {
	case want >= 0 && (got > want || end && got < want):
		return environ.Errorf(400, "fcgi: %s has %d bytes, %d were announced", name, got, want)
	case got > max:
		return environ.Errorf(413, "fcgi: %s is over the limit of %d bytes", name, max)
	}
	return nil
}

// openInput gives the handler its Body and Data. Streams that are complete have
// been checked; the others check themselves while they are read.
func (r *request) openInput(limits *environ.Limits) {
	r.started = true
	r.Body = environ.NoBody
	switch {
	case r.Role == environ.Authorizer:
	case r.stdinEnd && r.stdin.total == 0:
		r.ContentLength = 0
	case r.stdinEnd:
		r.Body = &r.stdin
	case r.ContentLength >= 0:
		r.Body = environ.ExactBody(&r.stdin, r.ContentLength)
	default:
		r.Body = environ.BoundBody(&r.stdin, limits.MaxBody)
	}
	if r.Role == environ.Filter {
		r.Data = environ.ExactBody(&r.data, r.dataWant)
	}
}

// closeInput frees what was not read.
func (r *request) closeInput() {
	r.stdin.close()
	r.data.close()
}

// breakInput ends the streams early.
func (r *request) breakInput(err error) {
	r.stdin.end(err)
	r.data.end(err)
}
