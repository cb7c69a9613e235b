package pyrunner

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"wsgigate/environ/environtest"
)

// TestWorkerDies: rows 14 and 15, before the header and after it.
func TestWorkerDies(t *testing.T) {
	t.Parallel()
	p := startPool(t, preamble+`
def start(start_response):
    start_response("200 OK", [("Content-Type", "text/plain")])

def early(end):
    def application(environ, start_response):
        start(start_response)
        end()
    return application

def late(end):
    def application(environ, start_response):
        start(start_response)
        yield b"part"
        end()
        yield b"rest"
    return application

def segv():
    ctypes.string_at(0)

def kill():
    os.kill(os.getpid(), signal.SIGKILL)

exit_early, exit_late = early(lambda: os._exit(7)), late(lambda: os._exit(0))
segv_early, segv_late = early(segv), late(segv)
kill_early, kill_late = early(kill), late(kill)
`, Config{})
	for _, how := range []struct{ name, early, late string }{
		{"exit", "exit status 7", "exit status 0"}, {"segv", "SIGSEGV", "SIGSEGV"}, {"kill", "SIGKILL", "SIGKILL"},
	} {
		for _, when := range []string{"early", "late"} {
			worker := p.servesOn()
			r := get("/" + how.name + "-" + when)
			w := p.serve(r)
			if when == "early" {
				if w.Status != 502 || w.AbortErr != nil || w.Body.String() != "wsgigate: 502 Bad Gateway\n" {
					t.Errorf("%s: status %d, abort %v, %q", r.Environ.Text("PATH_INFO"), w.Status, w.AbortErr, w.Body.String())
				}
				p.log.fault(t, r, atApp)
			} else {
				if w.Status != 200 || w.AbortErr == nil || w.Body.String() != "part" {
					t.Errorf("%s: status %d, abort %v, %q", r.Environ.Text("PATH_INFO"), w.Status, w.AbortErr, w.Body.String())
				}
				p.log.fault(t, r, atAnswer)
			}
			if r.Worker != worker {
				t.Errorf("worker %d had the request, not %d", r.Worker, worker)
			}
			if now := p.servesOn(); now == worker {
				t.Errorf("worker %d was not replaced", worker)
			}
			eventually(t, "the worker's end", func() bool { return gone(worker) })
			want := how.early
			if when == "late" {
				want = how.late
			}
			p.log.await(t, "how the worker ended", func(l logLine) bool {
				return l.num("pid") == uint64(worker) && strings.Contains(l.str("exit"), want)
			})
		}
	}
	p.log.awaitText(t, "Fatal Python error: Segmentation fault")
}

// TestOnlyItsOwnRequest: a worker's death harms the request that it had, and none
// of those that wait.
func TestOnlyItsOwnRequest(t *testing.T) {
	t.Parallel()
	p := startPool(t, preamble+`
def dies(environ, start_response):
    while not os.path.exists("go"):
        time.sleep(0.01)
    os.unlink("go")
    os._exit(1)
`, Config{})
	for range 4 {
		p.servesOn()
		dying := p.later(get("/dies"))
		eventually(t, "the request", func() bool { return p.queue.busyNow() == 1 })
		var waiting []<-chan *environtest.Recorder
		for range 8 {
			waiting = append(waiting, p.later(get("/hello")))
		}
		eventually(t, "the queue", func() bool { return p.queue.waitingNow() == 8 })
		if err := os.WriteFile(filepath.Join(p.dir, "go"), nil, 0o600); err != nil {
			t.Fatal(err)
		}
		if w := await(t, "the request", dying); w.Status != 502 {
			t.Errorf("status %d", w.Status)
		}
		for _, done := range waiting {
			if w := await(t, "a waiting request", done); w.Status != 200 {
				t.Errorf("a request that waited got %d", w.Status)
			}
		}
	}
}

func (q *queue) busyNow() int {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.busy
}

func (q *queue) waitingNow() int {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.waiting
}

const hangsApp = preamble + `
def sleeps(environ, start_response):
    while True:
        time.sleep(60)

def sleeps_late(environ, start_response):
    start_response("200 OK", [("Content-Type", "text/plain")])
    yield b"part"
    time.sleep(60)

def stubborn(environ, start_response):
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    time.sleep(60)

def wedged(environ, start_response):
    "Waits in C for a mutex, with the interpreter's lock held."
    libc, mutex = ctypes.PyDLL(None), ctypes.create_string_buffer(64)
    libc.pthread_mutex_lock(mutex)
    libc.pthread_mutex_lock(mutex)

def stopped(environ, start_response):
    os.kill(os.getpid(), signal.SIGSTOP)
    return hello(environ, start_response)
`

// TestHangs: rows 22, 23, 24 and 26.
func TestHangs(t *testing.T) {
	t.Parallel()
	for name, row := range map[string]struct {
		status       int
		phase        string
		stack, kills bool
	}{
		"sleeps":      {504, atApp, true, false},
		"sleeps-late": {200, atAnswer, true, false},
		"stubborn":    {504, atApp, true, true},
		"wedged":      {504, atApp, true, true},
		"stopped":     {504, atApp, false, true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p := startPool(t, hangsApp, Config{Timeout: 600 * time.Millisecond})
			worker := p.servesOn()
			r := get("/" + name)
			begun := time.Now()
			w := p.serve(r)
			if took := time.Since(begun); took < 590*time.Millisecond {
				t.Errorf("ended after %v", took)
			}
			if w.Status != row.status || (w.AbortErr != nil) != (row.status == 200) {
				t.Errorf("status %d, abort %v", w.Status, w.AbortErr)
			}
			line := p.log.fault(t, r, row.phase)
			if !strings.Contains(line.str("error"), "--timeout") {
				t.Errorf("log line %v", line)
			}
			if now := p.servesOn(); now == worker {
				t.Error("the worker was not replaced")
			}
			eventually(t, "the worker's end", func() bool { return gone(worker) })
			function := `in ` + strings.ReplaceAll(name, "-", "_")
			stack := p.log.find(func(l logLine) bool {
				return l.str("stream") == "stacks" && l.num("pid") == uint64(worker) && l.has("app.py", function)
			})
			if len(stack) > 0 != row.stack {
				t.Errorf("stack logged: %v", stack)
			}
			killed := p.log.find(func(l logLine) bool { return l.has("SIGKILL") && l.num("pid") == uint64(worker) })
			if len(killed) > 0 != row.kills {
				t.Errorf("killed: %v", killed)
			}
		})
	}
}

// TestLateAnswer: what a worker answers after the timeout reaches nobody.
func TestLateAnswer(t *testing.T) {
	t.Parallel()
	p := startPool(t, preamble+`
def late(environ, start_response):
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    while not os.path.exists("go"):
        time.sleep(0.01)
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [b"late"]
`, Config{Timeout: 300 * time.Millisecond, Threads: 1})
	r := get("/late")
	if w := p.serve(r); w.Status != 504 || strings.Contains(w.Body.String(), "late") {
		t.Errorf("status %d, %q", w.Status, w.Body.String())
	}
	p.log.fault(t, r, atApp)
	if err := os.WriteFile(filepath.Join(p.dir, "go"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for !gone(r.Worker) {
		p.servesOn()
	}
	p.servesOn()
}

// TestTimeoutSparesNeighbours: a request that hangs costs the worker, but the
// requests in its other threads end first.
func TestTimeoutSparesNeighbours(t *testing.T) {
	t.Parallel()
	p := startPool(t, preamble+`
def sleeps(environ, start_response):
    time.sleep(60)
def lasts(environ, start_response):
    time.sleep(1)
    return hello(environ, start_response)
`, Config{Threads: 2, Timeout: 1500 * time.Millisecond})
	hangs := p.later(get("/sleeps"))
	time.Sleep(800 * time.Millisecond) // so that the neighbour still runs at the timeout
	neighbour := get("/lasts")
	answered := p.later(neighbour)
	if w := await(t, "the request that hangs", hangs); w.Status != 504 {
		t.Errorf("status %d", w.Status)
	}
	if w := await(t, "its neighbour", answered); w.Status != 200 || w.Body.String() != "hello" {
		t.Errorf("status %d, %q", w.Status, w.Body.String())
	}
	if now := p.servesOn(); now == neighbour.Worker {
		t.Error("the worker was not replaced")
	}
	eventually(t, "the worker's end", func() bool { return gone(neighbour.Worker) })
}

// TestUnkillable: row 25. The process is a fake that nobody reaps: for the pool
// it survives SIGKILL.
func TestUnkillable(t *testing.T) {
	t.Parallel()
	p := newPool(t, preamble, Config{GracefulTimeout: 100 * time.Millisecond})
	w, peer := fakeWorker(t, p.Pool, true)
	defer peer.Close()
	r := get("/hello")
	done := p.later(r)
	awaitRequest(t, peer)
	if _, err := peer.Write([]byte("not a frame at all")); err != nil {
		t.Fatal(err)
	}
	if got := await(t, "the answer", done); got.Status != 502 {
		t.Errorf("status %d", got.Status)
	}
	p.log.fault(t, r, atApp)
	if now := p.servesOn(); now == w.pid {
		t.Error("the worker was not replaced")
	}
	stopped := make(chan struct{})
	go func() {
		defer close(stopped)
		p.shutdown(100 * time.Millisecond)
	}()
	await(t, "the pool's end", stopped)
	line := p.log.awaitText(t, "worker survives SIGKILL")
	if line.num("pid") != uint64(w.pid) {
		t.Errorf("log line %v", line)
	}
}

// TestSpawnFails: row 51. The interpreter vanishes while the pool runs.
func TestSpawnFails(t *testing.T) {
	t.Parallel()
	link := filepath.Join(t.TempDir(), "python")
	if err := os.WriteFile(link, fmt.Appendf(nil, "#!/bin/sh\nexec %s \"$@\"\n", python()), 0o700); err != nil {
		t.Fatal(err)
	}
	p := startPool(t, preamble, Config{Python: link, Workers: 1, QueueTimeout: 300 * time.Millisecond})
	worker := p.servesOn()
	if err := os.Rename(link, link+".away"); err != nil {
		t.Fatal(err)
	}
	if err := unix.Kill(worker, unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	line := p.log.awaitText(t, "worker failed to start")
	if !strings.Contains(line.str("error"), "no such file") {
		t.Errorf("log line %v", line)
	}
	p.log.awaitText(t, "waiting before the next")
	r := get("/hello")
	if w := p.serve(r); w.Status != 503 || w.Get("Retry-After") == "" {
		t.Errorf("status %d without any worker", w.Status)
	}
	p.log.fault(t, r, "queue")
	if err := os.Rename(link+".away", link); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the recovery", func() bool { return p.serve(get("/hello")).Status == 200 })
	eventually(t, "the worker's end", func() bool { return gone(worker) })
	failed := p.log.find(func(l logLine) bool { return l.has("worker failed to start") })
	if len(failed) > 3 {
		t.Errorf("no back-off: %d attempts", len(failed))
	}
}

// TestCrashLoop: row 34. Workers that die before they answered anything are
// replaced with growing pauses, and the pool says so.
func TestCrashLoop(t *testing.T) {
	t.Parallel()
	p := startPool(t, preamble+`
def dies(environ, start_response):
    os._exit(1)
`, Config{QueueTimeout: 200 * time.Millisecond})
	statuses := map[int]int{}
	begun := time.Now()
	eventually(t, "three deaths and a refusal", func() bool {
		statuses[p.serve(get("/dies")).Status]++
		return statuses[502] >= 3 && statuses[503] > 0
	})
	// The first two follow each other at once.
	if took := time.Since(begun); took < backoffMin || len(statuses) != 2 {
		t.Errorf("statuses %v in %v", statuses, took)
	}
	line := p.log.awaitText(t, "waiting before the next")
	if time.Duration(line.num("pause")) != backoffMin {
		t.Errorf("log line %v", line)
	}
	eventually(t, "the recovery", func() bool { return p.serve(get("/hello")).Status == 200 })
	p.servesOn()
}
