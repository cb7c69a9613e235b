package integration

import (
	"strings"
	"testing"
	"time"
)

// failingReleases are what a reload must not let through, with what the command
// must say about each.
var failingReleases = []struct {
	name, source string
	says         []string
}{
	{"syntax error", "CODE = (\n", []string{"SyntaxError", "release.py", "Traceback"}},
	{"raises", "raise RuntimeError('not today')\n", []string{"RuntimeError: not today", "release.py", "Traceback"}},
	{"leaves", "import os\nos._exit(3)\n", []string{"exit status 3"}},
	{"hangs", "import time\ntime.sleep(3600)\n", []string{"startup-timeout"}},
	{"is not healthy", "CODE = 9\nHEALTHY = False\n", []string{"/health", "500"}},
	{"fails the probe", "CODE = 9\n", []string{"/health", "500"}},
}

// TestManageReloadFails: a reload to code that does not work changes nothing but
// the log, under load; the command says why. The mended code is then taken.
func TestManageReloadFails(t *testing.T) {
	m := manage(t, "--workers", "2", "--startup-timeout", "3s", "--probe", "/health")
	l := m.loadAll(t)
	l.awaitMore(t, 20)
	for i, c := range failingReleases {
		before, workers := m.look(t), children(m.gateways(t)[0])
		m.release(t, c.source)
		began := time.Now()
		status, stdout, stderr := m.command(t, "reload")
		t.Logf("%s: status %d after %v, stderr ends with %.300q", c.name, status, time.Since(began).Round(time.Millisecond), stderr)
		if status != 1 || stdout != "" {
			t.Errorf("%s: status %d, want 1; stdout %q", c.name, status, stdout)
		}
		for _, text := range c.says {
			if !strings.Contains(stderr, text) {
				t.Errorf("%s: no %q in %q", c.name, text, stderr)
			}
		}
		m.wantCode(t, 1)
		after := m.look(t)
		if after.Generation != before.Generation || after.Reload == nil || after.Reload.Error == "" || after.Events.ReloadFailures != uint64(i+1) {
			t.Errorf("%s: status after it: %+v", c.name, after)
		}
		m.wantChildren(t, workers)
		l.awaitMore(t, 20)
	}
	m.release(t, healthy(77))
	m.reload(t)
	m.wantCode(t, 77)
	l.end(t)
	l.wantAllOnce(t)
}

// wantChildren waits until the gateway has these children and no others.
func (m *managed) wantChildren(t testing.TB, want []int) {
	t.Helper()
	m.await(t, "the old workers alone", startTime, func() bool {
		now := children(m.gateways(t)[0])
		return len(now) == len(want) && len(now) > 0 && now[0] == want[0] && now[len(now)-1] == want[len(want)-1]
	})
}
