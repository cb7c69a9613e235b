package pyrunner

import (
	"net/http"
	"strings"
	"testing"
	"time"

	"wsgigate/environ"
)

// appFault is a row of FAULTS.md in which the application is at fault and its
// worker lives on.
type appFault struct {
	path   string
	method string // GET if empty
	status int
	body   string
	abort  bool
	level  string
	log    string // in the log line: its message, or its error
	notes  string // what the application noted, "" if nothing
	phase  string
}

const (
	refused                  = "wsgigate: 500 Internal Server Error\n" // the whole page: no details
	atAnswer, atApp, atClose = "answer", "app", "close"
)

var appFaults = map[string]appFault{
	"1 raises": {path: "/raises", status: 500, body: refused, level: "ERROR",
		log: "ZeroDivisionError: division by zero at app.py:", phase: atApp},
	"1 raises in the body before headers": {path: "/raises-early", status: 500, body: refused, level: "ERROR",
		log: "ValueError: early", notes: "next closed", phase: atApp},
	"1 raises SystemExit": {path: "/exits", status: 500, body: refused, level: "ERROR", log: "SystemExit: 3", phase: atApp},
	"2 raises in mid-body": {path: "/raises-late", status: 200, body: "part", abort: true, level: "ERROR",
		log: "ValueError: late", notes: "next next closed", phase: atAnswer},
	"3 body too short": {path: "/short", status: 200, body: "12345", abort: true, level: "ERROR",
		log: "the body has 5 bytes but Content-Length says 100", notes: "next closed", phase: atAnswer},
	"4 body too long": {path: "/long", status: 200, body: "1234", level: "WARN",
		log: "the body is longer than its Content-Length of 4", notes: "next next closed", phase: atClose},
	"5 yields str": {path: "/text", status: 500, body: refused, level: "ERROR",
		log: "WSGI body blocks must be bytes, not str", phase: atApp},
	"5 yields str in mid-body": {path: "/text-late", status: 200, body: "part", abort: true, level: "ERROR",
		log: "WSGI body blocks must be bytes, not str", notes: "next next closed", phase: atAnswer},
	"5 returns None": {path: "/nothing", status: 500, body: refused, level: "ERROR",
		log: "the application returned None", phase: atApp},
	"6 no start_response": {path: "/unstarted", status: 500, body: refused, level: "ERROR",
		log: "start_response() was not called", phase: atApp},
	"7 start_response twice": {path: "/twice", status: 500, body: refused, level: "ERROR",
		log: "start_response() was called twice", phase: atApp},
	"8 CR in a header":      {path: "/header-cr", status: 500, body: refused, level: "ERROR", log: "ValueError", phase: atApp},
	"8 LF in a header":      {path: "/header-lf", status: 500, body: refused, level: "ERROR", log: "ValueError", phase: atApp},
	"8 LF in a header name": {path: "/name-lf", status: 500, body: refused, level: "ERROR", log: "ValueError", phase: atApp},
	"9 CR in the status":    {path: "/status-cr", status: 500, body: refused, level: "ERROR", log: "ValueError", phase: atApp},
	"9 LF in the status":    {path: "/status-lf", status: 500, body: refused, level: "ERROR", log: "ValueError", phase: atApp},
	"10 NUL in a value":     {path: "/header-nul", status: 500, body: refused, level: "ERROR", log: "ValueError", phase: atApp},
	"11 status banana":      {path: "/banana", status: 500, body: refused, level: "ERROR", log: "banana", phase: atApp},
	"12 body on 204": {path: "/no-content", status: 204, level: "WARN",
		log: "a response with this status has no body", phase: atClose},
	"12 body on 304": {path: "/not-modified", status: 304, level: "WARN",
		log: "a response with this status has no body", phase: atClose},
	"12 body on HEAD": {path: "/headed", method: http.MethodHead, status: 200, level: "WARN",
		log: "a response to HEAD has no body", phase: atClose},
	"13 hop-by-hop header": {path: "/hop", status: 500, body: refused, level: "ERROR", log: "Connection", phase: atApp},
}

const appFaultsApp = preamble + `
def raises(environ, start_response):
    1 / 0

def exits(environ, start_response):
    sys.exit(3)

def start(start_response, *headers):
    start_response("200 OK", [("Content-Type", "text/plain")] + list(headers))

def raises_early(environ, start_response):
    start(start_response)
    return Body(ValueError("early"))

def raises_late(environ, start_response):
    start(start_response)
    return Body(b"part", ValueError("late"))

def short(environ, start_response):
    start(start_response, ("Content-Length", "100"))
    return Body(b"12345")

def long(environ, start_response):
    start(start_response, ("Content-Length", "4"))
    return Body(b"123", b"456", b"789")

def text(environ, start_response):
    start(start_response)
    return ["text"]

def text_late(environ, start_response):
    start(start_response)
    return Body(b"part", "text")

def nothing(environ, start_response):
    start(start_response)

def unstarted(environ, start_response):
    return [b"body"]

def twice(environ, start_response):
    start(start_response)
    start(start_response)
    return [b"body"]

def bad(status, *headers):
    def application(environ, start_response):
        start_response(status, list(headers))
        return [b"body"]
    return application

header_cr = bad("200 OK", ("X-A", "a\rb"))
header_lf = bad("200 OK", ("X-A", "a\nSet-Cookie: b"))
name_lf = bad("200 OK", ("X-A: b\nX-B", "a"))
header_nul = bad("200 OK", ("X-A", "a\0b"))
status_cr = bad("200 OK\r", )
status_lf = bad("200 OK\nX-A: b")
banana = bad("banana")
hop = bad("200 OK", ("Connection", "close"))
no_content = bad("204 No Content")
not_modified = bad("304 Not Modified")
headed = bad("200 OK")
`

// TestAppFaults: rows 1 to 13. One worker takes all of them, one after the other.
func TestAppFaults(t *testing.T) {
	t.Parallel()
	p := startPool(t, appFaultsApp, Config{})
	worker := p.servesOn()
	for name, fault := range appFaults {
		t.Run(name, func(t *testing.T) {
			p.forget()
			r := get(fault.path)
			if fault.method != "" {
				r.Environ.Set("REQUEST_METHOD", fault.method)
			}
			fault.check(t, p, r)
			if notes := p.text("/noted"); notes != fault.notes {
				t.Errorf("the application noted %q, want %q", notes, fault.notes)
			}
			if now := p.servesOn(); now != worker {
				t.Errorf("worker %d was replaced by %d", worker, now)
			}
		})
	}
}

func (f appFault) check(t *testing.T, p *testPool, r *environ.Request) {
	t.Helper()
	w := p.serve(r)
	if w.Status != f.status || w.Body.String() != f.body || (w.AbortErr != nil) != f.abort {
		t.Errorf("status %d, body %q, abort %v; want %d, %q, %v", w.Status, w.Body.String(), w.AbortErr, f.status, f.body, f.abort)
	}
	for _, field := range w.Fields {
		if strings.ContainsAny(field[0]+field[1], "\r\n\x00") {
			t.Errorf("field %q", field)
		}
	}
	line := p.log.fault(t, r, f.phase)
	if line.str("level") != f.level {
		t.Errorf("level %s, want %s: %v", line.str("level"), f.level, line)
	}
	if !strings.Contains(line.str("msg")+line.str("error"), f.log) {
		t.Errorf("log line %v does not say %q", line, f.log)
	}
}

// TestOutputOfTheApplication: row 17.
func TestOutputOfTheApplication(t *testing.T) {
	t.Parallel()
	p := startPool(t, preamble+`
import subprocess
def prints(environ, start_response):
    print("printed")
    os.write(1, b"written to 1\n")
    os.write(2, b"written to 2\n")
    subprocess.run(["echo", "by a child"], close_fds=False)
    sys.stdout.write("unfinished")
    sys.stdout.flush()
    return hello(environ, start_response)
`, Config{})
	worker := p.servesOn()
	if got := p.text("/prints"); got != "hello" {
		t.Errorf("body %q", got)
	}
	p.servesOn()
	for text, stream := range map[string]string{"printed": "stdout", "written to 1": "stdout", "written to 2": "stderr", "by a child": "stdout"} {
		line := p.log.awaitText(t, text)
		if line.str("stream") != stream || line.num("pid") != uint64(worker) {
			t.Errorf("log line of %q: %v", text, line)
		}
	}
	p.shutdown(patience)
	p.log.awaitText(t, "unfinished")
}

// TestClosedDescriptors: row 18.
func TestClosedDescriptors(t *testing.T) {
	t.Parallel()
	p := startPool(t, preamble+`
def closes_three(environ, start_response):
    for fd in range(3):
        os.close(fd)
    return hello(environ, start_response)
def closes_all(environ, start_response):
    os.closerange(0, 4096)
    return hello(environ, start_response)
`, Config{})
	worker := p.servesOn()
	if got := p.text("/closes-three"); got != "hello" {
		t.Errorf("body %q without fds 0 to 2", got)
	}
	if now := p.servesOn(); now != worker {
		t.Errorf("worker %d was replaced by %d", worker, now)
	}
	r := get("/closes-all")
	if w := p.serve(r); w.Status != 502 || w.AbortErr != nil {
		t.Errorf("status %d, abort %v without any descriptor", w.Status, w.AbortErr)
	}
	p.log.fault(t, r, atApp)
	if now := p.servesOn(); now == worker {
		t.Error("the worker was not replaced")
	}
	eventually(t, "the worker's end", func() bool { return gone(worker) })
}

// TestLogOfTheApplication: row 48. 10 MB to wsgi.errors reach the web server's
// log whole, the gateway's own is kept small, and nothing in it can forge a line.
func TestLogOfTheApplication(t *testing.T) {
	t.Parallel()
	p := startPool(t, preamble+`
def floods(environ, start_response):
    line = "x" * 10239 + "\n"
    for n in range(1000):
        environ["wsgi.errors"].write(line)
    return hello(environ, start_response)
def forges(environ, start_response):
    environ["wsgi.errors"].write("red \x1b[31m, CR \r, NUL \0, \udce9\n")
    environ["wsgi.errors"].write("y" * 100000 + "\n")
    print("red \x1b[31m, CR \rlevel=ERROR")
    return hello(environ, start_response)
`, Config{})
	if got := p.text("/forges"); got != "hello" {
		t.Errorf("body %q", got)
	}
	p.log.awaitText(t, "red", "[31m", "CR", "NUL")
	p.log.awaitText(t, "yyyy", "[line cut]")
	p.log.awaitText(t, "red", "level=ERROR")
	if raw := p.log.text(); strings.ContainsAny(raw, "\x1b\r\x00") {
		t.Error("control characters in the log")
	}
	begun := time.Now()
	w := p.serve(get("/floods"))
	if w.Status != 200 || w.Body.String() != "hello" {
		t.Errorf("status %d, %q", w.Status, w.Body.String())
	}
	if n := len(w.Errors()); n != 1000*10240 {
		t.Errorf("the web server's log got %d bytes", n)
	}
	var lines []logLine
	eventually(t, "the log", func() bool { // which is written by and by
		lines = p.log.find(func(l logLine) bool { return l.has("xxxx") })
		return len(lines) >= 100
	})
	most := int(logBytes+time.Since(begun).Seconds()*bytesTime)/maxLogLine + 1
	if len(lines) > most {
		t.Errorf("%d of 1000 lines were logged, of %d allowed", len(lines), most)
	}
	p.servesOn()
}

// TestForkedChild: row 16.
func TestForkedChild(t *testing.T) {
	t.Parallel()
	p := startPool(t, preamble+`
def forks(environ, start_response):
    child = os.fork()
    if child:
        _, status = os.waitpid(child, 0)
        notes.append(str(status))
    return hello(environ, start_response)
`, Config{})
	worker := p.servesOn()
	if got := p.text("/forks"); got != "hello" {
		t.Errorf("body %q", got)
	}
	if notes := p.text("/noted"); notes != "0" {
		t.Errorf("the child ended with %q", notes)
	}
	if now := p.servesOn(); now != worker {
		t.Errorf("worker %d was replaced by %d", worker, now)
	}
}

// TestArchiveDescriptorIsReused: the runner's archive had descriptor 3 while the
// worker started. When the application's own file has it, a traceback through
// the runner must not be looked up there.
func TestArchiveDescriptorIsReused(t *testing.T) {
	t.Parallel()
	p := startPool(t, preamble+`
import traceback
taken = [os.open("taken", os.O_RDWR | os.O_CREAT) for _ in range(3)]
assert 3 in taken, taken
def fails(environ, start_response):
    1 / 0
def tells(environ, start_response):
    try:
        start_response("banana", [])
    except Exception:
        environ["wsgi.errors"].write(traceback.format_exc())
        start_response("200 OK", [("Content-Type", "text/plain")], sys.exc_info())
    return [b"told"]
`, Config{})
	worker := p.servesOn()
	r := get("/fails")
	if w := p.serve(r); w.Status != 500 {
		t.Errorf("status %d", w.Status)
	}
	p.log.fault(t, r, atApp)
	if w := p.serve(get("/tells")); !strings.Contains(w.Errors(), "banana") {
		t.Errorf("traceback %q", w.Errors())
	}
	if now := p.servesOn(); now != worker {
		t.Error("the worker was replaced")
	}
}
