package status

import (
	"math"
	"time"

	"wsgigate/pyrunner"
)

// quantile estimates how long the fraction q of all requests took at most. Within
// a bucket it takes the requests as spread evenly, as Prometheus does. If the
// answer is past the last bound, beyond is true and d that bound. Without requests
// ok is false.
func quantile(buckets []pyrunner.Bucket, q float64) (d time.Duration, beyond, ok bool) {
	if len(buckets) == 0 || buckets[len(buckets)-1].Count == 0 {
		return 0, false, false
	}
	rank := q * float64(buckets[len(buckets)-1].Count)
	var below time.Duration
	var before uint64
	for _, b := range buckets {
		if b.Below == 0 {
			break
		}
		if float64(b.Count) >= rank && b.Count > before {
			part := (rank - float64(before)) / float64(b.Count-before)
			return below + time.Duration(math.Max(0, part)*float64(b.Below-below)), false, true
		}
		below, before = b.Below, b.Count
	}
	return below, true, true
}

// quantileText is a quantile for people.
func quantileText(buckets []pyrunner.Bucket, q float64) string {
	d, beyond, ok := quantile(buckets, q)
	switch {
	case !ok:
		return "–"
	case beyond:
		return ">" + duration(d)
	}
	return duration(d)
}
