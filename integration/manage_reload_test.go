package integration

import (
	"fmt"
	"math/rand/v2"
	"strings"
	"syscall"
	"testing"
	"time"
)

// reloads is how many each round of TestManageReload asks for.
const reloads = 25

// TestManageReload: reloads under load, as quickly as they can be asked for and one
// after the other. No request fails, none runs twice, the code is that of the
// last release, and the gateway holds what it held before.
func TestManageReload(t *testing.T) {
	m := manage(t, "--workers", "2")
	m.release(t, healthy(100))
	warm := m.loadAll(t)
	warm.awaitMore(t, 50)
	m.reload(t)
	warm.end(t)
	before := m.atRest(t)
	m.startNginx(t)

	l := m.loadAll(t)
	l.awaitMore(t, 50)
	old, first := children(m.gateways(t)[0]), m.look(t).Generation
	began := time.Now()
	for range reloads {
		m.signal(t, syscall.SIGHUP)
		time.Sleep(rand.N(25 * time.Millisecond)) // what is asked, not waited for
	}
	m.awaitReloaded(t, first)
	quick := m.look(t).Generation - first
	t.Logf("%d SIGHUPs within %v made %d reloads", reloads, time.Since(began).Round(time.Millisecond), quick)
	if quick < 1 || quick > reloads/2 {
		t.Errorf("%d SIGHUPs made %d reloads: they are not taken together", reloads, quick)
	}
	began = time.Now()
	for i := range reloads {
		m.release(t, healthy(101+i))
		m.reload(t)
		m.wantCode(t, 101+i)
	}
	t.Logf("%d reloads one after the other took %v", reloads, time.Since(began).Round(time.Millisecond))
	if n := m.look(t).Generation - first - quick; n != reloads {
		t.Errorf("%d reloads made %d generations", reloads, n)
	}
	l.awaitMore(t, 50)
	l.end(t)
	l.wantAllOnce(t)
	m.wantOneGeneration(t, 2, old)
	m.wantFootprint(t, before)
}

// TestManageReloadWays: reloads with other shapes of pools, through the other ways
// in.
func TestManageReloadWays(t *testing.T) {
	for name, c := range map[string]struct {
		flags   []string
		ways    []string
		workers int
	}{
		"rolling":           {[]string{"--workers", "3", "--reload-mode", "rolling"}, []string{nginxKept, viaHTTP}, 3},
		"threads":           {[]string{"--workers", "2", "--threads", "4"}, []string{nginxNew, nginxSCGI}, 2},
		"dynamic, scgi":     {[]string{"--workers", "1:4"}, []string{viaSCGI, viaFCGI}, 0},
		"probe, on demand":  {[]string{"--workers", "0:2", "--probe", "/health"}, []string{viaHTTP}, 0},
		"preload":           {[]string{"--workers", "2", "--preload"}, []string{nginxKept, viaHTTP}, 3},
		"preload, rolling":  {[]string{"--workers", "2", "--preload", "--reload-mode", "rolling"}, []string{nginxNew}, 3},
		"worn out meantime": {[]string{"--workers", "2", "--max-requests", "50"}, []string{nginxKept, viaSCGI}, 0},
	} {
		t.Run(name, func(t *testing.T) {
			m := manage(t, c.flags...)
			l := m.load()
			for _, way := range c.ways {
				l.add(way, 4, "ms=5")
			}
			l.awaitMore(t, 20)
			old := children(m.gateways(t)[0])
			began := time.Now()
			const times = 6
			for i := range times {
				m.release(t, healthy(1000+i))
				m.reload(t)
				m.wantCode(t, 1000+i)
			}
			t.Logf("%d reloads took %v", times, time.Since(began).Round(time.Millisecond))
			l.awaitMore(t, 20)
			l.end()
			l.wantAllOnce(t)
			if c.workers > 0 {
				m.wantOneGeneration(t, c.workers, old)
			}
		})
	}
}

// mixed is a load of numbered requests with wrk beside it.
type mixed struct {
	*load
	wrks []*wrk
}

// loadAll asks through nginx with kept connections and with new ones.
func (m *managed) loadAll(t testing.TB) mixed {
	t.Helper()
	l := mixed{m.load(), []*wrk{m.wrk(t, nginxKept), m.wrk(t, nginxNew)}}
	l.add(nginxKept, 3, "ms=5")
	l.add(nginxNew, 3, "ms=5")
	return l
}

func (l mixed) end(t testing.TB) {
	t.Helper()
	l.load.end()
	for _, w := range l.wrks {
		w.end(t)
	}
}

// reload runs the command, which must succeed.
func (m *managed) reload(t testing.TB) {
	t.Helper()
	if status, stdout, stderr := m.command(t, "reload"); status != 0 || !strings.Contains(stdout, "reloaded") {
		t.Fatalf("wsgigate reload: status %d, stdout %q, stderr %q", status, stdout, stderr)
	}
}

// wantCode wants that release from a request that comes now.
func (m *managed) wantCode(t testing.TB, code int) {
	t.Helper()
	a := m.want(t, viaHTTP, get("/run?id=0"), 200)
	if !strings.Contains(string(a.body), fmt.Sprintf(`"code": %d}`, code)) {
		t.Errorf("the release that answers is not %d: %s", code, a.body)
	}
}

// awaitReloaded waits until a reload has happened and none is due any more.
func (m *managed) awaitReloaded(t testing.TB, before int) {
	t.Helper()
	calm := 0
	m.await(t, "end of the reloads", startTime, func() bool {
		s := m.look(t)
		if calm++; s.State != "ready" || s.Generation == before {
			calm = 0
		}
		return calm == 3
	})
}

// wantOneGeneration waits until the gateway has so many children and none of the
// old ones.
func (m *managed) wantOneGeneration(t testing.TB, workers int, old []int) {
	t.Helper()
	pid := m.gateways(t)[0]
	var now []int
	m.await(t, fmt.Sprintf("%d workers, none of %v", workers, old), startTime, func() bool {
		now = children(pid)
		return len(now) == workers && !shares(now, old)
	})
	s := m.look(t)
	for _, w := range s.Workers {
		if w.Generation != s.Generation {
			t.Errorf("worker %d is of generation %d, the pool of %d", w.PID, w.Generation, s.Generation)
		}
	}
}

func shares(a, b []int) bool {
	for _, x := range a {
		for _, y := range b {
			if x == y {
				return true
			}
		}
	}
	return false
}
