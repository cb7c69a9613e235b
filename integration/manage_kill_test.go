package integration

import (
	"slices"
	"syscall"
	"testing"
)

const (
	killRounds  = 8
	killWorkers = 4
)

// TestManageKill: the end of a worker by SIGKILL costs the requests that it had,
// each answered with 502, and no other.
func TestManageKill(t *testing.T) {
	for name, c := range map[string]struct {
		flags   []string
		query   string
		threads int
	}{
		"one thread":      {nil, "ms=50", 1},
		"quick, ahead":    {nil, "ms=0", 1},
		"several threads": {[]string{"--threads", "3"}, "ms=50", 3},
		"preload":         {[]string{"--preload"}, "ms=20", 1},
	} {
		t.Run(name, func(t *testing.T) {
			m := manage(t, append([]string{"--workers", "4"}, c.flags...)...)
			l := m.load()
			l.add(nginxKept, 6, c.query)
			l.add(nginxNew, 6, c.query)
			l.add(viaHTTP, 2, c.query)
			l.awaitMore(t, 100)
			var killed []int
			for range killRounds {
				killed = append(killed, m.killBusy(t, killed))
				l.awaitMore(t, 20)
			}
			l.awaitMore(t, 100)
			l.end()
			m.wantOnlyTheirs(t, l, killed, c.threads)
			if s := m.look(t); s.Events.Crashed != killRounds {
				t.Errorf("%d crashes counted, want %d", s.Events.Crashed, killRounds)
			}
		})
	}
}

// killBusy kills the worker that began a request last, once the pool is complete.
func (m *managed) killBusy(t *testing.T, killed []int) int {
	t.Helper()
	var victim int
	m.await(t, "complete pool and a worker to kill", startTime, func() bool {
		if s := m.look(t); s.Starting > 0 || len(s.Workers) != killWorkers {
			return false
		}
		victim = m.lastBegun(t)
		return victim != 0 && runs(victim) && !slices.Contains(killed, victim)
	})
	if err := syscall.Kill(victim, syscall.SIGKILL); err != nil {
		t.Error(err)
	}
	return victim
}

// wantOnlyTheirs wants that the requests which failed are those that the killed
// workers had.
func (m *managed) wantOnlyTheirs(t *testing.T, l *load, killed []int, threads int) {
	t.Helper()
	j, failed, unseen := m.journal(t), l.failures(), 0
	for id, o := range failed {
		if o.err != nil || o.status != 502 {
			t.Errorf("request %d: %v; want a 502", id, o)
		}
		switch pids := j.begun[id]; {
		case len(pids) == 0:
			unseen++ // read by the worker, and not yet given to the application
		case !slices.Contains(killed, pids[0]):
			t.Errorf("request %d failed in worker %d, which was not killed: %v", id, pids[0], o)
		}
	}
	had := 0
	for id, pids := range j.begun {
		if !slices.Contains(killed, pids[0]) || len(j.ended[id]) > 0 {
			continue
		}
		had++
		if _, ok := failed[id]; !ok {
			t.Errorf("request %d was lost with worker %d, and answered: %v", id, pids[0], l.outcomes[id])
		}
	}
	if most := len(killed) * threads; unseen > most || had > most {
		t.Errorf("%d workers of %d threads lost %d requests, and %d that they had not begun", len(killed), threads, had, unseen)
	}
	j.wantNoneTwice(t)
	t.Logf("%d requests; %d workers killed had %d, and %d not begun; %d failed", len(l.outcomes), len(killed), had, unseen, len(failed))
}

// TestManageKillIdle: nobody notices the end of workers that have nothing to do.
func TestManageKillIdle(t *testing.T) {
	m := manage(t, "--workers", "4")
	l := m.load()
	for _, way := range []string{nginxKept, viaHTTP, viaSCGI} {
		c := &caller{m: m, way: way}
		defer c.hangUp()
		for range 10 { // each worker has answered before its end: that is no crash loop
			l.one(c, "ms=0")
		}
	}
	l.add(viaHTTP, 1, "ms=5")
	for range killRounds {
		l.awaitMore(t, 5)
		pids := children(m.gateways(t)[0])
		busy := m.lastBegun(t) // one client at a time: the slot used last is used again
		for _, pid := range pids {
			if pid != busy {
				if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
					t.Error(err)
				}
				break
			}
		}
		m.await(t, "complete pool", startTime, func() bool {
			now := children(m.gateways(t)[0])
			s := m.look(t)
			return s.Starting == 0 && len(s.Workers) == killWorkers && !slices.Equal(now, pids)
		})
	}
	l.end()
	l.wantAllOnce(t)
}
