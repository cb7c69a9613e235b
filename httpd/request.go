package httpd

import (
	"errors"
	"io"
	"net/http"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"wsgigate/environ"
)

// exchange is one request and its response. It is reused.
type exchange struct {
	guard  *guard
	w      http.ResponseWriter
	hr     *http.Request
	req    environ.Request
	names  []string // of the request's fields, sorted
	buffer []byte   // for what is put together

	bodyLeft atomic.Bool // the body has not been read to its end

	status    int  // the response's, 0 before WriteHeader
	committed bool // net/http has the status
	bodyless  bool // HEAD, 204, 304
	ended     bool // aborted or failed: no more writes
	cut       bool // the connection must not end cleanly
}

var exchanges = sync.Pool{New: func() any { return new(exchange) }}

func (x *exchange) begin(g *guard, w http.ResponseWriter, hr *http.Request) {
	x.guard, x.w, x.hr = g, w, hr
	x.status, x.committed, x.bodyless, x.ended, x.cut = 0, false, false, false, false
	x.bodyLeft.Store(false)
	r := &x.req
	r.Reset()
	r.ID = environ.NextID()
	r.Start = time.Now()
	r.Transport = "http"
	r.Body = environ.NoBody
	g.hold(r)
}

func (x *exchange) release() {
	x.guard, x.w, x.hr = nil, nil, nil
	x.req.Body = nil
	clear(x.names)
	exchanges.Put(x)
}

// prepare makes the environ and the body.
func (x *exchange) prepare(rules *environ.Rules) error {
	if x.hr.Method == http.MethodConnect {
		return environ.Errorf(501, "CONNECT is for proxies")
	}
	x.setVariables()
	if err := x.setFields(rules.Limits.MaxFields); err != nil {
		return err
	}
	if err := environ.Prepare(&x.req, rules); err != nil {
		return err
	}
	x.setBody(rules.Limits.MaxBody)
	return nil
}

// setVariables adds the meta-variables (RFC 3875, section 4.1). SERVER_NAME is
// left to environ.Prepare, which takes it from HTTP_HOST, else SERVER_ADDR.
func (x *exchange) setVariables() {
	e, hr, g := &x.req.Environ, x.hr, x.guard
	uri := hr.RequestURI
	e.Add("GATEWAY_INTERFACE", "CGI/1.1")
	e.Add("SERVER_SOFTWARE", "wsgigate")
	e.Add("SERVER_PROTOCOL", hr.Proto)
	e.Add("REQUEST_METHOD", hr.Method)
	e.Add("REQUEST_URI", uri)
	e.Add("RAW_URI", uri)
	e.Add("SCRIPT_NAME", "")
	if hr.URL.Path == "*" { // OPTIONS *
		e.Add("PATH_INFO", "/")
	} else {
		e.Add("PATH_INFO", hr.URL.Path) // decoded once, bytes as they are
	}
	e.Add("QUERY_STRING", hr.URL.RawQuery)
	e.Add("REMOTE_ADDR", g.remoteAddr)
	if g.remotePort != "" {
		e.Add("REMOTE_PORT", g.remotePort)
	}
	if g.localAddr != "" {
		e.Add("SERVER_ADDR", g.localAddr)
	}
	if port := hostPort(hr.Host); port != "" {
		e.Add("SERVER_PORT", port)
	} else if g.localPort != "" {
		e.Add("SERVER_PORT", g.localPort)
	}
	if hr.Host != "" {
		e.Add("HTTP_HOST", hr.Host)
	}
}

// hostPort returns the port in a Host field, which net/http has checked for
// strange characters, or "".
func hostPort(host string) string {
	i := strings.LastIndexByte(host, ':')
	if i < 0 || i+1 == len(host) || len(host)-i > len(":65535") {
		return ""
	}
	port := host[i+1:]
	for _, c := range []byte(port) {
		if c < '0' || c > '9' { // of an IPv6 address without a port
			return ""
		}
	}
	return port
}

// setFields adds the request's header fields, sorted by name because net/http
// does not keep their order.
func (x *exchange) setFields(max int) error {
	x.names = x.names[:0]
	fields := 0
	for name, values := range x.hr.Header {
		x.names = append(x.names, name)
		fields += len(values)
	}
	if fields > max {
		return environ.Errorf(431, "%d header fields, the limit is %d", fields, max)
	}
	slices.Sort(x.names)
	for _, name := range x.names {
		x.addField(name, x.hr.Header[name])
	}
	return nil
}

// addField adds one field under its CGI name. A repeated field becomes one value
// (RFC 3875, section 4.1.18).
func (x *exchange) addField(name string, values []string) {
	b := x.buffer[:0]
	switch name {
	case "Content-Type":
		b = append(b, "CONTENT_TYPE"...)
	case "Content-Length":
		b = append(b, "CONTENT_LENGTH"...)
	case "Proxy": // would be HTTP_PROXY (CVE-2016-5385)
		return
	default:
		var ok bool
		if b, ok = appendVariable(b, name); !ok {
			return
		}
	}
	separator := ","
	if name == "Cookie" {
		separator = "; " // RFC 6265, section 5.4
	}
	at := len(b)
	for i, value := range values {
		if i > 0 {
			b = append(b, separator...)
		}
		b = append(b, value...)
	}
	x.req.Environ.AddBytes(b[:at], b[at:])
	x.buffer = b
}

// appendVariable appends the CGI name of a field. A name with anything but
// letters, digits and hyphens has none: X_A or X.A could pose as X-A, and
// Content_Length as Content-Length (what nginx's underscores_in_headers is for).
func appendVariable(b []byte, name string) ([]byte, bool) {
	b = append(b, "HTTP_"...)
	for _, c := range []byte(name) {
		switch {
		case 'a' <= c && c <= 'z':
			c -= 'a' - 'A'
		case 'A' <= c && c <= 'Z', '0' <= c && c <= '9':
		case c == '-':
			c = '_'
		default:
			return b, false
		}
		b = append(b, c)
	}
	return b, true
}

// setBody takes over net/http's body, which ends by Content-Length or the last
// chunk, and lets the response begin before the body was read: net/http would
// otherwise close it then.
func (x *exchange) setBody(max int64) {
	r, hr := &x.req, x.hr
	r.ContentLength = hr.ContentLength
	if hr.Body == http.NoBody || hr.ContentLength == 0 {
		return
	}
	r.ExpectContinue = hr.ProtoAtLeast(1, 1) && strings.EqualFold(hr.Header.Get("Expect"), "100-continue")
	r.Body = (*bodyReader)(x)
	x.bodyLeft.Store(true)
	if hr.ContentLength < 0 {
		r.Body = environ.BoundBody(r.Body, max)
	}
	if c, ok := x.w.(interface{ EnableFullDuplex() error }); ok {
		_ = c.EnableFullDuplex()
	}
}

// bodyReader gives the errors of net/http's body their status.
type bodyReader exchange

func (b *bodyReader) Read(p []byte) (int, error) {
	n, err := b.hr.Body.Read(p)
	switch {
	case err == nil:
		return n, nil
	case err == io.EOF:
		b.bodyLeft.Store(false)
		return n, err
	case errors.Is(err, os.ErrDeadlineExceeded):
		return n, environ.Errorf(408, "httpd: client sent no more of the body: %w", err)
	default:
		return n, environ.Errorf(400, "httpd: reading the body: %w", err)
	}
}
