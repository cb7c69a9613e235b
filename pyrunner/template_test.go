package pyrunner

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"wsgigate/environ/environtest"
)

// preloadApp tells of its process and its parent.
const preloadApp = preamble + `
import random, threading

imported_in = os.getpid()
order = []
os.register_at_fork(
    before=lambda: order.append("before"),
    after_in_parent=lambda: order.append("parent"),
    after_in_child=lambda: order.append("child"),
)

def says(what):
    def application(environ, start_response):
        start_response("200 OK", [("Content-Type", "text/plain")])
        return [str(what()).encode()]
    return application

parent = says(os.getppid)
importer = says(lambda: imported_in)
hooks = says(lambda: " ".join(order))
chance = says(random.random)
thread = says(lambda: threading.current_thread().name)

def descriptors(environ, start_response):
    found = []
    for number in os.listdir("/proc/self/fd"):
        try:
            found.append(number + " " + os.readlink("/proc/self/fd/" + number))
        except OSError:
            pass  # it was listdir's own
    return says(lambda: "\n".join(found))(environ, start_response)

def dies(environ, start_response):
    os.kill(os.getpid(), signal.SIGSEGV)

def waits(environ, start_response):
    open("waiting.%d" % os.getpid(), "w").close()
    while not os.path.exists("go"):
        time.sleep(0.005)
    return hello(environ, start_response)
`

// template returns the pool's template.
func (p *testPool) template() *template {
	p.t.Helper()
	p.queue.mu.Lock()
	defer p.queue.mu.Unlock()
	if len(p.queue.idle) == 0 {
		p.t.Fatal("the pool has no idle worker")
	}
	t := p.queue.idle[0].worker.gen.preloaded().template
	if t == nil {
		p.t.Fatal("the pool has no template")
	}
	return t
}

// alive counts the workers that are not reaped.
func (t *template) alive() int {
	t.mu.Lock()
	defer t.mu.Unlock()
	return len(t.workers)
}

// pids returns the workers' process ids.
func (p *testPool) pids() (pids []int) {
	for _, w := range p.Status().Workers {
		pids = append(pids, w.PID)
	}
	slices.Sort(pids)
	return pids
}

// onEach has requests wait in n workers at once, and returns the answers.
func (p *testPool) onEach(n int) []*environtest.Recorder {
	p.t.Helper()
	var waiting []<-chan *environtest.Recorder
	for range n {
		waiting = append(waiting, p.later(get("/waits")))
	}
	p.awaitWaiting(n)
	p.mark("go")
	var all []*environtest.Recorder
	for _, done := range waiting {
		all = append(all, await(p.t, "the answer", done))
	}
	return all
}

// awaitWaiting waits until so many workers answer /waits.
func (p *testPool) awaitWaiting(n int) {
	p.t.Helper()
	eventually(p.t, "the requests in the workers", func() bool {
		names, _ := filepath.Glob(filepath.Join(p.dir, "waiting.*"))
		return len(names) == n
	})
}

// descriptorsOf counts the open files of a process.
func descriptorsOf(t testing.TB, pid int) int {
	t.Helper()
	entries, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", pid))
	if err != nil {
		t.Fatal(err)
	}
	return len(entries)
}

func TestPreload(t *testing.T) {
	t.Parallel()
	p := startPool(t, preloadApp, Config{Preload: true, Workers: 3})
	template := strconv.Itoa(p.template().self.pid)
	for _, w := range p.onEach(3) {
		if w.Status != 200 {
			t.Errorf("status %d", w.Status)
		}
	}
	for _, w := range p.Status().Workers {
		if !w.Forked {
			t.Errorf("worker %d is not forked", w.PID)
		}
		if group, err := unix.Getpgid(w.PID); err != nil || group != w.PID {
			t.Errorf("worker %d is in the process group %d, %v", w.PID, group, err)
		}
		line := p.log.await(t, "the worker", func(l logLine) bool { return l.has("worker ready") && l.num("pid") == uint64(w.PID) })
		if !strings.Contains(line.str("python"), "3.") || line.str("object") != "app.app" {
			t.Errorf("log line %v", line)
		}
	}
	if parent, importer := p.text("/parent"), p.text("/importer"); parent != template || importer != template {
		t.Errorf("the parent is %s, the application was imported by %s, the template is %s", parent, importer, template)
	}
	if hooks := strings.Fields(p.text("/hooks")); len(hooks) < 2 || hooks[len(hooks)-2] != "before" || hooks[len(hooks)-1] != "child" {
		t.Errorf("hooks %v", hooks)
	}
	p.log.awaitText(t, "template ready")
}

// TestPreloadedDescriptors: row S10 of a forked worker.
func TestPreloadedDescriptors(t *testing.T) {
	t.Parallel()
	p := startPool(t, preloadApp, Config{Preload: true, Workers: 3, Threads: 4})
	found := strings.Split(p.text("/descriptors"), "\n")
	kinds := map[string]int{}
	for _, each := range found {
		number, target, _ := strings.Cut(each, " ")
		kind, _, _ := strings.Cut(target, ":")
		if n, _ := strconv.Atoi(number); n < 3 {
			kind = number
		}
		kinds[kind]++
	}
	want := map[string]int{"0": 1, "1": 1, "2": 1, "pipe": 1, "socket": 2 * 4}
	if fmt.Sprint(kinds) != fmt.Sprint(want) {
		t.Errorf("descriptors %q", found)
	}
	if !strings.HasPrefix(p.text("/thread"), "slot-") {
		t.Error("no thread of a slot answered")
	}
}

// TestPreloadReseeds: the workers do not draw the same numbers.
func TestPreloadReseeds(t *testing.T) {
	t.Parallel()
	p := startPool(t, preloadApp, Config{Preload: true})
	drawn := map[string]bool{}
	for range 3 {
		drawn[p.text("/chance")] = true
		worker := p.servesOn()
		_ = unix.Kill(worker, unix.SIGKILL)
		eventually(t, "the worker's end", func() bool { return gone(worker) })
		eventually(t, "its replacement", func() bool { return p.serve(get("/hello")).Status == 200 })
	}
	if len(drawn) != 3 {
		t.Errorf("the workers drew %v", drawn)
	}
}

// TestPreloadedWorkerDies: with the signal's name, and it is replaced by another
// that is forked.
func TestPreloadedWorkerDies(t *testing.T) {
	t.Parallel()
	p := startPool(t, preloadApp, Config{Preload: true})
	template := p.template()
	worker := p.servesOn()
	if w := p.serve(get("/dies")); w.Status != 502 {
		t.Errorf("status %d", w.Status)
	}
	p.log.await(t, "how the worker ended", func(l logLine) bool {
		return l.num("pid") == uint64(worker) && strings.Contains(fmt.Sprint(l), "SIGSEGV")
	})
	eventually(t, "the worker is reaped", func() bool { return gone(worker) })
	eventually(t, "the replacement", func() bool { return p.serve(get("/hello")).Status == 200 })
	if now := p.text("/parent"); now != strconv.Itoa(template.self.pid) {
		t.Errorf("the replacement's parent is %s, the template is %d", now, template.self.pid)
	}
}

// TestPreloadThreads: row 57, threads of Python and of C, at import.
func TestPreloadThreads(t *testing.T) {
	t.Parallel()
	for name, row := range map[string]struct{ source, names string }{
		"Python": {`threading.Thread(target=time.sleep, args=(600,), name="Reporter", daemon=True).start()`, "Reporter"},
		"C": {`
libc = ctypes.CDLL(None)
libc.pthread_create(ctypes.byref(ctypes.c_ulong()), None, ctypes.cast(libc.pause, ctypes.c_void_p), None)
`, "not Python's"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p := startPool(t, preloadApp+row.source, Config{Preload: true, Workers: 3})
			status := p.Status()
			if len(status.Workers) != 3 || slices.ContainsFunc(status.Workers, func(w WorkerStatus) bool { return w.Forked }) {
				t.Errorf("workers %+v", status.Workers)
			}
			if !strings.Contains(status.PreloadOff, row.names) || !strings.Contains(status.PreloadOff, "threads") {
				t.Errorf("PreloadOff %q", status.PreloadOff)
			}
			p.servesOn()
			told := p.log.find(func(l logLine) bool { return l.has("--preload is off") })
			if len(told) != 1 || !strings.Contains(told[0].str("reason"), row.names) {
				t.Errorf("the log says %v", told)
			}
			template := p.template().self.pid
			eventually(t, "the end of the template", func() bool { return gone(template) })
		})
	}
}

// TestPreloadWithoutCtypes: the interpreter cannot make a worker end with its template.
func TestPreloadWithoutCtypes(t *testing.T) {
	t.Parallel()
	lib := t.TempDir()
	if err := os.WriteFile(filepath.Join(lib, "ctypes.py"), []byte("raise ImportError('no libffi')"), 0o600); err != nil {
		t.Fatal(err)
	}
	p := startPool(t, strings.Replace(preloadApp, "ctypes, ", "", 1), Config{Preload: true, Env: []string{"PYTHONPATH=" + lib}})
	if status := p.Status(); status.Workers[0].Forked || !strings.Contains(status.PreloadOff, "ctypes") {
		t.Errorf("forked %v, %q", status.Workers[0].Forked, status.PreloadOff)
	}
	p.servesOn()
}

// TestPreloadTellsImported: the template what it has imported, and each worker what it
// imports in a request.
func TestPreloadTellsImported(t *testing.T) {
	t.Parallel()
	var told importedFiles
	p := newPool(t, preloadApp+`
def lazily(environ, start_response):
    import lazy
    return hello(environ, start_response)
`, Config{Preload: true, Workers: 2, Imported: told.add})
	addModule(p, "lazy.py", "")
	if err := p.Start(); err != nil {
		t.Fatal(err)
	}
	if got := told.below(p.dir); got != "app.py" {
		t.Errorf("imported at the start: %q", got)
	}
	p.text("/lazily")
	if got := told.below(p.dir); got != "lazy.py" {
		t.Errorf("imported in a request: %q", got)
	}
}

// TestPreloadThreadsLater: row 57, a thread that runs only after the first fork.
func TestPreloadThreadsLater(t *testing.T) {
	t.Parallel()
	p := startPool(t, preloadApp+`
def later():
    threading.Thread(target=time.sleep, args=(600,), name="Late", daemon=True).start()
os.register_at_fork(after_in_parent=later)
`, Config{Preload: true, Workers: 2})
	status := p.Status()
	forked := 0
	for _, w := range status.Workers {
		if w.Forked {
			forked++
		}
	}
	if forked != 1 || len(status.Workers) != 2 || !strings.Contains(status.PreloadOff, "Late") {
		t.Errorf("%d of %d workers are forked, %q", forked, len(status.Workers), status.PreloadOff)
	}
	for _, w := range p.onEach(2) {
		if w.Status != 200 {
			t.Errorf("status %d", w.Status)
		}
	}
}

// TestPreloadFails: a template whose import fails, or that dies of it, is a worker
// that does.
func TestPreloadFails(t *testing.T) {
	t.Parallel()
	for source, want := range map[string]string{
		"import nowhere_to_be_found":                              "nowhere_to_be_found",
		"import os, signal\nos.kill(os.getpid(), signal.SIGSEGV)": "SIGSEGV",
		"import os\nos._exit(3)":                                  "exit status 3",
	} {
		p := newPool(t, source, Config{Preload: true})
		err := p.Start()
		var failed *startError
		if !errors.As(err, &failed) || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v", source, err)
		}
	}
}

// TestTemplateKilled: its workers end with it, and others come from a new one.
func TestTemplateKilled(t *testing.T) {
	t.Parallel()
	p := startPool(t, preloadApp, Config{Preload: true, Workers: 2})
	template, workers := p.template(), p.pids()
	busy := get("/waits")
	answer := p.later(busy)
	p.awaitWaiting(1)
	if err := unix.Kill(template.self.pid, unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if w := await(t, "the answer", answer); w.Status != 502 {
		t.Errorf("status %d", w.Status)
	}
	for _, pid := range append(workers, template.self.pid) {
		eventually(t, "the end of the workers", func() bool { return ended(pid) })
	}
	line := p.log.awaitText(t, "template ended unexpectedly")
	if line.str("level") != "ERROR" || line.str("exit") != "killed by SIGKILL" {
		t.Errorf("log line %v", line)
	}
	for _, pid := range workers {
		p.log.await(t, "the worker's crash", func(l logLine) bool {
			return l.num("pid") == uint64(pid) && strings.Contains(fmt.Sprint(l), "killed with its template")
		})
	}
	eventually(t, "two new workers", func() bool {
		now := p.pids()
		return len(now) == 2 && now[0] != workers[0] && p.serve(get("/hello")).Status == 200
	})
	if now := p.template(); now == template || p.text("/parent") != strconv.Itoa(now.self.pid) {
		t.Error("the new workers are not of a new template")
	}
}

// TestTemplateStopped: one that does not answer is given up; its workers are not, and
// their ends are seen.
func TestTemplateStopped(t *testing.T) {
	t.Parallel()
	p := startPool(t, preloadApp, Config{Preload: true, Workers: 2, StartupTimeout: 3 * time.Second})
	template, workers := p.template(), p.pids()
	if err := unix.Kill(template.self.pid, unix.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	if _, err := template.fork(&worker{gen: p.gen}, nil); !errors.Is(err, errNoTemplate) {
		t.Errorf("fork: %v", err)
	}
	p.log.awaitText(t, "template is given up")
	if gone(template.self.pid) {
		t.Error("the template was killed")
	}
	for _, w := range p.onEach(2) {
		if w.Status != 200 {
			t.Errorf("status %d", w.Status)
		}
	}
	_ = unix.Kill(workers[0], unix.SIGUSR2)
	p.log.await(t, "how the worker ended", func(l logLine) bool {
		return l.num("pid") == uint64(workers[0]) && strings.Contains(fmt.Sprint(l), "SIGUSR2")
	})
	eventually(t, "a worker of a new template", func() bool {
		now := p.pids()
		return len(now) == 2 && !slices.Contains(now, workers[0])
	})
	if ready := p.log.find(func(l logLine) bool { return l.has("template ready") }); len(ready) != 2 {
		t.Errorf("templates %v", ready)
	}
	_ = unix.Kill(workers[1], unix.SIGKILL)
	eventually(t, "the template's end", func() bool { return gone(template.self.pid) })
	eventually(t, "the next worker", func() bool { return len(p.pids()) == 2 && p.serve(get("/hello")).Status == 200 })
}

// TestAtForkHookHangs: in the template that gives it up, in a worker that ends the
// worker; workers from before serve on.
func TestAtForkHookHangs(t *testing.T) {
	t.Parallel()
	for name, when := range map[string]string{"template": "before", "worker": "after_in_child"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p := startPool(t, preloadApp+`
def hang():
    while os.path.exists("hang"):
        time.sleep(0.01)
os.register_at_fork(`+when+`=hang)
`, Config{Preload: true, StartupTimeout: 3 * time.Second})
			p.mark("hang")
			template, worker := p.template(), p.servesOn()
			if w, err := p.launch(p.gen); err == nil {
				p.discard(w)
				t.Error("a worker came of it")
			} else if !strings.Contains(err.Error(), "3s") || when != "before" && !strings.Contains(err.Error(), " in hang") {
				t.Errorf("launch: %v", err)
			}
			if now := p.servesOn(); now != worker || gone(template.self.pid) {
				t.Errorf("worker %d serves, not %d", now, worker)
			}
			if err := os.Remove(filepath.Join(p.dir, "hang")); err != nil {
				t.Fatal(err)
			}
			w, err := p.launch(p.gen)
			if err != nil {
				t.Fatal(err)
			}
			p.discard(w)
			eventually(t, "the end of late workers", func() bool { return template.alive() == 1 })
		})
	}
}

// TestReloadPreloaded: new code comes from a template of its own; a reload that fails
// leaves the old one, whose workers have the old code.
func TestReloadPreloaded(t *testing.T) {
	t.Parallel()
	p := startPool(t, preloadApp+"version = says(lambda: 1)\n", Config{Preload: true, Workers: 2})
	write := func(source string) {
		if err := os.WriteFile(filepath.Join(p.dir, "app.py"), []byte(source), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	first := p.template()
	write("import nowhere_to_be_found")
	if err := p.Reload(t.Context()); err == nil || !strings.Contains(err.Error(), "nowhere_to_be_found") {
		t.Errorf("reload: %v", err)
	}
	worker := p.servesOn()
	_ = unix.Kill(worker, unix.SIGKILL)
	eventually(t, "the replacement", func() bool {
		now := p.pids()
		return len(now) == 2 && !slices.Contains(now, worker)
	})
	if p.template() != first || p.text("/version") != "1" {
		t.Error("the replacement is not of the old template")
	}
	write(preloadApp + "version = says(lambda: 2)\n")
	if err := p.Reload(t.Context()); err != nil {
		t.Fatal(err)
	}
	if p.template() == first || p.text("/version") != "2" {
		t.Error("the new workers are not of a new template")
	}
	eventually(t, "the old template's end", func() bool { return gone(first.self.pid) })
}

// TestShutdownOfTemplates: one that imports for ever, and one that is stopped, do not
// keep the pool from its end.
func TestShutdownOfTemplates(t *testing.T) {
	t.Parallel()
	p := newPool(t, "open('importing.1', 'w').close()\nimport time\ntime.sleep(600)\n", Config{Preload: true})
	started := make(chan error, 1)
	go func() { started <- p.Start() }()
	eventually(t, "the import", func() bool { return pidOf(p.dir, "importing") == 1 })
	p.shutdown(patience)
	if err := await(t, "the start", started); !errors.Is(err, errStopped) {
		t.Errorf("start: %v", err)
	}

	p = startPool(t, preloadApp, Config{Preload: true, Workers: 2})
	template := p.template().self
	if err := unix.Kill(template.pid, unix.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	p.shutdown(time.Second)
	if !gone(template.pid) {
		t.Error("the template outlives its pool")
	}
}

// TestForksLeaveNothing: open files, processes and threads of the template after 25
// workers; TestMain looks for what is left in this process.
func TestForksLeaveNothing(t *testing.T) {
	t.Parallel()
	p := startPool(t, preloadApp, Config{Preload: true})
	template := p.template()
	before := 0
	for n := range 25 {
		var w *worker
		w, err := p.launch(p.gen)
		if err != nil {
			t.Fatal(err)
		}
		if n%2 == 0 {
			p.discard(w)
		} else { // in order
			for _, s := range w.slots {
				s.shut()
			}
			await(t, "the worker's end", w.gone)
			w.closeOurs()
		}
		if n == 0 {
			before = descriptorsOf(t, template.self.pid)
		}
		if got := w.exitStatus(0); n%2 == 0 && got != "killed by SIGKILL" || n%2 == 1 && got != "exit status 0" {
			t.Errorf("worker %d: %s", n, got)
		}
		if !gone(w.pid) {
			t.Errorf("worker %d was not reaped", n)
		}
		if err := w.proc.signal(0); !errors.Is(err, os.ErrProcessDone) {
			t.Errorf("signal to worker %d: %v", n, err)
		}
	}
	if after := descriptorsOf(t, template.self.pid); after != before {
		t.Errorf("the template has %d open files, %d before", after, before)
	}
	children, _ := os.ReadFile(fmt.Sprintf("/proc/%d/task/%[1]d/children", template.self.pid))
	if len(strings.Fields(string(children))) != 1 || template.alive() != 1 {
		t.Errorf("the template has the children %s", children)
	}
	if worker := p.servesOn(); strconv.Itoa(worker) != strings.TrimSpace(string(children)) {
		t.Errorf("worker %d answered", worker)
	}
}

// TestEndWithoutPidfd: kernels before 5.3 have none.
func TestEndWithoutPidfd(t *testing.T) {
	t.Parallel()
	p := startPool(t, preloadApp, Config{Preload: true})
	f := &forked{number: p.servesOn()}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		f.awaitEnd()
	}()
	select {
	case <-ended:
		t.Error("the end of a process that lives")
	case <-time.After(2 * lookEvery):
	}
	_ = unix.Kill(f.number, unix.SIGKILL)
	await(t, "the end", ended)
}

// TestForkIsQuick: a worker of an application whose import takes half a second.
func TestForkIsQuick(t *testing.T) {
	const ceiling = 250 * time.Millisecond // of a machine that does much else
	slow := preloadApp + "time.sleep(0.5)\n"
	median := func(p *testPool, n int) time.Duration {
		var took []time.Duration
		for range n {
			begun := time.Now()
			w, err := p.launch(p.gen)
			if err != nil {
				t.Fatal(err)
			}
			took = append(took, time.Since(begun))
			p.discard(w)
		}
		slices.Sort(took)
		return took[n/2]
	}
	execed := median(startPool(t, slow, Config{}), 3)
	forked := median(startPool(t, slow, Config{Preload: true}), 9)
	t.Logf("a worker is READY %v after exec, %v after a fork", execed.Round(10*time.Microsecond), forked.Round(10*time.Microsecond))
	if forked > execed/5 || forked > ceiling {
		t.Errorf("a forked worker took %v, one by exec %v", forked, execed)
	}
}

// TestForksShareMemory: what the application has made at import is there once, as
// the kernel counts it, also after a collection and a request.
func TestForksShareMemory(t *testing.T) {
	t.Parallel()
	const workers, structure = 4, 50 << 20
	source := preloadApp + `
import gc
made = [[n, [n]] for n in range(310000)]

def collects(environ, start_response):
    gc.collect()
    return waits(environ, start_response)
`
	proportional := map[bool]int64{}
	for _, preload := range []bool{false, true} {
		p := startPool(t, source, Config{Preload: preload, Workers: workers})
		pids := p.pids()
		if preload {
			pids = append(pids, p.template().self.pid)
		}
		var waiting []<-chan *environtest.Recorder
		for range workers {
			waiting = append(waiting, p.later(get("/collects")))
		}
		p.awaitWaiting(workers)
		for _, pid := range pids {
			proportional[preload] += pss(t, pid)
		}
		p.mark("go")
		for _, done := range waiting {
			await(t, "the answer", done)
		}
		p.shutdown(patience)
	}
	t.Logf("%d workers: PSS %d MiB by exec, %d MiB forked, with their template", workers, proportional[false]>>20, proportional[true]>>20)
	if proportional[false] < workers*structure || proportional[true] > proportional[false]/2 {
		t.Errorf("PSS %d by exec, %d forked", proportional[false], proportional[true])
	}
}

// pss returns the proportional set size of a process in bytes.
func pss(t testing.TB, pid int) int64 {
	t.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/smaps_rollup", pid))
	if err != nil {
		t.Fatal(err)
	}
	return decimal(fieldOf(text, "Pss:")) << 10
}

// TestPreloadedGatewayKilled: rows 27 and 28 of forked workers, one of which holds
// the interpreter's lock in C; the template ends too.
func TestPreloadedGatewayKilled(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	source := preloadApp + `
open("template.%d" % os.getpid(), "w").close()
os.register_at_fork(after_in_child=lambda: open("idle.%d" % os.getpid(), "w").close())
def busy(environ, start_response):
    os.rename("idle.%d" % os.getpid(), "busy.%d" % os.getpid())
    ctypes.PyDLL(None).sleep(600)
`
	if err := os.WriteFile(filepath.Join(dir, "app.py"), []byte(source), 0o600); err != nil {
		t.Fatal(err)
	}
	gateway := startGateway(t, dir, gatewayVariable+"_PRELOAD=1")
	pids := map[string]int{}
	eventually(t, "the workers", func() bool {
		for _, kind := range []string{"template", "idle", "busy"} {
			pids[kind] = pidOf(dir, kind)
		}
		return pids["template"] != 0 && pids["idle"] != 0 && pids["busy"] != 0
	})
	if err := gateway.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = gateway.Wait()
	for kind, pid := range pids {
		eventually(t, "the end of "+kind, func() bool { return ended(pid) })
	}
}

// TestTemplateBreaksTheProtocol: the gateway believes nothing of what it says.
func TestTemplateBreaksTheProtocol(t *testing.T) {
	t.Parallel()
	for name, frame := range map[string][]byte{
		"FORKED short":     appendFrame(nil, frameForked, 0, 1, []byte("x")),
		"FORKED process 1": appendFrame(nil, frameForked, 0, 1, []byte{1, 0, 0, 0}),
		"FORKED process 0": appendFrame(nil, frameForked, 0, 1, []byte{0, 0, 0, 0}),
		"FORKED negative":  appendFrame(nil, frameForked, 0, 1, []byte{0xff, 0xff, 0xff, 0xff}),
		"REAPED short":     appendFrame(nil, frameReaped, 0, 0, make([]byte, 4)),
		"READY again":      appendFrame(nil, frameReady, 0, 0, nil),
	} {
		tm := &template{self: &worker{pid: 7}, asked: map[uint32]chan<- answer{}, workers: map[int]*forked{}}
		head, err := parseHead(frame)
		if err == nil {
			err = tm.handle(head, frame[headLen:])
		}
		if !errors.Is(err, errFrame) || len(tm.workers) > 0 {
			t.Errorf("%s: %v", name, err)
		}
	}
	tm := &template{workers: map[int]*forked{}}
	unknown := appendFrame(nil, frameReaped, 0, 0, []byte{9, 9, 0, 0, 0, 0, 0, 0})
	head, err := parseHead(unknown)
	if err == nil {
		err = tm.handle(head, unknown[headLen:])
	}
	if err != nil {
		t.Error(err)
	}
}
