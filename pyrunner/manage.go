package pyrunner

import (
	"log/slog"
	"slices"
	"time"

	"golang.org/x/sys/unix"
)

// event is what happened to a worker, as its observers tell the owner.
type event struct {
	kind    eventKind
	worker  *worker
	err     error
	timeout bool          // eventDoom: a request took too long, log the stacks
	by      time.Time     // eventStop
	done    chan struct{} // closed when the event was handled, if not nil
}

type eventKind uint8

const (
	eventAdopt    eventKind = iota // a worker is READY
	eventLaunched                  // a replacement is READY, or failed (err)
	eventRetry                     // it is time to try another replacement
	eventExit                      // a process was reaped
	eventDoom                      // a worker lost its socket, broke the protocol or hangs
	eventStop                      // stop all
)

// Times of a worker's end.
const (
	// killAfter is how long a worker may take to obey SIGTERM.
	killAfter = 2 * time.Second
	// giveUpAfter is how long SIGKILL may take. A process that survives it sleeps
	// in the kernel: it is forgotten, and its number is logged.
	giveUpAfter = 5 * time.Second
	// exitGrace is how long a worker that lost its socket may take to end by itself.
	exitGrace = time.Second
)

// Back-off of replacements, when workers end before they have answered anything.
const (
	backoffMin = time.Second
	backoffMax = 30 * time.Second
)

// post hands an event to the owner, unless that has ended.
func (p *Pool) post(e event) {
	select {
	case p.events <- e:
	case <-p.managed:
	}
}

// manage owns the state of all workers. It returns when the pool was stopped and
// every worker is gone.
func (p *Pool) manage() {
	defer close(p.managed)
	tick := time.NewTicker(p.sweepEvery())
	defer tick.Stop()
	for !p.stopping || len(p.workers) > 0 || p.launching > 0 {
		select {
		case e := <-p.events:
			p.handle(e)
			if e.done != nil {
				close(e.done)
			}
		case now := <-tick.C:
			p.queue.expire(now)
			p.sweep()
		}
	}
}

// sweepEvery is how often waiting and running requests are looked at: often
// enough for the shortest of the times to be kept within a tenth.
func (p *Pool) sweepEvery() time.Duration {
	shortest := p.cfg.QueueTimeout
	if p.cfg.Timeout > 0 {
		shortest = min(shortest, p.cfg.Timeout)
	}
	return min(max(shortest/10, 5*time.Millisecond), 250*time.Millisecond)
}

func (p *Pool) handle(e event) {
	switch e.kind {
	case eventAdopt:
		p.adopt(e.worker)
	case eventLaunched:
		p.launching--
		if e.err != nil {
			p.log.Error("replacement worker failed to start", "error", e.err)
			p.replace()
			return
		}
		p.adopt(e.worker)
	case eventRetry:
		p.launchAgain()
	case eventExit:
		p.exitedWorker(e.worker)
	case eventDoom:
		p.doom(e.worker, e.err, e.timeout)
	case eventStop:
		p.stop(e.by)
	}
}

// become changes a worker's state, or reports that it cannot.
func (w *worker) become(next state) bool {
	if !slices.Contains(transitions[w.state], next) {
		return false
	}
	w.state = next
	return true
}

// adopt takes a READY worker into the pool.
func (p *Pool) adopt(w *worker) {
	if w.state == exited { // its exit was reported first
		p.lost(w)
		return
	}
	p.workers[w] = struct{}{}
	w.become(ready)
	if p.stopping {
		p.drain(w)
		return
	}
	p.queue.add(w.slots)
}

// exitedWorker takes account of a process that was reaped.
func (p *Pool) exitedWorker(w *worker) {
	before := w.state
	w.become(exited)
	if _, known := p.workers[w]; !known {
		return // still in launch, which sees it by itself; or given up
	}
	delete(p.workers, w)
	p.queue.orphan(w.slots)
	_ = w.dump.Close()
	status := w.exitStatus(0)
	switch before {
	case draining:
		p.log.Debug("worker stopped", "pid", w.pid, "exit", status)
	case doomed:
		p.log.Info("worker ended", "pid", w.pid, "exit", status)
	default:
		p.log.Error("worker ended unexpectedly", "pid", w.pid, "exit", status)
		p.lost(w)
	}
}

// lost replaces a worker that ended.
func (p *Pool) lost(w *worker) {
	if w.served.Load() {
		p.failures = 0
	}
	p.replace()
}

// replace starts another worker: at once after the first failure, later with
// growing pauses.
func (p *Pool) replace() {
	if p.stopping {
		return
	}
	p.failures++
	if p.failures == 1 {
		p.launchAgain()
		return
	}
	pause := min(backoffMin<<min(p.failures-2, 10), backoffMax)
	p.log.Warn("workers end before they answer a request: waiting before the next", "failures", p.failures, "pause", pause)
	time.AfterFunc(pause, func() { p.post(event{kind: eventRetry}) })
}

// launchAgain starts a worker beside whatever else happens.
func (p *Pool) launchAgain() {
	if p.stopping {
		return
	}
	p.launching++
	p.background.Add(1)
	go func() {
		defer p.background.Done()
		w, err := p.launch()
		p.post(event{kind: eventLaunched, worker: w, err: err})
	}()
}

// doom takes a worker out of the pool and ends it; its replacement starts at once.
func (p *Pool) doom(w *worker, reason error, timeout bool) {
	if !w.become(doomed) {
		return
	}
	p.queue.retire(w.slots)
	p.background.Add(1)
	go func() {
		defer p.background.Done()
		if timeout {
			p.log.Warn("worker is replaced", "pid", w.pid, "reason", reason)
			w.logs.text(slog.LevelWarn, w.stacks(), "stream", "stacks")
			w.waitIdle(p.cfg.GracefulTimeout)
		} else {
			w.waitGone(exitGrace)
			p.log.Warn("worker is replaced", "pid", w.pid, "reason", reason)
		}
		p.terminate(w)
	}()
	p.lost(w)
}

// stop ends all workers.
func (p *Pool) stop(by time.Time) {
	if p.stopping {
		return
	}
	p.stopping, p.stopBy = true, by
	for w := range p.workers {
		p.drain(w)
	}
}

// drain lets a worker finish and exit; at the pool's deadline it is terminated.
func (p *Pool) drain(w *worker) {
	if !w.become(draining) {
		return
	}
	p.queue.retire(w.slots)
	for _, s := range w.slots {
		s.shut()
	}
	p.background.Add(1)
	go func() {
		defer p.background.Done()
		if !w.waitGone(max(time.Until(p.stopBy), exitGrace)) {
			p.terminate(w)
		}
	}()
}

// terminate ends a process: politely, then hard. One that survives SIGKILL is
// given up, so that the pool can go on and stop.
func (p *Pool) terminate(w *worker) {
	_ = w.signal(unix.SIGTERM)
	if w.waitGone(killAfter) {
		return
	}
	p.log.Warn("worker ignores SIGTERM: SIGKILL", "pid", w.pid)
	w.kill()
	if !w.waitGone(giveUpAfter) {
		p.log.Error("worker survives SIGKILL, giving it up", "pid", w.pid)
		close(w.abandoned)
		p.post(event{kind: eventExit, worker: w})
	}
}

// waitGone waits until the process is reaped, but not longer than d.
func (w *worker) waitGone(d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-w.gone:
		return true
	case <-timer.C:
		return false
	}
}

// waitIdle waits until no other slot of a doomed worker has a request.
func (w *worker) waitIdle(d time.Duration) {
	for end := time.Now().Add(d); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		busy := false
		for _, s := range w.slots {
			busy = busy || s.busySince.Load() != 0 && !s.timedOut.Load()
		}
		if !busy {
			return
		}
		select {
		case <-w.gone:
			return
		default:
		}
	}
}

// sweep ends the requests that have run too long.
func (p *Pool) sweep() {
	if p.cfg.Timeout <= 0 {
		return
	}
	now := monotonic()
	for w := range p.workers {
		for _, s := range w.slots {
			since := s.busySince.Load()
			if since == 0 || s.paused.Load() || time.Duration(now-since) < p.cfg.Timeout || s.timedOut.Load() {
				continue
			}
			if p.queue.overdue(s, since) {
				p.doom(w, errTimedOut, true)
			}
		}
	}
}
