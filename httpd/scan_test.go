package httpd

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"testing"
)

const host = "Host: a\r\n"

// refusals are inputs that net/http by itself would take, or take differently.
var refusals = []struct{ name, input string }{
	{"bare LF in the request line", "GET / HTTP/1.1\n" + host + "\r\n"},
	{"bare LF after a field", "GET / HTTP/1.1\r\nHost: a\n\r\n"},
	{"bare LF at the head's end", "GET / HTTP/1.1\r\n" + host + "\n"},
	{"bare CR in a value", "GET / HTTP/1.1\r\n" + host + "X: a\rb\r\n\r\n"},
	{"NUL in a value", "GET / HTTP/1.1\r\n" + host + "X: a\x00b\r\n\r\n"},
	{"folded field", "GET / HTTP/1.1\r\n" + host + "X: a\r\n b\r\n\r\n"},
	{"folded length", "POST / HTTP/1.1\r\n" + host + "Content-Length: 1\r\n 0\r\n\r\n0123456789"},
	{"field without a name", "GET / HTTP/1.1\r\n" + host + ": a\r\n\r\n"},
	{"white space before the colon", "POST / HTTP/1.1\r\n" + host + "Content-Length : 3\r\n\r\nabc"},
	{"both framings", "POST / HTTP/1.1\r\n" + host + "Content-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"},
	{"both framings, the other way", "POST / HTTP/1.1\r\n" + host + "Transfer-Encoding: chunked\r\nContent-Length: 3\r\n\r\n0\r\n\r\n"},
	{"chunked in HTTP/1.0", "POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"},
	{"equal lengths", "POST / HTTP/1.1\r\n" + host + "Content-Length: 3\r\nContent-Length: 3\r\n\r\nabc"},
	{"unequal lengths", "POST / HTTP/1.1\r\n" + host + "Content-Length: 3\r\nContent-Length: 4\r\n\r\nabc"},
	{"length in a list", "POST / HTTP/1.1\r\n" + host + "Content-Length: 3, 3\r\n\r\nabc"},
	{"length +5", "POST / HTTP/1.1\r\n" + host + "Content-Length: +5\r\n\r\n12345"},
	{"length -5", "POST / HTTP/1.1\r\n" + host + "Content-Length: -5\r\n\r\n12345"},
	{"length 0x5", "POST / HTTP/1.1\r\n" + host + "Content-Length: 0x5\r\n\r\n12345"},
	{"length empty", "POST / HTTP/1.1\r\n" + host + "Content-Length:\r\n\r\n"},
	{"length that overflows", "POST / HTTP/1.1\r\n" + host + "Content-Length: 18446744073709551621\r\n\r\n12345"},
	{"HTTP/2 preface", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"},
}

const chunkedHead = "POST / HTTP/1.1\r\n" + host + "Transfer-Encoding: chunked\r\n\r\n"

// badChunks are refused within a body.
var badChunks = []struct{ name, input string }{
	{"bare LF after a size", "3\nabc\r\n0\r\n\r\n"},
	{"bare LF after an extension", "3;x\nabc\r\n0\r\n\r\n"},
	{"bare LF after the data", "3\r\nabc\n0\r\n\r\n"},
	{"bytes after the data", "3\r\nabcd\r\n0\r\n\r\n"},
	{"no size", "\r\n"},
	{"not hexadecimal", "3g\r\nabc\r\n0\r\n\r\n"},
	{"0x", "0x3\r\nabc\r\n0\r\n\r\n"},
	{"sign", "+3\r\nabc\r\n0\r\n\r\n"},
	{"size that overflows", "10000000000000003\r\nabc\r\n0\r\n\r\n"},
	{"bare LF in the trailer", "0\r\nX: y\n\r\n"},
	{"trailer without a name", "0\r\nxyz\r\n\r\n"},
}

// accepted are whole requests that must come through.
var accepted = []string{
	"GET / HTTP/1.1\r\n" + host + "\r\n",
	"GET / HTTP/1.0\r\n\r\n",
	"GET /a?b HTTP/1.1\r\nHost: a\r\nX:\t tab and caf\xe9 \r\n\r\n",
	"POST / HTTP/1.1\r\n" + host + "content-length:  007 \r\n\r\n1234567",
	"POST / HTTP/1.1\r\n" + host + "Content-Length: 0\r\n\r\n",
	"POST / HTTP/1.1\r\n" + host + "Content-Length: 11\r\n\r\n\n\r\nGET / \r\n",
	"POST / HTTP/1.1\r\n" + host + "Transfer-Encoding: Chunked\r\n\r\n3\r\na\nc\r\n0A;ext=\"v\"\r\n0123456789\r\n000\r\nX: y\r\n\r\n",
	"POST / HTTP/1.1\r\n" + host + "Transfer-Encoding: chunked\r\n\r\n3  \r\nabc\r\n0\r\n\r\n",
	"GET http://b/c HTTP/1.1\r\nHost: a\r\n\r\n",
	"OPTIONS * HTTP/1.1\r\n" + host + "\r\n",
}

// scanned gives the input to a scanner in pieces, and returns what net/http may
// see and the violation.
func scanned(input []byte, size func() int) ([]byte, error) {
	s := scanner{max: 1 << 16}
	var seen []byte
	for len(input) > 0 && s.bad == nil {
		n := min(max(size(), 1), len(input))
		seen = append(seen, input[:s.scan(input[:n:n])]...)
		input = input[n:]
	}
	return seen, s.bad
}

func whole() int    { return 1 << 20 }
func bytewise() int { return 1 }

func TestScannerRefuses(t *testing.T) {
	inputs := slices.Clone(refusals)
	for _, c := range badChunks {
		inputs = append(inputs, struct{ name, input string }{c.name, chunkedHead + c.input})
	}
	for _, c := range inputs {
		for _, before := range []string{"", accepted[0], accepted[6], accepted[3] + accepted[5]} {
			seen, err := scanned([]byte(before+c.input), whole)
			if err == nil {
				t.Errorf("%s: accepted", c.name)
			}
			bySingle, errBySingle := scanned([]byte(before+c.input), bytewise)
			if !bytes.Equal(seen, bySingle) || fmt.Sprint(err) != fmt.Sprint(errBySingle) {
				t.Errorf("%s: whole %q, %v; by bytes %q, %v", c.name, seen, err, bySingle, errBySingle)
			}
		}
	}
}

func TestScannerAccepts(t *testing.T) {
	all := strings.Join(accepted, "")
	for _, input := range append(slices.Clone(accepted), all, all+all) {
		for _, size := range []func() int{whole, bytewise, func() int { return 7 }} {
			s := scanner{max: 1 << 16}
			rest := []byte(input)
			for len(rest) > 0 {
				n := min(size(), len(rest))
				if got := s.scan(rest[:n]); got != n || s.bad != nil {
					t.Fatalf("%q: %v", input, s.bad)
				}
				rest = rest[n:]
			}
			if s.state != atStart || len(s.line) > 0 {
				t.Errorf("%q: ends in state %d", input, s.state)
			}
		}
	}
}

func TestScannerBoundsALine(t *testing.T) {
	s := scanner{max: 100}
	s.scan(bytes.Repeat([]byte("x"), 100))
	if s.bad != nil {
		t.Fatal(s.bad)
	}
	if s.scan([]byte("x")); s.bad == nil || cap(s.line) > 1000 {
		t.Errorf("%v, %d bytes kept", s.bad, cap(s.line))
	}
}

// guardedReader is the reading half of guard.
type guardedReader struct {
	in   io.Reader
	scan scanner
}

func (g *guardedReader) Read(p []byte) (int, error) {
	if g.scan.bad != nil {
		return 0, g.scan.bad
	}
	n, err := g.in.Read(p)
	if n = g.scan.scan(p[:n]); n == 0 && g.scan.bad != nil {
		return 0, g.scan.bad
	}
	return n, err
}

// parsed is what net/http makes of a stream of requests. The last one is that of
// the error.
func parsed(in io.Reader) (requests []string, err error) {
	b := bufio.NewReader(in)
	for {
		r, err := http.ReadRequest(b)
		if err != nil {
			return requests, err
		}
		body, err := io.ReadAll(r.Body)
		requests = append(requests, fmt.Sprintf("%s %s %s %v %q %d %q %v", r.Method, r.RequestURI, r.Proto, r.Header, r.Host, r.ContentLength, body, err))
		if err != nil {
			return requests, err
		}
	}
}

// FuzzScan: where the scanner finds nothing, net/http parses the guarded stream
// as it parses the bare one; where it does, net/http sees the same requests
// before that one, and then an error. How the input is cut makes no difference.
func FuzzScan(f *testing.F) {
	for _, c := range refusals {
		f.Add([]byte(accepted[0]+c.input), uint8(3))
	}
	for _, c := range badChunks {
		f.Add([]byte(chunkedHead+c.input), uint8(5))
	}
	for _, input := range accepted {
		f.Add([]byte(input+accepted[0]), uint8(1))
	}
	f.Fuzz(func(t *testing.T, input []byte, size uint8) {
		seen, bad := scanned(input, whole)
		cutSeen, cutBad := scanned(input, func() int { return int(size) })
		if !bytes.Equal(seen, cutSeen) || fmt.Sprint(bad) != fmt.Sprint(cutBad) {
			t.Fatalf("whole %q, %v; cut %q, %v", seen, bad, cutSeen, cutBad)
		}
		if !bytes.HasPrefix(input, seen) || bad == nil && len(seen) != len(input) {
			t.Fatalf("%q became %q", input, seen)
		}
		bare, bareErr := parsed(bytes.NewReader(input))
		guarded, err := parsed(&guardedReader{in: bytes.NewReader(input), scan: scanner{max: 1 << 16}})
		if bad == nil {
			if !slices.Equal(bare, guarded) || fmt.Sprint(bareErr) != fmt.Sprint(err) {
				t.Fatalf("bare %q, %v; guarded %q, %v", bare, bareErr, guarded, err)
			}
			return
		}
		if err == nil || errors.Is(err, io.EOF) {
			t.Fatalf("violation %v, but %q, %v", bad, guarded, err)
		}
		n := len(guarded)
		if n > 0 && strings.HasSuffix(guarded[n-1], err.Error()) {
			n-- // cut within its body
		}
		if n > len(bare) || !slices.Equal(bare[:n], guarded[:n]) {
			t.Fatalf("bare %q, guarded %q", bare, guarded)
		}
	})
}
