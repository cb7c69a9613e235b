package integration

import (
	"sync"
	"testing"
	"time"
)

// The pool of TestManageDynamic, as the issue of dynamic pools has it.
const (
	mostWorkers = 8
	growWithin  = 2 * time.Second
)

// TestManageDynamic: a pool of 1:8 has 8 workers soon after 8 requests wait at once,
// and one again after it was idle. Growing takes processor time, which others may
// need meanwhile: the test measures again before it fails.
func TestManageDynamic(t *testing.T) {
	m := manage(t, "--workers", "1:8", "--idle-timeout", "1s")
	for attempt := 1; ; attempt++ {
		took := m.grow(t)
		m.await(t, "one worker again", clientTime, func() bool { return len(children(m.gateways(t)[0])) == 1 })
		t.Logf("attempt %d: %d workers after %v", attempt, mostWorkers, took.Round(time.Millisecond))
		if took <= growWithin {
			return
		}
		if attempt == attempts {
			t.Fatalf("the pool needed %v to grow to %d workers", took, mostWorkers)
		}
	}
}

// grow returns how long the pool needs for its workers, from the moment at which as
// many requests at once begin.
func (m *managed) grow(t *testing.T) time.Duration {
	t.Helper()
	l := m.load()
	began := time.Now()
	l.add(viaHTTP, mostWorkers, "ms=500")
	pid := m.gateways(t)[0]
	m.await(t, "workers", clientTime, func() bool {
		ready := 0
		for _, w := range m.look(t).Workers {
			if w.State == "ready" {
				ready++
			}
		}
		return ready == mostWorkers
	})
	took := time.Since(began)
	if n := len(children(pid)); n != mostWorkers {
		t.Errorf("%d children, want %d", n, mostWorkers)
	}
	l.end()
	l.wantAllOnce(t)
	return took
}

// TestManageOnDemand: a pool of 0:N starts with no worker, has one for the first
// request, and none again when it is idle; then all over again.
func TestManageOnDemand(t *testing.T) {
	m := manage(t, "--workers", "0:3", "--idle-timeout", "1s")
	pid := m.gateways(t)[0]
	for round := range 2 {
		if n := len(children(pid)); n != 0 {
			t.Fatalf("round %d: %d workers before the first request", round, n)
		}
		if s := m.look(t); s.State != "idle" {
			t.Errorf("round %d: the state is %q", round, s.State)
		}
		began := time.Now()
		m.want(t, viaHTTP, get("/run?id=0"), 200)
		t.Logf("round %d: the first answer after %v", round, time.Since(began).Round(time.Millisecond))
		if n := len(children(pid)); n != 1 {
			t.Errorf("round %d: %d workers after the first request", round, n)
		}
		m.await(t, "end of the idle worker", clientTime, func() bool { return len(children(pid)) == 0 })
	}
}

// TestManageOnDemandCrowd: all of many first requests at once are answered.
func TestManageOnDemandCrowd(t *testing.T) {
	m := manage(t, "--workers", "0:3", "--threads", "2", "--idle-timeout", "1s")
	l := m.load()
	var group sync.WaitGroup
	for range 32 {
		group.Go(func() {
			c := &caller{m: m, way: viaHTTP}
			defer c.hangUp()
			l.one(c, "ms=20")
		})
	}
	group.Wait()
	l.wantAllOnce(t)
}
