package pyrunner

import (
	"bytes"
	"log/slog"
	"testing"

	"wsgigate/environ"
)

const benchApp = preamble + `
block = b"x" * 65536

def blocks(environ, start_response):
    start_response("200 OK", [("Content-Type", "application/octet-stream")])
    for n in range(16):
        yield block

def upload(environ, start_response):
    total, read = 0, environ["wsgi.input"].read
    while True:
        block = read(65536)
        if not block:
            break
        total += len(block)
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [b"%d" % total]
`

// usual returns a request with the variables that nginx sends.
func usual(path string) *environ.Request {
	r := get(path)
	for _, kv := range [][2]string{
		{"CONTENT_TYPE", ""}, {"CONTENT_LENGTH", ""}, {"REQUEST_SCHEME", "http"}, {"DOCUMENT_ROOT", "/var/www"},
		{"DOCUMENT_URI", path}, {"GATEWAY_INTERFACE", "CGI/1.1"}, {"SERVER_SOFTWARE", "nginx/1.22.1"},
		{"REMOTE_ADDR", "192.0.2.7"}, {"REMOTE_PORT", "54321"}, {"SERVER_ADDR", "192.0.2.1"}, {"HTTP_HOST", "example.org"},
		{"HTTP_USER_AGENT", "Mozilla/5.0 (X11; Linux x86_64; rv:128.0) Gecko/20100101 Firefox/128.0"},
		{"HTTP_ACCEPT", "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"},
		{"HTTP_ACCEPT_ENCODING", "gzip, deflate, br"}, {"HTTP_ACCEPT_LANGUAGE", "en-US,en;q=0.5"},
		{"HTTP_COOKIE", "sessionid=0123456789abcdef0123456789abcdef"}, {"HTTP_CONNECTION", "keep-alive"},
	} {
		r.Environ.Add(kv[0], kv[1])
	}
	return r
}

// mostAllocations is how many a small request may cost the pool, with everything
// warm.
const mostAllocations = 1

// TestAllocations: the request path of a small request takes its memory from
// what earlier requests left.
func TestAllocations(t *testing.T) {
	p := startPool(t, benchApp, Config{Log: slog.New(slog.DiscardHandler)})
	r := usual("/hello")
	for range 100 {
		p.ServeGateway(nobody{}, r)
	}
	got := testing.AllocsPerRun(300, func() { p.ServeGateway(nobody{}, r) })
	limit := float64(mostAllocations)
	if raceEnabled {
		limit = 30
	}
	if got > limit {
		t.Errorf("%v allocations for a request, want at most %v", got, limit)
	}
}

func bench(b *testing.B, bytesEach int, request func() *environ.Request) {
	p := startPool(b, benchApp, Config{Log: slog.New(slog.DiscardHandler)})
	p.ServeGateway(nobody{}, request())
	b.ReportAllocs()
	b.SetBytes(int64(bytesEach))
	for b.Loop() {
		p.ServeGateway(nobody{}, request())
	}
}

// BenchmarkHello is a small request and a small answer, one at a time.
func BenchmarkHello(b *testing.B) {
	r := usual("/hello")
	bench(b, 0, func() *environ.Request { return r })
}

// BenchmarkHelloBusy is the same with more requests than slots.
func BenchmarkHelloBusy(b *testing.B) {
	p := startPool(b, benchApp, Config{Workers: 2, Log: slog.New(slog.DiscardHandler)})
	p.ServeGateway(nobody{}, usual("/hello"))
	b.ReportAllocs()
	b.SetParallelism(16)
	b.ResetTimer() // the pool has started
	b.RunParallel(func(each *testing.PB) {
		r := usual("/hello")
		for each.Next() {
			p.ServeGateway(nobody{}, r)
		}
	})
}

// BenchmarkBlocks1MiB is a response of 16 blocks without a length.
func BenchmarkBlocks1MiB(b *testing.B) {
	r := usual("/blocks")
	bench(b, 1<<20, func() *environ.Request { return r })
}

// BenchmarkUpload is a request body of 1 MiB.
func BenchmarkUpload(b *testing.B) {
	r, body := usual("/upload"), make([]byte, 1<<20)
	r.Environ.Set("REQUEST_METHOD", "POST")
	reader := bytes.NewReader(nil)
	bench(b, len(body), func() *environ.Request {
		reader.Reset(body)
		r.Body, r.ContentLength = reader, int64(len(body))
		return r
	})
}
