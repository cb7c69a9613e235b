package pyrunner

import (
	"strconv"
	"testing"

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
