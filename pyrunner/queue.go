package pyrunner

import (
	"math"
	"slices"
	"sync"
	"time"

	"wsgigate/environ"
)

// queue matches requests with idle slots. Requests wait here, where they can be
// counted, timed out and cancelled, and never in a worker. First come, first
// served; the slot used last is used first, so that a quiet pool stays warm
// and surplus workers fall idle.
type queue struct {
	limit   int           // requests that may wait
	timeout time.Duration // for how long

	mu      sync.Mutex
	idle    []*slot
	first   *waiter
	last    *waiter
	waiting int
	busy    int
	down    time.Time     // nobody may wait until then: there is no worker, and none is starting
	short   chan struct{} // of one element: tells the owner that a request waits; nil: nobody asks
	keen    []*slot       // busy, but quick: may get a request ahead
	ahead   []*slot       // have one
	watched bool          // a timer looks at them
	closed  bool
	quiet   chan struct{} // closed when closed is set and nothing is busy
}

// waiter is one request in the queue.
type waiter struct {
	prev, next *waiter
	queued     bool // guarded by queue.mu
	since      time.Time
	ready      chan grant // of two elements, so that nobody blocks on it
	ahead      ahead
}

// grant is a slot, or the reason why there is none. If it is ahead, another
// request has the slot, and this one may only be sent.
type grant struct {
	slot  *slot
	ahead bool
	err   error
}

var (
	errQueueFull    = environ.Errorf(503, "no worker is free and the queue is full (--queue)")
	errQueueTimeout = environ.Errorf(503, "no worker became free in time (--queue-timeout)")
	errClosing      = environ.Errorf(503, "the server is stopping")
)

var waiters = sync.Pool{New: func() any { return &waiter{ready: make(chan grant, 2)} }}

// acquire returns a slot for the request, waiting for one if need be. If early
// is not nil, the request may be sent ahead; sent tells that the slot has it. A
// request that waited before, since then, goes before those that came later.
func (q *queue) acquire(r *environ.Request, early sender, since time.Time) (s *slot, sent bool, err error) {
	q.mu.Lock()
	if len(q.idle) > 0 && !q.closed {
		s := q.takeIdle()
		q.mu.Unlock()
		return s, false, nil
	}
	if err := q.refusal(!since.IsZero()); err != nil {
		q.mu.Unlock()
		return nil, false, err
	}
	w := waiters.Get().(*waiter)
	w.ahead = ahead{sender: early}
	if w.since = since; since.IsZero() {
		w.since = time.Now()
		q.push(w)
	} else {
		q.requeue(w)
	}
	q.sendAhead()
	q.tellShort()
	q.mu.Unlock()

	r.OnCancel(func(err error) { q.refuse(w, err) })
	g := <-w.ready
	for g.ahead {
		q.tookAhead(w, g.slot, early.sendAhead(g.slot))
		g = <-w.ready
	}
	r.OnCancel(nil)
	sent = g.err == nil && w.ahead.sent == g.slot
	w.ahead = ahead{}
	waiters.Put(w)
	return g.slot, sent, g.err
}

// refusal says why a request may not wait now. One that comes again has its
// place already. The caller holds q.mu.
func (q *queue) refusal(again bool) error {
	switch {
	case q.closed:
		return errClosing
	case !q.down.IsZero():
		return errDown(q.down)
	case q.waiting >= q.limit && !again:
		return errQueueFull
	}
	return nil
}

// tellShort tells the owner that requests wait. The caller holds q.mu.
func (q *queue) tellShort() {
	if q.short != nil && q.waiting > 0 {
		select {
		case q.short <- struct{}{}:
		default: // it was told and has not looked yet
		}
	}
}

// pressure returns how many requests wait, and for how long the first has.
func (q *queue) pressure() (waiting int, longest time.Duration) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.first != nil {
		longest = time.Since(q.first.since)
	}
	return q.waiting, longest
}

// setDown refuses all requests that wait, and those that come: no worker is there,
// and none is about to be until then. The zero time lets them wait again.
func (q *queue) setDown(until time.Time) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.down = until
	for !until.IsZero() && q.first != nil {
		w := q.first
		q.unlink(w)
		w.ready <- grant{err: errDown(until)}
	}
}

// push appends w. The caller holds q.mu.
func (q *queue) push(w *waiter) { q.insert(w, nil) }

// requeue puts w before all that came later. The caller holds q.mu.
func (q *queue) requeue(w *waiter) {
	next := q.first
	for next != nil && next.since.Before(w.since) {
		next = next.next
	}
	q.insert(w, next)
}

// insert puts w before next, or at the end if that is nil. The caller holds q.mu.
func (q *queue) insert(w, next *waiter) {
	w.prev, w.next, w.queued = q.last, next, true
	if next != nil {
		w.prev, next.prev = next.prev, w
	} else {
		q.last = w
	}
	if w.prev != nil {
		w.prev.next = w
	} else {
		q.first = w
	}
	q.waiting++
}

// unlink removes w and reports whether it was still there. The caller holds q.mu.
func (q *queue) unlink(w *waiter) bool {
	if !w.queued {
		return false
	}
	if w.prev != nil {
		w.prev.next = w.next
	} else {
		q.first = w.next
	}
	if w.next != nil {
		w.next.prev = w.prev
	} else {
		q.last = w.prev
	}
	w.prev, w.next, w.queued = nil, nil, false
	q.waiting--
	return true
}

// refuse ends the wait of w with an error, unless it has its slot already.
func (q *queue) refuse(w *waiter, err error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	w.ahead.refused = err
	if q.unlink(w) || q.takeBack(w) {
		w.ready <- grant{err: err}
	}
}

// takeIdle takes the slot that was used last. There is one, and the caller holds
// q.mu.
func (q *queue) takeIdle() *slot {
	last := len(q.idle) - 1
	s := q.idle[last]
	q.idle = q.idle[:last]
	q.take(s)
	return s
}

// take counts a slot as busy. The caller holds q.mu.
func (q *queue) take(s *slot) {
	q.busy++
	s.busySince.Store(monotonic())
}

// release gives the slot back: to the request that was sent ahead, to the one
// that waits longest, or to the idle ones. A retired slot is dropped.
func (q *queue) release(s *slot) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.busy--
	s.usedAt = monotonic()
	s.quick = time.Duration(s.usedAt-s.busySince.Load()) < quickRequest
	s.busySince.Store(0)
	q.keen = without(q.keen, s)
	if !q.promote(s) {
		q.offer(s)
	}
	q.finish(s)
	q.announceQuiet()
}

// finish tells the worker that nothing more comes for a slot that is let go, and
// closes one whose process is gone, once nobody uses it. The caller holds q.mu.
func (q *queue) finish(s *slot) {
	if s.ahead != nil || s.busySince.Load() != 0 {
		return
	}
	if s.leaving {
		s.shut()
	}
	if s.orphaned {
		s.close()
	}
}

// offer makes an unused slot available. The caller holds q.mu.
func (q *queue) offer(s *slot) {
	if s.retired || s.held || q.closed {
		return
	}
	w := q.first
	if w != nil {
		q.unlink(w)
	} else {
		w = q.takeBackAny(0)
	}
	if w == nil {
		q.idle = append(q.idle, s)
		return
	}
	q.take(s)
	w.ready <- grant{slot: s}
}

// add makes the slots of a worker available: it has become ready, or it was held.
func (q *queue) add(slots []*slot) { q.swap(slots, nil) }

// swap makes the fresh slots available and lets the old ones go, at once: every
// request gets one or the other.
func (q *queue) swap(fresh, old []*slot) {
	q.mu.Lock()
	defer q.mu.Unlock()
	for _, s := range fresh {
		held := s.held
		s.held = false
		if held && s.busySince.Load() == 0 && s.ahead == nil {
			s.usedAt = monotonic()
			q.offer(s)
		}
	}
	q.letGoAll(old)
}

// letGo makes sure that none of the slots gets another request, and tells their
// worker so: at once, or when the request that it has is over.
func (q *queue) letGo(slots []*slot) { q.swap(nil, slots) }

// letGoAll does the work of letGo. The caller holds q.mu.
func (q *queue) letGoAll(slots []*slot) {
	q.retireAll(slots)
	for _, s := range slots {
		s.leaving = true
		q.finish(s)
	}
}

// letGoIdle lets the slots go if none of them was used for that long.
func (q *queue) letGoIdle(slots []*slot, idle time.Duration) bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	for _, s := range slots {
		if s.idleFor() < idle {
			return false
		}
	}
	q.letGoAll(slots)
	return true
}

// idleFor returns for how long none of the slots has had a request.
func (q *queue) idleFor(slots []*slot) time.Duration {
	q.mu.Lock()
	defer q.mu.Unlock()
	least := time.Duration(math.MaxInt64)
	for _, s := range slots {
		least = min(least, s.idleFor())
	}
	return least
}

// hold lets the slots have no further request until they are added again.
func (q *queue) hold(slots []*slot) {
	q.mu.Lock()
	defer q.mu.Unlock()
	for _, s := range slots {
		s.held = true
		q.keen = without(q.keen, s)
	}
	q.idle = slices.DeleteFunc(q.idle, func(s *slot) bool { return s.held })
	for _, s := range slots {
		if w := s.ahead; w != nil && q.takeBack(w) {
			q.wait(w)
		}
	}
}

// takeHeld takes a slot that is held, for a request of the pool's own.
func (q *queue) takeHeld(s *slot) bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	if !s.held || s.retired || q.closed || s.busySince.Load() != 0 {
		return false
	}
	q.take(s)
	return true
}

// retire makes sure that none of the slots gets another request. It returns how
// many of them have one now.
func (q *queue) retire(slots []*slot) (busy int) {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.retireAll(slots)
}

// breakOff retires a worker because of what it did in a slot: the rest of an
// answer may lie in there, which no other request must get.
func (q *queue) breakOff(s *slot) {
	q.mu.Lock()
	defer q.mu.Unlock()
	s.broken = true
	q.retireAll(s.worker.slots)
}

// isBroken reports whether the worker has failed in the slot.
func (q *queue) isBroken(s *slot) bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	return s.broken
}

// overdue wakes the holder of a slot, and breaks it off, if its request is still
// the one that began then. If the worker is to end the request itself, it is told
// which one that is.
func (q *queue) overdue(s *slot, since int64, tell bool) bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	if s.busySince.Load() != since || s.paused.Load() {
		return false
	}
	s.broken = true
	q.retireAll([]*slot{s})
	if tell {
		s.cancelNow(errTimedOut) // before the holder wakes and leaves the request
	}
	s.interrupt()
	return true
}

// retireAll does the work of retire. The caller holds q.mu.
func (q *queue) retireAll(slots []*slot) (busy int) {
	for _, s := range slots {
		s.retired = true
		if s.busySince.Load() != 0 {
			busy++
		}
	}
	q.idle = slices.DeleteFunc(q.idle, func(s *slot) bool { return s.retired })
	for _, s := range slots {
		q.keen = without(q.keen, s)
		if w := s.ahead; w != nil && q.takeBack(w) {
			q.wait(w)
		}
	}
	return busy
}

// orphan closes the slots of a process that is gone. One that has a request is
// closed when that ends: what the worker sent before its end is still there to read.
func (q *queue) orphan(slots []*slot) {
	q.mu.Lock()
	defer q.mu.Unlock()
	for _, s := range slots {
		s.orphaned = true
	}
	q.retireAll(slots)
	for _, s := range slots {
		s.hangUp()
		q.finish(s)
	}
}

// expire refuses the requests that have waited too long.
func (q *queue) expire(now time.Time) {
	q.mu.Lock()
	defer q.mu.Unlock()
	for w := q.first; w != nil && now.Sub(w.since) >= q.timeout; w = q.first {
		q.unlink(w)
		w.ready <- grant{err: errQueueTimeout}
	}
}

// close lets nobody in any more. The channel it returns is closed when all
// requests that have a slot, and all that wait for one, have ended.
func (q *queue) close() <-chan struct{} {
	q.mu.Lock()
	defer q.mu.Unlock()
	if !q.closed {
		q.closed = true
		q.quiet = make(chan struct{})
		for q.first != nil {
			w := q.first
			q.unlink(w)
			w.ready <- grant{err: errClosing}
		}
		q.announceQuiet()
	}
	return q.quiet
}

func (q *queue) announceQuiet() {
	if q.closed && q.busy == 0 && len(q.ahead) == 0 {
		select {
		case <-q.quiet:
		default:
			close(q.quiet)
		}
	}
}
