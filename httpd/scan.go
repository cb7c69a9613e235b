package httpd

import (
	"bytes"
	"fmt"
)

// scanner follows the bytes of one HTTP/1 connection from head to body to the
// next head, and finds the first byte that RFC 9112 tells a server to refuse. It
// is a pure state machine: no I/O, and the same result however its input is cut.
//
// Where it does not refuse, its framing is net/http's.
type scanner struct {
	state scanState
	bad   error  // the violation; final
	line  []byte // the beginning of a line whose end has not come yet
	max   int    // limit of line, in bytes
	left  int64  // bytes of body or chunk still to come

	minor     byte // of the protocol's version, a digit
	chunked   bool
	hasLength bool
	length    int64
}

type scanState uint8

const (
	atStart     scanState = iota // the request line, or empty lines before it
	inFields                     // header fields
	inBody                       // a body of known length
	atChunk                      // a line with a chunk's size
	inChunk                      // a chunk's data
	afterChunk                   // the CRLF behind it
	inTrailer                    // trailer fields
	passThrough                  // net/http is known to refuse this head and to close
)

// maxLength is the number of digits in a Content-Length or a chunk's size that
// cannot overflow an int64.
const (
	maxDecimal = 18
	maxHex     = 15
)

// withinBody reports whether a body has begun and not yet ended.
func (s *scanner) withinBody() bool { return s.state >= inBody && s.state != passThrough }

// withinHead reports whether a head has begun and not yet ended.
func (s *scanner) withinHead() bool {
	return s.state == inFields || s.state == atStart && len(s.line) > 0
}

// scan takes the next bytes of the connection and returns how many of them
// net/http may see: all, or those before the violation (s.bad says which).
func (s *scanner) scan(p []byte) int {
	for i := 0; i < len(p); {
		switch s.state {
		case passThrough:
			return len(p)
		case inBody, inChunk:
			i += s.skip(len(p) - i)
		default:
			n, ok := s.takeLine(p[i:])
			i += n
			if !ok {
				return i
			}
		}
	}
	return len(p)
}

// skip passes over body bytes, at most n.
func (s *scanner) skip(n int) int {
	n = int(min(int64(n), s.left))
	s.left -= int64(n)
	if s.left == 0 {
		if s.state == inBody {
			s.state = atStart
		} else {
			s.state = afterChunk
		}
	}
	return n
}

// takeLine takes a line, or what there is of one. It returns the bytes taken;
// the LF of a refused line is not among them, so that net/http cannot see the
// end of a head that is refused.
func (s *scanner) takeLine(p []byte) (int, bool) {
	end := bytes.IndexByte(p, '\n')
	if end < 0 {
		if len(s.line)+len(p) > s.max {
			s.bad = fmt.Errorf("line longer than %d bytes", s.max)
			return 0, false
		}
		s.line = append(s.line, p...)
		return len(p), true
	}
	line := p[:end]
	if len(s.line) > 0 {
		s.line = append(s.line, line...)
		line = s.line
	}
	s.bad = s.endLine(line)
	s.line = s.line[:0]
	if s.bad != nil {
		return end, false
	}
	return end + 1, true
}

// endLine acts on a whole line, given without its LF.
func (s *scanner) endLine(line []byte) error {
	if len(line) == 0 || line[len(line)-1] != '\r' {
		return fmt.Errorf("bare LF after %.40q (RFC 9112, section 2.2)", line)
	}
	line = line[:len(line)-1]
	if i := controlByte(line); i >= 0 {
		return fmt.Errorf("control character %q in %.40q", line[i], line)
	}
	switch s.state {
	case atStart:
		return s.requestLine(line)
	case inFields:
		return s.field(line)
	case atChunk:
		return s.chunkSize(line)
	case afterChunk:
		if len(line) != 0 {
			return fmt.Errorf("bytes %.40q after a chunk", line)
		}
		s.state = atChunk
	case inTrailer:
		return s.trailer(line)
	}
	return nil
}

// requestLine begins a head. net/http skips empty lines after a POST and refuses
// them elsewhere.
func (s *scanner) requestLine(line []byte) error {
	const version = " HTTP/1.1"
	at := len(line) - len(version)
	switch {
	case len(line) == 0:
		return nil
	case bytes.HasPrefix(line, []byte("PRI ")):
		return fmt.Errorf("HTTP/2 preface on an HTTP/1 connection")
	case at < 0 || !bytes.HasPrefix(line[at:], []byte(version[:8])) || line[len(line)-1]-'0' > 9:
		s.state = passThrough // 400 or 505
		return nil
	}
	s.minor = line[len(line)-1]
	s.chunked, s.hasLength, s.length = false, false, 0
	s.state = inFields
	return nil
}

// field takes one header field, or the empty line that ends the head.
func (s *scanner) field(line []byte) error {
	if len(line) == 0 {
		s.endHead()
		return nil
	}
	name, value, err := splitField(line)
	if err != nil {
		return err
	}
	switch {
	case len(name) == len("content-length") && bytes.EqualFold(name, []byte("content-length")):
		return s.contentLength(value)
	case len(name) == len("transfer-encoding") && bytes.EqualFold(name, []byte("transfer-encoding")):
		return s.transferEncoding(value)
	}
	return nil
}

// splitField splits "Name: value". A line that begins with white space is a
// folded field (RFC 9112, section 5.2: refuse), which has no name either.
func splitField(line []byte) (name, value []byte, err error) {
	colon := bytes.IndexByte(line, ':')
	if colon <= 0 {
		return nil, nil, fmt.Errorf("field %.40q has no name", line)
	}
	for _, c := range line[:colon] {
		if c == ' ' || c == '\t' {
			return nil, nil, fmt.Errorf("white space in field name %.40q (RFC 9112, section 5.1)", line[:colon])
		}
	}
	return line[:colon], bytes.Trim(line[colon+1:], " \t"), nil
}

// contentLength takes a Content-Length. A second one is refused even if it is
// equal: whoever sends two has a second opinion on where the body ends.
func (s *scanner) contentLength(value []byte) error {
	if s.hasLength || s.chunked {
		return fmt.Errorf("Content-Length beside another Content-Length or Transfer-Encoding (RFC 9112, section 6.3)")
	}
	if len(value) == 0 || len(value) > maxDecimal {
		return fmt.Errorf("Content-Length %.40q is not a number of bytes", value)
	}
	for _, c := range value {
		if c < '0' || c > '9' {
			return fmt.Errorf("Content-Length %.40q is not a number of bytes", value)
		}
		s.length = s.length*10 + int64(c-'0')
	}
	s.hasLength = true
	return nil
}

// transferEncoding takes a Transfer-Encoding. net/http answers 501 to any coding
// but chunked, and overlooks the field in HTTP/1.0, which RFC 9112, section
// 6.1, calls faulty framing.
func (s *scanner) transferEncoding(value []byte) error {
	switch {
	case s.minor == '0':
		return fmt.Errorf("Transfer-Encoding in HTTP/1.0")
	case s.hasLength || s.chunked:
		return fmt.Errorf("Transfer-Encoding beside another Transfer-Encoding or Content-Length (RFC 9112, section 6.3)")
	case !bytes.EqualFold(value, []byte("chunked")):
		s.state = passThrough // 501
	}
	s.chunked = true
	return nil
}

func (s *scanner) endHead() {
	switch {
	case s.chunked:
		s.state = atChunk
	case s.length > 0:
		s.state, s.left = inBody, s.length
	default:
		s.state = atStart
	}
}

// chunkSize takes a chunk's size: hexadecimal digits, then perhaps white space
// and an extension (RFC 9112, section 7.1.1), which means nothing here.
func (s *scanner) chunkSize(line []byte) error {
	size, _, _ := bytes.Cut(line, []byte{';'})
	if len(size) == len(line) {
		size = bytes.TrimRight(size, " \t")
	}
	if len(size) == 0 || len(size) > maxHex {
		return fmt.Errorf("chunk size %.40q is not a number", line)
	}
	s.left = 0
	for _, c := range size {
		digit, ok := hexDigit(c)
		if !ok {
			return fmt.Errorf("chunk size %.40q is not a number", line)
		}
		s.left = s.left<<4 | int64(digit)
	}
	s.state = inChunk
	if s.left == 0 {
		s.state = inTrailer
	}
	return nil
}

func (s *scanner) trailer(line []byte) error {
	if len(line) == 0 {
		s.state = atStart
		return nil
	}
	_, _, err := splitField(line)
	return err
}

func hexDigit(c byte) (byte, bool) {
	switch {
	case '0' <= c && c <= '9':
		return c - '0', true
	case 'a' <= c && c <= 'f':
		return c - 'a' + 10, true
	case 'A' <= c && c <= 'F':
		return c - 'A' + 10, true
	}
	return 0, false
}

// controlByte returns the index of the first control character but tab, or -1.
func controlByte(line []byte) int {
	for i, c := range line {
		if c < ' ' && c != '\t' || c == 0x7f {
			return i
		}
	}
	return -1
}
