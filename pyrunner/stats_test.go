package pyrunner

import (
	"math"
	"sync"
	"testing"
	"time"
)

// TestHistogram: cumulative, each bound inclusive, and the last bucket has all.
func TestHistogram(t *testing.T) {
	t.Parallel()
	var s stats
	took := []time.Duration{0, time.Millisecond / 2, time.Millisecond/2 + 1, time.Millisecond, time.Second, time.Minute, time.Minute + 1, time.Hour}
	for _, d := range took {
		s.ended(200, d)
	}
	h := s.histogram()
	if len(h) != len(latencyBounds)+1 || h[len(h)-1] != (Bucket{0, uint64(len(took))}) {
		t.Fatalf("%v", h)
	}
	for i, b := range h[:len(h)-1] {
		want := uint64(0)
		for _, d := range took {
			if d <= b.Below {
				want++
			}
		}
		if b.Count != want || b.Below != latencyBounds[i] || i > 0 && b.Below <= h[i-1].Below {
			t.Errorf("bucket %d: %+v, want %d", i, b, want)
		}
	}
}

// TestStatusCounts: none is not counted, and what is no status breaks nothing.
func TestStatusCounts(t *testing.T) {
	t.Parallel()
	var s stats
	for _, status := range []int{0, -1, 100, 200, 200, 999, 1000, math.MaxInt} {
		s.ended(status, 0)
	}
	c := s.counters()
	if len(c.Status) != 3 || c.Status[100] != 1 || c.Status[200] != 2 || c.Status[999] != 1 {
		t.Errorf("%v", c.Status)
	}
}

// TestCountersNeverExceedTheTotal, whenever they are read.
func TestCountersNeverExceedTheTotal(t *testing.T) {
	t.Parallel()
	var s stats
	var group sync.WaitGroup
	for range 4 {
		group.Go(func() {
			for range 20000 {
				s.arrived()
				s.answered.Add(1)
				s.arrived()
				s.refused.Add(1)
			}
		})
	}
	done := make(chan struct{})
	go func() {
		group.Wait()
		close(done)
	}()
	for over := false; !over; {
		select {
		case <-done:
			over = true
		default:
		}
		if c := s.counters(); c.Answered+c.Failed+c.Refused+c.Cancelled > c.Total {
			t.Fatalf("%+v", c)
		}
	}
	if c := s.counters(); c.Total != 160000 || c.Answered != 80000 || c.Refused != 80000 {
		t.Errorf("%+v", c)
	}
}

// TestRate is the mean of the last seconds, however long the pool has run.
func TestRate(t *testing.T) {
	t.Parallel()
	var r rate
	now := time.Now()
	if got := r.perSecond(now, 5); got != 0 {
		t.Errorf("rate %v before the first second", got)
	}
	count := uint64(0)
	for second := range 35 {
		r.tick(now, count)
		r.tick(now.Add(time.Second/2), count+1000) // too soon
		if second > 0 {
			want := 100.0
			if second >= 20 {
				want = 100 + 100*float64(min(second-20, rateWindow))/rateWindow
			}
			if got := r.perSecond(now, count); math.Abs(got-want) > 1e-6 {
				t.Errorf("second %d: rate %v, want %v", second, got, want)
			}
		}
		now = now.Add(time.Second)
		count += 100
		if second >= 20 {
			count += 100
		}
	}
	later := now.Add(time.Hour) // nobody ticked, nothing was answered
	if got := r.perSecond(later, count); got <= 0 || got > 1 {
		t.Errorf("rate %v after an idle hour", got)
	}
}
