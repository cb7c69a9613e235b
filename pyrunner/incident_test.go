package pyrunner

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func TestIncidentsAreTheLast(t *testing.T) {
	var l incidents
	if got := l.list(); len(got) != 0 {
		t.Errorf("%d incidents", len(got))
	}
	for pid := 1; pid <= maxIncidents+9; pid++ {
		if n := l.add(Incident{PID: pid}); n != uint64(pid) {
			t.Errorf("number %d", n)
		}
		got := l.list()
		if len(got) != min(pid, maxIncidents) || got[0].PID != pid || got[len(got)-1].PID != max(1, pid-maxIncidents+1) {
			t.Fatalf("after %d: %d, from %d to %d", pid, len(got), got[0].PID, got[len(got)-1].PID)
		}
	}
}

// incident waits for the newest incident of that worker, and returns it once it is
// in the log too.
func (p *testPool) incident(pid int) (found Incident) {
	p.t.Helper()
	eventually(p.t, fmt.Sprint("an incident of worker ", pid), func() bool {
		for _, i := range p.incidents.list() {
			if i.PID == pid {
				found = i
				return true
			}
		}
		return false
	})
	p.log.await(p.t, "the incident", func(l logLine) bool { return l.num("pid") == uint64(pid) && l.str("kind") == found.Kind })
	return found
}

// lineOf returns the number of the line of the application that has the text.
func (p *testPool) lineOf(text string) int {
	p.t.Helper()
	source, err := os.ReadFile(filepath.Join(p.dir, "app.py"))
	if err != nil {
		p.t.Fatal(err)
	}
	before, _, ok := strings.Cut(string(source), text)
	if !ok {
		p.t.Fatalf("the application has no %q", text)
	}
	return strings.Count(before, "\n") + 1
}

const stuckApp = preamble + `
libc = ctypes.PyDLL(None)

def sleeps(environ, start_response):
    while not os.path.exists("go"):
        time.sleep(0.05)
        time.sleep(0.05) # sleeps
    return hello(environ, start_response)

def holds(environ, start_response):
    while not os.path.exists("go"):
        for _ in range(1000):
            libc.usleep(60000) # holds
            if os.path.exists("go"):
                break
    return hello(environ, start_response)

def loops(environ, start_response):
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline: # loops
        if int(time.monotonic() * 1000) % 50 == 0 and os.path.exists("go"): # loops
            break
    return hello(environ, start_response)

def warns(environ, start_response):
    for n in range(3):
        print("warning", n, "\x1b[31m", file=sys.stderr)
    environ["wsgi.errors"].write("told wsgi.errors\n")
    time.sleep(1)
    return hello(environ, start_response)
`

// TestSlow: a slow request leaves an incident while it runs, whatever it hangs in, and
// its answer comes all the same.
func TestSlow(t *testing.T) {
	t.Parallel()
	const slow = 300 * time.Millisecond
	for _, name := range []string{"sleeps", "holds", "loops"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p := startPool(t, stuckApp, Config{Slow: slow})
			worker := p.servesOn()
			r := get("/" + name)
			r.Environ.Add("REMOTE_ADDR", "192.0.2.7")
			begun := time.Now()
			done := p.later(r)
			i := p.incident(worker)
			if took := i.Time.Sub(begun); took < slow || took > slow+time.Second {
				t.Errorf("incident after %v", took)
			}
			q := i.Request
			if i.Kind != kindSlow || q == nil || q.ID != r.ID || q.URI != "/"+name || q.Method != "GET" || q.Remote != "192.0.2.7" || q.For < slow {
				t.Errorf("%+v, %+v", i, q)
			}
			if want := fmt.Sprintf(`app.py", line %d in %s`, p.lineOf("# "+name), name); name == "holds" && !strings.Contains(i.Stacks, want) {
				t.Errorf("no %q in\n%s", want, i.Stacks)
			}
			if !strings.Contains(i.Stacks, " in "+name+"\n") {
				t.Errorf("not where it hangs:\n%s", i.Stacks)
			}
			<-time.After(2 * slow) // there is one incident for a request
			p.mark("go")
			if w := await(t, "the answer", done); w.Status != 200 || w.Body.String() != "hello" {
				t.Errorf("status %d, %q", w.Status, w.Body.String())
			}
			if now := p.servesOn(); now != worker {
				t.Error("the worker was replaced")
			}
			if n := len(p.incidents.list()); n != 1 {
				t.Errorf("%d incidents", n)
			}
			line := p.log.find(func(l logLine) bool { return l.str("kind") == kindSlow })[0]
			if line.str("level") != "WARN" || line.num("request") != r.ID || line.str("uri") != "/"+name || line.str("method") != "GET" ||
				line.str("remote") != "192.0.2.7" || line.num("for") < uint64(slow) || line["in"] == nil || line["out"] == nil || line.num("pid") != uint64(worker) {
				t.Errorf("log line %v", line)
			}
			stack := p.log.find(func(l logLine) bool { return l.str("stream") == "stacks" && l.num("incident") == line.num("incident") })
			if len(stack) < 3 {
				t.Errorf("stack in the log: %v", stack)
			}
		})
	}
}

// TestSlowTellsTheLastWords: the last lines of stderr and of wsgi.errors.
func TestSlowTellsTheLastWords(t *testing.T) {
	t.Parallel()
	p := startPool(t, stuckApp, Config{Slow: 300 * time.Millisecond})
	r := get("/warns")
	done := p.later(r)
	i := p.incident(p.onlySlot().worker.pid)
	said := slices.Sorted(slices.Values(i.Stderr))
	if want := []string{"told wsgi.errors", "warning 0 \x1b[31m", "warning 1 \x1b[31m", "warning 2 \x1b[31m"}; !slices.Equal(said, want) {
		t.Errorf("last lines: %q", said)
	}
	words := func(l logLine) bool { return l.str("stream") == "last words" && l.num("incident") == 1 }
	eventually(t, "the last words", func() bool { return len(p.log.find(words)) == len(said) })
	await(t, "the answer", done)
}

// TestSlowNeighbours: threads that are slow at the same time share a dump, and each
// incident names the others.
func TestSlowNeighbours(t *testing.T) {
	t.Parallel()
	p := startPool(t, stuckApp, Config{Slow: 300 * time.Millisecond, Threads: 4})
	begun := time.Now()
	var group sync.WaitGroup
	for range 4 {
		group.Go(func() { p.text("/sleeps") })
	}
	eventually(t, "four incidents", func() bool { return len(p.incidents.list()) == 4 })
	if took := time.Since(begun); took > 1300*time.Millisecond {
		t.Errorf("the incidents took %v", took)
	}
	p.mark("go")
	group.Wait()
	for _, i := range p.incidents.list() {
		if n := strings.Count(i.Stacks, " in sleeps\n"); n != 4 || len(i.Others) != 3 {
			t.Errorf("%d of 4 threads, beside %d\n%s", n, len(i.Others), i.Stacks)
		}
		for _, other := range i.Others {
			if other.ID == i.Request.ID || other.URI != "/sleeps" {
				t.Errorf("%+v beside %+v", other, i.Request)
			}
		}
	}
}

// TestTimeoutIncident: row 22 and 23. The incident has the stacks although the
// process is ended at once.
func TestTimeoutIncident(t *testing.T) {
	t.Parallel()
	for _, name := range []string{"sleeps", "holds", "loops"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p := startPool(t, stuckApp, Config{Timeout: 500 * time.Millisecond})
			r := get("/" + name)
			if w := p.serve(r); w.Status != 504 {
				t.Errorf("status %d", w.Status)
			}
			i := p.incident(r.Worker)
			if i.Kind != kindTimeout || i.Request == nil || i.Request.ID != r.ID || !strings.Contains(i.Stacks, " in "+name+"\n") {
				t.Errorf("%+v", i)
			}
			if now := p.servesOn(); now == r.Worker {
				t.Error("the worker was not replaced")
			}
			eventually(t, "the worker's end", func() bool { return gone(r.Worker) })
			for _, i := range p.incidents.list() {
				if i.Kind != kindTimeout {
					t.Errorf("the end that was asked for is an incident: %+v", i)
				}
			}
		})
	}
}

// TestStopped: row 26. A process that is stopped gives no stacks; the incident says
// what the kernel knows.
func TestStopped(t *testing.T) {
	t.Parallel()
	p := startPool(t, stuckApp+`
def stops(environ, start_response):
    os.kill(os.getpid(), signal.SIGSTOP)
    return hello(environ, start_response)
`, Config{Slow: 200 * time.Millisecond})
	r := get("/stops")
	done := p.later(r)
	pid := p.onlySlot().worker.pid
	i := p.incident(pid)
	if !strings.HasPrefix(i.Stacks, "no Python stacks: the process is in state T (stopped)") || i.Kind != kindSlow {
		t.Errorf("%+v", i)
	}
	if err := unix.Kill(pid, unix.SIGCONT); err != nil {
		t.Fatal(err)
	}
	if w := await(t, "the answer", done); w.Status != 200 {
		t.Errorf("status %d", w.Status)
	}
	// No dump of then comes now.
	if now := p.onlySlot().worker.stacks(); strings.Contains(now, "stops") || !strings.Contains(now, "(most recent call first)") {
		t.Errorf("stacks of an idle worker:\n%s", now)
	}
}

// TestStacksWithoutHandler: a process that would be killed by the signal does not get
// it.
func TestStacksWithoutHandler(t *testing.T) {
	t.Parallel()
	p := newPool(t, preamble, Config{})
	w, peer := fakeWorker(t, p.Pool, false)
	defer peer.Close()
	eventually(t, "sleep to sleep", func() bool { return strings.HasPrefix(conditionOf(w.pid).state, "S") })
	text := w.stacks()
	if !strings.Contains(text, "state S (sleeping)") || !strings.Contains(text, "no faulthandler") {
		t.Errorf("%q", text)
	}
	select {
	case <-w.gone:
		t.Error("the process was killed")
	default:
	}
}

// TestStacksAreTheirOwn: what an earlier dump left in the pipe, and what is too long,
// is not taken for this one.
func TestStacksAreTheirOwn(t *testing.T) {
	t.Parallel()
	p := startPool(t, preamble+`
def fills(environ, start_response):
    fd = [int(f) for f in os.listdir("/proc/self/fd") if os.path.islink("/proc/self/fd/" + f)
          and int(f) > 2 and os.readlink("/proc/self/fd/" + f).startswith("pipe:")]
    assert len(fd) == 1, fd
    for n in range(int(environ["HTTP_X_BLOCKS"])):
        os.write(fd[0], b"stale\n" * 1000)
    return hello(environ, start_response)
`, Config{})
	w := p.onlySlot().worker
	for _, blocks := range []string{"1", "10"} {
		r := get("/fills")
		r.Environ.Add("HTTP_X_BLOCKS", blocks)
		if got := p.serve(r); got.Status != 200 {
			t.Fatalf("status %d", got.Status)
		}
		if text := w.stacks(); strings.Contains(text, "stale") || strings.Count(text, "(most recent call first)") != 1 {
			t.Errorf("after %s blocks:\n%.300s", blocks, text)
		}
	}
	// More than is kept does not hold the worker, though it fills the pipe.
	r := get("/fills")
	r.Environ.Add("HTTP_X_BLOCKS", "40")
	done := p.later(r)
	if text := w.readDump(dumpWait); len(text) != dumpMax {
		t.Errorf("%d bytes", len(text))
	}
	if got := await(t, "the worker", done); got.Status != 200 {
		t.Errorf("status %d", got.Status)
	}
}

// TestCrashIncident: row 15. The record of a crash has the signal, the request and what
// the worker said last: faulthandler's stack of the crash among it.
func TestCrashIncident(t *testing.T) {
	t.Parallel()
	p := startPool(t, preamble+`
def segv(environ, start_response):
    print("before", "\x07", file=sys.stderr)
    ctypes.string_at(0) # segv

def exits(environ, start_response):
    os.write(2, b"no newline")
    os._exit(3)
`, Config{})
	p.servesOn()
	r := get("/segv")
	p.serve(r)
	i := p.incident(r.Worker)
	if i.Kind != kindCrash || !strings.HasPrefix(i.Ended, "killed by SIGSEGV") || i.Request == nil || i.Request.ID != r.ID || i.Request.URI != "/segv" {
		t.Errorf("%+v", i)
	}
	said := strings.Join(i.Stderr, "\n")
	for _, want := range []string{"before \x07\n", "Fatal Python error: Segmentation fault", fmt.Sprintf(`app.py", line %d in segv`, p.lineOf("# segv"))} {
		if !strings.Contains(said, want) {
			t.Errorf("no %q in\n%s", want, said)
		}
	}
	line := p.log.find(func(l logLine) bool { return l.str("kind") == kindCrash })[0]
	if line.str("level") != "ERROR" || !strings.Contains(line.str("exit"), "SIGSEGV") || line.num("request") != r.ID {
		t.Errorf("log line %v", line)
	}

	p.servesOn()
	r = get("/exits")
	p.serve(r)
	if i := p.incident(r.Worker); i.Ended != "exit status 3" || i.Request == nil || i.Request.ID != r.ID || len(i.Stderr) != 1 || i.Stderr[0] != "no newline" {
		t.Errorf("%+v", i)
	}
	p.servesOn()
}

// TestOrderlyEndIsNoIncident: nor is one without a request lost.
func TestOrderlyEndIsNoIncident(t *testing.T) {
	t.Parallel()
	p := startPool(t, preamble, Config{Workers: 2})
	p.servesOn()
	p.shutdown(10 * time.Second)
	if got := p.incidents.list(); len(got) != 0 {
		t.Errorf("%+v", got)
	}
}

// TestWithoutRunner: what the runner has at the bottom of a stack is left out, but
// not of a stack that is its own.
func TestWithoutRunner(t *testing.T) {
	t.Parallel()
	const text = `Thread 0x00007f01 (most recent call first):
  File "/srv/app.py", line 3 in wait
  File "/usr/lib/python3.11/threading.py", line 982 in run
  File "/srv/app.py", line 9 in application
  File "/proc/self/fd/3/wsgigate_runner/slot.py", line 62 in _answer
  File "/usr/lib/python3.11/threading.py", line 982 in run

Current thread 0x00007f02 (most recent call first):
  File "/proc/self/fd/3/wsgigate_runner/worker.py", line 214 in _serve
  File "<frozen runpy>", line 88 in _run_code
`
	const want = `Thread 0x00007f01 (most recent call first):
  File "/srv/app.py", line 3 in wait
  File "/usr/lib/python3.11/threading.py", line 982 in run
  File "/srv/app.py", line 9 in application

Current thread 0x00007f02 (most recent call first):
  File "/proc/self/fd/3/wsgigate_runner/worker.py", line 214 in _serve
  File "<frozen runpy>", line 88 in _run_code
`
	if got := withoutRunner(text); got != want {
		t.Errorf("%s", got)
	}
}
