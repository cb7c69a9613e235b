package pyrunner

import (
	"cmp"
	"slices"
	"time"
)

// report makes the status.
func (p *Pool) report(now time.Time) Status {
	waiting, _ := p.queue.pressure()
	s := Status{
		App:        p.cfg.appName(),
		State:      p.health(),
		Started:    p.started,
		Generation: p.gen.number,
		Threads:    p.cfg.Threads,
		MinWorkers: p.cfg.MinWorkers,
		MaxWorkers: p.cfg.Workers,
		Starting:   p.launching(),
		Workers:    []WorkerStatus{},
		Waiting:    waiting,
		QueueLimit: p.cfg.Queue,
		Requests:   p.stats.counters(),
		Latency:    p.stats.histogram(),
		LatencySum: time.Duration(p.stats.latencySum.Load()),
		Events:     p.counts,
		Incidents:  p.incidents.list(),
		PreloadOff: p.gen.whyExec(),
	}
	s.Rate = p.rate.perSecond(now, s.Requests.Answered)
	if p.backoff.looping() {
		s.CrashLoop = &CrashLoop{Failures: p.backoff.failures, RetryAt: p.backoff.until, Reason: p.backoff.reason}
	}
	if p.last != nil {
		last := *p.last
		if last.Running {
			last.Took = now.Sub(last.Began)
		}
		s.Reload = &last
	}
	for w := range p.workers {
		s.Workers = append(s.Workers, p.reportWorker(w))
	}
	slices.SortFunc(s.Workers, func(a, b WorkerStatus) int {
		return cmp.Or(a.Started.Compare(b.Started), cmp.Compare(a.PID, b.PID))
	})
	return s
}

// health sums the pool up.
func (p *Pool) health() Health {
	switch {
	case p.stopping:
		return HealthStopping
	case p.backoff.looping():
		return HealthCrashLoop
	case p.reloading != nil:
		return HealthReloading
	case p.inState(ready) > 0:
		return HealthReady
	case p.launching() == 0 && p.cfg.MinWorkers == 0 && p.sizer.on:
		return HealthIdle
	}
	return HealthStarting
}

func (p *Pool) reportWorker(w *worker) WorkerStatus {
	used := w.usage()
	s := WorkerStatus{
		PID:        w.pid,
		State:      w.state.String(),
		Generation: w.gen.number,
		Started:    w.begun,
		Requests:   w.asked.Load(),
		CPU:        used.CPU,
		RSS:        used.RSS,
		PeakRSS:    used.PeakRSS,
		Forked:     w.forked,
		IdleFor:    p.queue.idleFor(w.slots),
		Current:    []RequestStatus{},
	}
	for _, slot := range w.slots {
		if r, ok := slot.about(); ok {
			s.Current = append(s.Current, r)
		}
	}
	return s
}
