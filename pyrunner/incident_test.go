package pyrunner

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
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
	worker := p.onlySlot().worker
	done := p.later(r)
	i := p.incident(worker.pid)
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
	pid := p.onlySlot().worker.pid
	done := p.later(r)
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
	// More than is kept, and than the pipe holds, does not hold the worker, though nobody
	// has asked for it.
	r := get("/fills")
	r.Environ.Add("HTTP_X_BLOCKS", "40")
	if got := await(t, "the worker", p.later(r)); got.Status != 200 {
		t.Errorf("status %d", got.Status)
	}
	if text := w.readDump(dumpWait); len(text) < dumpMax-100 || len(text) > dumpMax+100 || !strings.Contains(text, "stale\n[29078 lines are left out here, 174468 bytes]\nstale\n") {
		t.Errorf("%d bytes: %.200s", len(text), text[len(text)/2-100:])
	}
}

// TestStacksWithPauses: a pause within a line does not end a dump, and one after it does.
func TestStacksWithPauses(t *testing.T) {
	t.Parallel()
	p := startPool(t, preamble+`
def pauses(environ, start_response):
    fd = [int(f) for f in os.listdir("/proc/self/fd") if os.path.islink("/proc/self/fd/" + f)
          and int(f) > 2 and os.readlink("/proc/self/fd/" + f).startswith("pipe:")]
    for text in b"Thread 1\n  File", b" one", b" two\n":
        os.write(fd[0], text)
        time.sleep(0.3)
    os.write(fd[0], b"late\n")
    return hello(environ, start_response)
`, Config{})
	worker := p.onlySlot().worker
	done := p.later(get("/pauses"))
	if text := worker.readDump(patience); text != "Thread 1\n  File one two\n" {
		t.Errorf("%q", text)
	}
	if got := await(t, "the answer", done); got.Status != 200 {
		t.Errorf("status %d", got.Status)
	}
}

// TestCrashIncident: row 15. The record of a crash has the signal, the request, the stack
// that faulthandler wrote of it, and what the worker said before.
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
	if len(i.Stderr) != 1 || i.Stderr[0] != "before \x07" {
		t.Errorf("last lines: %q", i.Stderr)
	}
	if !strings.HasPrefix(i.Stacks, "Fatal Python error: Segmentation fault\n") || !strings.Contains(i.Stacks, fmt.Sprintf(`app.py", line %d in segv`, p.lineOf("# segv"))) {
		t.Errorf("stacks:\n%s", i.Stacks)
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

Current thread 0x7F03 (most recent call first, approximate line numbers):
  File "/srv/app.py", line 9 in application
  File "/proc/self/fd/3/wsgigate_runner/slot.py", line 62 in _answer
  File "/usr/lib/pypy3.9/runpy.py", line 88 in _run_code
  File "<builtin>/app_main.py", line 131 in run_toplevel
`
	const want = `Thread 0x00007f01 (most recent call first):
  File "/srv/app.py", line 3 in wait
  File "/usr/lib/python3.11/threading.py", line 982 in run
  File "/srv/app.py", line 9 in application

Current thread 0x00007f02 (most recent call first):
  File "/proc/self/fd/3/wsgigate_runner/worker.py", line 214 in _serve
  File "<frozen runpy>", line 88 in _run_code

Current thread 0x7F03 (most recent call first, approximate line numbers):
  File "/srv/app.py", line 9 in application
`
	if got := withoutRunner(text); got != want {
		t.Errorf("%s", got)
	}
}

// TestExcerpt: the beginning and the end of a long text are there, as whole lines, and
// what is said to be left out is what is missing.
func TestExcerpt(t *testing.T) {
	t.Parallel()
	gap := regexp.MustCompile(`(?m)^\[(\d+) lines are left out here, (\d+) bytes\]\n`)
	for _, row := range []struct{ lines, length int }{
		{0, 1}, {1, 1}, {100, 80}, {dumpMax / 64, 64}, {dumpMax/64 + 1, 64}, {700, 100}, {5000, 77}, {40000, 20}, {3, dumpMax},
	} {
		var whole strings.Builder
		for n := range row.lines {
			fmt.Fprintf(&whole, "%0*d\n", row.length-1, n)
		}
		for _, piece := range []int{1, 1000, 8 << 10} {
			var e excerpt
			for part := range slices.Chunk([]byte(whole.String()), piece) {
				e.add(part)
			}
			got := e.String()
			if whole.Len() <= dumpMax {
				if got != whole.String() {
					t.Errorf("%v by %d: %d bytes of %d", row, piece, len(got), whole.Len())
				}
				continue
			}
			found := gap.FindStringSubmatch(got)
			if found == nil {
				t.Fatalf("%v by %d: nothing says that lines are missing", row, piece)
			}
			head, tail, _ := strings.Cut(got, found[0])
			lines, bytes := row.lines-strings.Count(head+tail, "\n"), whole.Len()-len(head)-len(tail)
			if !strings.HasPrefix(whole.String(), head) || !strings.HasSuffix(whole.String(), tail) || found[1] != fmt.Sprint(lines) || found[2] != fmt.Sprint(bytes) {
				t.Errorf("%v by %d: %d bytes, then %d; %d lines are missing, %d bytes, but it says %q", row, piece, len(head), len(tail), lines, bytes, found[0])
			}
			if row.length < 1000 && (len(head) < dumpMax/2-row.length || len(tail) < dumpMax/2-row.length) || len(head)+len(tail) > dumpMax {
				t.Errorf("%v by %d: %d bytes, then %d", row, piece, len(head), len(tail))
			}
		}
	}
}

// crowdApp has threads of many frames before it is imported: CROWD says how many of both.
const crowdApp = preamble + `
import threading

there, free = threading.Semaphore(0), threading.Event()

def deep(n):
    if n:
        return deep(n - 1)
    there.release()
    free.wait()

THREADS, FRAMES = map(int, os.environ["CROWD"].split())
for n in range(THREADS):
    threading.Thread(target=deep, args=(FRAMES,), daemon=True).start()
for n in range(THREADS):
    there.acquire()

def hangs(environ, start_response):
    while not os.path.exists("go"):
        time.sleep(0.02)
    return hello(environ, start_response)
`

// TestStacksOfACrowd: the thread that hangs is the oldest, so it comes last. It is there
// however long the stacks of the others are; past a hundred threads faulthandler leaves
// it out, which the incident says.
func TestStacksOfACrowd(t *testing.T) {
	t.Parallel()
	for _, row := range []struct {
		threads, frames int
		hangs, gap      bool
	}{
		{20, 5, true, false}, {60, 50, true, true}, {120, 50, false, true},
	} {
		t.Run(fmt.Sprint(row.threads, " threads of ", row.frames), func(t *testing.T) {
			t.Parallel()
			p := startPool(t, crowdApp, Config{Slow: 400 * time.Millisecond, Env: []string{fmt.Sprintf("CROWD=%d %d", row.threads, row.frames)}})
			worker := p.onlySlot().worker
			done := p.later(get("/hangs"))
			i := p.incident(worker.pid)
			if got := strings.Contains(i.Stacks, " in hangs\n"); got != row.hangs {
				t.Errorf("the thread that hangs is there: %v", got)
			}
			if got := strings.Contains(i.Stacks, " lines are left out here, "); got != row.gap {
				t.Errorf("%d bytes; lines are said to be left out: %v", len(i.Stacks), got)
			}
			if got := strings.HasSuffix(i.Stacks, "\n"+moreThreads+tooMany); got == row.hangs {
				t.Errorf("threads are said to be left out: %v, at %.200q", got, i.Stacks[len(i.Stacks)-200:])
			}
			if len(i.Stacks) > dumpMax+500 || !strings.HasPrefix(i.Stacks, "Thread ") {
				t.Errorf("%d bytes: %.100q", len(i.Stacks), i.Stacks)
			}
			p.mark("go")
			if w := await(t, "the answer", done); w.Status != 200 {
				t.Errorf("status %d", w.Status)
			}
		})
	}
}

const crashApp = preamble + `
import faulthandler, threading

FAKE = "Fatal Python error: of another process\n\nCurrent thread 0x0001 (most recent call first):\n  File \"/fake.py\", line 1 in fake\n"

def deep(n, last):
    return deep(n - 1, last) if n else last()

def segv():
    ctypes.string_at(0) # segv

def deeply(environ, start_response):
    for n in range(3):
        threading.Thread(target=deep, args=(20, threading.Event().wait), daemon=True).start()
    print("before", file=sys.stderr)
    os.write(2, b"45%")
    deep(70, segv)

def aborts(environ, start_response):
    print("before", file=sys.stderr)
    os.abort() # aborts

def fake(environ, start_response):
    sys.stderr.write(FAKE)
    return hello(environ, start_response)

def exits(environ, start_response):
    sys.stderr.write(FAKE)
    os._exit(3)

def killed(environ, start_response):
    sys.stderr.write(FAKE)
    os.kill(os.getpid(), signal.SIGKILL)

def quietly(environ, start_response):
    faulthandler.disable()
    print("Fatal Python error: without stacks", file=sys.stderr)
    os.abort()
`

// TestCrashStacks: however deep the stack of a crash is, the incident has it, and what
// the worker said before.
func TestCrashStacks(t *testing.T) {
	t.Parallel()
	for name, row := range map[string]struct {
		head, where string
		stderr      []string
	}{
		"deeply": {"Fatal Python error: Segmentation fault\n\n", "# segv", []string{"before", "45%"}},
		"aborts": {"Fatal Python error: Aborted\n\n", "# aborts", []string{"before"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p := startPool(t, crashApp, Config{})
			if name == "aborts" { // the newest counts
				p.text("/fake")
				p.awaitOlder(4)
				row.stderr = append([]string{"Fatal Python error: of another process", "", "Current thread 0x0001 (most recent call first):", `  File "/fake.py", line 1 in fake`, olderLines}, row.stderr...)
			}
			r := get("/" + name)
			p.serve(r)
			i := p.incident(r.Worker)
			if want := fmt.Sprintf(`app.py", line %d in `, p.lineOf(row.where)); !strings.HasPrefix(i.Stacks, row.head) || !strings.Contains(i.Stacks, want) {
				t.Errorf("no %q in\n%s", want, i.Stacks)
			}
			if strings.Contains(i.Stacks, "/proc/self/fd/3/") || strings.Contains(i.Stacks, "fake") {
				t.Errorf("stacks:\n%s", i.Stacks)
			}
			if name == "deeply" && (strings.Count(i.Stacks, " in deep\n") != 71+3*21 || strings.Count(i.Stacks, stackHead) != 4) {
				t.Errorf("%d frames, %d stacks", strings.Count(i.Stacks, " in deep\n"), strings.Count(i.Stacks, stackHead))
			}
			if !slices.Equal(i.Stderr, row.stderr) {
				t.Errorf("last lines: %q", i.Stderr)
			}
			p.log.await(t, "the stack", func(l logLine) bool {
				return l.num("incident") == 1 && l.str("stream") == "stacks" && l.has(fmt.Sprint("line ", p.lineOf(row.where)))
			})
		})
	}
}

// TestCrashTextOfTheApplication: what only looks like the words of a crash is like all
// that the application says.
func TestCrashTextOfTheApplication(t *testing.T) {
	t.Parallel()
	for _, name := range []string{"exits", "killed", "quietly"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p := startPool(t, crashApp, Config{})
			r := get("/" + name)
			p.serve(r)
			if i := p.incident(r.Worker); i.Kind != kindCrash || i.Stacks != "" || len(i.Stderr) == 0 || !strings.HasPrefix(i.Stderr[0], fatalHead) {
				t.Errorf("%q, last lines %q, stacks:\n%s", i.Ended, i.Stderr, i.Stacks)
			}
		})
	}
}

// awaitOlder waits until the worker has said so many lines, and they can be told from
// those of another request.
func (p *testPool) awaitOlder(lines int) {
	p.t.Helper()
	w := p.onlySlot().worker
	eventually(p.t, "older lines", func() bool { return slices.Index(w.logs.recent(time.Now()), olderLines) == lines })
}

// TestLastWordsOfEarlierRequests: what the worker said before the request began is
// marked.
func TestLastWordsOfEarlierRequests(t *testing.T) {
	t.Parallel()
	p := startPool(t, preamble+`
def fails(environ, start_response):
    print("traceback of a request long over", file=sys.stderr)
    return hello(environ, start_response)

def hangs(environ, start_response):
    environ["wsgi.errors"].write("this request's\n")
    while not os.path.exists("go"):
        time.sleep(0.02)
    os._exit(4)
`, Config{Slow: 200 * time.Millisecond})
	p.text("/fails")
	w := p.onlySlot().worker
	p.awaitOlder(1)
	done := p.later(get("/hangs"))
	want := []string{"traceback of a request long over", olderLines, "this request's"}
	if i := p.incident(w.pid); i.Kind != kindSlow || !slices.Equal(i.Stderr, want) {
		t.Errorf("%s: %q", i.Kind, i.Stderr)
	}
	p.mark("go")
	await(t, "the end", done)
	eventually(t, "the crash", func() bool { return len(p.incidents.list()) == 2 })
	if i := p.incidents.list()[0]; i.Kind != kindCrash || !slices.Equal(i.Stderr, want) {
		t.Errorf("%s: %q", i.Kind, i.Stderr)
	}
}

// TestStartLosesItsSockets: an application whose import runs another program, or closes
// the descriptors of others, has not ended. The error says so, and the process is ended.
func TestStartLosesItsSockets(t *testing.T) {
	t.Parallel()
	for name, row := range map[string]struct{ source, sentence string }{
		"exec":   {"os.execvp('sleep', ['sleep', '60'])", `closed its sockets to the gateway while it imported the application, but its process still runs, as "sleep": `},
		"closes": {"os.closerange(3, 100)\ntime.sleep(60)", "closed its sockets to the gateway while it imported the application, but its process still runs, as "},
		"ends":   {"os.execvp('true', ['true'])", "ended while it imported the application: exit status 0"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p := newPool(t, "import os, time\nwith open('pid', 'w') as f:\n    f.write(str(os.getpid()))\n"+row.source+"\n", Config{})
			err := p.Start()
			if start, ok := errors.AsType[*startError](err); !ok || !strings.Contains(start.sentence, row.sentence) {
				t.Errorf("Start: %v", err)
			}
			text, err := os.ReadFile(filepath.Join(p.dir, "pid"))
			if err != nil {
				t.Fatal(err)
			}
			eventually(t, "the process's end", func() bool {
				_, err := os.Stat("/proc/" + string(text))
				return os.IsNotExist(err)
			})
		})
	}
}
