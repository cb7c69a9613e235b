package main

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"wsgigate/environ"
)

// request has a request run for d.
func (i *idleWatch) request(d time.Duration) {
	i.ServeGateway(nil, &environ.Request{ID: uint64(d)})
}

// sleeps answers such a request, and panics without one.
func sleeps(_ environ.ResponseWriter, r *environ.Request) { time.Sleep(time.Duration(r.ID)) }

// TestIdle: the time counts from the start or the end of the last request, and never
// while one runs.
func TestIdle(t *testing.T) {
	const limit = 10 * time.Second
	for name, c := range map[string]struct {
		requests func(i *idleWatch)
		want     time.Duration // when the server is stopped
	}{
		"none":               {func(*idleWatch) {}, limit},
		"a short one":        {func(i *idleWatch) { time.Sleep(4 * time.Second); i.request(0) }, 4*time.Second + limit},
		"at the last moment": {func(i *idleWatch) { time.Sleep(limit - 1); i.request(0) }, 2*limit - 1},
		"a long one":         {func(i *idleWatch) { i.request(3*limit + 1) }, 4*limit + 1},
		"some": {func(i *idleWatch) {
			for range 5 {
				time.Sleep(limit / 2)
				i.request(limit / 2)
			}
		}, 6 * limit},
		"two at once": {func(i *idleWatch) {
			go i.request(3 * limit)
			time.Sleep(limit / 2)
			i.request(0)
		}, 4 * limit},
		"one that panics": {func(i *idleWatch) {
			defer func() { _ = recover() }()
			time.Sleep(limit / 2)
			i.ServeGateway(nil, nil)
		}, limit * 3 / 2},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				began := time.Now()
				i := newIdleWatch(environ.HandlerFunc(sleeps))
				go c.requests(i)
				if !i.wait(t.Context(), limit) {
					t.Error("given up")
				}
				if took := time.Since(began); took != c.want {
					t.Errorf("idle after %v, want %v", took, c.want)
				}
				synctest.Wait()
			})
		})
	}
}

// TestIdleEnds: a server that stops for another reason waits no longer.
func TestIdleEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		began := time.Now()
		if newIdleWatch(nil).wait(ctx, time.Hour) || time.Since(began) != time.Second {
			t.Errorf("waited %v", time.Since(began))
		}
	})
}
