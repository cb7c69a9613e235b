package pyrunner

import (
	"context"
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

	"wsgigate/environ"
)

// releaseApp does what the file "release" says while it is imported, and tells the
// release that it was imported from.
const releaseApp = aheadApp + `
import threading

try:
    with open("release") as f:
        RELEASE = f.read()
except OSError:
    RELEASE = "1"

def end_later(seconds):
    time.sleep(seconds)
    os._exit(9)

def stall():
    while not os.path.exists("continue"):
        time.sleep(0.005)

if "raises" in RELEASE:
    raise RuntimeError("a broken release")
if "hangs" in RELEASE:
    stall()
if "soon dead" in RELEASE:
    threading.Thread(target=end_later, args=(0.3,), daemon=True).start()
if "second fails" in RELEASE:
    try:
        os.mkdir("second")
    except OSError:
        time.sleep(0.8)
        raise RuntimeError("the second fails")

def release(environ, start_response):
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [RELEASE.encode()]

def dies(environ, start_response):
    os._exit(3)

def status(environ, start_response):
    start_response(environ["QUERY_STRING"], [("Content-Type", "text/plain")])
    return [b"some text"]

def sleeps(environ, start_response):
    time.sleep(60)

def length(environ, start_response):
    total = 0
    while True:
        block = environ["wsgi.input"].read(65536)
        if not block:
            break
        total += len(block)
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [b"%d" % total]

grown = []

def grow(environ, start_response):
    grown.append(b"x" * (int(environ["QUERY_STRING"]) << 20))
    return hello(environ, start_response)
`

// write writes a file of the application's folder.
func (p *testPool) write(name, text string) {
	p.t.Helper()
	if err := os.WriteFile(filepath.Join(p.dir, name), []byte(text), 0o600); err != nil {
		p.t.Fatal(err)
	}
}

// reload reloads, with patience.
func (p *testPool) reload() error {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	return p.Reload(ctx)
}

// reloadLater reloads in a goroutine of its own.
func (p *testPool) reloadLater() <-chan error {
	done := make(chan error, 1)
	go func() { done <- p.reload() }()
	return done
}

// workersIn returns how many workers are in a state.
func workersIn(s Status, state state) int {
	n := 0
	for _, w := range s.Workers {
		if w.State == state.String() {
			n++
		}
	}
	return n
}

// pidsIn returns the sorted numbers of the workers in a state.
func pidsIn(s Status, state state) (pids []int) {
	for _, w := range s.Workers {
		if w.State == state.String() {
			pids = append(pids, w.PID)
		}
	}
	slices.Sort(pids)
	return pids
}

// awaitReady waits until there are n workers, all of them ready.
func (p *testPool) awaitReady(n int) Status {
	p.t.Helper()
	var s Status
	eventually(p.t, fmt.Sprint(n, " workers, all ready"), func() bool {
		s = p.Status()
		return workersIn(s, ready) == n && len(s.Workers) == n && s.Starting == 0
	})
	return s
}

// with returns a GET request with a query.
func with(path, query string) *environ.Request {
	r := get(path)
	r.Environ.Set("QUERY_STRING", query)
	return r
}

// modes runs a test for both ways of reloading.
func modes(t *testing.T, test func(t *testing.T, cfg Config)) {
	t.Parallel()
	for _, rolling := range []bool{false, true} {
		t.Run(map[bool]string{false: "parallel", true: "rolling"}[rolling], func(t *testing.T) {
			t.Parallel()
			test(t, Config{ReloadRolling: rolling})
		})
	}
}

// TestReload: the new workers have the new code, and none of the old is left.
func TestReload(t *testing.T) {
	modes(t, func(t *testing.T, cfg Config) {
		cfg.Workers = 3
		p := startPool(t, releaseApp, cfg)
		before := pidsIn(p.Status(), ready)
		p.write("release", "2")
		if got := p.text("/release"); got != "1" {
			t.Errorf("release %q before the reload", got)
		}
		if err := p.reload(); err != nil {
			t.Fatal(err)
		}
		for range 10 {
			if got := p.text("/release"); got != "2" {
				t.Errorf("release %q after the reload", got)
			}
		}
		s := p.awaitReady(3)
		if s.Generation != 2 || s.Events.Reloads != 1 || s.Events.ReloadFailures != 0 || s.Events.Started != 6 || s.Events.Crashed != 0 ||
			s.Reload == nil || s.Reload.Running || s.Reload.Error != "" || s.Reload.Took <= 0 || s.State != HealthReady {
			t.Errorf("%+v, %+v", s, s.Reload)
		}
		for _, w := range s.Workers {
			if slices.Contains(before, w.PID) || w.Generation != 2 {
				t.Errorf("%+v after a reload, there were %v before", w, before)
			}
		}
	})
}

// TestReloadFails: rows 30 and 31, and a release that cannot stay alive. The old
// workers serve on, and the error says why.
func TestReloadFails(t *testing.T) {
	for name, row := range map[string]struct {
		release string
		want    []string
	}{
		"raises":    {"raises", []string{"RuntimeError: a broken release", "Traceback", "app.py"}},
		"hangs":     {"hangs", []string{"--startup-timeout", "in stall"}},
		"soon dead": {"soon dead", []string{"exit status 9"}},
	} {
		t.Run(name, func(t *testing.T) {
			modes(t, func(t *testing.T, cfg Config) {
				cfg.Workers = 2
				p := startPool(t, releaseApp, cfg)
				before := pidsIn(p.Status(), ready)
				p.write("release", row.release)
				switch name {
				case "hangs":
					p.cfg.StartupTimeout = 2 * time.Second // nothing starts now
				case "soon dead":
					p.cfg.Probe = func() *environ.Request { return get("/sleeps") }
				}
				err := p.reload()
				for _, want := range row.want {
					if err == nil || !strings.Contains(err.Error(), want) {
						t.Errorf("%v; want %q", err, want)
					}
				}
				s := p.awaitReady(2)
				if !slices.Equal(pidsIn(s, ready), before) {
					t.Errorf("workers %v, there were %v", pidsIn(s, ready), before)
				}
				if s.State != HealthReady || s.Generation != 1 || s.Events.ReloadFailures != 1 || s.Events.Reloads != 0 || s.CrashLoop != nil ||
					s.Reload == nil || s.Reload.Running || s.Reload.Error == "" {
					t.Errorf("%+v", s)
				}
				p.servesOn()
				p.write("release", "2")
				p.cfg.Probe = nil
				p.cfg.StartupTimeout = time.Minute
				if err := p.reload(); err != nil {
					t.Errorf("mended: %v", err)
				}
				if got := p.text("/release"); got != "2" {
					t.Errorf("release %q", got)
				}
			})
		})
	}
}

// TestFailedReloadsAreNoCrashLoop: whatever becomes of the canaries, the workers that
// serve are well.
func TestFailedReloadsAreNoCrashLoop(t *testing.T) {
	t.Parallel()
	p := startPool(t, releaseApp, Config{MinWorkers: 1, Workers: 2, Probe: func() *environ.Request { return get("/dies") }})
	for range 3 {
		if err := p.reload(); err == nil {
			t.Error("a probe that kills the canary went well")
		}
	}
	if s := p.awaitReady(1); s.State != HealthReady || s.CrashLoop != nil || s.Events.Crashed != 3 {
		t.Errorf("%+v, %+v", s, s.CrashLoop)
	}
}

// TestExitBeforeAdoption: a worker may end as soon as it is READY, and be reaped before
// the owner hears of its start. Nothing of it may be left.
func TestExitBeforeAdoption(t *testing.T) {
	t.Parallel()
	p := newPool(t, preamble, Config{})
	w, err := p.launch(p.gen)
	if err != nil {
		t.Fatal(err)
	}
	_ = unix.Kill(w.pid, unix.SIGKILL)
	<-w.gone
	for _, kind := range []eventKind{eventExit, eventAdopt} {
		done := make(chan struct{})
		p.post(event{kind: kind, worker: w, done: done})
		await(t, "the owner", done)
	}
	if err := w.dump.SetDeadline(time.Time{}); err == nil {
		t.Error("the pipe for stacks is open")
	}
	if err := w.slots[0].file.SetDeadline(time.Time{}); err == nil {
		t.Error("the stream is open")
	}
	w.slots[0].requests.mu.Lock()
	defer w.slots[0].requests.mu.Unlock()
	if !w.slots[0].requests.closed {
		t.Error("the socket for requests is open")
	}
	if i := p.incident(w.pid); i.Kind != kindCrash || i.Ended != "killed by SIGKILL" {
		t.Errorf("%+v", i)
	}
	if s := p.Status(); s.Events.Started != 1 || s.Events.Crashed != 1 {
		t.Errorf("%+v", s.Events)
	}
}

// stopOwner keeps the owner from handling events until the function that it returns
// is called.
func (p *testPool) stopOwner() (goOn func()) {
	status := make(chan Status)
	p.post(event{kind: eventStatus, status: status})
	return func() { <-status }
}

// TestShutdownAsTheCanaryIsReady: the pool is told to stop while the news that the
// canary is READY is on its way. Nobody may forget that process.
func TestShutdownAsTheCanaryIsReady(t *testing.T) {
	t.Parallel()
	p := startPool(t, releaseApp, Config{MinWorkers: -1, Workers: 1})
	p.write("release", "hangs")
	reloaded := p.reloadLater()
	eventually(t, "the reload", func() bool { return p.Status().Starting == 1 })
	goOn := p.stopOwner()
	p.post(event{kind: eventStop, by: time.Now().Add(time.Second)})
	p.write("continue", "")
	line := p.log.awaitText(t, "worker ready")
	eventually(t, "the news", func() bool { return len(p.events) > 1 })
	goOn()
	if err := await(t, "the reload's end", reloaded); !errors.Is(err, errStopped) {
		t.Errorf("reload: %v", err)
	}
	await(t, "the pool's end", p.managed)
	if err := p.Shutdown(t.Context()); err != nil {
		t.Error(err)
	}
	if !gone(int(line.num("pid"))) {
		t.Error("the canary lives on")
		_ = unix.Kill(int(line.num("pid")), unix.SIGKILL)
	}
}

// TestShutdownDoesNotWaitForOldDeadlines: a worker that was let go before the pool was
// told to stop has no more time than the others.
func TestShutdownDoesNotWaitForOldDeadlines(t *testing.T) {
	modes(t, func(t *testing.T, cfg Config) {
		cfg.GracefulTimeout = 100 * time.Second
		p := startPool(t, releaseApp, cfg)
		busy, _ := p.until("ever")
		reloaded := p.reloadLater() // in rolling mode it waits for the old worker
		eventually(t, "the old worker to leave", func() bool { return workersIn(p.Status(), draining) == 1 })
		ctx, cancel := context.WithTimeout(context.Background(), 200*time.Millisecond)
		defer cancel()
		begun := time.Now()
		_ = p.Shutdown(ctx)
		if took := time.Since(begun); took > 30*time.Second {
			t.Errorf("took %v", took)
		}
		if w := await(t, "the request", busy); w.Status != 502 {
			t.Errorf("status %d", w.Status)
		}
		if err := await(t, "the reload", reloaded); errors.Is(err, errStopped) != cfg.ReloadRolling {
			t.Errorf("reload: %v", err)
		}
	})
}

// TestReloadOfNothing: on demand, without any worker. The generation that has none
// ends at once, and its template with it.
func TestReloadOfNothing(t *testing.T) {
	modes(t, func(t *testing.T, cfg Config) {
		cfg.MinWorkers, cfg.Workers, cfg.IdleTimeout = -1, 2, 200*time.Millisecond
		p := newPool(t, releaseApp, cfg)
		first := p.gen
		if err := p.Start(); err != nil {
			t.Fatal(err)
		}
		p.write("release", "raises")
		if err := p.reload(); err == nil || !strings.Contains(err.Error(), "a broken release") {
			t.Errorf("reload: %v", err)
		}
		if s := p.Status(); s.State != HealthIdle || len(s.Workers) != 0 {
			t.Errorf("%+v", s)
		}
		p.write("release", "2")
		if err := p.reload(); err != nil {
			t.Fatal(err)
		}
		eventually(t, "the end of the old generation", func() bool { return first.starts.Err() != nil })
		if got := p.text("/release"); got != "2" {
			t.Errorf("release %q", got)
		}
		eventually(t, "the end of the worker that nobody needs", func() bool { return len(p.Status().Workers) == 0 })
		if s := p.Status(); s.State != HealthIdle || s.Generation != 2 {
			t.Errorf("%+v", s)
		}
	})
}

// TestCrashOfALeavingWorker: it is a crash like any other.
func TestCrashOfALeavingWorker(t *testing.T) {
	t.Parallel()
	p := startPool(t, releaseApp, Config{})
	for n := range 4 {
		r := with("/until", strconv.Itoa(n))
		done := p.later(r)
		eventually(t, "the application", func() bool { return p.has(fmt.Sprint("began-", n)) })
		old := pidsIn(p.Status(), ready)[0]
		if err := p.reload(); err != nil {
			t.Fatal(err)
		}
		_ = unix.Kill(old, unix.SIGKILL)
		if w := await(t, "the request", done); w.Status != 502 {
			t.Errorf("status %d", w.Status)
		}
		if i := p.incident(old); i.Kind != kindCrash || i.Ended != "killed by SIGKILL" || i.Request == nil || i.Request.ID != r.ID {
			t.Errorf("%+v", i)
		}
	}
	if s := p.awaitReady(1); s.State != HealthReady || s.CrashLoop != nil || s.Events.Crashed != 4 {
		t.Errorf("%+v, %+v", s, s.CrashLoop)
	}
}

// TestReloadFailsLater: the canary is well and the worker after it is not. In rolling
// mode the canary serves already, and stays.
func TestReloadFailsLater(t *testing.T) {
	modes(t, func(t *testing.T, cfg Config) {
		cfg.Workers = 3
		p := startPool(t, releaseApp, cfg)
		before := pidsIn(p.Status(), ready)
		p.write("release", "second fails")
		err := p.reload()
		if err == nil || !strings.Contains(err.Error(), "the second fails") || strings.Contains(err.Error(), "some workers run the new code") != cfg.ReloadRolling {
			t.Errorf("reload: %v", err)
		}
		s := p.awaitReady(3)
		kept := 0
		for _, pid := range pidsIn(s, ready) {
			if slices.Contains(before, pid) {
				kept++
			}
		}
		if want := map[bool]int{false: 3, true: 2}[cfg.ReloadRolling]; kept != want || s.Events.ReloadFailures != 1 || s.State != HealthReady {
			t.Errorf("%d of the old workers are left, want %d: %+v", kept, want, s)
		}
		p.servesOn()
		p.write("release", "3")
		if err := p.reload(); err != nil {
			t.Error(err)
		}
		s = p.awaitReady(3)
		for _, w := range s.Workers {
			if w.Generation != s.Generation {
				t.Errorf("worker %+v in generation %d", w, s.Generation)
			}
		}
		if got := p.text("/release"); got != "3" {
			t.Errorf("release %q", got)
		}
	})
}

// TestWorkerDiesDuringReload: the reload goes on, and there are as many workers as
// before in the end, all of them new.
func TestWorkerDiesDuringReload(t *testing.T) {
	modes(t, func(t *testing.T, cfg Config) {
		cfg.Workers = 3
		p := startPool(t, releaseApp, cfg)
		old := pidsIn(p.Status(), ready)
		p.write("release", "hangs")
		reloaded := p.reloadLater()
		eventually(t, "the canary", func() bool { return p.Status().Starting == 1 })
		if s := p.Status(); s.State != HealthReloading || s.Reload == nil || !s.Reload.Running {
			t.Errorf("%+v, %+v", s, s.Reload)
		}
		_ = unix.Kill(old[0], unix.SIGKILL)
		eventually(t, "its replacement", func() bool { return p.Status().Starting == 2 })
		p.servesOn()
		p.write("continue", "")
		if err := await(t, "the reload", reloaded); err != nil {
			t.Error(err)
		}
		s := p.awaitReady(3)
		for _, w := range s.Workers {
			if w.Generation != 2 || slices.Contains(old, w.PID) {
				t.Errorf("%+v", w)
			}
		}
		if s.State != HealthReady || s.Events.Crashed != 1 {
			t.Errorf("%+v", s)
		}
	})
}

// TestReloadHealsACrashLoop: nobody waits for the pause once the code is mended.
func TestReloadHealsACrashLoop(t *testing.T) {
	modes(t, func(t *testing.T, cfg Config) {
		cfg.Workers = 2
		p := startPool(t, releaseApp, cfg)
		p.write("release", "raises")
		for _, pid := range pidsIn(p.Status(), ready) {
			_ = unix.Kill(pid, unix.SIGKILL)
		}
		eventually(t, "the crash loop", func() bool {
			s := p.Status()
			return s.CrashLoop != nil && s.CrashLoop.Failures >= 3 && s.Starting == 0 && len(s.Workers) == 0
		})
		if err := p.reload(); err == nil || !strings.Contains(err.Error(), "a broken release") {
			t.Errorf("reload: %v", err)
		}
		if s := p.Status(); s.CrashLoop == nil {
			t.Errorf("a reload that failed ended the crash loop: %+v", s)
		}
		p.write("release", "2")
		if err := p.reload(); err != nil {
			t.Fatal(err)
		}
		if got := p.text("/release"); got != "2" {
			t.Errorf("release %q", got)
		}
		if s := p.awaitReady(2); s.CrashLoop != nil || s.State != HealthReady {
			t.Errorf("%+v", s)
		}
	})
}

// TestReloadsAreCoalesced: row 32. Each caller gets an answer, and finds code that is
// no older than its call.
func TestReloadsAreCoalesced(t *testing.T) {
	modes(t, func(t *testing.T, cfg Config) {
		cfg.Workers = 2
		p := startPool(t, releaseApp, cfg)
		const calls = 25
		done := make(chan error, calls)
		for n := range calls {
			p.write("next", strconv.Itoa(n+2))
			if err := os.Rename(filepath.Join(p.dir, "next"), filepath.Join(p.dir, "release")); err != nil {
				t.Fatal(err)
			}
			called := make(chan struct{})
			go func() {
				close(called)
				err := p.reload()
				if got, _ := strconv.Atoi(p.text("/release")); got < n+2 {
					err = errors.Join(err, fmt.Errorf("call %d found release %d", n+2, got))
				}
				done <- err
			}()
			<-called
			<-time.After(time.Duration(n) * time.Millisecond)
		}
		for range calls {
			if err := await(t, "a caller's answer", done); err != nil {
				t.Error(err)
			}
		}
		s := p.awaitReady(2)
		if n := s.Events.Reloads; n < 2 || n > calls*3/4 || s.Generation != int(n)+1 || s.Events.ReloadFailures != 0 || s.State != HealthReady {
			t.Errorf("%+v", s)
		}
		t.Logf("%d reloads for %d calls", s.Events.Reloads, calls)
	})
}

// TestReloadIsNotWaitedFor: the end of the context ends the wait alone.
func TestReloadIsNotWaitedFor(t *testing.T) {
	t.Parallel()
	p := startPool(t, releaseApp, Config{})
	p.write("release", "2, hangs")
	ctx, cancel := context.WithCancel(context.Background())
	time.AfterFunc(20*time.Millisecond, cancel)
	if err := p.Reload(ctx); !errors.Is(err, context.Canceled) || !strings.HasPrefix(err.Error(), "pyrunner: ") {
		t.Errorf("reload: %v", err)
	}
	p.write("continue", "")
	eventually(t, "the reload", func() bool { return p.Status().Events.Reloads == 1 })
	if got := p.text("/release"); got != "2, hangs" {
		t.Errorf("release %q", got)
	}
}

// TestShutdownDuringReload ends what imports, and whoever waits for this reload or
// the next is told.
func TestShutdownDuringReload(t *testing.T) {
	modes(t, func(t *testing.T, cfg Config) {
		cfg.Workers = 2
		p := startPool(t, releaseApp, cfg)
		p.write("release", "hangs")
		first := p.reloadLater()
		eventually(t, "the canary", func() bool { return p.Status().Starting == 1 })
		second := p.reloadLater()
		begun := time.Now()
		p.shutdown(patience)
		if took := time.Since(begun); took > 10*time.Second {
			t.Errorf("took %v", took)
		}
		for _, each := range []<-chan error{first, second} {
			if err := await(t, "a reload", each); !errors.Is(err, errStopped) {
				t.Errorf("reload: %v", err)
			}
		}
		if err := p.reload(); !errors.Is(err, errStopped) {
			t.Errorf("a reload of nothing: %v", err)
		}
		if s := p.Status(); s.State != HealthStopping || len(s.Workers) != 0 {
			t.Errorf("%+v", s)
		}
	})
}

// TestOldWorkerOutlivesItsTime: a request that does not end is cut off with its worker.
func TestOldWorkerOutlivesItsTime(t *testing.T) {
	modes(t, func(t *testing.T, cfg Config) {
		cfg.GracefulTimeout = 200 * time.Millisecond
		p := startPool(t, releaseApp, cfg)
		old := pidsIn(p.Status(), ready)[0]
		busy, _ := p.until("ever")
		if err := p.reload(); err != nil {
			t.Error(err)
		}
		if w := await(t, "the request", busy); w.Status != 502 {
			t.Errorf("status %d", w.Status)
		}
		eventually(t, "the old worker's end", func() bool { return gone(old) })
		if s := p.awaitReady(1); s.Events.Crashed != 0 || s.Generation != 2 {
			t.Errorf("%+v", s)
		}
		p.servesOn()
	})
}

// TestReloadWhileABodyComes: a worker that is let go goes on to read what its client
// still sends.
func TestReloadWhileABodyComes(t *testing.T) {
	modes(t, func(t *testing.T, cfg Config) {
		p := startPool(t, releaseApp, cfg)
		old := pidsIn(p.Status(), ready)
		body := newWaitingBody(strings.Repeat("x", 3<<20/2))
		r := post("/length", body, 3<<20/2+4)
		done := p.later(r)
		eventually(t, "the worker to want the rest", func() bool { return body.asked.Load() })
		reloaded := p.reloadLater()
		eventually(t, "the old worker to leave", func() bool { return slices.Equal(pidsIn(p.Status(), draining), old) })
		p.servesOn()
		close(body.letGo)
		if w := await(t, "the answer", done); w.Status != 200 || w.Body.String() != strconv.Itoa(3<<20/2+4) || r.Worker != old[0] {
			t.Errorf("status %d, %q of worker %d", w.Status, w.Body.String(), r.Worker)
		}
		if err := await(t, "the reload", reloaded); err != nil {
			t.Error(err)
		}
		if s := p.awaitReady(1); s.Events.Crashed != 0 {
			t.Errorf("%+v", s)
		}
	})
}

// TestReloadUnderLoad: row 33. No request fails, and none runs twice.
func TestReloadUnderLoad(t *testing.T) {
	modes(t, func(t *testing.T, cfg Config) {
		cfg.Workers, cfg.Threads = 2, 2
		p := startPool(t, releaseApp, cfg)
		load := p.startLoad(8, nil)
		for range 3 {
			if err := p.reload(); err != nil {
				t.Error(err)
			}
			before := load.served.Load()
			eventually(t, "requests between two reloads", func() bool { return load.served.Load() > before+10 })
		}
		load.end()
		if load.other.Load() > 0 {
			t.Errorf("%d requests failed", load.other.Load())
		}
		if s := p.awaitReady(2); s.Events.Crashed != 0 || s.Generation != 4 || s.Requests.Failed+s.Requests.Refused+s.Requests.Cancelled != 0 {
			t.Errorf("%+v", s)
		}
	})
}

// TestCanaryDiesWhileOthersStart: it was good, and is gone before it has served.
func TestCanaryDiesWhileOthersStart(t *testing.T) {
	t.Parallel()
	p := startPool(t, releaseApp, Config{Workers: 2})
	before := pidsIn(p.Status(), ready)
	p.write("release", "soon dead; the second fails later than that")
	if err := p.reload(); err == nil || !strings.Contains(err.Error(), "exit status 9") {
		t.Errorf("reload: %v", err)
	}
	if s := p.awaitReady(2); !slices.Equal(pidsIn(s, ready), before) || s.State != HealthReady || s.CrashLoop != nil || s.Events.ReloadFailures != 1 {
		t.Errorf("%+v", s)
	}
	p.servesOn()
}
