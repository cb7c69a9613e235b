package integration

import (
	"fmt"
	"os"
	"testing"
	"time"
)

// Of TestSoakMemory.
const (
	maxMemory   = 200 << 20
	leak        = 1 << 20
	leakFor     = 8 * time.Second
	leakMost    = time.Minute
	leakClients = 4
	// A worker past its limit by a fourth rests. It is weighed every 10 ms at most,
	// so that a few requests more may run.
	rssMost = maxMemory + maxMemory/4 + 24*leak
)

// TestSoakMemory: an application that leaks 1 MiB with each request is served
// without a failed request, by workers that are replaced in time.
func TestSoakMemory(t *testing.T) {
	t.Parallel() // with the other soak
	length := leakFor
	if d := soakTime(t); d > 0 {
		length = min(d, leakMost)
	}
	m := manage(t, "--workers", "2", "--max-memory", "200M")
	l := m.load()
	l.add(nginxKept, leakClients, "leak=1024&ms=2")
	most, samples := int64(0), 0
	for end := time.Now().Add(length); time.Now().Before(end); time.Sleep(5 * time.Millisecond) {
		for _, pid := range children(m.cmd.Process.Pid) {
			most, samples = max(most, rssOf(pid)), samples+1
		}
	}
	l.end()
	l.wantAllOnce(t)
	s := m.look(t)
	t.Logf("%v: at most %d MiB in a worker, of %d samples; %d workers replaced", length, most>>20, samples, s.Events.Recycled)
	if most > rssMost {
		t.Errorf("a worker had %d MiB, want at most %d", most>>20, rssMost>>20)
	}
	if s.Events.Recycled == 0 || s.Events.Crashed > 0 {
		t.Errorf("events: %+v", s.Events)
	}
}

// rssOf returns the resident memory of a process; 0 if it is gone.
func rssOf(pid int) int64 {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/statm", pid))
	if err != nil {
		return 0
	}
	var total, resident int64
	_, _ = fmt.Sscan(string(text), &total, &resident) // a zombie has 0 of both
	return resident * int64(os.Getpagesize())
}

// soakEnv is how long the tests that can run for longer do.
const soakEnv = "WSGIGATE_SOAK"

// soakTime returns that; 0 if nobody said.
func soakTime(t testing.TB) time.Duration {
	t.Helper()
	text := os.Getenv(soakEnv)
	if text == "" {
		return 0
	}
	d, err := time.ParseDuration(text)
	if err != nil {
		t.Fatalf("%s: %v", soakEnv, err)
	}
	return d
}
