package pyrunner

import (
	"errors"
	"fmt"
	"slices"
	"time"
)

// reload is a change of the generation; the owner's. The first new worker is the
// canary: the others are not launched before it is READY and has answered the
// probe.
//
//	canary -> probe -> the rest, in standby -> switch all at once -> old ones drain
//	canary -> probe -> takes the place of one -> that has ended -> the next   (rolling)
type reload struct {
	gen       *generation
	began     time.Time
	replies   []chan<- error
	want      int // workers
	launching int
	probing   bool // the canary is asked Config.Probe
	passed    bool // the canary is good
	fresh     []*worker

	old     []*worker // rolling: those still to be replaced
	leaving *worker   // rolling: the one whose end is awaited
}

// askReload notes who waits for a reload; balance begins it.
func (p *Pool) askReload(reply chan<- error) {
	if p.stopping {
		reply <- fmt.Errorf("pyrunner: %w", errStopped)
		return
	}
	p.asked = append(p.asked, reply)
}

// beginReload launches the canary.
func (p *Pool) beginReload() {
	p.reloading = &reload{
		gen:     newGeneration(p.starts, p.gen.number+1),
		began:   time.Now(),
		replies: p.asked,
		want:    max(p.have(), p.sizer.target, 1),
	}
	p.asked = nil
	p.last = &ReloadState{Began: p.reloading.began, Running: true}
	p.log.Info("reload begins", "generation", p.reloading.gen.number, "workers", p.reloading.want)
	p.launchFresh()
}

func (p *Pool) launchFresh() {
	p.reloading.launching++
	p.launchFor(eventFresh, p.reloading.gen)
}

// fresh takes account of a worker that a reload launched.
func (p *Pool) fresh(e event) {
	r := p.reloading
	if r == nil || e.gen != r.gen { // it was given up meanwhile
		if e.err == nil {
			p.dismiss(e.worker)
		}
		return
	}
	r.launching--
	switch {
	case e.err != nil:
		p.endReload(e.err)
	case !p.join(e.worker):
		p.endReload(errors.New("a new worker ended as soon as it had imported the application: " + e.worker.exitStatus(0)))
	default:
		r.fresh = append(r.fresh, e.worker)
		if !r.passed && p.cfg.Probe != nil {
			r.probing = true
			p.inBackground(func() { p.post(event{kind: eventProbed, worker: e.worker, gen: r.gen, err: p.probe(e.worker)}) })
			return
		}
		p.advance()
	}
}

// probed takes account of the canary's answer.
func (p *Pool) probed(e event) {
	r := p.reloading
	if r == nil || e.gen != r.gen {
		return
	}
	r.probing = false
	switch {
	case e.err != nil:
		p.endReload(e.err)
	case e.worker.state != standby:
		p.endReload(errors.New("the new worker ended after the probe: " + e.worker.exitStatus(0)))
	default:
		p.advance()
	}
}

// advance goes on with a reload whose workers so far are good.
func (p *Pool) advance() {
	r := p.reloading
	if !r.passed {
		r.passed = true
		if p.cfg.ReloadRolling {
			p.enter(r.gen)
			r.old = p.serving()
		}
	}
	if p.cfg.ReloadRolling {
		p.roll()
		return
	}
	for len(r.fresh)+r.launching < r.want && r.launching < maxStarting {
		p.launchFresh()
	}
	if len(r.fresh) == r.want {
		p.switchOver()
	}
}

// serving returns the workers that take requests.
func (p *Pool) serving() []*worker {
	var all []*worker
	for w := range p.workers {
		if w.state == ready {
			all = append(all, w)
		}
	}
	return all
}

// enter makes that generation the one that later workers belong to.
func (p *Pool) enter(gen *generation) {
	p.retired = append(p.retired, p.gen)
	p.gen = gen
	p.refused = false
	p.backoff.clear()
}

// switchOver gives the requests to the new workers, all at once.
func (p *Pool) switchOver() {
	r := p.reloading
	p.enter(r.gen)
	old := p.serving()
	p.replace(r.fresh, old)
	p.sizer.target = max(p.sizer.target, len(r.fresh))
	p.endReload(nil)
}

// replace gives requests to the fresh workers and none to the old ones any more.
func (p *Pool) replace(fresh, old []*worker) {
	var in, out []*slot
	for _, w := range fresh {
		w.become(ready)
		in = append(in, w.slots...)
	}
	for _, w := range old {
		out = append(out, w.slots...)
	}
	p.queue.swap(in, out)
	for _, w := range old {
		p.drain(w, time.Now().Add(p.cfg.GracefulTimeout))
	}
}

// roll replaces one worker, unless the end of the one before is awaited.
func (p *Pool) roll() {
	r := p.reloading
	if len(r.fresh) > 0 {
		var out []*worker
		r.old = ofState(r.old, ready) // others ended by themselves
		if len(r.old) > 0 {
			out, r.old = r.old[:1], r.old[1:]
			r.leaving = out[0]
		}
		p.replace(r.fresh, out)
		r.fresh = nil
	}
	switch {
	case r.leaving != nil || r.launching > 0:
	case len(ofState(r.old, ready)) > 0:
		p.launchFresh()
	default:
		p.endReload(nil)
	}
}

func ofState(workers []*worker, s state) []*worker {
	var found []*worker
	for _, w := range workers {
		if w.state == s {
			found = append(found, w)
		}
	}
	return found
}

// endReload tells everybody who waits. After an error the new workers go; in
// rolling mode those that serve already stay.
func (p *Pool) endReload(err error) {
	r := p.reloading
	p.reloading = nil
	p.last.Running, p.last.Took = false, time.Since(r.began)
	if err != nil {
		if r.passed && p.cfg.ReloadRolling {
			err = fmt.Errorf("some workers run the new code, the others still the old: %w", err)
		}
		p.refused = true
		p.counts.ReloadFailures++
		p.last.Error = err.Error()
		p.log.Error("reload failed: the old workers serve on", "error", err)
		for _, w := range r.fresh {
			p.drain(w, time.Now().Add(p.cfg.GracefulTimeout))
		}
		if p.gen != r.gen {
			r.gen.close()
		}
		err = fmt.Errorf("pyrunner: %w", err)
	} else {
		p.counts.Reloads++
		p.log.Info("reloaded", "generation", r.gen.number, "workers", p.inState(ready), "took", p.last.Took.Round(time.Millisecond))
	}
	for _, reply := range r.replies {
		reply <- err
	}
}

// left takes account of a worker's end, for what waits for it.
func (p *Pool) left(w *worker) {
	if r := p.recycling; r != nil && r.old == w && !r.launching {
		p.recycling = nil
	}
	if r := p.reloading; r != nil {
		if r.leaving == w {
			r.leaving = nil
			p.roll()
		} else if slices.Contains(r.fresh, w) && !r.probing { // else the probe tells
			p.endReload(errors.New("a new worker ended before it got a request: " + w.exitStatus(0)))
		}
	}
}

// closeRetired ends the generations that have no worker any more.
func (p *Pool) closeRetired() {
	kept := p.retired[:0]
	for _, g := range p.retired {
		alive := false
		for w := range p.workers {
			alive = alive || w.gen == g
		}
		if alive {
			kept = append(kept, g)
		} else {
			g.close()
		}
	}
	clear(p.retired[len(kept):])
	p.retired = kept
}
