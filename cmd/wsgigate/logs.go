package main

import (
	"fmt"
	"io"
	"os"
	"sync"
	"syscall"
)

// logFile is a log that can be opened anew after logrotate(8) has renamed it.
type logFile struct {
	flag, path string

	mu   sync.Mutex
	file *os.File
}

var _ io.Writer = (*logFile)(nil)

// openLog opens the file of a flag for appending; no path, or "-", is stderr.
func openLog(flag, path string) (*logFile, error) {
	l := &logFile{flag: flag, path: path, file: os.Stderr}
	if l.isStderr() {
		return l, nil
	}
	return l, l.Reopen()
}

func (l *logFile) isStderr() bool { return l.path == "" || l.path == "-" }

// Write appends a line.
func (l *logFile) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.file.Write(p)
}

// Reopen opens the path anew and writes there from then on. After an error it
// goes on with the file that it has. A symbolic link is followed: some rotate logs so.
func (l *logFile) Reopen() error {
	if l.isStderr() {
		return nil
	}
	next, err := os.OpenFile(l.path, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o640)
	if err != nil {
		return fmt.Errorf("--%s: %w", l.flag, err)
	}
	l.mu.Lock()
	old := l.file
	l.file = next
	l.mu.Unlock()
	if old != os.Stderr {
		_ = old.Close() // every line was written with a call of its own
	}
	return nil
}

// giveTo makes the file a user's who must be able to open it again: after SIGUSR1, and
// as a successor. A file that is not root's is one already that somebody has arranged.
func (l *logFile) giveTo(userName string) error {
	if l.isStderr() || userName == "" || os.Geteuid() != 0 {
		return nil
	}
	want, err := thisSystem.find(userName, "0") // any group: the file keeps its own
	if err != nil {
		return err
	}
	info, err := l.file.Stat()
	if err != nil {
		return fmt.Errorf("--%s: %w", l.flag, err)
	}
	// A device is everybody's, and a file of two names may be something else than a log.
	st, ok := info.Sys().(*syscall.Stat_t)
	if !ok || !info.Mode().IsRegular() || st.Uid != 0 || st.Nlink > 1 {
		return nil
	}
	if err := l.file.Chown(want.uid, -1); err != nil {
		return fmt.Errorf("--%s: %w", l.flag, err)
	}
	return nil
}

// Close closes the file; what is logged later goes to stderr.
func (l *logFile) Close() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.file != os.Stderr {
		_ = l.file.Close()
		l.file = os.Stderr
	}
}
