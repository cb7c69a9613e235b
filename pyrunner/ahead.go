package pyrunner

import (
	"slices"
	"time"

	"wsgigate/environ"
)

// Sending ahead: when every slot is busy, the request that waits longest is sent
// to a slot before that has answered its present one. The worker then finds it
// at once and need not sleep and be woken, which costs as much as a short
// request itself.
//
// It is sent only to a slot that has just answered quickly, one at a time, and
// not before the present request. If the worker turns out slow, or another slot
// falls idle, the request is taken back: as long as it lies unread in the socket
// no byte of it has reached a worker.

// sender sends a request ahead.
type sender interface {
	// sendAhead puts the request into the slot's request socket.
	sendAhead(s *slot) sentAhead
}

// sentAhead is what came of it.
type sentAhead struct {
	ok      bool
	request uint32
	rebased bool // the slot's base is this request's environ
}

// ahead is the part of a waiter that is about sending ahead; guarded by queue.mu.
type ahead struct {
	sender  sender // nil: the request is not to be sent ahead
	of      *slot  // whose request socket it is for
	sent    *slot  // whose request socket has it
	what    sentAhead
	refused error // cancelled meanwhile
}

const (
	// quickRequest is how long the last request of a slot may have taken that gets
	// one ahead.
	quickRequest = 2 * time.Millisecond
	// slowRequest is how long one may lie behind another before it is taken back.
	slowRequest = 5 * time.Millisecond
)

// began says that the holder of the slot has sent its request, so that another
// may follow.
func (q *queue) began(s *slot) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if s.quick && !s.retired && !s.held && s.requests != nil && s.ahead == nil {
		q.keen = append(q.keen, s)
		q.sendAhead()
	}
}

// sendAhead lets waiting requests be sent ahead. The caller holds q.mu.
func (q *queue) sendAhead() {
	for len(q.keen) > 0 && q.first != nil && q.first.ahead.sender != nil {
		w, s := q.first, q.keen[0]
		q.keen = q.keen[1:]
		if s.busyFor() >= slowRequest {
			continue // it would be taken back at once
		}
		q.unlink(w)
		s.ahead, w.ahead.of = w, s
		q.ahead = append(q.ahead, s)
		w.ready <- grant{slot: s, ahead: true}
		if !q.watched {
			q.watched = true
			time.AfterFunc(slowRequest, q.watch)
		}
	}
}

// followed reports whether a request was, or is being, sent ahead to the slot.
func (q *queue) followed(s *slot) bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	return s.ahead != nil
}

// tookAhead takes account of what the sender did.
func (q *queue) tookAhead(w *waiter, s *slot, what sentAhead) {
	q.mu.Lock()
	defer q.mu.Unlock()
	w.ahead.what = what
	if what.ok {
		w.ahead.sent = s
	}
	if s.ahead != w {
		return // the slot is its own by now
	}
	released := s.busySince.Load() == 0
	switch {
	case !what.ok:
		w.ahead.sender = nil // it would not go another time either
		q.detach(w)
		q.wait(w)
	case !s.retired && !s.held && !released && w.ahead.refused == nil:
		return
	case q.takeBack(w):
		q.wait(w)
	case released:
		q.promote(s) // the worker has read it
		return
	}
	if released {
		q.offer(s) // it was held then, and may not be now
	}
}

// errBrokenOff is for a request that its worker had read when it failed with the
// one before. What it sent since cannot be told from the rest of that answer.
var errBrokenOff = environ.Errorf(502, "the worker that had the request failed with the one before it")

// promote gives a released slot to the request that was sent ahead to it, and
// reports whether there is one. The caller holds q.mu.
func (q *queue) promote(s *slot) bool {
	w := s.ahead
	switch {
	case w == nil:
		return false
	case (s.retired || s.held) && w.ahead.sent == nil:
		// Its sender is about to tell, and then it waits for another slot.
	case s.broken && q.takeBack(w):
		q.wait(w)
	case s.broken:
		q.detach(w)
		w.ready <- grant{err: errBrokenOff}
	default:
		q.take(s)
		q.detach(w)
		w.ready <- grant{slot: s}
	}
	return true
}

// detach ends the relation of w with the slot it is ahead of. The caller holds
// q.mu.
func (q *queue) detach(w *waiter) {
	s := w.ahead.of
	s.ahead, w.ahead.of = nil, nil
	q.ahead = without(q.ahead, s)
	q.finish(s)
	q.announceQuiet()
}

// takeBack takes an unread request out of the socket again. It reports whether
// the worker has not seen it. The caller holds q.mu.
func (q *queue) takeBack(w *waiter) bool {
	s := w.ahead.of
	if s == nil || w.ahead.sent != s {
		return false
	}
	over := s.broken || s.orphaned // nobody waits for what lies before it
	if !s.requests.takeBack(w.ahead.what.request, over) {
		return false
	}
	w.ahead.sent = nil
	if w.ahead.what.rebased {
		s.base.valid = false // the worker does not have it
	}
	q.detach(w)
	return true
}

// takeBackAny takes back the request that was sent ahead first, of those whose
// slot has been busy for that long.
func (q *queue) takeBackAny(busy time.Duration) *waiter {
	for _, s := range q.ahead {
		w := s.ahead
		if s.busyFor() >= busy && q.takeBack(w) {
			return w
		}
	}
	return nil
}

// wait gives a request that was taken back a slot, or its place in the queue.
// The caller holds q.mu.
func (q *queue) wait(w *waiter) {
	switch {
	case w.ahead.refused != nil:
		w.ready <- grant{err: w.ahead.refused}
	case q.closed:
		w.ready <- grant{err: errClosing}
	case len(q.idle) > 0:
		w.ready <- grant{slot: q.takeIdle()}
	default:
		q.requeue(w)
	}
}

// watch takes back what lies behind slow requests, as long as anything is ahead.
func (q *queue) watch() {
	q.mu.Lock()
	defer q.mu.Unlock()
	for w := q.takeBackAny(slowRequest); w != nil; w = q.takeBackAny(slowRequest) {
		q.wait(w)
	}
	if q.watched = len(q.ahead) > 0; q.watched {
		time.AfterFunc(slowRequest, q.watch)
	}
}

// without returns list without s.
func without(list []*slot, s *slot) []*slot {
	if i := slices.Index(list, s); i >= 0 {
		return slices.Delete(list, i, i+1)
	}
	return list
}
