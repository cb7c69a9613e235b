package pyrunner

import (
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestBackoff: the first failure is replaced at once, then the pauses double up to
// their bound.
func TestBackoff(t *testing.T) {
	t.Parallel()
	var b backoff
	now := time.Now()
	for i, want := range []time.Duration{0, 1, 2, 4, 8, 16, 30, 30, 30} {
		began := now.Add(time.Millisecond)
		now = now.Add(2 * time.Millisecond)
		if got := b.failed(began, now, "why", inService, backoffMax); got != want*time.Second {
			t.Errorf("failure %d: pause %v, want %v", i+1, got, want*time.Second)
		}
		if b.looping() != (i > 0) || b.over(now) != (i == 0) || !b.over(now.Add(want*time.Second)) || b.failures != i+1 || b.reason != "why" {
			t.Errorf("failure %d: %+v", i+1, b)
		}
		// A worker that began before it is of the same failure.
		if got := b.failed(began, now.Add(time.Hour), "other", inService, backoffMax); got != 0 || b.failures != i+1 || b.reason != "why" {
			t.Errorf("the same failure: pause %v, %+v", got, b)
		}
	}
	for range 100 {
		b.failed(now.Add(time.Millisecond), now.Add(2*time.Millisecond), "", inService, backoffMax)
		now = now.Add(3 * time.Millisecond)
	}
	if pause := b.until.Sub(b.last); pause != backoffMax {
		t.Errorf("pause %v", pause)
	}
	b.clear()
	if b.failed(now, now, "", inService, backoffMax) != 0 || b.looping() {
		t.Error("not as new")
	}
}

// TestBackoffHeals: by a worker that began later and has answered, or lived long.
func TestBackoffHeals(t *testing.T) {
	t.Parallel()
	now := time.Now()
	for name, row := range map[string]struct {
		began  time.Duration // after the last failure
		state  state
		served bool
		now    time.Duration
		want   bool
	}{
		"served":         {time.Second, ready, true, 2 * time.Second, true},
		"lived":          {time.Second, ready, false, time.Second + backoffMax + 1, true},
		"young":          {time.Second, ready, false, time.Second + backoffMax, false},
		"older":          {-time.Second, ready, true, time.Hour, false},
		"not in service": {time.Second, standby, true, time.Hour, false},
		"leaving":        {time.Second, draining, true, time.Hour, false},
	} {
		t.Run(name, func(t *testing.T) {
			w := &worker{state: row.state, begun: now.Add(row.began)}
			w.served.Store(row.served)
			b := backoff{failures: 2, last: now}
			if got := b.heal(map[*worker]struct{}{w: {}}, now.Add(row.now)); got != row.want || (b.failures == 0) != row.want {
				t.Errorf("healed %v, %+v", got, b)
			}
			b = backoff{failures: 1, last: now}
			if b.heal(map[*worker]struct{}{w: {}}, now.Add(row.now)) || (b.failures == 0) != row.want {
				t.Errorf("one failure: %+v", b)
			}
		})
	}
}

// TestTimeoutsAreNoCrashLoop: an application that takes too long for its first
// request does start.
func TestTimeoutsAreNoCrashLoop(t *testing.T) {
	t.Parallel()
	p := startPool(t, releaseApp, Config{Timeout: 600 * time.Millisecond})
	for range 4 {
		if w := p.serve(get("/sleeps")); w.Status != 504 {
			t.Errorf("status %d", w.Status)
		}
	}
	if s := p.Status(); s.CrashLoop != nil || s.Events.TimedOut != 4 {
		t.Errorf("%+v, %+v", s.Events, s.CrashLoop)
	}
	p.servesOn()
}

// TestOldWorkersSayNothingOfNewOnes: the end of a worker that served before the crash
// loop began does not end it.
func TestOldWorkersSayNothingOfNewOnes(t *testing.T) {
	t.Parallel()
	p := startPool(t, releaseApp, Config{Workers: 2})
	first, end := p.until("a")
	p.servesOn()
	end()
	await(t, "the first", first)
	workers := pidsIn(p.Status(), ready)
	p.write("release", "raises")
	_ = unix.Kill(workers[0], unix.SIGKILL)
	var before Status
	eventually(t, "the crash loop", func() bool {
		before = p.Status()
		return before.CrashLoop != nil
	})
	p.servesOn()
	_ = unix.Kill(workers[1], unix.SIGKILL)
	eventually(t, "the other's end", func() bool { return len(p.Status().Workers) == 0 })
	if s := p.Status(); s.CrashLoop == nil || s.CrashLoop.Failures < before.CrashLoop.Failures {
		t.Errorf("before %+v, now %+v", before.CrashLoop, s.CrashLoop)
	}
}

// TestCrashLoopSaysWhy: the reason has how the process ended.
func TestCrashLoopSaysWhy(t *testing.T) {
	t.Parallel()
	p := startPool(t, releaseApp, Config{})
	var s Status
	for s.CrashLoop == nil {
		if w := p.serve(get("/dies")); w.Status != 502 {
			t.Fatalf("status %d", w.Status)
		}
		s = p.Status()
	}
	eventually(t, "the reason", func() bool {
		s = p.Status()
		return s.CrashLoop != nil && s.CrashLoop.Reason == "worker ended before it answered a request: exit status 3"
	})
	if s.State != HealthCrashLoop {
		t.Errorf("%+v", s)
	}
}

// TestCrashingRequests: requests that end their worker cost only that while others are
// answered between them; where none is, the pauses stay short of those for code that
// has never answered anything.
func TestCrashingRequests(t *testing.T) {
	t.Parallel()
	p := startPool(t, releaseApp, Config{})
	for range 4 {
		if w := p.serve(get("/dies")); w.Status != 502 {
			t.Errorf("status %d", w.Status)
		}
		p.servesOn()
	}
	if s := p.Status(); s.CrashLoop != nil || s.Requests.Refused != 0 {
		t.Errorf("beside others: %+v", s)
	}
	for refused := 0; refused < 3; {
		switch w := p.serve(get("/dies")); w.Status {
		case 502: // that of another worker
		case 503:
			if after := w.Get("Retry-After"); after != "1" {
				t.Fatalf("Retry-After %q", after)
			}
			refused++
			time.Sleep(time.Until(p.Status().nextStart()))
		default:
			t.Fatalf("status %d", w.Status)
		}
	}
	eventually(t, "an answer", func() bool { return p.serve(get("/hello")).Status == 200 })
	eventually(t, "the end of the crash loop", func() bool { return p.Status().CrashLoop == nil })
}

// nextStart is when a worker may be started; the zero time if it may now.
func (s Status) nextStart() time.Time {
	if s.CrashLoop == nil {
		return time.Time{}
	}
	return s.CrashLoop.RetryAt
}

// TestBackoffAnswers: an answer after the failure of a worker in service says that the
// code works, one that came before does not, and none does if workers cannot start.
func TestBackoffAnswers(t *testing.T) {
	t.Parallel()
	now := time.Now()
	for when, want := range map[failure]int{inService: 1, atStart: 2} {
		b := backoff{}
		b.answers(5)
		b.failed(now, now, "", when, backoffMax)
		b.answers(5)
		if b.failures != 1 {
			t.Errorf("%d: %+v", when, b)
		}
		b.answers(6)
		b.failed(now.Add(time.Second), now.Add(time.Second), "", when, backoffMax)
		if b.failures != want {
			t.Errorf("%d: %d failures, want %d", when, b.failures, want)
		}
	}
}
