package main

import (
	"fmt"
	"io"
	"os"
	"sync"
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

// Close closes the file; what is logged later goes to stderr.
func (l *logFile) Close() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.file != os.Stderr {
		_ = l.file.Close()
		l.file = os.Stderr
	}
}
