package main

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"sync"
	"syscall"
	"time"
)

// logFile is a log that never makes those who write to it wait, and that can be opened
// anew after logrotate(8) has renamed it.
type logFile struct {
	flag, path string
	// lostLine appends the log's own line about lines that were lost; nil: it has no form for it.
	lostLine func(dst []byte, lines int, since time.Time) []byte
	tell     *slog.Logger // hears when this log does not work; nil: nobody does
	wake     chan struct{}

	mu   sync.Mutex // guards the rest; held for no system call
	file logOutput
	next logOutput // of Reopen: takes what comes after the first nextAt bytes of buf

	buf     []byte // whole lines
	sent    int    // bytes of buf that have been written
	nextAt  int
	running chan struct{} // closed when the goroutine that writes ends; nil: there is none
	wroteAt time.Time     // the last try

	closing, closed bool
	dropping        bool // until half of the buffer is free
	lost            loss // since the log's last line about it
	news            logNews
}

var _ io.Writer = (*logFile)(nil)

// stderrLog is the process's stderr. Whatever a server says there goes through it.
var stderrLog = newLogFile("stderr", "-", newLogOutput(os.Stderr))

func newLogFile(flag, path string, file logOutput) *logFile {
	return &logFile{flag: flag, path: path, file: file, wake: make(chan struct{}, 1), lostLine: appendLost}
}

// openLog opens the file of a flag for appending; no path, or "-", is stderr.
func openLog(flag, path string) (*logFile, error) {
	if path == "" || path == "-" {
		return stderrLog, nil
	}
	file, err := openLogFile(path)
	if err != nil {
		return stderrLog, fmt.Errorf("--%s: %w", flag, err)
	}
	return newLogFile(flag, path, file), nil
}

// errNoReader is what is wrong with a FIFO that would keep the start waiting (fifo(7)).
var errNoReader = errors.New("nobody reads the FIFO: start the program that reads it first")

// logOutput is an open file and what it was when it was opened.
type logOutput struct {
	*os.File
	info fs.FileInfo // nil if unknown
}

func newLogOutput(f *os.File) logOutput {
	info, err := f.Stat()
	if err != nil { // of a stderr that was closed before the start
		return logOutput{File: f}
	}
	return logOutput{f, info}
}

// openLogFile opens a file for appending without waiting. A symbolic link is followed:
// some rotate logs so.
func openLogFile(path string) (logOutput, error) {
	f, err := os.OpenFile(path, os.O_APPEND|os.O_CREATE|os.O_WRONLY|syscall.O_NONBLOCK, 0o640)
	if errors.Is(err, syscall.ENXIO) { // or it is a socket
		if info, statErr := os.Stat(path); statErr == nil && info.Mode()&fs.ModeNamedPipe != 0 {
			err = &fs.PathError{Op: "open", Path: path, Err: errNoReader}
		}
	}
	if err != nil {
		return logOutput{}, err
	}
	return newLogOutput(f), nil
}

func (o logOutput) regular() bool { return o.info != nil && o.info.Mode().IsRegular() }

// most is how much is written at once.
func (o logOutput) most() int {
	if o.regular() {
		return fileBatch
	}
	return pipeBatch
}

// write writes to a file on a disk; to anything else not for ever, if the kernel can do
// that: stderr may be shared with others and is left as it was opened.
func (o logOutput) write(p []byte) (int, error) {
	if !o.regular() {
		_ = o.SetWriteDeadline(time.Now().Add(logStuck))
	}
	n, err := o.Write(p)
	if errors.Is(err, os.ErrDeadlineExceeded) {
		err = errStuck
	}
	return n, err
}

func (l *logFile) isStderr() bool { return l == stderrLog }

// reportTo has other told when l does not work, unless both are one file.
func (l *logFile) reportTo(other *logFile) {
	if l != other && !os.SameFile(l.file.info, other.file.info) {
		l.tell = newLogger(other)
	}
}

// Reopen opens the path anew: lines from then on go there, those before it to the file
// that was open, if that takes them. After an error the log stays as it is.
func (l *logFile) Reopen() error {
	if l.isStderr() {
		return nil
	}
	next, err := openLogFile(l.path)
	if err != nil {
		return fmt.Errorf("--%s: %w", l.flag, err)
	}
	l.mu.Lock()
	superseded := l.next
	switch {
	case l.closed:
		superseded = next
	case l.next.File == nil:
		l.next, l.nextAt = next, len(l.buf)
		l.begin()
	default:
		l.next = next
	}
	l.mu.Unlock()
	if superseded.File != nil {
		_ = superseded.Close() // nothing was written to it
	}
	l.hurry()
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
	l.mu.Lock()
	file := l.file
	l.mu.Unlock()
	info, err := file.Stat()
	if err != nil {
		return fmt.Errorf("--%s: %w", l.flag, err)
	}
	// A device is everybody's, and a file of two names may be something else than a log.
	st, ok := info.Sys().(*syscall.Stat_t)
	if !ok || !info.Mode().IsRegular() || st.Uid != 0 || st.Nlink > 1 {
		return nil
	}
	if err := file.Chown(want.uid, -1); err != nil {
		return fmt.Errorf("--%s: %w", l.flag, err)
	}
	return nil
}

// Close writes what waits, for logFlush at most, and closes the file; what is logged
// later goes to stderr. Stderr itself is left as it is.
func (l *logFile) Close() { l.closeUntil(time.Now().Add(logFlush)) }

func (l *logFile) closeUntil(end time.Time) {
	if l.isStderr() {
		return
	}
	l.finish(end)
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return
	}
	l.giveUp()
	l.closed = true
	for _, f := range []logOutput{l.file, l.next} {
		_ = f.Close() // ends a write to a FIFO; nil is no file
	}
}

// finish writes what waits. From here on, a write that fails is not tried again.
func (l *logFile) finish(end time.Time) {
	l.mu.Lock()
	l.closing = true
	l.mu.Unlock()
	l.flush(max(time.Until(end), logFlush/10)) // another log may have used the time up
}

// lastWords is where the process says why it ends: after what a server has logged.
func lastWords() io.Writer {
	if stderrLog.used() {
		return stderrLog
	}
	return os.Stderr
}
