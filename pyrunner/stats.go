package pyrunner

import (
	"sync/atomic"
	"time"
)

// stats counts requests. Everything is atomic: the requests write it, and status
// reads it.
type stats struct {
	total, answered, failed, refused, cancelled, retried atomic.Uint64

	status  [maxStatus + 1]atomic.Uint64
	latency [len(latencyBounds) + 1]atomic.Uint64

	latencySum atomic.Int64 // nanoseconds
}

const maxStatus = 999 // three digits (RFC 9110, section 15)

// latencyBounds are the upper bounds of the histogram of how long requests take.
var latencyBounds = [...]time.Duration{
	time.Millisecond / 2, time.Millisecond, 2 * time.Millisecond, 5 * time.Millisecond,
	10 * time.Millisecond, 25 * time.Millisecond, 50 * time.Millisecond, 100 * time.Millisecond,
	250 * time.Millisecond, 500 * time.Millisecond, time.Second, 2500 * time.Millisecond,
	5 * time.Second, 10 * time.Second, 30 * time.Second, time.Minute,
}

func (s *stats) arrived() { s.total.Add(1) }

// ended takes account of a request's end; status is 0 if none was sent.
func (s *stats) ended(status int, took time.Duration) {
	if status > 0 && status <= maxStatus {
		s.status[status].Add(1)
	}
	i := 0
	for i < len(latencyBounds) && took > latencyBounds[i] {
		i++
	}
	s.latency[i].Add(1)
	s.latencySum.Add(int64(took))
}

// counters returns the counts. Those of what has ended are read first, so that they
// never exceed the total.
func (s *stats) counters() Counters {
	c := Counters{
		Answered:  s.answered.Load(),
		Failed:    s.failed.Load(),
		Refused:   s.refused.Load(),
		Cancelled: s.cancelled.Load(),
		Retried:   s.retried.Load(),
		Status:    map[int]uint64{},
	}
	for code := range s.status {
		if n := s.status[code].Load(); n > 0 {
			c.Status[code] = n
		}
	}
	c.Total = s.total.Load()
	return c
}

// histogram returns the latencies, cumulative.
func (s *stats) histogram() []Bucket {
	buckets := make([]Bucket, len(s.latency))
	sum := uint64(0)
	for i := range s.latency {
		sum += s.latency[i].Load()
		buckets[i].Count = sum
		if i < len(latencyBounds) {
			buckets[i].Below = latencyBounds[i]
		}
	}
	return buckets
}

// rateWindow is how many seconds the rate is the mean of.
const rateWindow = 10

// rate is the number of answers at each of the last seconds; the owner's.
type rate struct {
	at    [rateWindow + 1]uint64
	times [rateWindow + 1]time.Time
	n     int
}

// tick notes the count, once a second.
func (r *rate) tick(now time.Time, count uint64) {
	if r.n > 0 && now.Sub(r.times[(r.n-1)%len(r.at)]) < time.Second {
		return
	}
	r.at[r.n%len(r.at)], r.times[r.n%len(r.at)] = count, now
	r.n++
}

// perSecond returns the mean rate until now.
func (r *rate) perSecond(now time.Time, count uint64) float64 {
	if r.n == 0 {
		return 0
	}
	oldest := max(0, r.n-len(r.at)) % len(r.at)
	passed := now.Sub(r.times[oldest]).Seconds()
	if passed <= 0 {
		return 0
	}
	return float64(count-r.at[oldest]) / passed
}
