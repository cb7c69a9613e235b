package pyrunner

import (
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
	closed  bool
	quiet   chan struct{} // closed when closed is set and nothing is busy
}

// waiter is one request in the queue.
type waiter struct {
	prev, next *waiter
	queued     bool // guarded by queue.mu
	since      time.Time
	ready      chan grant // of one element, so that nobody blocks on it
}

// grant is a slot, or the reason why there is none.
type grant struct {
	slot *slot
	err  error
}

var (
	errQueueFull    = environ.Errorf(503, "no worker is free and the queue is full (--queue)")
	errQueueTimeout = environ.Errorf(503, "no worker became free in time (--queue-timeout)")
	errClosing      = environ.Errorf(503, "the server is stopping")
)

var waiters = sync.Pool{New: func() any { return &waiter{ready: make(chan grant, 1)} }}

// acquire returns a slot for the request, waiting for one if need be.
func (q *queue) acquire(r *environ.Request) (*slot, error) {
	q.mu.Lock()
	if n := len(q.idle); n > 0 && !q.closed {
		s := q.idle[n-1]
		q.idle = q.idle[:n-1]
		q.take(s)
		q.mu.Unlock()
		return s, nil
	}
	if q.closed || q.waiting >= q.limit {
		err := error(errQueueFull)
		if q.closed {
			err = errClosing
		}
		q.mu.Unlock()
		return nil, err
	}
	w := waiters.Get().(*waiter)
	w.since = time.Now()
	q.push(w)
	q.mu.Unlock()

	r.OnCancel(func(err error) { q.refuse(w, err) })
	g := <-w.ready
	r.OnCancel(nil)
	waiters.Put(w)
	return g.slot, g.err
}

// push appends w. The caller holds q.mu.
func (q *queue) push(w *waiter) {
	w.prev, w.next, w.queued = q.last, nil, true
	if q.last != nil {
		q.last.next = w
	} else {
		q.first = w
	}
	q.last = w
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
	if q.unlink(w) {
		w.ready <- grant{err: err}
	}
}

// take counts a slot as busy. The caller holds q.mu.
func (q *queue) take(s *slot) {
	q.busy++
	s.busySince.Store(monotonic())
}

// release gives the slot back: to the request that waits longest, or to the
// idle ones. A retired slot is dropped.
func (q *queue) release(s *slot) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.busy--
	s.busySince.Store(0)
	if s.orphaned {
		s.close()
	}
	q.offer(s)
	q.announceQuiet()
}

// offer makes an unused slot available. The caller holds q.mu.
func (q *queue) offer(s *slot) {
	switch w := q.first; {
	case s.retired:
	case q.closed:
	case w != nil:
		q.unlink(w)
		q.take(s)
		w.ready <- grant{slot: s}
	default:
		q.idle = append(q.idle, s)
	}
}

// add makes the slots of a worker available that has become ready.
func (q *queue) add(slots []*slot) {
	q.mu.Lock()
	defer q.mu.Unlock()
	for _, s := range slots {
		q.offer(s)
	}
}

// retire makes sure that none of the slots gets another request. It returns how
// many of them have one now.
func (q *queue) retire(slots []*slot) (busy int) {
	q.mu.Lock()
	defer q.mu.Unlock()
	for _, s := range slots {
		s.retired = true
		if s.busySince.Load() != 0 {
			busy++
		}
	}
	kept := q.idle[:0]
	for _, s := range q.idle {
		if !s.retired {
			kept = append(kept, s)
		}
	}
	clear(q.idle[len(kept):])
	q.idle = kept
	return busy
}

// orphan closes the slots of a process that is gone. One that has a request is
// closed when that ends: what the worker sent before its end is still there to read.
func (q *queue) orphan(slots []*slot) {
	q.retire(slots)
	q.mu.Lock()
	defer q.mu.Unlock()
	for _, s := range slots {
		s.orphaned = true
		if s.busySince.Load() != 0 {
			s.hangUp()
		} else {
			s.close()
		}
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
	if q.closed && q.busy == 0 {
		select {
		case <-q.quiet:
		default:
			close(q.quiet)
		}
	}
}
