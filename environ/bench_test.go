package environ

import (
	"testing"
	"time"
)

// nginxVars is what nginx 1.22 with Debian's fastcgi_params sends for a request of
// a usual browser.
var nginxVars = [][2]string{
	{"QUERY_STRING", "page=2&sort=name"}, {"REQUEST_METHOD", "GET"}, {"CONTENT_TYPE", ""}, {"CONTENT_LENGTH", ""},
	{"SCRIPT_FILENAME", "/usr/share/nginx/html/articles/list"}, {"SCRIPT_NAME", "/articles/list"},
	{"REQUEST_URI", "/articles/list?page=2&sort=name"}, {"DOCUMENT_URI", "/articles/list"},
	{"DOCUMENT_ROOT", "/usr/share/nginx/html"}, {"SERVER_PROTOCOL", "HTTP/1.1"}, {"REQUEST_SCHEME", "http"},
	{"GATEWAY_INTERFACE", "CGI/1.1"}, {"SERVER_SOFTWARE", "nginx/1.22.1"}, {"REMOTE_ADDR", "127.0.0.1"},
	{"REMOTE_PORT", "51234"}, {"REMOTE_USER", ""}, {"SERVER_ADDR", "127.0.0.1"}, {"SERVER_PORT", "80"},
	{"SERVER_NAME", "example.test"}, {"REDIRECT_STATUS", "200"}, {"HTTP_HOST", "example.test"},
	{"HTTP_USER_AGENT", "Mozilla/5.0 (X11; Linux x86_64; rv:128.0) Gecko/20100101 Firefox/128.0"},
	{"HTTP_ACCEPT", "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"},
	{"HTTP_ACCEPT_LANGUAGE", "en-US,en;q=0.5"}, {"HTTP_ACCEPT_ENCODING", "gzip, deflate"},
	{"HTTP_CONNECTION", "keep-alive"}, {"HTTP_COOKIE", "sessionid=0123456789abcdef; csrftoken=fedcba9876543210"},
	{"HTTP_UPGRADE_INSECURE_REQUESTS", "1"}, {"HTTP_CACHE_CONTROL", "max-age=0"}, {"HTTP_REFERER", "http://example.test/"},
}

func fill(r *Request, vars [][2]string) {
	for _, kv := range vars {
		r.Environ.Add(kv[0], kv[1])
	}
}

func TestPrepareAllocates(t *testing.T) {
	r, rules := &Request{Transport: "fastcgi"}, &Rules{}
	prepare := func() {
		r.Reset()
		r.Transport = "fastcgi"
		fill(r, nginxVars)
		if err := Prepare(r, rules); err != nil {
			t.Fatal(err)
		}
	}
	prepare()
	if n := testing.AllocsPerRun(100, prepare); n > 0 {
		t.Errorf("%v allocations for a request of nginx, want none", n)
	}
}

func TestLogLineAllocates(t *testing.T) {
	r := &Request{ID: 12, Worker: 4711, App: "an application whose name is longer than a small string's buffer", CPU: time.Second, PeakMemory: 1}
	fill(r, nginxVars)
	e := &logEntry{r, new(logWriter), time.Now()}
	line := make([]byte, 0, 4096)
	for _, format := range []Format{Text, JSON, Combined} {
		if n := testing.AllocsPerRun(100, func() { line = format.appendLine(line[:0], e) }); n > 0 {
			t.Errorf("format %d: %v allocations for a line, want none", format, n)
		}
	}
}

func BenchmarkPrepare(b *testing.B) {
	r, rules := &Request{}, &Rules{}
	b.ReportAllocs()
	for b.Loop() {
		r.Reset()
		r.Transport = "fastcgi"
		fill(r, nginxVars)
		if err := Prepare(r, rules); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkFill(b *testing.B) {
	r := &Request{}
	b.ReportAllocs()
	for b.Loop() {
		r.Reset()
		fill(r, nginxVars)
	}
}

func BenchmarkGet(b *testing.B) {
	r := &Request{}
	fill(r, nginxVars)
	b.ReportAllocs()
	for b.Loop() {
		r.Environ.Get("REQUEST_METHOD")
	}
}

// block is the header of a usual page, as a worker sends it.
var block = []byte("200 OK\nContent-Type: text/html; charset=utf-8\nContent-Length: 12345\nX-Frame-Options: DENY\n" +
	"Vary: Cookie, Accept-Language\nSet-Cookie: sessionid=0123456789abcdef; HttpOnly; Path=/; SameSite=Lax\n")

func BenchmarkHeader(b *testing.B) {
	var h Header
	var out []byte
	b.ReportAllocs()
	for b.Loop() {
		if err := h.Parse(block); err != nil {
			b.Fatal(err)
		}
		out = h.AppendCGI(out[:0])
	}
}

func TestHeaderAllocates(t *testing.T) {
	var h Header
	out := make([]byte, 0, 1024)
	if n := testing.AllocsPerRun(100, func() {
		if err := h.Parse(block); err != nil {
			t.Fatal(err)
		}
		out = h.AppendCGI(out[:0])
	}); n > 0 {
		t.Errorf("%v allocations, want none", n)
	}
}
