package pyrunner

import "time"

// Pauses between attempts, when workers end before they have answered anything.
const (
	backoffMin = time.Second
	backoffMax = 30 * time.Second
)

// backoff counts workers in a row that ended before they answered anything; the
// owner's. The first is replaced at once, the next after growing pauses.
type backoff struct {
	failures int
	began    time.Time // when the worker did that failed last
	last     time.Time // of the last failure
	until    time.Time // no worker is launched before
	reason   string
	when     failure
	answered uint64 // requests, until the last failure
}

// failure is when a worker failed.
type failure uint8

const (
	atStart   failure = iota // it was never READY: one that is proves that the cause is gone
	inService                // it was
)

// failed notes the failure of a worker that began then, and returns the pause that
// follows, at most that long. Those that began before the last failure are of the same.
func (b *backoff) failed(began, now time.Time, reason string, when failure, most time.Duration) time.Duration {
	if b.failures > 0 && !began.After(b.last) {
		return 0
	}
	b.failures++
	b.began, b.last, b.reason, b.when = began, now, reason, when
	if b.failures == 1 {
		return 0
	}
	pause := min(backoffMin<<min(b.failures-2, 10), most)
	b.until = now.Add(pause)
	return pause
}

// over reports whether a worker may be launched.
func (b *backoff) over(now time.Time) bool { return !now.Before(b.until) }

// looping reports whether that is a crash loop.
func (b *backoff) looping() bool { return b.failures > 1 }

func (b *backoff) clear() { *b = backoff{} }

// started notes that a worker is READY.
func (b *backoff) started() {
	if b.when == atStart {
		b.clear()
	}
}

// served notes that a worker which began then has answered a request. One that is
// older than the last failure says nothing of its cause.
func (b *backoff) served(began time.Time) {
	if began.After(b.last) {
		b.clear()
	}
}

// answers notes how many requests have been answered by now. If some were since the last
// failure, the code works: it is single requests that end their worker.
func (b *backoff) answers(n uint64) {
	if b.when == inService && n > b.answered {
		b.clear()
	}
	b.answered = n
}

// explain notes how the worker that began then has ended, if it was the one that
// failed last: its sockets told of that first.
func (b *backoff) explain(began time.Time, reason string) {
	if b.failures > 0 && b.when == inService && b.began.Equal(began) {
		b.reason = reason
	}
}

// heal ends the crash loop once a worker that began after the last failure has
// answered a request, or has lived for longer than any pause.
func (b *backoff) heal(workers map[*worker]struct{}, now time.Time) (healed bool) {
	if b.failures == 0 {
		return false
	}
	for w := range workers {
		if w.state == ready && w.begun.After(b.last) && (w.served.Load() || now.Sub(w.begun) > backoffMax) {
			healed = b.looping()
			b.clear()
			return healed
		}
	}
	return false
}
