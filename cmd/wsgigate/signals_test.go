package main

import (
	"bytes"
	"log/slog"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// newTestGateway is one whose log a test reads.
func newTestGateway() (g *gateway, log *bytes.Buffer) {
	log = new(bytes.Buffer)
	return &gateway{log: newLogger(log), stopAsked: make(chan slog.Attr, 2)}, log
}

// TestSignalPhases: a signal at the wrong time does nothing, and says so.
func TestSignalPhases(t *testing.T) {
	for at, says := range map[phase]string{starting: "not yet: the application is being imported signal=SIGHUP", serves: "", stopping: "too late: the server stops signal=SIGHUP"} {
		g, log := newTestGateway()
		g.phase.Store(int32(at))
		done := false
		g.whenServing("SIGHUP", func() { done = true })
		g.jobs.Wait()
		if done != (at == serves) || !strings.Contains(log.String(), says) || says == "" && log.Len() > 0 {
			t.Errorf("phase %d: done is %v, the log says %q", at, done, log)
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
