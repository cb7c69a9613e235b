package cgi

import (
	"io"
	"time"

	"wsgigate/environ"
	"wsgigate/environ/cgiout"
)

// exchange is the request and its response.
type exchange struct {
	req    environ.Request
	stderr io.Writer
	cgiout.Response
}

var _ environ.ResponseWriter = (*exchange)(nil)

// appendNPH appends the header of a whole HTTP response, whose body ends with
// the connection.
func appendNPH(h *environ.Header, out []byte) []byte {
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

// WriteErrors writes to stderr, which is the web server's error log.
func (x *exchange) WriteErrors(p []byte) { _, _ = x.stderr.Write(environ.AppendVisible(nil, p)) }

// Abort answers 500 if nothing was sent yet; else Serve returns err and writes
// nothing more.
func (x *exchange) Abort(err error) {
	if !x.Ended() {
		x.Replace(x, environ.Errorf(500, "cgi: response cut short: %w", err))
	}
}
