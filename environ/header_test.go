package environ

import (
	"errors"
	"strings"
	"testing"
)

func TestHeaderParse(t *testing.T) {
	var h Header
	for _, c := range []struct{ block, want string }{
		{"200 OK\n", "200 OK\r\n\r\n"},
		{"100 Continue\n", "100 Continue\r\n\r\n"},
		{"599 Last\n", "599 Last\r\n\r\n"},
		{"200 \n", "200 \r\n\r\n"},
		{"404 Caf\xe9 fermé\n", "404 Caf\xe9 fermé\r\n\r\n"},
		{"200 OK\nA: 1\nA: 2\nb: \n", "200 OK\r\nA: 1\r\nA: 2\r\nb: \r\n\r\n"},
		{"200 OK\nX: a: b\tc \n", "200 OK\r\nX: a: b\tc \r\n\r\n"},
		{"200 OK\n!#$%&'*+-.^_`|~09azAZ: x\n", "200 OK\r\n!#$%&'*+-.^_`|~09azAZ: x\r\n\r\n"},
		{"200 OK\nX: \x80\xff\n", "200 OK\r\nX: \x80\xff\r\n\r\n"},
		{"200 OK\nStatusCode: 1\nStat: 2\nUpgrades: 3\nTE2: 4\n", "200 OK\r\nStatusCode: 1\r\nStat: 2\r\nUpgrades: 3\r\nTE2: 4\r\n\r\n"},
		{"200 OK\ncontent-length: 999999999999999999\n", "200 OK\r\ncontent-length: 999999999999999999\r\n\r\n"},
	} {
		if err := h.Parse([]byte(c.block)); err != nil {
			t.Errorf("%q: %v", c.block, err)
			continue
		}
		if got := string(h.AppendCGI(nil)); got != "Status: "+c.want {
			t.Errorf("%q: CGI %q", c.block, got)
		}
		if got := string(h.AppendHTTP([]byte("x"))); got != "xHTTP/1.1 "+c.want {
			t.Errorf("%q: HTTP %q", c.block, got)
		}
	}
}

// rejectedBlocks break a rule of PEP 3333 or RFC 9110, or the worker protocol.
var rejectedBlocks = []string{
	"", "200 OK", "\n", "banana\n", "200\n", "200OK\n", "20 OK\n", "2000 OK\n", " 200 OK\n", "+20 OK\n", "-20 OK\n", "2x0 OK\n",
	"\xb2\xb0\xb0 OK\n", "099 Low\n", "000 Zero\n", "600 High\n", "999 High\n",
	"200 O\rK\n", "200 O\x00K\n", "200 O\x1bK\n", "200 O\x7fK\n", "200 O\tK\x01\n",
	"200 OK\nA\n", "200 OK\nA:\n", "200 OK\nA:b\n", "200 OK\n: b\n", "200 OK\nA: b", "200 OK\n\n", "200 OK\nA: b\n\n",
	"200 OK\nA B: c\n", "200 OK\nA : c\n", "200 OK\n A: c\n", "200 OK\nA\x00: c\n", "200 OK\nA\xe9: c\n", "200 OK\nA\": c\n",
	"200 OK\nA(: c\n", "200 OK\nA/B: c\n", "200 OK\nA@: c\n", "200 OK\nA\x7f: c\n", "200 OK\nA{: c\n",
	"200 OK\nA: b\rSet-Cookie: x\n", "200 OK\nA: \x00\n", "200 OK\nA: \x1b[31m\n", "200 OK\nA: \x7f\n", "200 OK\nA: \x0b\n",
	"200 OK\nConnection: close\n", "200 OK\nconnection: close\n", "200 OK\nKeep-Alive: 5\n", "200 OK\nProxy-Authenticate: x\n",
	"200 OK\nProxy-Authorization: x\n", "200 OK\nTE: x\n", "200 OK\nTrailer: x\n", "200 OK\nTRANSFER-ENCODING: chunked\n",
	"200 OK\nUpgrade: x\n", "200 OK\nStatus: 404 Not Found\n", "200 OK\nsTaTuS: 200 OK\n",
	"200 OK\nContent-Length: \n", "200 OK\nContent-Length: +5\n", "200 OK\nContent-Length: -5\n", "200 OK\nContent-Length: 0x5\n",
	"200 OK\nContent-Length: 5 \n", "200 OK\nContent-Length: 5,5\n", "200 OK\nContent-Length: 1000000000000000000\n",
	"200 OK\nContent-Length: 5\nContent-Length: 5\n", "200 OK\nContent-Length: 5\ncontent-length: 6\n",
}

func TestHeaderParseRejects(t *testing.T) {
	for _, block := range rejectedBlocks {
		var h Header
		err := h.Parse([]byte(block))
		if !errors.Is(err, ErrHeader) {
			t.Errorf("%q: %v, want ErrHeader", block, err)
			continue
		}
		if i := strings.IndexFunc(err.Error(), func(c rune) bool { return c < ' ' || c == 0x7f }); i >= 0 {
			t.Errorf("%q: the message has a control character: %q", block, err)
		}
	}
}

func TestHeaderAddChecks(t *testing.T) {
	var h Header
	for _, bad := range [][2]string{{"", "x"}, {"A B", "x"}, {"A:", "x"}, {"A\n", "x"}, {"A", "x\r\ny"}, {"Status", "200 OK"}, {"TE", "x"}, {"Content-Length", "x"}} {
		if err := h.Add(bad[0], bad[1]); err == nil {
			t.Errorf("%q was accepted", bad)
		}
	}
	if h.Len() != 0 {
		t.Errorf("%d fields", h.Len())
	}
	if err := h.Add("Content-Length", "5"); err != nil {
		t.Error(err)
	}
	if err := h.Add("CONTENT-LENGTH", "5"); err == nil {
		t.Error("a second Content-Length was accepted")
	}
}

func TestHeaderSetStatus(t *testing.T) {
	var h Header
	for code, ok := range map[int]bool{-1: false, 0: false, 99: false, 100: true, 200: true, 599: true, 600: false} {
		if err := h.SetStatus(code, "X"); (err == nil) != ok {
			t.Errorf("%d: %v", code, err)
		}
	}
	for _, reason := range []string{"a\nb", "a\rb", "a\x00b", "a\x7fb"} {
		if h.SetStatus(200, reason) == nil {
			t.Errorf("reason %q was accepted", reason)
		}
	}
}

func TestHeaderKnowsItsFields(t *testing.T) {
	var h Header
	if err := h.Parse([]byte("200 OK\ndate: x\nSERVER: y\nContent-Length: 12\nX-A: 1\nx-a: 2\n")); err != nil {
		t.Fatal(err)
	}
	if n, ok := h.ContentLength(); n != 12 || !ok || !h.HasDate() || !h.HasServer() {
		t.Errorf("length %d %v, date %v, server %v", n, ok, h.HasDate(), h.HasServer())
	}
	if v, ok := h.Get("X-a"); string(v) != "1" || !ok {
		t.Errorf("X-A is %q, %v", v, ok)
	}
	if v, ok := h.Get("X-B"); v != nil || ok {
		t.Errorf("X-B is %q, %v", v, ok)
	}
	h.Reset()
	if _, ok := h.ContentLength(); ok || h.HasDate() || h.HasServer() || h.Len() != 0 || h.Status() != 0 || len(h.Reason()) != 0 {
		t.Error("Reset left something")
	}
}

// TestHeaderAfterAFailure: a Header that refused one block takes the next.
func TestHeaderAfterAFailure(t *testing.T) {
	var h Header
	if h.Parse([]byte("200 OK\nContent-Length: 5\nDate: x\nbad\n")) == nil {
		t.Fatal("bad block was accepted")
	}
	if err := h.Parse([]byte("201 Made\nContent-Length: 6\n")); err != nil {
		t.Fatal(err)
	}
	if n, _ := h.ContentLength(); n != 6 || h.Status() != 201 || string(h.Reason()) != "Made" || h.HasDate() || h.Len() != 1 {
		t.Errorf("got %q, length %d, date %v", h.AppendCGI(nil), n, h.HasDate())
	}
}

func TestBodyAllowed(t *testing.T) {
	for _, c := range []struct {
		status int
		method string
		want   bool
	}{
		{200, "GET", true}, {200, "POST", true}, {200, "HEAD", false}, {200, "head", true}, {404, "GET", true}, {205, "GET", true},
		{100, "GET", false}, {199, "GET", false}, {204, "GET", false}, {304, "GET", false}, {304, "HEAD", false}, {303, "GET", true},
	} {
		h := Header{status: c.status}
		if got := h.BodyAllowed([]byte(c.method)); got != c.want {
			t.Errorf("%s %d: %v", c.method, c.status, got)
		}
	}
}
