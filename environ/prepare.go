package environ

import (
	"bytes"
	"cmp"
	"strconv"
)

// Rules is what a deployment adds to the rules of this package.
type Rules struct {
	Limits Limits

	// Extra are variables of every request's environ ("--env"). They replace what
	// the web server sent. SCRIPT_NAME here says where the application is mounted
	// and wins over every guess of the path rules.
	Extra [][2]string
}

// Prepare turns what a CGI-style transport received into the environ that
// PEP 3333 promises, and sets r.ContentLength. A transport calls it once, after
// the last variable and before the Handler. A body whose CONTENT_LENGTH is not
// known is left to the transport: ContentLength is then -1 (RFC 3875, section 4.1.2).
//
// An error is an [Error] with the status to answer.
func Prepare(r *Request, rules *Rules) error {
	var x names
	x.settle(&r.Environ, len(rules.Extra)+mostSupplied)
	if len(x.get("REQUEST_METHOD")) == 0 {
		return Errorf(400, "REQUEST_METHOD is missing")
	}
	if err := r.parseContentLength(&x, rules.Limits.WithDefaults().MaxBody); err != nil {
		return err
	}
	settlePaths(&x, r.Transport != "cgi", rules)
	for _, kv := range rules.Extra {
		if kv[0] != "SCRIPT_NAME" {
			x.set(kv[0], kv[1])
		}
	}
	x.supplyMissing()
	return nil
}

// parseContentLength takes CONTENT_LENGTH: digits, empty or absent. Two of them
// are refused, equal or not: whichever an application trusts, the other is a
// second opinion on where the body ends (request smuggling).
func (r *Request) parseContentLength(x *names, max int64) error {
	r.ContentLength = -1
	if x.lengthTwice {
		return Errorf(400, "CONTENT_LENGTH was sent twice (is fastcgi_params included twice?)")
	}
	value, ok := x.lookup("CONTENT_LENGTH")
	if !ok {
		return nil
	}
	if !digits(value) {
		return Errorf(400, "CONTENT_LENGTH %.40q is not a number of bytes", value)
	}
	significant := bytes.TrimLeft(value, "0")
	if len(significant) == 0 {
		significant = value[:1]
	}
	n, err := parseLength(significant)
	if err != nil || n > max {
		return Errorf(413, "CONTENT_LENGTH %.40s is over the limit of %d bytes", value, max)
	}
	r.ContentLength = n
	return nil
}

// supplyMissing gives the variables that PEP 3333 says are never absent or never
// empty (nginx sends SERVER_NAME empty unless server_name is set).
func (x *names) supplyMissing() {
	if _, ok := x.lookup("QUERY_STRING"); !ok {
		_, query, _ := bytes.Cut(x.get("REQUEST_URI"), []byte{'?'})
		x.set("QUERY_STRING", string(query))
	}
	if len(x.get("SERVER_PROTOCOL")) == 0 {
		x.set("SERVER_PROTOCOL", "HTTP/1.0")
	}
	host, port := splitHost(x.get("HTTP_HOST"))
	if len(x.get("SERVER_NAME")) == 0 {
		x.set("SERVER_NAME", cmp.Or(string(host), string(x.get("SERVER_ADDR")), "localhost"))
	}
	if len(x.get("SERVER_PORT")) == 0 {
		standard := "80"
		if Scheme(x.e) == "https" {
			standard = "443"
		}
		x.set("SERVER_PORT", cmp.Or(string(port), standard))
	}
}

// mostSupplied is how many names Prepare may add of its own: the two paths and
// those of supplyMissing.
const mostSupplied = 6

// splitHost splits a Host field into name and port; an IPv6 address keeps its
// brackets (RFC 9110, section 7.2). A port that is not a number is none.
func splitHost(host []byte) (name, port []byte) {
	i := bytes.LastIndexByte(host, ':')
	if i < 0 || bytes.IndexByte(host[i:], ']') >= 0 {
		return host, nil
	}
	if _, err := strconv.ParseUint(string(host[i+1:]), 10, 16); err != nil {
		return host[:i], nil
	}
	return host[:i], host[i+1:]
}

// Scheme returns wsgi.url_scheme: "https" if HTTPS is yes, on or 1 in any letter
// case, or REQUEST_SCHEME says https; else "http". (wsgiref compares the case
// too, so that Apache's and IIS's "ON" sends applications into redirect loops.)
func Scheme(e *Environ) string {
	switch v := e.Get("HTTPS"); len(v) {
	case 1:
		if v[0] == '1' {
			return "https"
		}
	case 2, 3:
		if bytes.EqualFold(v, []byte("on")) || bytes.EqualFold(v, []byte("yes")) {
			return "https"
		}
	}
	if bytes.EqualFold(e.Get("REQUEST_SCHEME"), []byte("https")) {
		return "https"
	}
	return "http"
}
