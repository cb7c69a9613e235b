package pyrunner

import (
	"time"

	"wsgigate/environ"
)

// How the pool's size follows its load.
const (
	// growAfter is how long a request may wait before another worker is started for
	// it: shorter waits pass by themselves.
	growAfter = 50 * time.Millisecond
	// maxStarting is how many workers may import the application at once. The pool
	// also never starts more than it has, so that it doubles at most each time.
	maxStarting = 8
)

// sizer is how many workers there are to be; the owner's.
type sizer struct {
	on        bool // Start is through
	target    int  // workers that are wanted now, between MinWorkers and Workers
	launching int  // of them, not READY yet
	down      bool // the queue refuses to let anybody wait
	wake      *time.Timer
}

// timer returns the channel of the next time at which balance is to look again.
func (z *sizer) timer() <-chan time.Time {
	if z.wake == nil {
		return nil
	}
	return z.wake.C
}

// wakeIn has balance look again after d.
func (z *sizer) wakeIn(d time.Duration) {
	if z.wake == nil {
		z.wake = time.NewTimer(d)
		return
	}
	z.wake.Reset(d)
}

// balance brings what is there closer to what is wanted. It is called after
// every event, and does nothing if all is well.
func (p *Pool) balance(now time.Time) {
	if !p.sizer.on || p.stopping {
		return
	}
	p.grow()
	for p.have() < p.sizer.target && p.mayLaunch(now) {
		p.sizer.launching++
		p.launchFor(eventLaunched, p.gen)
	}
	p.recycle(now)
	if p.reloading == nil && len(p.asked) > 0 {
		p.beginReload()
	}
	p.closeRetired()
	p.setDown(now)
}

// have is how many workers serve, or will for all that is known.
func (p *Pool) have() int {
	n := p.sizer.launching + p.inState(ready)
	if r := p.recycling; r != nil && r.launching && r.old.state != ready {
		n++ // the spare takes the place of a worker that did not wait for it
	}
	return n
}

// inState counts the workers in a state.
func (p *Pool) inState(s state) int {
	n := 0
	for w := range p.workers {
		if w.state == s {
			n++
		}
	}
	return n
}

// mayLaunch bounds how many workers start at once: one, after failures.
func (p *Pool) mayLaunch(now time.Time) bool {
	most := maxStarting
	if p.backoff.failures > 1 {
		most = 1
	}
	return p.sizer.launching < most && p.backoff.over(now)
}

// grow raises the target while requests wait for longer than they should.
func (p *Pool) grow() {
	room := p.cfg.Workers - p.sizer.target
	if room <= 0 {
		return
	}
	waiting, longest := p.queue.pressure()
	have := p.have()
	switch {
	case waiting == 0 || p.sizer.target > have:
		return // or it has been raised already, and launching is held back
	case have > 0 && longest < growAfter:
		p.sizer.wakeIn(growAfter - longest)
		return
	}
	needed := (waiting + p.cfg.Threads - 1) / p.cfg.Threads
	step := max(1, p.inState(ready)) // at most as many again as serve now
	more := min(needed, step) - p.sizer.launching
	p.sizer.target = min(p.sizer.target+max(more, 0), p.cfg.Workers)
}

// shrink stops the workers that nobody has needed for a while.
func (p *Pool) shrink() {
	if p.reloading != nil || p.recycling != nil || p.sizer.launching > 0 {
		return
	}
	surplus := p.inState(ready) - p.cfg.MinWorkers
	for w := range p.workers {
		if surplus <= 0 {
			return
		}
		if w.state == ready && p.queue.letGoIdle(w.slots, p.cfg.IdleTimeout) {
			p.drain(w, time.Now().Add(p.cfg.GracefulTimeout))
			surplus--
			p.sizer.target = max(p.inState(ready), p.cfg.MinWorkers)
		}
	}
}

// launchFor starts a worker beside whatever else happens; its end is that event. While
// there is code that a reload has refused, a worker of the generation that serves may
// have imported it: it has to answer the probe as well.
func (p *Pool) launchFor(kind eventKind, gen *generation) {
	began := time.Now()
	suspect := p.refused && gen == p.gen && p.cfg.Probe != nil
	p.launches++
	p.inBackground(func() {
		w, err := p.launch(gen)
		if err == nil && suspect {
			if err = p.probe(w); err != nil {
				p.discard(w)
			}
		}
		p.post(event{kind: kind, worker: w, gen: gen, err: err, began: began})
	})
}

// inBackground runs f beside the owner; Shutdown waits for it.
func (p *Pool) inBackground(f func()) {
	p.background.Add(1)
	go func() {
		defer p.background.Done()
		f()
	}()
}

// launched takes account of a worker that was launched for the pool's size.
func (p *Pool) launched(e event) {
	p.sizer.launching--
	switch {
	case e.err != nil && e.gen != p.gen:
		// A reload has overtaken it.
	case e.err != nil:
		if !p.stopping {
			p.log.Error("worker failed to start", "error", e.err)
			p.fail(e.began, e.err.Error(), atStart)
		}
	case e.gen != p.gen:
		p.dismiss(e.worker)
	default:
		p.backoff.started()
		p.adopt(e.worker)
	}
}

// dismiss lets a READY worker go that nobody has use for.
func (p *Pool) dismiss(w *worker) {
	if p.join(w) {
		p.drain(w, time.Now().Add(p.cfg.GracefulTimeout))
	}
}

// lost takes account of a worker that ended, or has to. A surplus one of a
// pool that adapts is started again when it is needed.
func (p *Pool) lost(w *worker) {
	if p.sizer.target > p.cfg.MinWorkers {
		p.sizer.target--
	}
	if w.served.Load() {
		p.backoff.served(w.begun)
		return
	}
	p.fail(w.begun, w.endedEarly(), inService)
}

// endedEarly says how a worker ended that has not answered anything.
func (w *worker) endedEarly() string {
	return "worker ended before it answered a request: " + w.exitStatus(0)
}

// fail takes account of a worker that ended before it had answered anything.
func (p *Pool) fail(began time.Time, reason string, when failure) {
	most := backoffMax
	if when == inService {
		p.backoff.answers(p.stats.answered.Load())
		if p.gen.proven.Load() {
			most = backoffMin // it may be one client's requests, which are not to shut out all others
		}
	}
	if pause := p.backoff.failed(began, time.Now(), reason, when, most); pause > 0 {
		p.log.Error("crash loop: workers do not start, or end before they answer a request; waiting before the next",
			"app", p.cfg.appName(), "failures", p.backoff.failures, "pause", pause)
		p.sizer.wakeIn(pause)
	}
}

// setDown has requests refused while there is no worker and none is starting.
func (p *Pool) setDown(now time.Time) {
	down := !p.backoff.over(now) && p.launching() == 0 && p.inState(ready) == 0
	if down == p.sizer.down {
		return
	}
	p.sizer.down = down
	if down {
		p.queue.setDown(p.backoff.until)
	} else {
		p.queue.setDown(time.Time{})
	}
}

// errDown refuses a request while workers do not start.
func errDown(until time.Time) error {
	err := environ.Errorf(503, "workers do not start, or end before they answer: the log says why")
	err.RetryAfter = time.Until(until)
	return err
}
