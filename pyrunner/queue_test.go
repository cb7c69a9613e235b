package pyrunner

import (
	"errors"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"wsgigate/environ"
)

func newQueue(limit int, slots int) (*queue, []*slot) {
	q := &queue{limit: limit, timeout: time.Hour}
	var all []*slot
	for range slots {
		all = append(all, &slot{held: true})
	}
	q.add(all)
	return q, all
}

// outcome is what acquire returned.
type outcome struct {
	slot *slot
	err  error
}

// acquiring calls acquire and returns once the request waits.
func acquiring(t *testing.T, q *queue, r *environ.Request) <-chan outcome {
	t.Helper()
	before := q.waitingNow()
	done := make(chan outcome, 1)
	go func() {
		s, _, err := q.acquire(r, nil, time.Time{})
		done <- outcome{s, err}
	}()
	eventually(t, "a waiting request", func() bool { return q.waitingNow() == before+1 })
	return done
}

func mustAcquire(t *testing.T, q *queue) *slot {
	t.Helper()
	s, _, err := q.acquire(&environ.Request{}, nil, time.Time{})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestQueueUsesLastSlotFirst(t *testing.T) {
	t.Parallel()
	q, _ := newQueue(0, 3)
	a, b := mustAcquire(t, q), mustAcquire(t, q)
	q.release(b)
	q.release(a)
	if got := mustAcquire(t, q); got != a {
		t.Error("not the slot that was used last")
	}
	if got := mustAcquire(t, q); got != b {
		t.Error("not the slot that was used before it")
	}
}

func TestQueueIsFirstComeFirstServed(t *testing.T) {
	t.Parallel()
	q, _ := newQueue(10, 1)
	s := mustAcquire(t, q)
	var waiting []<-chan outcome
	for range 10 {
		waiting = append(waiting, acquiring(t, q, &environ.Request{}))
	}
	for i, done := range waiting {
		q.release(s)
		if got := await(t, "a slot", done); got.err != nil || got.slot != s {
			t.Fatalf("request %d: %v", i, got.err)
		}
		for _, later := range waiting[i+1:] {
			select {
			case <-later:
				t.Fatal("a request overtook another")
			default:
			}
		}
	}
}

func TestQueueLimit(t *testing.T) {
	t.Parallel()
	q, _ := newQueue(2, 1)
	s := mustAcquire(t, q)
	first, second := acquiring(t, q, &environ.Request{}), acquiring(t, q, &environ.Request{})
	if _, _, err := q.acquire(&environ.Request{}, nil, time.Time{}); err != errQueueFull || environ.StatusOf(err) != 503 {
		t.Errorf("queue over its limit: %v", err)
	}
	for _, done := range []<-chan outcome{first, second} {
		q.release(s)
		if got := await(t, "a slot", done); got.err != nil {
			t.Error(got.err)
		}
	}
	none, _ := newQueue(0, 0)
	if _, _, err := none.acquire(&environ.Request{}, nil, time.Time{}); err != errQueueFull {
		t.Errorf("queue without places: %v", err)
	}
}

func TestQueueExpire(t *testing.T) {
	t.Parallel()
	q, slots := newQueue(10, 0)
	old := acquiring(t, q, &environ.Request{})
	q.mu.Lock()
	since := q.last.since
	q.mu.Unlock()
	eventually(t, "the clock", func() bool { return time.Now().After(since) })
	young := acquiring(t, q, &environ.Request{})
	q.expire(since.Add(q.timeout - 1))
	if n := q.waitingNow(); n != 2 {
		t.Fatalf("%d wait before the time is over", n)
	}
	q.expire(since.Add(q.timeout))
	if got := await(t, "the old request", old); got.err != errQueueTimeout || environ.StatusOf(got.err) != 503 {
		t.Errorf("the old request: %v", got.err)
	}
	q.add(append(slots, &slot{held: true}))
	if got := await(t, "the young request", young); got.err != nil {
		t.Errorf("the young request: %v", got.err)
	}
}

func TestQueueCancel(t *testing.T) {
	t.Parallel()
	q, _ := newQueue(10, 1)
	s := mustAcquire(t, q)
	r := &environ.Request{}
	first, cancelled, last := acquiring(t, q, &environ.Request{}), acquiring(t, q, r), acquiring(t, q, &environ.Request{})
	r.Cancel(environ.ErrClientGone)
	if got := await(t, "the cancelled request", cancelled); !errors.Is(got.err, environ.ErrClientGone) {
		t.Errorf("the cancelled request: %v", got.err)
	}
	for _, done := range []<-chan outcome{first, last} {
		q.release(s)
		if got := await(t, "a slot", done); got.slot != s || got.err != nil {
			t.Error(got.err)
		}
	}
	before := &environ.Request{}
	before.Cancel(environ.ErrAborted)
	if _, _, err := q.acquire(before, nil, time.Time{}); !errors.Is(err, environ.ErrAborted) {
		t.Errorf("a request that was cancelled before: %v", err)
	}
}

func TestQueueClose(t *testing.T) {
	t.Parallel()
	q, _ := newQueue(10, 1)
	s := mustAcquire(t, q)
	waiting := acquiring(t, q, &environ.Request{})
	quiet := q.close()
	if got := await(t, "the waiting request", waiting); got.err != errClosing || environ.StatusOf(got.err) != 503 {
		t.Errorf("the waiting request: %v", got.err)
	}
	if _, _, err := q.acquire(&environ.Request{}, nil, time.Time{}); err != errClosing {
		t.Errorf("a new request: %v", err)
	}
	select {
	case <-quiet:
		t.Error("quiet while a slot is in use")
	default:
	}
	q.release(s)
	await(t, "quiet", quiet)
	if again := q.close(); again != quiet {
		t.Error("a second close has another channel")
	}
	empty, _ := newQueue(1, 2)
	await(t, "quiet", empty.close())
	if _, _, err := empty.acquire(&environ.Request{}, nil, time.Time{}); err != errClosing {
		t.Errorf("idle slots are given away by a closed queue: %v", err)
	}
}

func TestQueueRetire(t *testing.T) {
	t.Parallel()
	q, slots := newQueue(10, 3)
	used := mustAcquire(t, q)
	kept := slots[0]
	if busy := q.retire(slots[1:]); busy != 1 {
		t.Errorf("%d busy", busy)
	}
	q.release(used)
	if got := mustAcquire(t, q); got != kept {
		t.Error("a retired slot is used")
	}
	waiting := acquiring(t, q, &environ.Request{})
	q.retire([]*slot{kept})
	q.release(kept)
	if n := q.waitingNow(); n != 1 {
		t.Error("a retired slot went to a request that waits")
	}
	fresh := &slot{held: true}
	q.add([]*slot{fresh})
	if got := await(t, "a slot", waiting); got.slot != fresh {
		t.Errorf("%+v", got)
	}
}

// TestQueueUnderLoad: a slot has one holder at a time, every request gets one
// outcome, and the counts come back to nothing.
func TestQueueUnderLoad(t *testing.T) {
	t.Parallel()
	const requests, places = 2000, 50
	q, slots := newQueue(places, 4)
	var held [4]atomic.Int32
	index := map[*slot]int{}
	for i, s := range slots {
		index[s] = i
	}
	var group sync.WaitGroup
	var served, full, gone atomic.Int32
	for n := range requests {
		r := &environ.Request{}
		group.Add(1)
		go func() {
			defer group.Done()
			s, _, err := q.acquire(r, nil, time.Time{})
			switch {
			case err == nil:
				if held[index[s]].Add(1) != 1 {
					t.Error("a slot has two holders")
				}
				held[index[s]].Add(-1)
				q.release(s)
				served.Add(1)
			case errors.Is(err, environ.ErrClientGone):
				gone.Add(1)
			case err == errQueueFull:
				full.Add(1)
			default:
				t.Error(err)
			}
		}()
		if n%7 == 0 {
			r.Cancel(environ.ErrClientGone)
		}
		if n%100 == 0 {
			q.expire(time.Now())
		}
	}
	group.Wait()
	if total := served.Load() + full.Load() + gone.Load(); total != requests || served.Load() == 0 {
		t.Errorf("served %d, full %d, gone %d", served.Load(), full.Load(), gone.Load())
	}
	await(t, "quiet", q.close())
	if q.busy != 0 || q.waiting != 0 || q.first != nil || q.last != nil || len(q.idle) != 4 {
		t.Errorf("left: %+v", q)
	}
}
