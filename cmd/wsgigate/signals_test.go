package main

import (
	"bytes"
	"log/slog"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
)

// newTestGateway is one whose log a test reads.
func newTestGateway() (g *gateway, log *bytes.Buffer) {
	log = new(bytes.Buffer)
	return &gateway{log: newLogger(log), stopAsked: make(chan slog.Attr, 2)}, log
}

// TestSignalPhases: a signal that comes too early is obeyed later, once; one that comes
// too late does nothing, and says so.
func TestSignalPhases(t *testing.T) {
	g, log := newTestGateway()
	var done atomic.Int32
	ask := func() { g.whenServing("SIGHUP", func() { done.Add(1) }) }
	for at, want := range []struct {
		done int32 // before and after the next phase
		next phase
		then int32
		says string
	}{
		{0, serves, 1, "INFO  the application is being imported: this is done afterwards signal=SIGHUP\n"},
		{3, stopping, 3, ""},
		{3, stopping, 3, "WARN  too late: the server stops signal=SIGHUP\n"},
	} {
		log.Reset()
		ask()
		ask()
		g.jobs.Wait()
		if got := done.Load(); got != want.done {
			t.Errorf("phase %d: done %d times, want %d", at, got, want.done)
		}
		if lines := strings.Count(log.String(), "\n"); lines != 2*min(len(want.says), 1) || !strings.HasSuffix(log.String(), want.says) {
			t.Errorf("phase %d: the log says %q", at, log)
		}
		g.enter(want.next)
		g.jobs.Wait()
		if got := done.Load(); got != want.then {
			t.Errorf("after phase %d: done %d times, want %d", at, got, want.then)
		}
	}
}

// TestSignalStop: the first two wishes count, and none waits.
func TestSignalStop(t *testing.T) {
	g, _ := newTestGateway()
	for _, sig := range []syscall.Signal{syscall.SIGTERM, syscall.SIGINT, syscall.SIGTERM, syscall.SIGTERM} {
		g.signalled(sig)
	}
	for _, want := range []string{"signal=terminated", "signal=interrupt"} {
		if got := (<-g.stopAsked).String(); got != want {
			t.Errorf("%s, want %s", got, want)
		}
	}
	if n := len(g.stopAsked); n != 0 {
		t.Errorf("%d more wishes", n)
	}
}

// TestSignalLogs: "reopened" is said if all were.
func TestSignalLogs(t *testing.T) {
	dir := t.TempDir()
	for path, want := range map[string]string{
		filepath.Join(dir, "log"):        "INFO  logs reopened\n",
		filepath.Join(dir, "absent/log"): "ERROR a log stays the file that it was error=\"--access-log: open " + dir + "/absent/log: no such file or directory\"\n",
	} {
		g, log := newTestGateway()
		l := openTestLog(t, filepath.Join(dir, "first"))
		l.path = path
		g.logs = []*logFile{l, openTestLog(t, "-")}
		g.signalled(syscall.SIGUSR1)
		if !strings.HasSuffix(log.String(), want) || strings.Count(log.String(), "\n") != 1 {
			t.Errorf("%q, want %q", log, want)
		}
	}
}
