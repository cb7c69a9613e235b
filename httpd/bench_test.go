package httpd

import (
	"bufio"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"

	"wsgigate/environ"
)

// browser is what a browser sends.
var browser = []byte("GET /shop/list?page=2 HTTP/1.1\r\nHost: example.org\r\n" +
	"User-Agent: Mozilla/5.0 (X11; Linux x86_64; rv:128.0) Gecko/20100101 Firefox/128.0\r\n" +
	"Accept: text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8\r\nAccept-Language: en-US,en;q=0.5\r\n" +
	"Accept-Encoding: gzip, deflate, br\r\nReferer: http://example.org/shop/\r\nConnection: keep-alive\r\n" +
	"Cookie: session=" + strings.Repeat("0123456789abcdef", 8) + "\r\nUpgrade-Insecure-Requests: 1\r\n" +
	"Sec-Fetch-Dest: document\r\nSec-Fetch-Mode: navigate\r\nSec-Fetch-Site: none\r\n\r\n")

var helloHeader = func() *environ.Header {
	h := new(environ.Header)
	_ = h.SetStatus(200, "OK")
	_ = h.Add("Content-Type", "text/plain")
	_ = h.Add("Content-Length", "14")
	return h
}()

func sayHello(w environ.ResponseWriter, r *environ.Request) {
	_ = w.WriteHeader(helloHeader)
	_, _ = io.WriteString(w, "Hello, world!\n")
}

func BenchmarkScan(b *testing.B) {
	s := scanner{max: 1 << 16}
	b.ReportAllocs()
	b.SetBytes(int64(len(browser)))
	for b.Loop() {
		if s.scan(browser) != len(browser) {
			b.Fatal(s.bad)
		}
	}
}

// roundTrips makes b.N requests over one kept connection.
func roundTrips(b *testing.B, addr string) {
	c := dial(b, addr)
	in := bufio.NewReader(c)
	b.ReportAllocs()
	for b.Loop() {
		if _, err := c.Write(browser); err != nil {
			b.Fatal(err)
		}
		for {
			line, err := in.ReadSlice('\n')
			if err != nil {
				b.Fatal(err)
			}
			if string(line) == "Hello, world!\n" {
				break
			}
		}
	}
}

func BenchmarkKeptConnection(b *testing.B) {
	roundTrips(b, start(b, &Server{Handler: environ.HandlerFunc(sayHello)}))
}

// BenchmarkNetHTTP is net/http alone, for comparison.
func BenchmarkNetHTTP(b *testing.B) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	s := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "text/plain")
		w.Header().Set("Content-Length", "14")
		_, _ = io.WriteString(w, "Hello, world!\n")
	})}
	go func() { _ = s.Serve(l) }()
	defer s.Close()
	roundTrips(b, l.Addr().String())
}

func TestScannerAllocatesNothing(t *testing.T) {
	s := scanner{max: 1 << 16}
	if n := testing.AllocsPerRun(100, func() { s.scan(browser[:100]); s.scan(browser[100:]) }); n > 0 {
		t.Errorf("%v allocations for a head", n)
	}
}
