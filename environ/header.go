package environ

import (
	"bytes"
	"errors"
	"fmt"
	"strconv"
)

// Header is the status and the header fields of a response. Whatever put them
// in, they obey PEP 3333 and RFC 9110: a Header that breaks a rule cannot be
// made, so nothing else that leaves the gateway needs to check.
//
// The zero value has no status yet.
type Header struct {
	pairs
	status int
	reason []byte
	length int64 // of Content-Length, valid if hasLength
	has    uint8 // which of the fields below occur
}

const (
	hasLength uint8 = 1 << iota
	hasDate
	hasServer
)

// Reset empties the header and keeps its memory.
func (h *Header) Reset() {
	h.reset()
	*h = Header{pairs: h.pairs, reason: h.reason[:0]}
}

// Status returns the status code, 100 to 599.
func (h *Header) Status() int { return h.status }

// Reason returns the reason phrase.
func (h *Header) Reason() []byte { return h.reason }

// ContentLength returns the value of Content-Length and whether there is one.
func (h *Header) ContentLength() (int64, bool) { return h.length, h.has&hasLength != 0 }

// HasDate and HasServer report whether the application gave these fields itself
// (PEP 3333 lets an origin server add them only then).
func (h *Header) HasDate() bool { return h.has&hasDate != 0 }

// HasServer reports whether there is a Server field.
func (h *Header) HasServer() bool { return h.has&hasServer != 0 }

// Get returns the first value of the field; names match in any letter case.
func (h *Header) Get(name string) ([]byte, bool) {
	for i := range h.list {
		got, value := h.At(i)
		if len(got) == len(name) && bytes.EqualFold(got, []byte(name)) {
			return value, true
		}
	}
	return nil, false
}

// BodyAllowed reports whether a response with this status to this method has a
// body (RFC 9110, section 6.4.1).
func (h *Header) BodyAllowed(method []byte) bool {
	return string(method) != "HEAD" && h.status >= 200 && h.status != 204 && h.status != 304
}

// SetStatus sets the status line's code and reason.
func (h *Header) SetStatus(code int, reason string) error {
	if code < 100 || code > 599 {
		return fmt.Errorf("status %d is not between 100 and 599", code)
	}
	if i := badValueByte([]byte(reason)); i >= 0 {
		return fmt.Errorf("control character %q in the reason phrase", reason[i])
	}
	h.status = code
	h.reason = append(h.reason[:0], reason...)
	return nil
}

// Add appends a field.
func (h *Header) Add(name, value string) error {
	if err := h.check([]byte(name), []byte(value)); err != nil {
		return err
	}
	h.add(name, value)
	return nil
}

// add appends a field that is known to be good.
func (h *Header) add(name, value string) { h.list = append(h.list, h.store(name, value)) }

// ErrHeader is in the chain of every error of Parse.
var ErrHeader = errors.New("response header refused")

// Parse reads the form in which a worker sends a header: a line "200 OK", then
// a line "Name: value" for each field, all ending in LF. It checks every rule.
func (h *Header) Parse(block []byte) error {
	h.Reset()
	line, rest, ok := bytes.Cut(block, []byte{'\n'})
	if !ok {
		return fmt.Errorf("%w: no status line", ErrHeader)
	}
	if err := h.parseStatus(line); err != nil {
		return fmt.Errorf("%w: %w", ErrHeader, err)
	}
	for len(rest) > 0 {
		line, rest, ok = bytes.Cut(rest, []byte{'\n'})
		if !ok {
			return fmt.Errorf("%w: unfinished line %q", ErrHeader, line)
		}
		name, value, ok := bytes.Cut(line, []byte(": "))
		if !ok {
			return fmt.Errorf("%w: line %q has no colon", ErrHeader, line)
		}
		if err := h.check(name, value); err != nil {
			return fmt.Errorf("%w: %w", ErrHeader, err)
		}
		h.list = append(h.list, h.storeBytes(name, value))
	}
	return nil
}

// parseStatus takes "200 OK": three digits, a space, a reason without control
// characters (PEP 3333, "The start_response() Callable").
func (h *Header) parseStatus(line []byte) error {
	if len(line) < 4 || line[3] != ' ' || !digits(line[:3]) {
		return fmt.Errorf("status %q is not three digits, a space and a reason", line)
	}
	code := int(line[0]-'0')*100 + int(line[1]-'0')*10 + int(line[2]-'0')
	if code < 100 || code > 599 {
		return fmt.Errorf("status %d is not between 100 and 599", code)
	}
	if i := badValueByte(line[4:]); i >= 0 {
		return fmt.Errorf("control character %q in the status", line[4+i])
	}
	h.status = code
	h.reason = append(h.reason[:0], line[4:]...)
	return nil
}

// check refuses what PEP 3333 ("The start_response() Callable") and RFC 9110,
// section 5, forbid in a field, and notes the fields that Header knows.
func (h *Header) check(name, value []byte) error {
	if len(name) == 0 {
		return errors.New("empty header name")
	}
	for _, c := range name {
		if !tokenByte[c] {
			return fmt.Errorf("character %q in header name %q", c, name)
		}
	}
	if i := badValueByte(value); i >= 0 {
		return fmt.Errorf("control character %q in header %s", value[i], name)
	}
	switch len(name) { // only these lengths can be a name with a rule of its own
	case 2, 4, 6, 7, 10, 14, 17, 18, 19:
		return h.checkKnown(name, value)
	}
	return nil
}

func (h *Header) checkKnown(name, value []byte) error {
	var lower [19]byte
	for i, c := range name {
		if 'A' <= c && c <= 'Z' {
			c += 'a' - 'A'
		}
		lower[i] = c
	}
	switch string(lower[:len(name)]) {
	case "connection", "keep-alive", "proxy-authenticate", "proxy-authorization", "te", "trailer", "transfer-encoding", "upgrade":
		return fmt.Errorf("hop-by-hop header %s", name)
	case "status":
		return errors.New("a header named Status")
	case "date":
		h.has |= hasDate
	case "server":
		h.has |= hasServer
	case "content-length":
		return h.checkLength(value)
	}
	return nil
}

func (h *Header) checkLength(value []byte) error {
	if h.has&hasLength != 0 {
		return errors.New("Content-Length twice")
	}
	n, err := parseLength(value)
	if err != nil {
		return fmt.Errorf("Content-Length %w", err)
	}
	h.length, h.has = n, h.has|hasLength
	return nil
}

// parseLength reads a length in bytes: decimal digits and nothing else, at most
// 18 of them, so that a sum of two cannot overflow.
func parseLength(value []byte) (int64, error) {
	if len(value) == 0 || len(value) > 18 || !digits(value) {
		return 0, fmt.Errorf("%.40q is not a number of bytes", value)
	}
	return strconv.ParseInt(string(value), 10, 64)
}

func digits(b []byte) bool {
	for _, c := range b {
		if c < '0' || c > '9' {
			return false
		}
	}
	return true
}

// AppendCGI appends the header as a CGI response does (RFC 3875, section 6): the
// Status field first and always, because mod_proxy_fcgi takes an answer
// without one for a 200.
func (h *Header) AppendCGI(dst []byte) []byte {
	dst = append(dst, "Status: "...)
	return h.appendTail(dst)
}

// AppendHTTP appends the header with a full status line, as NPH scripts (RFC
// 3875, section 5) and uwsgi answers begin.
func (h *Header) AppendHTTP(dst []byte) []byte {
	dst = append(dst, "HTTP/1.1 "...)
	return h.appendTail(dst)
}

func (h *Header) appendTail(dst []byte) []byte {
	dst = strconv.AppendInt(dst, int64(h.status), 10)
	dst = append(dst, ' ')
	dst = append(dst, h.reason...)
	for i := range h.list {
		name, value := h.At(i)
		dst = append(dst, '\r', '\n')
		dst = append(dst, name...)
		dst = append(dst, ':', ' ')
		dst = append(dst, value...)
	}
	return append(dst, "\r\n\r\n"...)
}

// badValueByte returns the index of the first byte that a field value must not
// have (RFC 9110, section 5.5: control characters but tab), or -1.
func badValueByte(value []byte) int {
	for i, c := range value {
		if c < ' ' && c != '\t' || c == 0x7f {
			return i
		}
	}
	return -1
}

// tokenByte has the characters of a field name (RFC 9110, section 5.6.2).
var tokenByte = func() (t [256]bool) {
	for c := '0'; c <= '9'; c++ {
		t[c] = true
	}
	for c := 'a'; c <= 'z'; c++ {
		t[c], t[c-'a'+'A'] = true, true
	}
	for _, c := range "!#$%&'*+-.^_`|~" {
		t[c] = true
	}
	return t
}()
