package main

import (
	"errors"
	"fmt"
	"slices"
)

// result is one line of the table: a case, a wire, and two sides.
type result struct {
	caseName  string
	own, peer *series
	target    float64 // 0: none
}

// results pairs each of wsgigate's sides in a group with each of the peers.
func (c *contest) results() []result {
	var out []result
	for _, own := range c.series {
		if own.gateway != wsgigate {
			continue
		}
		for _, peer := range c.series {
			if peer.gateway != wsgigate {
				out = append(out, result{c.name, own, peer, target(c.name, own.wire, peer.side)})
			}
		}
	}
	return out
}

// median returns the middle value, the mean of the two middle ones of an even
// number, 0 of none.
func median(values []float64) float64 {
	if len(values) == 0 {
		return 0
	}
	v := slices.Sorted(slices.Values(values))
	n := len(v)
	return (v[(n-1)/2] + v[n/2]) / 2
}

// medianOf is the median of something over a series' runs.
func (s *series) medianOf(value func(sample) float64) float64 {
	var values []float64
	for _, r := range s.samples {
		values = append(values, value(r))
	}
	return median(values)
}

// The measured quantities.

func throughput(s sample) float64 { return s.perSecond() }
func p50(s sample) float64        { return float64(s.P50) / 1e3 }
func p99(s sample) float64        { return float64(s.P99) / 1e3 }
func cpuEach(s sample) float64    { return perRequest(s.cpu.Seconds()*1e6, s) }
func nginxEach(s sample) float64  { return perRequest(s.nginxCPU.Seconds()*1e6, s) }

func perRequest(total float64, s sample) float64 {
	if s.Requests == 0 {
		return 0
	}
	return total / float64(s.Requests)
}

// peak is the largest memory of all runs, in MiB.
func (s *series) peak() float64 {
	var most int64
	for _, r := range s.samples {
		most = max(most, r.peak)
	}
	return float64(most) / (1 << 20)
}

// errors is the number of failed requests and sockets in all runs.
func (s *series) errors() int64 {
	var n int64
	for _, r := range s.samples {
		n += r.errors()
	}
	return n
}

// ratio is own divided by peer, 0 if there is no peer's value.
func ratio(own, peer float64) float64 {
	if peer == 0 {
		return 0
	}
	return own / peer
}

// throughputRatio is the ratio of medians and the smallest and the largest of
// the ratios of neighbouring runs.
func (r result) throughputRatio() (middle, low, high float64) {
	middle = ratio(r.own.medianOf(throughput), r.peer.medianOf(throughput))
	for i := range min(len(r.own.samples), len(r.peer.samples)) {
		x := ratio(r.own.samples[i].perSecond(), r.peer.samples[i].perSecond())
		if i == 0 {
			low, high = x, x
		}
		low, high = min(low, x), max(high, x)
	}
	return middle, low, high
}

// measured reports whether both sides have figures.
func (r result) measured() bool { return len(r.own.samples) > 0 && len(r.peer.samples) > 0 }

// met reports whether the ratio reaches the target. One who could not be
// measured does not set a target.
func (r result) met() bool {
	middle, _, _ := r.throughputRatio()
	return middle >= r.target
}

// ownFailure is an error if wsgigate itself failed requests or did not run: the
// figures are worth nothing then.
func ownFailure(results []result) error {
	var all []error
	seen := map[*series]bool{}
	for _, r := range results {
		s := r.own
		if seen[s] {
			continue
		}
		seen[s] = true
		if n := s.errors(); n > 0 || len(s.problems) > 0 {
			all = append(all, fmt.Errorf("%s: %s: %d errors, %d problems", r.caseName, s.side, n, len(s.problems)))
		}
	}
	return errors.Join(all...)
}
