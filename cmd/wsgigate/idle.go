package main

import (
	"context"
	"sync/atomic"
	"time"

	"wsgigate/environ"
)

// idleWatch knows for how long no request has run.
type idleWatch struct {
	next    environ.Handler
	began   time.Time // what last counts from, on the monotonic clock
	running atomic.Int64
	last    atomic.Int64 // when a request ended, in nanoseconds after began
}

var _ environ.Handler = (*idleWatch)(nil)

func newIdleWatch(next environ.Handler) *idleWatch {
	return &idleWatch{next: next, began: time.Now()}
}

// ServeGateway answers by next.
func (i *idleWatch) ServeGateway(w environ.ResponseWriter, r *environ.Request) {
	i.running.Add(1)
	defer func() { // after a panic too
		i.last.Store(int64(time.Since(i.began)))
		i.running.Add(-1)
	}()
	i.next.ServeGateway(w, r)
}

func (i *idleWatch) idleFor() time.Duration {
	if i.running.Load() > 0 {
		return 0
	}
	return time.Since(i.began) - time.Duration(i.last.Load())
}

// wait returns true when no request has run for d, false at the end of ctx.
func (i *idleWatch) wait(ctx context.Context, d time.Duration) bool {
	for left := d; left > 0; left = d - i.idleFor() {
		select {
		case <-time.After(left):
		case <-ctx.Done():
			return false
		}
	}
	return true
}
