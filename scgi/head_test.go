package scgi

import (
	"bytes"
	"fmt"
	"strconv"
	"strings"
	"testing"

	"wsgigate/environ"
)

// FuzzHead: a head that is accepted is a netstring of pairs that written again
// give the same bytes, its first variable is CONTENT_LENGTH, and how much of it
// was seen before makes no difference.
func FuzzHead(f *testing.F) {
	f.Add([]byte(golden))
	f.Add([]byte(post(0)))
	f.Add([]byte(post(5, "CONTENT_LENGTH", "5")))
	f.Add([]byte("4294967295:"))
	f.Add([]byte("0:,"))
	f.Add([]byte("17:CONTENT_LENGTH\x000\x00A,"))
	const limit = 4000
	f.Fuzz(func(t *testing.T, p []byte) {
		size, start, err := headSize(p, limit)
		for i := range min(len(p), start) {
			if early, _, earlyErr := headSize(p[:i], limit); early != 0 || err == nil && earlyErr != nil {
				t.Fatalf("%d bytes: size %d, %v", i, early, earlyErr)
			}
		}
		if err != nil || size == 0 || size > len(p) {
			return
		}
		if size > limit+maxDigits+2 {
			t.Fatalf("size %d", size)
		}
		if string(p[:start]) != strconv.Itoa(size-start-1)+":" {
			t.Fatalf("%q begins a head of %d bytes", p[:start], size)
		}
		if size == start+1 {
			return // "0:," is refused before, by its digit
		}
		var e environ.Environ
		if parseVariables(&e, p[start:size], 100) != nil {
			return
		}
		checkParsed(t, &e, p[start:size])
	})
}

func checkParsed(t *testing.T, e *environ.Environ, block []byte) {
	var again []byte
	seen := map[string]bool{}
	for name, value := range e.All() {
		again = append(append(append(append(again, name...), 0), value...), 0)
		if seen[string(name)] && !bytes.HasPrefix(name, []byte("HTTP_")) {
			t.Fatalf("%q twice", name)
		}
		seen[string(name)] = true
	}
	if !bytes.Equal(append(again, ','), block) {
		t.Fatalf("%q became %q", block, again)
	}
	if name, _ := e.At(0); string(name) != "CONTENT_LENGTH" {
		t.Fatalf("first is %q", name)
	}
}

// realistic is what nginx sends for a browser's request.
var realistic = netstring("CONTENT_LENGTH", "0", "REQUEST_METHOD", "GET", "REQUEST_URI", "/shop/list?page=2", "QUERY_STRING", "page=2",
	"CONTENT_TYPE", "", "DOCUMENT_URI", "/shop/list", "DOCUMENT_ROOT", "/usr/share/nginx/html", "SCGI", "1", "SERVER_PROTOCOL", "HTTP/1.1",
	"REQUEST_SCHEME", "http", "REMOTE_ADDR", "192.0.2.7", "REMOTE_PORT", "44700", "SERVER_PORT", "80", "SERVER_NAME", "example.org",
	"HTTP_HOST", "example.org", "HTTP_USER_AGENT", "Mozilla/5.0 (X11; Linux x86_64; rv:128.0) Gecko/20100101 Firefox/128.0",
	"HTTP_ACCEPT", "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8", "HTTP_ACCEPT_LANGUAGE", "en-US,en;q=0.5",
	"HTTP_ACCEPT_ENCODING", "gzip, deflate, br", "HTTP_REFERER", "http://example.org/shop/", "HTTP_CONNECTION", "keep-alive",
	"HTTP_COOKIE", "session="+strings.Repeat("0123456789abcdef", 8), "HTTP_UPGRADE_INSECURE_REQUESTS", "1",
	"HTTP_SEC_FETCH_DEST", "document", "HTTP_SEC_FETCH_MODE", "navigate")

func BenchmarkHead(b *testing.B) {
	b.ReportAllocs()
	b.SetBytes(int64(len(realistic)))
	var e environ.Environ
	p := []byte(realistic)
	for b.Loop() {
		e.Reset()
		size, start, err := headSize(p, 1<<16)
		if err != nil || parseVariables(&e, p[start:size], 1000) != nil {
			b.Fatal(fmt.Errorf("refused: %w", err))
		}
	}
}
