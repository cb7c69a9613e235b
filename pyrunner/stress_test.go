package pyrunner

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"wsgigate/environ"
)

// seedVariable repeats a run of TestAnything.
const seedVariable = "WSGIGATE_SEED"

func seedOf(t *testing.T) uint64 {
	t.Helper()
	seed := rand.Uint64()
	if text := os.Getenv(seedVariable); text != "" {
		var err error
		if seed, err = strconv.ParseUint(text, 10, 64); err != nil {
			t.Fatalf("%s: %v", seedVariable, err)
		}
	}
	t.Logf("%s=%d", seedVariable, seed)
	return seed
}

// TestAnything has all that can happen to a pool happen at random times. Whatever that
// is: each request gets one answer and runs once at most, the counts add up, the
// queue's lists are right at every moment, and in the end the pool is well, and then
// gone.
func TestAnything(t *testing.T) {
	t.Parallel()
	for _, rolling := range []bool{false, true} {
		t.Run(fmt.Sprintf("rolling %v", rolling), func(t *testing.T) {
			t.Parallel()
			seed := seedOf(t)
			s := &stress{t: t, chance: rand.New(rand.NewPCG(seed, 1)), stop: make(chan struct{})}
			s.p = startPool(t, releaseApp, Config{
				MinWorkers: 1, Workers: 4, Threads: 1 + s.chance.IntN(2), ReloadRolling: rolling,
				IdleTimeout: 150 * time.Millisecond, MaxRequests: 400, MaxAge: 3 * time.Second, MaxMemory: 100 << 20,
				Timeout: time.Second, QueueTimeout: 3 * time.Second, GracefulTimeout: 3 * time.Second, StartupTimeout: 3 * time.Second,
				Slow: 500 * time.Millisecond, Limits: environ.Limits{ReadAhead: 100_000},
				Probe: func() *environ.Request { return get("/release") },
			})
			s.run(seed, later(soakUntil(t), time.Now().Add(2*time.Second)))
		})
	}
}

func later(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}

// stress is a pool under everything.
type stress struct {
	t      *testing.T
	p      *testPool
	chance *rand.Rand // of the events
	stop   chan struct{}
	group  sync.WaitGroup

	quiet  atomic.Bool // the clients pause, so that workers fall idle
	sent   atomic.Uint64
	served sync.Map
}

func (s *stress) run(seed uint64, end time.Time) {
	for client := range 8 {
		s.group.Go(func() { s.client(client, rand.New(rand.NewPCG(seed, uint64(client)+2))) })
	}
	s.group.Go(s.inspect)
	for time.Now().Before(end) {
		s.event()
		<-time.After(time.Duration(s.chance.IntN(80)) * time.Millisecond)
	}
	close(s.stop)
	s.group.Wait()
	s.check()
}

// event is what happens next.
func (s *stress) event() {
	p := s.p
	switch s.chance.IntN(32) {
	case 0, 1:
		s.signal(unix.SIGKILL)
	case 2:
		s.signal(unix.SIGSTOP) // found by Config.Timeout, if it has a request
	case 3:
		s.signal(unix.SIGTERM)
	case 4, 5:
		s.quiet.Store(!s.quiet.Load())
	case 6:
		p.write("release", "raises")
		s.reload(patience)
		s.group.Go(func() {
			<-time.After(200 * time.Millisecond)
			p.write("release", "mended")
		})
	case 7, 8, 9:
		s.reload(time.Duration(s.chance.IntN(100)) * time.Millisecond)
	case 10, 11, 12, 13:
		p.write("release", "mended")
		s.reload(patience)
	case 14, 15, 16:
		s.group.Go(func() { s.ask(with("/grow", "130"), "") })
	case 17:
		s.group.Go(func() { s.ask(get("/dies"), "") })
	}
}

// signal picks a worker.
func (s *stress) signal(number unix.Signal) {
	workers := s.p.Status().Workers
	if len(workers) == 0 {
		return
	}
	victim := workers[s.chance.IntN(len(workers))].PID
	for _, child := range children() {
		if child == strconv.Itoa(victim) {
			_ = unix.Kill(victim, number)
		}
	}
}

// reload asks for one. It may fail for all that happens to its workers, but has to end.
func (s *stress) reload(within time.Duration) {
	s.group.Go(func() {
		ctx, cancel := context.WithTimeout(context.Background(), within)
		defer cancel()
		err := s.p.Reload(ctx)
		if errors.Is(err, context.DeadlineExceeded) && within == patience || errors.Is(err, errStopped) {
			s.p.t.Errorf("reload: %v", err)
		}
	})
}

// client asks for one thing after the other.
func (s *stress) client(client int, chance *rand.Rand) {
	for n := 0; ; n++ {
		select {
		case <-s.stop:
			return
		default:
		}
		if s.quiet.Load() && client > 0 {
			<-time.After(10 * time.Millisecond)
			continue
		}
		id := fmt.Sprintf("%d-%d", client, n)
		r, body := aheadRequest(chance, id)
		if chance.IntN(15) == 0 {
			timer := time.AfterFunc(time.Duration(chance.IntN(3000))*time.Microsecond, func() { r.Cancel(environ.ErrClientGone) })
			defer timer.Stop()
		}
		if s.ask(r, body) {
			s.served.Store(id, true)
		}
	}
}

// ask reports whether the request got the application's whole answer.
func (s *stress) ask(r *environ.Request, body string) bool {
	s.sent.Add(1)
	w := s.p.serve(r)
	switch {
	case w.Status == 200 && w.AbortErr == nil:
		if body != "" && w.Body.String() != body {
			s.p.t.Errorf("%s: %.100q, want %.100q", r.Environ.Text("QUERY_STRING"), w.Body.String(), body)
		}
		return true
	case w.AbortErr == nil && w.Status != 502 && w.Status != 503 && w.Status != 504:
		s.p.t.Errorf("%s: status %d", r.Environ.Text("REQUEST_URI"), w.Status)
	}
	return false
}

// inspect looks at the queue all the time.
func (s *stress) inspect() {
	for {
		select {
		case <-s.stop:
			return
		case <-time.After(time.Millisecond):
			s.p.checkQueue()
		}
	}
}

// checkQueue checks what holds whenever nobody is changing it.
func (p *testPool) checkQueue() {
	q := &p.queue
	q.mu.Lock()
	defer q.mu.Unlock()
	seen := map[*slot]bool{}
	for _, s := range q.idle {
		if seen[s] || s.busySince.Load() != 0 || s.held || s.retired || s.ahead != nil {
			p.t.Errorf("idle slot: twice %v, busy %v, held %v, retired %v, ahead %p", seen[s], s.busySince.Load() != 0, s.held, s.retired, s.ahead)
		}
		seen[s] = true
	}
	for _, s := range q.keen {
		if s.busySince.Load() == 0 || s.retired || s.held || s.ahead != nil {
			p.t.Errorf("keen slot: busy %v, retired %v, held %v, ahead %p", s.busySince.Load() != 0, s.retired, s.held, s.ahead)
		}
	}
	for _, s := range q.ahead {
		if s.ahead == nil || s.ahead.ahead.of != s || s.ahead.queued {
			p.t.Errorf("slot with a request ahead: %+v", s.ahead)
		}
	}
	n := 0
	var last *waiter
	for w := q.first; w != nil; w = w.next {
		if !w.queued || w.prev != last {
			p.t.Errorf("waiter %d: %+v", n, w)
		}
		last = w
		n++
	}
	if n != q.waiting || last != q.last || q.busy < 0 {
		p.t.Errorf("%d wait, counted %d; %d busy", n, q.waiting, q.busy)
	}
	if len(q.idle) > 0 && n > 0 {
		p.t.Errorf("%d requests wait for %d idle slots", n, len(q.idle))
	}
}

// check is what has to hold when nothing happens any more.
func (s *stress) check() {
	p := s.p
	p.write("release", "last")
	eventually(p.t, "a reload that nothing disturbs", func() bool { return p.reload() == nil })
	if got := p.text("/release"); got != "last" {
		p.t.Errorf("release %q", got)
	}
	s.sent.Add(1)
	var now Status
	eventually(p.t, "a quiet pool", func() bool {
		now = p.Status()
		for _, w := range now.Workers {
			if w.Generation != now.Generation || w.State != ready.String() || len(w.Current) > 0 {
				return false
			}
		}
		return now.State == HealthReady && now.CrashLoop == nil && now.Starting == 0 && len(now.Workers) == 1 && now.Waiting == 0 && p.queue.busyNow() == 0
	})
	c := now.Requests
	if c.Total != s.sent.Load() || c.Total != c.Answered+c.Failed+c.Refused+c.Cancelled {
		p.t.Errorf("%+v, sent %d", c, s.sent.Load())
	}
	p.checkRuns(&s.served)
	checkEmpty(s.t, &p.queue)
	p.t.Logf("%+v %+v, generation %d", c, now.Events, now.Generation)
	p.shutdown(patience)
	if n := p.queue.busyNow(); n != 0 {
		p.t.Errorf("%d slots are busy in a pool that ended", n)
	}
	for _, path := range []string{"/hello", "/release"} {
		if w := p.serve(get(path)); w.Status != 503 {
			p.t.Errorf("status %d from a pool that ended", w.Status)
		}
	}
}
