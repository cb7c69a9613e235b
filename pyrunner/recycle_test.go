package pyrunner

import (
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"wsgigate/environ"
	"wsgigate/environ/environtest"
)

// TestHoldKeepsRequestsAway: a slot that is held gets none by being sent one ahead
// either.
func TestHoldKeepsRequestsAway(t *testing.T) {
	t.Parallel()
	t.Run("while busy", func(t *testing.T) {
		t.Parallel()
		q, slots := aheadQueue(t, 2)
		a, b := mustAcquire(t, q), mustAcquire(t, q)
		future(a)
		future(b)
		q.began(a)
		q.hold(slots)
		q.began(b)
		early := &fakeSender{id: 2}
		r := &environ.Request{}
		done := acquireAhead(q, r, early)
		eventually(t, "a request that waits", func() bool { return q.waitingNow() == 1 || early.called.Load() > 0 })
		if early.called.Load() > 0 {
			t.Error("sent ahead to a slot that is held")
		}
		q.release(a)
		q.release(b)
		q.add(slots)
		o := await(t, "a slot", done)
		if o.err != nil {
			t.Fatal(o.err)
		}
		q.release(o.slot)
		checkEmpty(t, q)
	})
	t.Run("while one is sent", func(t *testing.T) {
		t.Parallel()
		for _, releaseFirst := range []bool{false, true} {
			q, slots := aheadQueue(t, 1)
			s := mustAcquire(t, q)
			future(s)
			q.began(s)
			early := &fakeSender{id: 2, hold: make(chan struct{})}
			done := acquireAhead(q, &environ.Request{}, early)
			eventually(t, "the sender", func() bool { return early.called.Load() == 1 })
			q.hold(slots)
			if releaseFirst {
				q.release(s)
			}
			close(early.hold)
			eventually(t, "the request to wait again", func() bool { return q.waitingNow() == 1 || len(done) == 1 })
			if len(done) == 1 {
				t.Fatal("the request got a slot that is held")
			}
			if !releaseFirst {
				q.release(s)
			}
			q.add(slots)
			await(t, "the slot", done).check(t, s, false, nil)
			q.release(s)
			checkEmpty(t, q)
		}
	})
}

// TestRestEndsWithoutASpare: while no replacement starts, all workers have to serve on,
// however much memory they have.
func TestRestEndsWithoutASpare(t *testing.T) {
	t.Parallel()
	p := startPool(t, releaseApp, Config{Workers: 3, MaxMemory: 60 << 20})
	p.write("release", "raises")
	var growing []<-chan *environtest.Recorder
	for range 3 {
		growing = append(growing, p.later(with("/grow", "200")))
	}
	for _, each := range growing {
		if w := await(t, "an answer", each); w.Status != 200 {
			t.Errorf("status %d", w.Status)
		}
	}
	p.log.awaitText(t, "replacement worker failed to start")
	for n := range 3 {
		name := strconv.Itoa(n)
		done, end := p.until(name) // it begins while the others go on
		defer func() {
			end()
			await(t, "request "+name, done)
		}()
	}
	if s := p.Status(); workersIn(s, ready) != 3 {
		t.Errorf("%+v", s)
	}
}

// TestRestIsShort: nobody knows when a worker can be replaced while a reload, or the
// spare itself, hangs. It serves on meanwhile.
func TestRestIsShort(t *testing.T) {
	t.Parallel()
	for _, name := range []string{"reload hangs", "spare hangs"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p := startPool(t, releaseApp, Config{MaxMemory: 60 << 20, QueueTimeout: 4 * time.Second})
			p.write("release", "hangs")
			if name == "reload hangs" {
				reloaded := p.reloadLater()
				defer func() {
					p.write("continue", "")
					await(t, "the reload", reloaded)
				}()
				eventually(t, "the canary", func() bool { return p.Status().Starting == 1 })
			}
			r := with("/grow", "100")
			if w := p.serve(r); w.Status != 200 {
				t.Errorf("status %d", w.Status)
			}
			begun := time.Now()
			for range 3 {
				if now := p.servesOn(); now != r.Worker {
					t.Errorf("worker %d instead of %d", now, r.Worker)
				}
			}
			t.Logf("it rested for %v", time.Since(begun))
		})
	}
}

// sampler looks at a pool all the time, until it ends.
type sampler struct {
	stop, done chan struct{}
	samples    int
}

// sample calls look with each status.
func (p *testPool) sample(look func(Status)) *sampler {
	s := &sampler{stop: make(chan struct{}), done: make(chan struct{})}
	go func() {
		defer close(s.done)
		for {
			look(p.Status())
			s.samples++
			select {
			case <-s.stop:
				return
			case <-time.After(2 * time.Millisecond):
			}
		}
	}()
	return s
}

func (s *sampler) end() {
	close(s.stop)
	<-s.done
}

// oneAtATime reports a pool that replaces workers in another way than one at a time,
// the new one READY before the old one goes.
func oneAtATime(t *testing.T, workers int) func(Status) {
	return func(s Status) {
		serving, leaving := workersIn(s, ready), workersIn(s, draining)
		if serving < workers || leaving > 1 || s.Starting > 1 || leaving+s.Starting > 1 {
			t.Errorf("%d serve, %d leave, %d start", serving, leaving, s.Starting)
		}
	}
}

// TestRecycleByRequests: row 36. Workers that reach the limit together are replaced
// one after the other, and no request is lost.
func TestRecycleByRequests(t *testing.T) {
	t.Parallel()
	p := startPool(t, releaseApp, Config{Workers: 3, MaxRequests: 60})
	first := pidsIn(p.Status(), ready)
	sampler := p.sample(oneAtATime(t, 3))
	load := p.startLoad(6, nil)
	eventually(t, "each worker to be replaced", func() bool {
		s := p.Status()
		for _, pid := range pidsIn(s, ready) {
			if slices.Contains(first, pid) {
				return false
			}
		}
		return s.Events.Recycled >= 5
	})
	load.end()
	sampler.end()
	if load.other.Load() > 0 {
		t.Errorf("%d requests failed", load.other.Load())
	}
	if s := p.Status(); s.Events.Crashed != 0 || s.Requests.Answered != s.Requests.Total || s.Requests.Total < s.Events.Recycled*54 {
		t.Errorf("%+v, %+v", s.Events, s.Requests)
	}
	t.Logf("%d samples", sampler.samples)
}

// TestLimitsHaveJitter: up to a tenth below, and never zero.
func TestLimitsHaveJitter(t *testing.T) {
	t.Parallel()
	for _, limit := range []int{1, 9, 10, 1000} {
		p := &Pool{cfg: Config{MaxRequests: limit, MaxAge: time.Duration(limit) * time.Minute}}
		requests, ages := map[uint64]bool{}, map[time.Duration]bool{}
		for range 300 {
			w := &worker{}
			p.limitLife(w)
			if w.maxRequests < uint64(limit-limit/10) || w.maxRequests > uint64(limit) || w.maxAge > p.cfg.MaxAge || w.maxAge < p.cfg.MaxAge-p.cfg.MaxAge/10 {
				t.Errorf("%d: %d, %v", limit, w.maxRequests, w.maxAge)
			}
			requests[w.maxRequests], ages[w.maxAge] = true, true
		}
		if len(ages) < 200 || limit >= 10 && len(requests) < 2 {
			t.Errorf("%d: %d and %d values", limit, len(requests), len(ages))
		}
	}
}

// TestRecycleByAge: idle workers too.
func TestRecycleByAge(t *testing.T) {
	t.Parallel()
	p := startPool(t, releaseApp, Config{Workers: 2, MaxAge: time.Second})
	first := pidsIn(p.Status(), ready)
	sampler := p.sample(oneAtATime(t, 2))
	eventually(t, "two to be replaced", func() bool {
		s := p.Status()
		return s.Events.Recycled >= 2 && !slices.ContainsFunc(pidsIn(s, ready), func(pid int) bool { return slices.Contains(first, pid) })
	})
	sampler.end()
	p.servesOn()
}

// TestRecycleByMemory: after the request that took it, and no other.
func TestRecycleByMemory(t *testing.T) {
	t.Parallel()
	p := startPool(t, releaseApp, Config{Workers: 2, MaxMemory: 100 << 20})
	r := with("/grow", "120")
	if w := p.serve(r); w.Status != 200 {
		t.Errorf("status %d", w.Status)
	}
	eventually(t, "the end of the large one", func() bool { return gone(r.Worker) })
	s := p.awaitReady(2)
	for _, w := range s.Workers {
		if w.RSS > 100<<20 {
			t.Errorf("%+v", w)
		}
	}
	if s.Events.Recycled != 1 || s.Events.Crashed != 0 || s.Events.OutOfMemory != 0 {
		t.Errorf("%+v", s.Events)
	}
}

// TestFarTooLargeWorkerRests until its spare is READY; a little too large one does not.
func TestFarTooLargeWorkerRests(t *testing.T) {
	t.Parallel()
	for name, row := range map[string]struct {
		grow  string
		rests bool
	}{"a little": {"100", false}, "far": {"200", true}} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p := startPool(t, releaseApp, Config{MaxMemory: 100 << 20})
			p.write("release", "hangs")
			r := with("/grow", row.grow)
			if w := p.serve(r); w.Status != 200 {
				t.Errorf("status %d", w.Status)
			}
			eventually(t, "the spare", func() bool { return p.Status().Starting == 1 })
			next := get("/hello")
			done := p.later(next)
			if row.rests {
				eventually(t, "the request to wait", func() bool { return p.queue.waitingNow() == 1 })
				p.write("continue", "")
			}
			if w := await(t, "the next request", done); w.Status != 200 || (next.Worker != r.Worker) != row.rests {
				t.Errorf("status %d of worker %d, the large one is %d", w.Status, next.Worker, r.Worker)
			}
			p.write("continue", "")
			eventually(t, "the end of the large one", func() bool { return gone(r.Worker) })
			if s := p.awaitReady(1); s.Events.Recycled != 1 {
				t.Errorf("%+v", s.Events)
			}
		})
	}
}

// TestWornWorkerDies before its spare is READY: that takes its place, and no other
// does.
func TestWornWorkerDies(t *testing.T) {
	t.Parallel()
	p := startPool(t, releaseApp, Config{Workers: 2, MaxRequests: 3})
	p.write("release", "hangs")
	for range 3 {
		p.servesOn()
	}
	var worn int
	eventually(t, "the spare", func() bool {
		for _, w := range p.Status().Workers {
			if w.Requests == 3 {
				worn = w.PID
			}
		}
		return worn != 0 && p.Status().Starting == 1
	})
	most := 0
	sampler := p.sample(func(s Status) { most = max(most, s.Starting) })
	_ = unix.Kill(worn, unix.SIGKILL)
	eventually(t, "its end", func() bool { return gone(worn) })
	p.write("continue", "")
	s := p.awaitReady(2)
	sampler.end()
	if most > 1 || s.Events.Started != 3 || s.Events.Crashed != 1 || s.State != HealthReady {
		t.Errorf("%d started at once: %+v", most, s)
	}
	p.servesOn()
}

// TestSpareFails: the worn worker serves on, and another spare is tried later.
func TestSpareFails(t *testing.T) {
	t.Parallel()
	for name, release := range map[string]string{"raises": "raises", "dies": "1"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			source := releaseApp
			if name == "dies" {
				source += `
if os.path.exists("die"):
    os._exit(7)
`
			}
			p := startPool(t, source, Config{MaxRequests: 2})
			p.write("release", release)
			p.write("die", "")
			old := p.servesOn()
			p.servesOn()
			line := p.log.awaitText(t, "replacement worker failed to start", "serves on")
			if line.num("pid") != uint64(old) {
				t.Errorf("log line %v", line)
			}
			if now := p.servesOn(); now != old {
				t.Errorf("worker %d instead of %d", now, old)
			}
			p.write("release", "2")
			if err := unix.Unlink(p.dir + "/die"); err != nil {
				t.Fatal(err)
			}
			eventually(t, "the replacement", func() bool { return p.text("/release") == "2" })
			eventually(t, "the end of the crash loop", func() bool { s := p.Status(); p.servesOn(); return s.State == HealthReady && s.CrashLoop == nil })
			if !strings.Contains(p.log.text(), "reached a limit") {
				t.Error("the log does not say why")
			}
		})
	}
}

// TestShutdownDuringRecycling ends the spare that imports.
func TestShutdownDuringRecycling(t *testing.T) {
	t.Parallel()
	p := startPool(t, releaseApp, Config{MaxRequests: 1})
	p.write("release", "hangs")
	p.servesOn()
	eventually(t, "the spare", func() bool { return p.Status().Starting == 1 })
	begun := time.Now()
	p.shutdown(patience)
	if took := time.Since(begun); took > 10*time.Second {
		t.Errorf("took %v", took)
	}
}

// TestReloadDuringRecycling: what is recycled is replaced by the reload, and the spare
// of the old code is not kept.
func TestReloadDuringRecycling(t *testing.T) {
	modes(t, func(t *testing.T, cfg Config) {
		cfg.Workers, cfg.MaxRequests = 2, 40
		p := startPool(t, releaseApp, cfg)
		load := p.startLoad(4, nil)
		for range 2 {
			before := p.Status().Events.Recycled
			eventually(t, "another recycling", func() bool { return p.Status().Events.Recycled > before })
			if err := p.reload(); err != nil {
				t.Error(err)
			}
		}
		load.end()
		if load.other.Load() > 0 {
			t.Errorf("%d requests failed", load.other.Load())
		}
		eventually(t, "two workers of the last generation", func() bool {
			s := p.Status()
			for _, w := range s.Workers {
				if w.Generation != 3 {
					return false
				}
			}
			return len(s.Workers) == 2 && s.Starting == 0 && s.State == HealthReady
		})
		if s := p.Status(); s.Events.Crashed != 0 || s.CrashLoop != nil {
			t.Errorf("%+v", s)
		}
	})
}

// TestMemoryLimitTooLow: an application that is over the limit as soon as it is imported
// is not replaced by the same again and again; what it leaks is limited.
func TestMemoryLimitTooLow(t *testing.T) {
	t.Parallel()
	p := startPool(t, releaseApp, Config{Workers: 2, MaxMemory: 1 << 20})
	p.log.awaitText(t, "--max-memory is too low for this application")
	workers := p.pids()
	for range 20 {
		p.servesOn()
	}
	if s := p.Status(); s.Events.Recycled != 0 || s.Events.Started != 2 {
		t.Errorf("%+v", s.Events)
	}
	for range 2 {
		if w := p.serve(with("/grow", "50")); w.Status != 200 {
			t.Errorf("status %d", w.Status)
		}
	}
	eventually(t, "a replacement", func() bool { return p.Status().Events.Recycled > 0 })
	eventually(t, "the end of one", func() bool { return gone(workers[0]) || gone(workers[1]) })
	if said := p.log.find(func(l logLine) bool { return l.has("--max-memory is too low") }); len(said) != 1 {
		t.Errorf("said %d times", len(said))
	}
}
