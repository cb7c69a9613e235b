package pyrunner

import (
	"cmp"
	"context"
	"flag"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"wsgigate/environ"
	"wsgigate/environ/environtest"
)

// TestMain also is the gateway process that TestGatewayKilled kills, and looks
// for what the tests left behind: goroutines, descriptors, processes.
func TestMain(m *testing.M) {
	if dir := os.Getenv(gatewayVariable); dir != "" {
		gatewayToKill(dir)
		return
	}
	// Most tests wait for processes and time, not for a CPU.
	// What this process was started with is not for the workers: the command
	// sees to that for the gateway.
	if err := unix.CloseRange(3, ^uint(0), unix.CLOSE_RANGE_CLOEXEC); err != nil {
		panic(err)
	}
	flag.Parse()
	chosen := false
	flag.Visit(func(f *flag.Flag) { chosen = chosen || f.Name == "test.parallel" })
	if !chosen {
		_ = flag.Set("test.parallel", "12")
	}
	before := openDescriptors()
	goleak.VerifyTestMain(m, goleak.Cleanup(func(code int) {
		if left := children(); len(left) > 0 {
			fmt.Println("child processes left behind:", left)
			code = 1
		}
		if after := openDescriptors(); code == 0 && len(after) > len(before) {
			fmt.Printf("descriptors left behind:\nbefore %v\nafter  %v\n", before, after)
			code = 1
		}
		os.Exit(code)
	}))
}

// openDescriptors returns what the descriptors of this process are, but for
// those that the Go runtime opens for itself when it first needs them.
func openDescriptors() []string {
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		panic(err)
	}
	var open []string
	for _, entry := range entries {
		target, err := os.Readlink("/proc/self/fd/" + entry.Name())
		switch {
		case err != nil: // the descriptor of this listing
		case strings.HasPrefix(target, "anon_inode:"): // epoll, pidfd
		case strings.HasPrefix(target, "/proc/"), strings.HasPrefix(target, "/sys/"):
		default:
			open = append(open, entry.Name()+" "+target)
		}
	}
	return open
}

// children returns the process ids of this process's children, zombies included.
func children() []string {
	var pids []string
	lists, _ := filepath.Glob("/proc/self/task/*/children")
	for _, list := range lists {
		text, _ := os.ReadFile(list)
		pids = append(pids, strings.Fields(string(text))...)
	}
	return pids
}

// python is the interpreter itself: a pyenv shim takes longer to start than all
// the rest of a worker.
var python = sync.OnceValue(func() string {
	out, err := exec.Command("python3", "-c", "import sys; print(sys.executable)").Output()
	if err != nil {
		panic("these tests need python3: " + err.Error())
	}
	return strings.TrimSpace(string(out))
})

// patience is how long a test waits for what has to happen.
const patience = 20 * time.Second

// eventually polls until ok.
func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(patience); !ok(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("waited too long for %s", what)
		}
	}
}

// testPool is a pool with its log.
type testPool struct {
	*Pool
	t   testing.TB
	log *logBook
	dir string // working directory of the application
}

// newPool makes a pool for the application in source; it is shut down at the
// end of the test.
func newPool(t testing.TB, source string, cfg Config) *testPool {
	t.Helper()
	dir := t.TempDir()
	if source != "" {
		if err := os.WriteFile(filepath.Join(dir, "app.py"), []byte(source), 0o600); err != nil {
			t.Fatal(err)
		}
		cfg.App = "app:app"
	}
	book := &logBook{}
	cfg.Chdir = dir
	cfg.Python = cmp.Or(cfg.Python, python())
	if cfg.Log == nil {
		cfg.Log = book.logger()
	}
	p, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	tp := &testPool{Pool: p, t: t, log: book, dir: dir}
	t.Cleanup(func() {
		tp.shutdown(10 * time.Second)
		if t.Failed() {
			t.Logf("the pool's log:\n%s", book.text())
		}
	})
	return tp
}

// startPool makes and starts a pool.
func startPool(t testing.TB, source string, cfg Config) *testPool {
	t.Helper()
	p := newPool(t, source, cfg)
	if err := p.Start(); err != nil {
		t.Fatal(err)
	}
	return p
}

// shutdown stops the pool; a second time it does nothing.
func (p *testPool) shutdown(within time.Duration) {
	ctx, cancel := context.WithTimeout(context.Background(), within)
	defer cancel()
	select {
	case <-p.managed:
		return
	default:
	}
	if err := p.Shutdown(ctx); err != nil {
		p.t.Errorf("shutdown: %v", err)
	}
}

// get returns a GET request.
func get(path string) *environ.Request {
	r := &environ.Request{Transport: "test", ID: environ.NextID(), Start: time.Now(), Body: environ.NoBody}
	r.Environ.Add("REQUEST_METHOD", http.MethodGet)
	r.Environ.Add("SCRIPT_NAME", "")
	r.Environ.Add("PATH_INFO", path)
	r.Environ.Add("REQUEST_URI", path)
	r.Environ.Add("SERVER_NAME", "localhost")
	r.Environ.Add("SERVER_PORT", "80")
	r.Environ.Add("SERVER_PROTOCOL", "HTTP/1.1")
	r.Environ.Add("QUERY_STRING", "")
	return r
}

// serve has the pool answer a request.
func (p *testPool) serve(r *environ.Request) *environtest.Recorder {
	w := &environtest.Recorder{}
	p.ServeGateway(w, r)
	if w.Misuse != nil {
		p.t.Errorf("%s: %v", r.Environ.Text("PATH_INFO"), w.Misuse)
	}
	return w
}

// text answers a GET that must succeed, and returns the body.
func (p *testPool) text(path string) string {
	p.t.Helper()
	w := p.serve(get(path))
	if w.Status != 200 || w.AbortErr != nil {
		p.t.Errorf("%s: status %d, abort %v", path, w.Status, w.AbortErr)
	}
	return w.Body.String()
}

// later answers a request in a goroutine of its own.
func (p *testPool) later(r *environ.Request) <-chan *environtest.Recorder {
	done := make(chan *environtest.Recorder, 1)
	go func() { done <- p.serve(r) }()
	return done
}

// await returns what comes, or fails the test.
func await[T any](t testing.TB, what string, from <-chan T) T {
	t.Helper()
	select {
	case got := <-from:
		return got
	case <-time.After(patience):
		t.Fatalf("waited too long for %s", what)
		panic("unreachable")
	}
}

// servesOn checks that the pool answers, and returns the worker that did.
func (p *testPool) servesOn() int {
	p.t.Helper()
	r := get("/hello")
	if w := p.serve(r); w.Status != 200 || w.Body.String() != "hello" || w.AbortErr != nil {
		p.t.Errorf("the pool does not serve on: status %d, %q, abort %v", w.Status, w.Body.String(), w.AbortErr)
	}
	return r.Worker
}

// gone reports whether a process is gone and reaped.
func gone(pid int) bool {
	_, err := os.Stat(fmt.Sprint("/proc/", pid))
	return os.IsNotExist(err)
}

// preamble begins the applications of these tests: what is at a path is a
// function of that name.
const preamble = `
import ctypes, os, signal, sys, time

notes = []

def app(environ, start_response):
    name = environ["PATH_INFO"].strip("/").replace("-", "_") or "hello"
    return globals()[name](environ, start_response)

def hello(environ, start_response):
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [b"hello"]

def noted(environ, start_response):
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [" ".join(notes).encode()]

def forget(environ, start_response):
    notes.clear()
    return hello(environ, start_response)

class Body:
    "A body that notes what is done with it."
    def __init__(self, *blocks):
        self.blocks = iter(blocks)
    def __iter__(self):
        return self
    def __next__(self):
        block = next(self.blocks)
        notes.append("next")
        if isinstance(block, Exception):
            raise block
        return block
    def close(self):
        notes.append("closed")
`

func TestHello(t *testing.T) {
	t.Parallel()
	p := startPool(t, preamble, Config{})
	for range 3 {
		w := p.serve(get("/hello"))
		if w.Status != 200 || w.Reason != "OK" || w.Body.String() != "hello" || w.Length != 5 {
			t.Errorf("%+v", w)
		}
		if w.Get("Content-Type") != "text/plain" {
			t.Errorf("fields %v", w.Fields)
		}
	}
}

// TestNothingIsLeft runs alone, before the parallel tests, so it can count.
func TestNothingIsLeft(t *testing.T) {
	python()
	fds := openDescriptors()
	p := startPool(t, preamble+`
def crash(environ, start_response):
    os._exit(3)
def file(environ, start_response):
    start_response("200 OK", [])
    return environ["wsgi.file_wrapper"](open("app.py", "rb"))
`, Config{Workers: 2, Threads: 2})
	for _, path := range []string{"/hello", "/file", "/crash", "/hello"} {
		p.serve(get(path))
	}
	p.shutdown(10 * time.Second)
	if left := children(); len(left) > 0 {
		t.Errorf("children left behind: %v", left)
	}
	if after := openDescriptors(); !slices.Equal(fds, after) {
		t.Errorf("descriptors before %v, after %v", fds, after)
	}
}

// TestInformationalStatus: what comes before an answer is the gateway's to send,
// so an application that gives it for one gets a 500, and the worker lives.
func TestInformationalStatus(t *testing.T) {
	t.Parallel()
	p := startPool(t, preamble+`
def early(environ, start_response):
    start_response("100 Continue", [])
    return [b"x"]
`, Config{})
	r := get("/early")
	if w := p.serve(r); w.Status != 500 || w.AbortErr != nil {
		t.Errorf("status %d, abort %v", w.Status, w.AbortErr)
	}
	if now := p.servesOn(); now != r.Worker {
		t.Errorf("worker %d was replaced by %d", r.Worker, now)
	}
}
