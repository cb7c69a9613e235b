package environtest

import (
	"bytes"
	"fmt"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"wsgigate/environ"
)

// Request is a request as a client makes it, byte for byte.
type Request struct {
	Method  string      // GET if empty
	Target  string      // path and query as they stand in the request line, below the mount
	Proto   string      // HTTP/1.1 if empty
	Header  [][2]string // in order; Host and the framing fields are added if absent
	Body    []byte
	Chunked bool // the body is sent in chunks, without Content-Length
	NoHost  bool // no Host field (HTTP/1.0)
}

// Response is what the client got.
type Response struct {
	Status int
	Reason string
	Header http.Header // values of one name keep their order
	Body   []byte
}

// DefaultHost is the Host field of a request that gives none.
const DefaultHost = "wsgi.test"

// complete returns a copy with every default filled in and mount before the
// target.
func (r Request) complete(mount string) *Request {
	if r.Method == "" {
		r.Method = "GET"
	}
	if r.Proto == "" {
		r.Proto = "HTTP/1.1"
	}
	r.Target = mount + r.Target
	return &r
}

// Get returns the first value of a field of the request, and whether it is there.
func (r *Request) Get(name string) (string, bool) {
	for _, field := range r.Header {
		if strings.EqualFold(field[0], name) {
			return field[1], true
		}
	}
	return "", false
}

// count returns how often the request has a field.
func (r *Request) count(name string) int {
	n := 0
	for _, field := range r.Header {
		if strings.EqualFold(field[0], name) {
			n++
		}
	}
	return n
}

// hasBody reports whether the request has a body, an empty one included.
func (r *Request) hasBody() bool {
	return r.Body != nil || r.Chunked || r.Method == "POST" || r.Method == "PUT" || r.Method == "PATCH"
}

// FrontEnviron returns the CGI variables that a web server with the application
// at mount would send for a request, CONTENT_LENGTH first as SCGI demands, each
// name once. Like nginx it sends HTTP_CONTENT_TYPE and HTTP_CONTENT_LENGTH too,
// and like lighttpd it takes "X_A" and "X.A" for spellings of "X-A". The path
// is percent-decoded and not otherwise changed.
func FrontEnviron(r *Request, mount string) [][2]string {
	rawPath, query, _ := strings.Cut(r.Target, "?")
	path, err := url.PathUnescape(rawPath)
	if err != nil {
		path = rawPath
	}
	length := ""
	if !r.Chunked {
		length = strconv.Itoa(len(r.Body))
	}
	contentType, _ := r.Get("Content-Type")
	vars := [][2]string{
		{"CONTENT_LENGTH", length},
		{"REQUEST_METHOD", r.Method},
		{"SCRIPT_NAME", mount},
		{"PATH_INFO", strings.TrimPrefix(path, mount)},
		{"QUERY_STRING", query},
		{"REQUEST_URI", r.Target},
		{"CONTENT_TYPE", contentType},
		{"SERVER_PROTOCOL", r.Proto},
		{"SERVER_SOFTWARE", "environtest"},
		{"SERVER_NAME", "front.test"},
		{"SERVER_PORT", "80"},
		{"REMOTE_ADDR", "192.0.2.7"},
		{"GATEWAY_INTERFACE", "CGI/1.1"},
	}
	return append(vars, headerVariables(r)...)
}

// headerVariables returns the HTTP_ variables, repeated ones joined.
func headerVariables(r *Request) [][2]string {
	var vars [][2]string
	add := func(field, value string) {
		name := "HTTP_" + strings.ToUpper(strings.NewReplacer("-", "_", ".", "_").Replace(field))
		separator := ", "
		if name == "HTTP_COOKIE" {
			separator = "; "
		}
		for i := range vars {
			if vars[i][0] == name {
				vars[i][1] += separator + value
				return
			}
		}
		vars = append(vars, [2]string{name, value})
	}
	if _, ok := r.Get("Host"); !ok && !r.NoHost {
		add("Host", DefaultHost)
	}
	if r.hasBody() && !r.Chunked {
		add("Content-Length", strconv.Itoa(len(r.Body)))
	}
	for _, field := range r.Header {
		add(field[0], field[1])
	}
	return vars
}

// NewRequest returns an environ.Request with those variables ("NAME=value"),
// not prepared yet.
func NewRequest(vars ...string) *environ.Request {
	r := &environ.Request{Transport: "fastcgi", ID: environ.NextID(), Start: time.Now(), Body: environ.NoBody}
	for _, v := range vars {
		name, value, _ := strings.Cut(v, "=")
		r.Environ.Add(name, value)
	}
	return r
}

// Prepared returns the environ.Request that a transport makes of a client's
// request to an application at mount.
func Prepared(r Request, mount string) (*environ.Request, error) {
	full := r.complete(mount)
	req := &environ.Request{Transport: "fastcgi", ID: environ.NextID(), Start: time.Now(), Body: environ.NoBody}
	for _, kv := range FrontEnviron(full, mount) {
		req.Environ.Add(kv[0], kv[1])
	}
	if err := environ.Prepare(req, &environ.Rules{}); err != nil {
		return nil, err
	}
	if full.hasBody() {
		req.Body = bytes.NewReader(full.Body)
	}
	return req, nil
}

// ParseCGI reads an answer in the form of CGI (RFC 3875, section 6), which must
// begin with the Status field, or with a full status line as NPH scripts and
// uwsgi answer.
func ParseCGI(answer []byte) (*Response, error) {
	head, body, ok := bytes.Cut(answer, []byte("\r\n\r\n"))
	if !ok {
		return nil, fmt.Errorf("environtest: answer has no end of header: %.200q", answer)
	}
	first, fields, _ := strings.Cut(string(head), "\r\n")
	status, isCGI := strings.CutPrefix(first, "Status: ")
	if !isCGI {
		status, ok = strings.CutPrefix(first, "HTTP/1.1 ")
	}
	code, reason, spaced := strings.Cut(status, " ")
	n, err := strconv.Atoi(code)
	if !ok || !spaced || err != nil {
		return nil, fmt.Errorf("environtest: answer begins with %q", first)
	}
	resp := &Response{Status: n, Reason: reason, Header: http.Header{}, Body: body}
	if fields == "" {
		return resp, nil
	}
	for line := range strings.SplitSeq(fields, "\r\n") {
		name, value, ok := strings.Cut(line, ": ")
		if !ok || strings.ContainsAny(line, "\r\n") {
			return nil, fmt.Errorf("environtest: header line %q", line)
		}
		resp.Header.Add(name, value)
	}
	return resp, nil
}
