package main

import (
	"bytes"
	"errors"
	"os"
	"time"
)

// No request, signal, worker or stop waits for a log: who writes a line leaves it in a
// buffer, and one goroutine, which runs only while there is something to do, takes many
// lines to the file at once. A log that nobody drains, or a full disk, costs lines and
// nothing else: they wait while there is room, then they are lost and counted.
const (
	logRoom  = 1 << 20          // bytes that wait in each log
	logFlush = time.Second      // how long the end of the process waits for a log
	logPause = time.Millisecond // between two writes of less than a batch
	logRetry = time.Second      // after a write that failed
	logQuiet = 10 * time.Second // between two reports of trouble elsewhere
	logStuck = time.Second      // after which a write to a FIFO that takes nothing has failed
	logIdle  = 64 << 10         // bytes of memory that an empty buffer keeps

	// Bytes of a batch. Several processes may write to one pipe, a successor for
	// example; only so much is never mixed with what others write (PIPE_BUF, pipe(7)).
	// A longer line goes by itself.
	fileBatch = 64 << 10
	pipeBatch = 4096
)

var (
	errStuck = errors.New("nobody reads it")
	errSlow  = errors.New("it is too slow")
)

// Write appends whole lines. It does not wait and does not fail.
func (l *logFile) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	switch {
	case l.closed:
		return stderrLog.Write(p)
	case l.dropping || l.waiting()+len(p) > logRoom:
		l.dropping = true
		l.lose(p)
		l.trouble(errSlow)
	default:
		l.buf = append(l.buf, p...)
	}
	l.begin()
	return len(p), nil
}

// waiting returns how many bytes are not yet written. The caller holds l.mu, here and below.
func (l *logFile) waiting() int { return len(l.buf) - l.sent }

// begin sees to it that the goroutine runs that writes.
func (l *logFile) begin() {
	if l.running == nil {
		l.running = make(chan struct{})
		go l.run()
	}
}

// used reports whether anything was ever written.
func (l *logFile) used() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.running != nil || !l.wroteAt.IsZero()
}

// hurry ends the pause after a write that failed.
func (l *logFile) hurry() {
	select {
	case l.wake <- struct{}{}:
	default:
	}
}

// flush waits until nothing is left to write, for patience at most.
func (l *logFile) flush(patience time.Duration) {
	l.mu.Lock()
	running := l.running
	l.mu.Unlock()
	if running == nil {
		return
	}
	l.hurry()
	select {
	case <-running:
	case <-time.After(patience):
	}
}

// run writes until nothing is left.
func (l *logFile) run() {
	for {
		p, file, old := l.step()
		if old.File != nil {
			_ = old.Close()
			continue
		}
		if p == nil {
			return
		}
		if l.wrote(file.write(p)) {
			continue
		}
		select {
		case <-l.wake:
		case <-time.After(logRetry):
		}
	}
}

// step returns the lines that are to be written next, to which file, or a file to which
// nothing is written any more; nothing at all ends the goroutine.
func (l *logFile) step() (p []byte, file, old logOutput) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.gather()
	if l.next.File != nil && !l.closed && (l.sent >= l.nextAt || l.news.err != nil) {
		return nil, file, l.turn()
	}
	if l.dropping && l.waiting() <= logRoom/2 {
		l.resume()
	}
	if l.closed || l.waiting() == 0 {
		l.rest()
		return nil, file, old
	}
	end := len(l.buf)
	if l.next.File != nil {
		end = l.nextAt
	}
	return wholeLines(l.buf[l.sent:end], l.file.most()), l.file, old
}

// gather lets lines come together, because they come in crowds: one that follows
// nothing is written at once.
func (l *logFile) gather() {
	if pause := logPause - time.Since(l.wroteAt); pause > 0 && l.waiting() < pipeBatch && !l.closing {
		l.mu.Unlock()
		time.Sleep(pause)
		l.mu.Lock()
	}
}

// turn goes on with the file of Reopen and returns the one before it.
func (l *logFile) turn() (old logOutput) {
	old, l.file, l.next = l.file, l.next, logOutput{}
	if !os.SameFile(old.info, l.file.info) { // a line is whole in one file
		l.sent = bytes.LastIndexByte(l.buf[:l.sent], '\n') + 1
	}
	return old
}

// wholeLines returns as many lines as fit, and one at least.
func wholeLines(p []byte, most int) []byte {
	if len(p) <= most {
		return p
	}
	end := bytes.LastIndexByte(p[:most], '\n')
	if end < 0 {
		end = most + bytes.IndexByte(p[most:], '\n')
	}
	return p[:end+1]
}

// wrote notes how a write ended and reports whether to go on at once.
func (l *logFile) wrote(n int, err error) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return true
	}
	l.sent += n
	l.wroteAt = time.Now()
	l.news.err = err
	switch {
	case err == nil:
		l.compact()
	case l.closing:
		l.giveUp()
	default:
		l.trouble(err)
		return err == errStuck || l.next.File != nil
	}
	return true
}

// compact frees what was written.
func (l *logFile) compact() {
	switch {
	case l.waiting() == 0 && cap(l.buf) > logIdle:
		l.buf = nil
	case l.sent < len(l.buf)-l.sent || l.buf[l.sent-1] != '\n':
		return
	default:
		l.buf = append(l.buf[:0], l.buf[l.sent:]...)
	}
	l.nextAt = max(l.nextAt-l.sent, 0)
	l.sent = 0
}

// rest ends the goroutine.
func (l *logFile) rest() {
	if !l.closed {
		l.recovered()
	}
	close(l.running)
	l.running = nil
}

// giveUp counts what waits as lost.
func (l *logFile) giveUp() {
	l.lose(l.buf[l.sent:])
	l.buf, l.sent, l.nextAt = nil, 0, 0
	if n := &l.news; n.lost.lines > 0 && l.tell != nil {
		l.tell.Error("a log ends without all its lines", "log", l.flag, "lost", n.lost.lines, "since", n.lost.moment())
		*n = logNews{err: n.err}
	}
}
