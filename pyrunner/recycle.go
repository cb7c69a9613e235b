package pyrunner

import (
	"math/rand/v2"
	"time"
)

// recycling is the replacement of a worker that has reached a limit of its life;
// the owner's. There is one at a time, so that the others carry the load.
type recycling struct {
	old       *worker
	launching bool // the spare is not READY yet; afterwards: old is leaving
}

// A worker past Config.MaxMemory by this part gets no requests until its spare is
// READY: it would outgrow the machine meanwhile.
const restMemory = 4 // a fourth

// growMemory is by which part of what it has after the import a worker may grow at
// least, whatever Config.MaxMemory is.
const growMemory = 4 // a fourth

// maxRest is how long a worker rests at most: its spare may wait for a reload, or for
// a worker that leaves slowly, and requests that wait have their time (see restFor).
const maxRest = 5 * time.Second

// wearMemory is how often, at most, a worker's memory is looked at between requests.
const wearMemory = 10 * time.Millisecond

// limitLife sets the limits of a worker's life: up to a tenth below those of the
// configuration, so that workers that started together do not end together. Memory is
// limited to more than the worker has now: another one would not have less.
func (p *Pool) limitLife(w *worker) {
	if n := p.cfg.MaxRequests; n > 0 {
		w.maxRequests = uint64(n - rand.IntN(n/10+1))
	}
	if d := p.cfg.MaxAge; d > 0 {
		w.maxAge = d - rand.N(d/10+1)
	}
	if w.maxMemory = p.cfg.MaxMemory; w.maxMemory > 0 {
		if rss := w.rss(); rss+rss/growMemory > w.maxMemory {
			w.maxMemory = rss + rss/growMemory
			p.warnMemory(w, rss)
		}
	}
}

// warnMemory says, once in each generation, that the limit is too low for the application.
func (p *Pool) warnMemory(w *worker, rss int64) {
	if w.gen.large {
		return
	}
	w.gen.large = true
	p.log.Warn("--max-memory is too low for this application: each worker may have a fourth more than after its import",
		"pid", w.pid, "limit", p.cfg.MaxMemory, "rss", rss, "allowed", w.maxMemory)
}

// wear takes account of a request's end in a worker. It is called before the slot
// is given back.
func (p *Pool) wear(w *worker) {
	n := w.asked.Add(1)
	if w.maxRequests > 0 && n >= w.maxRequests || w.maxMemory > 0 && p.overMemory(w) {
		p.wornOut(w)
	}
}

// wornOut tells the owner, once, that the worker is to be replaced.
func (p *Pool) wornOut(w *worker) {
	if w.worn.CompareAndSwap(false, true) {
		p.post(event{kind: eventWorn, worker: w})
	}
}

// overMemory reports whether the worker has more memory than it may have.
func (p *Pool) overMemory(w *worker) bool {
	now := monotonic()
	before := w.weighed.Load()
	if now-before < int64(wearMemory) || !w.weighed.CompareAndSwap(before, now) {
		return false
	}
	rss := w.rss()
	if rss > w.maxMemory+w.maxMemory/restMemory && w.resting.CompareAndSwap(0, now) {
		p.queue.hold(w.slots)
		if w.resting.Load() == tireless { // since then
			p.queue.add(w.slots)
		}
	}
	return rss > w.maxMemory
}

// restFor is how long workers rest at most.
func (p *Pool) restFor() time.Duration { return min(maxRest, p.cfg.QueueTimeout/4) }

// noteWear looks for workers whose age or memory is over its limit though they
// answer nothing, and for those that have rested long enough.
func (p *Pool) noteWear(now time.Time) {
	for w := range p.workers {
		if since := w.resting.Load(); since > 0 && monotonic()-since > int64(p.restFor()) {
			p.serveOn(w)
		}
		if w.state == ready && (w.maxAge > 0 && now.Sub(w.begun) >= w.maxAge || w.maxMemory > 0 && p.overMemory(w)) {
			w.worn.Store(true)
		}
	}
}

// recycle launches a spare for the worn worker that has lived longest.
func (p *Pool) recycle(now time.Time) {
	if p.recycling != nil || p.reloading != nil || !p.backoff.over(now) {
		return
	}
	var oldest *worker
	for w := range p.workers {
		if w.state == ready && w.worn.Load() && (oldest == nil || w.begun.Before(oldest.begun)) {
			oldest = w
		}
	}
	if oldest == nil {
		return
	}
	p.log.Info("worker has reached a limit of its life and is replaced", "pid", oldest.pid, "requests", oldest.asked.Load(),
		"age", now.Sub(oldest.begun).Round(time.Second), "rss", oldest.rss())
	p.recycling = &recycling{old: oldest, launching: true}
	p.launchFor(eventSpare, p.gen)
}

// spare takes account of the worker that is to replace a worn one.
func (p *Pool) spare(e event) {
	r := p.recycling
	r.launching = false
	switch {
	case e.err != nil:
		p.recycling = nil
		p.allServeOn()
		if e.gen == p.gen && !p.stopping {
			p.log.Error("replacement worker failed to start, the old one serves on", "pid", r.old.pid, "error", e.err)
			p.fail(e.began, e.err.Error(), atStart)
		}
	case e.gen != p.gen || p.stopping:
		p.recycling = nil
		p.dismiss(e.worker)
	case r.old.state != ready:
		p.recycling = nil
		p.adopt(e.worker)
	case p.join(e.worker):
		p.counts.Recycled++
		p.backoff.started()
		p.replace([]*worker{e.worker}, []*worker{r.old}) // its end ends the recycling
	default:
		p.recycling = nil
		p.allServeOn()
		p.fail(e.worker.begun, e.worker.endedEarly(), inService)
	}
}

// tireless is worker.resting of one that may not rest any more.
const tireless = -1

// allServeOn ends the rest of all workers: none of them can be replaced now.
func (p *Pool) allServeOn() {
	for w := range p.workers {
		p.serveOn(w)
	}
}

// serveOn ends the rest of a worker for good.
func (p *Pool) serveOn(w *worker) {
	if w.state == ready && w.worn.Load() && w.resting.Swap(tireless) > 0 {
		p.queue.add(w.slots)
	}
}
