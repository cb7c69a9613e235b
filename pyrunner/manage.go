package pyrunner

import (
	"slices"
	"time"

	"golang.org/x/sys/unix"
)

// event is what happened, as its observers tell the owner.
type event struct {
	kind   eventKind
	worker *worker
	gen    *generation
	err    error
	by     time.Time     // eventStop
	began  time.Time     // eventLaunched: when the launch did
	reply  chan<- error  // eventReload
	status chan<- Status // eventStatus
	done   chan struct{} // closed when the event was handled, if not nil
}

type eventKind uint8

const (
	eventAdopt    eventKind = iota // a worker of Start is READY
	eventStarted                   // Start is through
	eventLaunched                  // a worker for the pool's size is READY, or failed (err)
	eventFresh                     // the same of a worker that a reload launched
	eventSpare                     // the same of a worker that is to replace a worn one
	eventProbed                    // the canary has answered the probe, or failed (err)
	eventReload                    // somebody asks for a reload
	eventWorn                      // a worker has reached a limit of its life
	eventExit                      // a process was reaped
	eventDoom                      // a worker lost its socket, broke the protocol or hangs
	eventStatus                    // somebody asks for the status
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
	for !p.stopping || len(p.workers) > 0 || p.launches > 0 {
		select {
		case e := <-p.events:
			p.handle(e)
			if e.done != nil {
				close(e.done)
			}
		case <-p.queue.short:
			// balance looks how many wait
		case <-p.sizer.timer():
		case now := <-tick.C:
			p.queue.expire(now)
			p.sweep(now)
		}
		p.balance(time.Now())
	}
	for _, g := range append(p.retired, p.gen) {
		g.close()
	}
}

// launching is how many workers are not READY yet.
func (p *Pool) launching() int {
	n := p.sizer.launching
	if !p.sizer.on {
		n += max(0, p.sizer.target-len(p.workers)) // those of Start
	}
	if p.reloading != nil {
		n += p.reloading.launching
	}
	if p.recycling != nil && p.recycling.launching {
		n++
	}
	return n
}

// sweepEvery is how often waiting and running requests are looked at: often
// enough for the shortest of the times to be kept within a tenth.
func (p *Pool) sweepEvery() time.Duration {
	shortest := p.cfg.QueueTimeout
	for _, d := range []time.Duration{p.cfg.Timeout, p.cfg.Slow, p.cfg.IdleTimeout} {
		if d > 0 {
			shortest = min(shortest, d)
		}
	}
	return min(max(shortest/10, 5*time.Millisecond), 250*time.Millisecond)
}

func (p *Pool) handle(e event) {
	switch e.kind {
	case eventLaunched, eventFresh, eventSpare:
		p.launches--
	}
	switch e.kind {
	case eventAdopt:
		p.adopt(e.worker)
	case eventStarted:
		p.sizer.on = true
	case eventLaunched:
		p.launched(e)
	case eventFresh:
		p.fresh(e)
	case eventSpare:
		p.spare(e)
	case eventProbed:
		p.probed(e)
	case eventReload:
		p.askReload(e.reply)
	case eventWorn:
		// balance looks which
	case eventExit:
		p.exitedWorker(e.worker)
	case eventDoom:
		p.doom(e.worker, e.err)
	case eventStatus:
		e.status <- p.report(time.Now())
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

// join takes a READY worker into the account, without giving it requests. It
// returns false if the worker has ended already.
func (p *Pool) join(w *worker) bool {
	p.counts.Started++
	if w.state == exited { // its exit was reported first
		w.closeOurs()
		if !w.told.Load() {
			p.reportCrash(w)
		}
		return false
	}
	p.workers[w] = struct{}{}
	p.limitLife(w)
	w.become(standby)
	return true
}

// adopt takes a READY worker into the pool.
func (p *Pool) adopt(w *worker) {
	if !p.join(w) {
		p.lost(w)
		return
	}
	if p.stopping {
		p.drain(w, p.stopBy)
		return
	}
	w.become(ready)
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
	p.backoff.explain(w.begun, w.endedEarly())
	switch {
	case w.told.Load():
		p.log.Info("worker ended", "pid", w.pid, "exit", status)
	case before == draining && len(w.requests()) == 0:
		p.log.Debug("worker stopped", "pid", w.pid, "exit", status)
	default:
		p.reportCrash(w)
	}
	if before == ready {
		p.lost(w)
	}
	p.left(w)
}

// reportCrash makes an incident of a worker's end.
func (p *Pool) reportCrash(w *worker) {
	if p.reportExit(w) == kindOutOfMemory {
		p.counts.OutOfMemory++
	}
	p.counts.Crashed++
}

// doom takes a worker out of the pool that lost its socket or broke the protocol,
// and ends it; its replacement starts at once.
func (p *Pool) doom(w *worker, reason error) {
	if !p.condemned(w) {
		return
	}
	message := "worker is replaced"
	if p.stopping {
		message = "worker is ended"
	}
	p.inBackground(func() {
		w.waitGone(exitGrace)
		p.log.Warn(message, "pid", w.pid, "reason", reason)
		p.terminate(w)
	})
}

// condemned makes a worker doomed, and reports whether it was not before.
func (p *Pool) condemned(w *worker) bool {
	served := w.state == ready
	if !w.become(doomed) {
		return false
	}
	p.queue.retire(w.slots)
	if served {
		p.lost(w)
	}
	return true
}

// overdue takes a worker out of the pool in which that request has run too long. The
// worker may have several of them: each is reported before it is ended.
func (p *Pool) overdue(w *worker, r RequestStatus) {
	p.counts.TimedOut++
	w.served.Store(true) // it could have: this is no failed start
	first := p.condemned(w)
	w.reporting.Add(1)
	p.inBackground(func() {
		if first {
			p.log.Warn("worker is replaced", "pid", w.pid, "reason", errTimedOut)
		}
		p.reportTimeout(w, r)
		if p.cfg.RaiseOnTimeout {
			w.raise()
		}
		w.reporting.Add(-1)
		if first {
			w.waitIdle(p.cfg.GracefulTimeout)
			p.terminate(w)
		}
	})
}

// stop ends all workers.
func (p *Pool) stop(by time.Time) {
	if p.stopping {
		return
	}
	p.stopping, p.stopBy = true, by
	p.stopStarts()
	if p.reloading != nil {
		p.endReload(errStopped)
	}
	for w := range p.workers {
		if w.state == draining || w.state == doomed {
			p.endBy(w, by) // it was given more time before
		}
		p.drain(w, by)
	}
}

// drain lets a worker finish and exit; at that time it is terminated.
func (p *Pool) drain(w *worker, by time.Time) {
	if !w.become(draining) {
		return
	}
	p.queue.letGo(w.slots)
	if p.stopping {
		by = p.stopBy
	}
	p.endBy(w, by)
}

// endBy terminates a worker if it has not ended at that time.
func (p *Pool) endBy(w *worker, by time.Time) {
	p.inBackground(func() {
		if !w.waitGone(max(time.Until(by), exitGrace)) {
			p.terminate(w)
		}
	})
}

// terminate ends a process: politely, then hard. One that survives SIGKILL is
// given up, so that the pool can go on and stop. Of several who want that, one does
// it, and the others wait.
func (p *Pool) terminate(w *worker) { w.terminated.Do(func() { p.terminateNow(w) }) }

func (p *Pool) terminateNow(w *worker) {
	select {
	case <-w.gone: // by itself
		return
	default:
	}
	w.told.Store(true)
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

// raiseWait is how long the exception of Config.RaiseOnTimeout may take to end the
// request before SIGTERM.
const (
	raiseWait  = time.Second
	raiseTimes = 10 // that the worker is signalled meanwhile
)

// raise has an exception raised in the thread of each request that was cancelled.
func (w *worker) raise() {
	if !conditionOf(w.pid).catches(raiseSignal) {
		return // it would end the process, without the finally clauses that this is for
	}
	for range raiseTimes { // once may be just before a thread sleeps in the kernel, which it does not end
		if w.signal(raiseSignal) != nil || w.waitGone(raiseWait/raiseTimes) {
			return
		}
	}
}

// waitGone waits until the process is reaped, but not longer than d, and not for one
// that was given up.
func (w *worker) waitGone(d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-w.gone:
		return true
	case <-w.abandoned:
		return false
	case <-timer.C:
		return false
	}
}

// waitIdle waits until no other slot of a doomed worker has a request, and all that is
// to be told of those that took too long is.
func (w *worker) waitIdle(d time.Duration) {
	for end := time.Now().Add(d); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		busy := w.reporting.Load() > 0
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

// sweep looks at the requests that run, ends those that have run too long, and
// lets go what nobody needs.
func (p *Pool) sweep(now time.Time) {
	p.rate.tick(now, p.stats.answered.Load())
	for w := range p.workers {
		for _, s := range w.slots {
			p.sweepSlot(w, s)
		}
	}
	p.oom.look(now)
	p.shrink()
	p.noteWear(now)
	if p.backoff.heal(p.workers, now) {
		p.log.Info("workers live again: the crash loop is over", "app", p.cfg.appName())
	}
}

func (p *Pool) sweepSlot(w *worker, s *slot) {
	since := s.busySince.Load()
	if since == 0 || s.paused.Load() || s.timedOut.Load() {
		return
	}
	took := time.Duration(monotonic() - since)
	if p.cfg.Slow > 0 && took >= p.cfg.Slow {
		if r, ok := s.about(); ok && r.For >= p.cfg.Slow && r.ID != s.reported {
			s.reported = r.ID
			p.counts.Slow++
			p.inBackground(func() { p.reportSlow(w, r) })
		}
	}
	if p.cfg.Timeout <= 0 || took < p.cfg.Timeout {
		return
	}
	r, _ := s.about() // before the request is woken, which ends it
	if p.queue.overdue(s, since, p.cfg.RaiseOnTimeout) {
		p.overdue(w, r)
	}
}
