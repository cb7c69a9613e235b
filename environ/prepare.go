package environ

import (
	"bytes"
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
	e := &r.Environ
	if len(e.Get("REQUEST_METHOD")) == 0 {
		return Errorf(400, "REQUEST_METHOD is missing")
	}
	if err := r.parseContentLength(rules.Limits.WithDefaults().MaxBody); err != nil {
		return err
	}
	settlePaths(e, r.Transport != "cgi", rules)
	settleNames(e)
	for _, kv := range rules.Extra {
		if kv[0] != "SCRIPT_NAME" {
			e.Set(kv[0], kv[1])
		}
	}
	supplyMissing(e)
	return nil
}

// parseContentLength takes CONTENT_LENGTH: digits, empty or absent. Two of them
// are refused, equal or not: whichever an application trusts, the other is a
// second opinion on where the body ends (request smuggling).
func (r *Request) parseContentLength(max int64) error {
	r.ContentLength = -1
	seen := false
	for name, value := range r.Environ.All() {
		if string(name) != "CONTENT_LENGTH" {
			continue
		}
		if seen {
			return Errorf(400, "CONTENT_LENGTH was sent twice (is fastcgi_params included twice?)")
		}
		seen = true
		if len(value) == 0 {
			continue
		}
		if !digits(value) {
			return Errorf(400, "CONTENT_LENGTH %.40q is not a number of bytes", value)
		}
		n, err := parseLength(bytes.TrimLeft(value, "0"))
		if allZero := len(bytes.Trim(value, "0")) == 0; err != nil && !allZero || n > max {
			return Errorf(413, "CONTENT_LENGTH %.40s is over the limit of %d bytes", value, max)
		}
		r.ContentLength = n
	}
	if seen && r.ContentLength < 0 {
		r.Environ.Del("CONTENT_LENGTH") // empty: applications write int(environ["CONTENT_LENGTH"])
	}
	return nil
}

// settleNames removes what must not reach an application and leaves each name
// once.
//
// A repeated HTTP_ variable is a header that the client repeated (nginx before
// 1.23 sends it so) or spelled twice (lighttpd sends X-A and X_A alike): the
// values are joined, as RFC 9110, section 5.2, has it, so that a second spelling
// cannot replace the first. Of any other name, and of HTTP_HOST, which a client
// cannot repeat, the last one counts: nginx sends a name as often as its
// configuration sets it.
func settleNames(e *Environ) {
	e.filter(func(i int) bool {
		name, value := e.At(i)
		return !forbidden(name) && !(len(value) == 0 && string(name) == "CONTENT_TYPE")
	})
	var hashes [128]uint32
	if len(e.list) > len(hashes) {
		settleMany(e)
		return
	}
	dup := false
	for i := range e.list {
		name, _ := e.At(i)
		hashes[i] = nameHash(name)
		for j := 0; j < i && !dup; j++ {
			if hashes[j] == hashes[i] {
				other, _ := e.At(j)
				dup = bytes.Equal(name, other)
			}
		}
	}
	if dup {
		settleMany(e)
	}
}

// nameHash tells most variable names apart by their length and ends.
func nameHash(name []byte) uint32 {
	h := uint32(len(name)) << 24
	if n := len(name); n > 0 {
		h |= uint32(name[n-1]) | uint32(name[n/2])<<8 | uint32(name[n*3/4])<<16
	}
	return h
}

// settleMany is settleNames for an environ that has repeated names.
func settleMany(e *Environ) {
	first := make(map[string]int, len(e.list))
	e.filter(func(i int) bool {
		name, value := e.At(i)
		j, repeated := first[string(name)]
		if !repeated {
			first[string(name)] = i
			return true
		}
		_, old := e.At(j)
		e.setAt(j, joined(name, old, value))
		return false
	})
}

// joined returns the one value for a name that was sent with these two.
func joined(name, first, second []byte) []byte {
	if !bytes.HasPrefix(name, []byte("HTTP_")) || string(name) == "HTTP_HOST" {
		return bytes.Clone(second)
	}
	separator := ", "
	if string(name) == "HTTP_COOKIE" {
		separator = "; " // RFC 6265, section 5.4; a comma is part of old cookies' values
	}
	return append(append(bytes.Clone(first), separator...), second...)
}

// forbidden reports whether a variable must not reach an application:
// HTTP_PROXY, which libraries take for the proxy of outgoing requests
// (CVE-2016-5385 and its siblings); the two headers that CGI renames and
// wsgiref.validate forbids; anything that would pose as the server's own keys.
func forbidden(name []byte) bool {
	switch string(name) {
	case "", "HTTP_PROXY", "HTTP_CONTENT_TYPE", "HTTP_CONTENT_LENGTH":
		return true
	}
	return name[0] == 'w' && (bytes.HasPrefix(name, []byte("wsgi.")) || bytes.HasPrefix(name, []byte("wsgigate.")))
}

// supplyMissing gives the variables that PEP 3333 says are never absent or never
// empty (nginx sends SERVER_NAME empty unless server_name is set).
func supplyMissing(e *Environ) {
	if !e.Has("QUERY_STRING") {
		_, query, _ := bytes.Cut(e.Get("REQUEST_URI"), []byte{'?'})
		e.Add("QUERY_STRING", string(query))
	}
	if len(e.Get("SERVER_PROTOCOL")) == 0 {
		e.Set("SERVER_PROTOCOL", "HTTP/1.0")
	}
	host, port := splitHost(e.Get("HTTP_HOST"))
	if len(e.Get("SERVER_NAME")) == 0 {
		e.Set("SERVER_NAME", firstOf(string(host), e.Text("SERVER_ADDR"), "localhost"))
	}
	if len(e.Get("SERVER_PORT")) == 0 {
		standard := "80"
		if Scheme(e) == "https" {
			standard = "443"
		}
		e.Set("SERVER_PORT", firstOf(string(port), standard))
	}
}

func firstOf(values ...string) string {
	for _, v := range values {
		if v != "" {
			return v
		}
	}
	return ""
}

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
