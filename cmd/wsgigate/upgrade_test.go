package main

import (
	"errors"
	"os"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestUpgraderWithout: a process that cannot have a successor serves, and says why.
func TestUpgraderWithout(t *testing.T) {
	u := &upgrader{why: errProcessOne, handed: make(chan struct{}), end: func() {}}
	if f, err := u.inherited("listener :80 1"); f != nil || err != nil {
		t.Errorf("inherited %v, %v", f, err)
	}
	if err := errors.Join(u.keep("listener :80 1", os.Stdin), u.ready()); err != nil {
		t.Error(err)
	}
	if pid, err := u.run(time.Hour); pid != "" || !errors.Is(err, errProcessOne) {
		t.Errorf("%q, %v", pid, err)
	}
	u.stop()
	u.stop()
	if u.isSuccessor() || u.handedOver() {
		t.Error("it has a predecessor or a successor")
	}
}

// TestUpgradeReport: each text replaces the one before, and not more than a bound is read.
func TestUpgradeReport(t *testing.T) {
	fd, err := unix.MemfdCreate("report", unix.MFD_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	u := &upgrader{report: os.NewFile(uintptr(fd), reportName)}
	defer u.report.Close()
	for _, text := range []string{"a traceback\nof lines", "4107", ""} {
		if u.write(text); u.read() != text {
			t.Errorf("%q, want %q", u.read(), text)
		}
	}
	if u.write(strings.Repeat("x", 2*maxReport)); len(u.read()) != maxReport {
		t.Errorf("%d bytes", len(u.read()))
	}
	new(upgrader).write("nobody reads it")
}

// TestUpgradeLogLines: what a successor has said becomes lines of this log.
func TestUpgradeLogLines(t *testing.T) {
	g, log := newTestGateway()
	logLines(g.log, "upgrade failed: ", "wsgigate: --http: one\nwsgigate: --scgi: two\n\x1b[2J three\n")
	var lines []string
	for line := range strings.Lines(log.String()) {
		_, text, _ := strings.Cut(line, "ERROR ")
		lines = append(lines, text)
	}
	if got, want := strings.Join(lines, ""), "upgrade failed: --http: one\n--scgi: two\n\\x1b[2J three\n"; got != want {
		t.Errorf("%q, want %q", got, want)
	}
}
