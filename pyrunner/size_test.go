package pyrunner

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"wsgigate/environ/environtest"
)

// occupy begins so many requests that last until the function it returns is called,
// which returns how many were answered. It does not wait for them to begin.
func (p *testPool) occupy(name string, n int) (end func()) {
	p.t.Helper()
	var all []<-chan *environtest.Recorder
	for range n {
		all = append(all, p.later(with("/until", name)))
	}
	return func() {
		p.t.Helper()
		p.write(name, "")
		for _, each := range all {
			if w := await(p.t, "a long request", each); w.Status != 200 {
				p.t.Errorf("status %d", w.Status)
			}
		}
	}
}

// TestStaticSize: load changes nothing, and what ends is replaced at once.
func TestStaticSize(t *testing.T) {
	t.Parallel()
	p := startPool(t, releaseApp, Config{Workers: 2, IdleTimeout: 10 * time.Millisecond})
	workers := pidsIn(p.Status(), ready)
	end := p.occupy("a", 4)
	eventually(t, "two requests to wait", func() bool { return p.Status().Waiting == 2 })
	sampler := p.sample(func(s Status) {
		if workersIn(s, ready) != 2 || s.Starting > 0 {
			t.Errorf("%+v", s)
		}
	})
	<-time.After(3 * growAfter)
	sampler.end()
	end()
	p.servesOn()
	if now := pidsIn(p.awaitReady(2), ready); !slices.Equal(now, workers) {
		t.Errorf("workers %v, before %v", now, workers)
	}
	_ = unix.Kill(workers[0], unix.SIGKILL)
	eventually(t, "its replacement", func() bool { s := p.Status(); return s.Events.Started == 3 && workersIn(s, ready) == 2 })
}

// TestDynamicSize: the pool at most doubles each time, up to its bound, and shrinks to
// its least when nobody needs it.
func TestDynamicSize(t *testing.T) {
	t.Parallel()
	const most = 6
	p := startPool(t, releaseApp, Config{MinWorkers: 1, Workers: most, IdleTimeout: 300 * time.Millisecond})
	if s := p.Status(); workersIn(s, ready) != 1 || s.MinWorkers != 1 || s.MaxWorkers != most {
		t.Errorf("%+v", s)
	}
	sampler := p.sample(func(s Status) {
		serving := workersIn(s, ready)
		if serving+s.Starting > most || s.Starting > max(serving, 1) || serving < 1 {
			t.Errorf("%d serve, %d start", serving, s.Starting)
		}
	})
	end := p.occupy("a", most+2)
	eventually(t, "all workers", func() bool { s := p.Status(); return workersIn(s, ready) == most && s.Waiting == 2 })
	end()
	s := p.awaitReady(1)
	sampler.end()
	if s.Events.Started != most || s.Events.Crashed != 0 || s.Requests.Answered != most+2 || s.State != HealthReady {
		t.Errorf("%+v", s)
	}
	p.servesOn()
}

// TestShortWaitsStartNobody: a pool does not grow for a moment's crowd.
func TestShortWaitsStartNobody(t *testing.T) {
	t.Parallel()
	p := newPool(t, preamble, Config{MinWorkers: 1, Workers: 4})
	w, peer := fakeWorker(t, p.Pool, false)
	defer peer.Close()
	p.queue.retire(w.slots) // it is there, and has no time
	r := get("/hello")
	begun := time.Now()
	done := p.later(r)
	eventually(t, "a worker to start", func() bool { return p.Status().Starting == 1 })
	if took := time.Since(begun); took < growAfter {
		t.Errorf("after %v", took)
	}
	if got := await(t, "the answer", done); got.Status != 200 {
		t.Errorf("status %d", got.Status)
	}
}

// TestBusyWorkersStay: surplus workers leave because they are idle, the one used last
// is used first, and so a trickle of requests keeps one.
func TestBusyWorkersStay(t *testing.T) {
	t.Parallel()
	p := startPool(t, releaseApp, Config{MinWorkers: 1, Workers: 3, IdleTimeout: 400 * time.Millisecond})
	end := p.occupy("a", 3)
	eventually(t, "all workers", func() bool { return p.queue.busyNow() == 3 })
	end()
	hot := p.servesOn()
	eventually(t, "the others to leave", func() bool {
		if now := p.servesOn(); now != hot {
			t.Errorf("worker %d instead of %d", now, hot)
		}
		return len(p.Status().Workers) == 1
	})
	if now := pidsIn(p.Status(), ready); !slices.Equal(now, []int{hot}) {
		t.Errorf("left are %v, used was %d", now, hot)
	}
}

// TestOnDemand: nothing runs before the first request and after the last.
func TestOnDemand(t *testing.T) {
	t.Parallel()
	p := startPool(t, releaseApp, Config{MinWorkers: -1, Workers: 2, IdleTimeout: time.Second})
	for round := range 2 {
		if s := p.Status(); len(s.Workers) != 0 || s.State != HealthIdle || s.MinWorkers != 0 {
			t.Errorf("round %d: %+v", round, s)
		}
		p.servesOn()
		if s := p.Status(); len(s.Workers) != 1 || s.State != HealthReady {
			t.Errorf("round %d: %+v", round, s)
		}
		eventually(t, "the end of the worker", func() bool { s := p.Status(); return len(s.Workers) == 0 && s.State == HealthIdle })
	}
	if s := p.Status(); s.Events.Started != 2 || s.Events.Crashed != 0 {
		t.Errorf("%+v", s.Events)
	}
}

// TestOnDemandCrowd: the first requests of all come at once.
func TestOnDemandCrowd(t *testing.T) {
	t.Parallel()
	p := startPool(t, releaseApp, Config{MinWorkers: -1, Workers: 3, Threads: 2})
	end := p.occupy("a", 6)
	eventually(t, "all workers to be busy", func() bool { s := p.Status(); return workersIn(s, ready) == 3 && s.Waiting == 0 })
	if n := p.queue.busyNow(); n != 6 {
		t.Errorf("%d are busy", n)
	}
	end()
}

// TestSurplusWorkersAreNotReplaced before they are needed.
func TestSurplusWorkersAreNotReplaced(t *testing.T) {
	t.Parallel()
	p := startPool(t, releaseApp, Config{MinWorkers: 1, Workers: 2})
	end := p.occupy("a", 2)
	eventually(t, "two workers", func() bool { return workersIn(p.Status(), ready) == 2 })
	end()
	victim := p.servesOn()
	_ = unix.Kill(victim, unix.SIGKILL)
	eventually(t, "its end", func() bool { return len(p.Status().Workers) == 1 })
	p.servesOn()
	if s := p.Status(); s.Events.Started != 2 || s.Starting > 0 {
		t.Errorf("%+v", s)
	}
	end = p.occupy("b", 2)
	eventually(t, "two workers again", func() bool { return workersIn(p.Status(), ready) == 2 })
	end()
}

// TestGrowth: by how many the target rises, for what waits.
func TestGrowth(t *testing.T) {
	t.Parallel()
	for _, row := range []struct {
		serving, launching, target, workers, threads, waiting int
		waited                                                time.Duration
		want                                                  int
	}{
		{1, 0, 1, 8, 1, 0, 0, 1},
		{1, 0, 1, 8, 1, 9, growAfter / 2, 1},     // it passes by itself
		{1, 0, 1, 8, 1, 9, 2 * growAfter, 2},     // doubles
		{1, 1, 2, 8, 1, 9, 2 * growAfter, 2},     // and has started that
		{4, 0, 4, 8, 1, 9, 2 * growAfter, 8},     // doubles
		{4, 0, 4, 8, 1, 2, 2 * growAfter, 6},     // no more than wait
		{4, 0, 4, 8, 4, 9, 2 * growAfter, 7},     // of four threads each
		{6, 0, 6, 8, 1, 9, 2 * growAfter, 8},     // up to the bound
		{8, 0, 8, 8, 1, 9, 2 * growAfter, 8},     // which is reached
		{4, 0, 5, 8, 1, 9, 2 * growAfter, 5},     // asked for already, and held back
		{0, 0, 0, 8, 1, 9, 0, 1},                 // the first, at once
		{0, 1, 1, 8, 1, 9, 2 * growAfter, 1},     // is on its way
		{4, 2, 6, 8, 1, 9, 2 * growAfter, 8},     // two more may
		{4, 4, 8, 20, 1, 9, 2 * growAfter, 8},    // all of the step are on their way
		{16, 0, 16, 99, 1, 9, 2 * growAfter, 25}, // balance launches maxStarting of them at once
	} {
		t.Run(fmt.Sprintf("%+v", row), func(t *testing.T) {
			p := &Pool{cfg: Config{Workers: row.workers, Threads: row.threads}, queue: queue{limit: 100}}
			p.workers = map[*worker]struct{}{}
			for range row.serving {
				p.workers[&worker{state: ready}] = struct{}{}
			}
			p.sizer = sizer{on: true, target: row.target, launching: row.launching}
			for range row.waiting {
				p.queue.push(&waiter{since: time.Now().Add(-row.waited)})
			}
			p.grow()
			if p.sizer.target != row.want {
				t.Errorf("target %d, want %d", p.sizer.target, row.want)
			}
		})
	}
}

// TestMayLaunch: so many at once, and after failures one after the other.
func TestMayLaunch(t *testing.T) {
	t.Parallel()
	now := time.Now()
	for _, row := range []struct {
		launching, failures int
		until               time.Time
		want                bool
	}{
		{maxStarting - 1, 0, time.Time{}, true},
		{maxStarting, 0, time.Time{}, false},
		{1, 1, time.Time{}, true},
		{0, 2, now.Add(1), false},
		{0, 2, now, true},
		{1, 2, now, false},
	} {
		p := &Pool{}
		p.sizer.launching, p.backoff.failures, p.backoff.until = row.launching, row.failures, row.until
		if got := p.mayLaunch(now); got != row.want {
			t.Errorf("%+v: %v", row, got)
		}
	}
}
