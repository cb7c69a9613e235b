package integration

import (
	"syscall"
	"testing"
	"time"
)

// upgrades is how many binaries follow each other in TestManageUpgrade.
const upgrades = 3

// TestManageUpgrade: SIGUSR2 under load lets another gateway take over all
// listeners. No request fails by any way in, kept connections included.
func TestManageUpgrade(t *testing.T) {
	m := manage(t, "--workers", "2")
	before := m.warm(t)
	m.startNginx(t)

	l := m.loadAll(t)
	for _, way := range []string{viaHTTP, nginxSCGI, viaSCGI, viaFCGI} {
		l.add(way, 2, "ms=5")
	}
	for range upgrades {
		l.awaitMore(t, 50)
		took := m.upgrade(t)
		t.Logf("upgraded after %v", took.Round(time.Millisecond))
		m.look(t) // the control socket is the new one's
	}
	m.release(t, healthy(55))
	m.reload(t)
	m.wantCode(t, 55)
	l.awaitMore(t, 50)
	l.end(t)
	l.wantAllOnce(t)
	m.wantFootprint(t, before)
}

// TestManageUpgradeApache: nor behind Apache, which looks whether a connection has ended
// before it uses it again.
func TestManageUpgradeApache(t *testing.T) {
	backend := net127(freePort(t))
	m := manage(t, "--workers", "2", "--fastcgi", backend)
	m.startApache(t, backend)
	l := m.load()
	l.add(apacheKept, 4, "ms=1")
	for range upgrades {
		l.awaitMore(t, 500)
		m.upgrade(t)
	}
	l.awaitMore(t, 500)
	l.end()
	l.wantAllOnce(t)
}

// warm measures the gateway at rest after it has served a while.
func (m *managed) warm(t *testing.T) footprint {
	t.Helper()
	l := m.loadAll(t)
	l.add(viaHTTP, 2, "ms=5")
	l.awaitMore(t, 100)
	l.end(t)
	return m.atRest(t)
}

// upgrade sends SIGUSR2 and waits until the next gateway is alone.
func (m *managed) upgrade(t testing.TB) time.Duration {
	t.Helper()
	old := m.gateways(t)[0]
	began := time.Now()
	if err := syscall.Kill(old, syscall.SIGUSR2); err != nil {
		t.Fatal(err)
	}
	m.await(t, "upgrade", clientTime, func() bool {
		now := m.gateways(t)
		return len(now) == 1 && now[0] != old
	})
	return time.Since(began)
}
