package pyrunner

import (
	"bytes"
	"context"
	"log/slog"
	"os"
	"slices"
	"strings"
	"sync"
	"time"
	"unicode/utf8"
)

// What workers print goes to the gateway's log line by line. A worker is never
// blocked by it, even if the log is: its pipes are always read, and what is over the
// rate, or more than may wait for the log, is counted and dropped.
const (
	maxLogLine = 8 << 10 // bytes; the rest of a longer line is marked and dropped
	lineCut    = " [line cut]"

	logBurst   = 2000    // lines at once
	logPerTime = 500     // lines a second
	logBytes   = 4 << 20 // bytes at once
	bytesTime  = 1 << 20 // bytes a second

	maxUnlogged = 1000 // lines that wait for the log

	// What an incident shows of what the worker has said.
	recentLines = 20
	recentLine  = 1 << 10 // bytes of each

	// A daemon that a worker left behind may hold the pipes open for ever: after
	// the worker's end they are read for so long.
	logLinger = time.Second
)

// lineLog is the log of one worker.
type lineLog struct {
	log        *slog.Logger
	background *sync.WaitGroup
	drained    chan struct{} // closed when the streams have been read to their end

	mu      sync.Mutex
	at      time.Time
	lines   float64
	bytes   float64
	dropped int

	last []string // of stderr and wsgi.errors, oldest first

	unlogged []slog.Record // in their order
	writing  int           // lines that write is busy with; -1: it does not run
}

// logWorker starts to copy a worker's stdout and stderr to the log.
func (p *Pool) logWorker(w *worker) *lineLog {
	l := newLineLog(p.log.With("pid", w.pid), &p.background)
	var streams sync.WaitGroup
	for i, f := range w.streams {
		stream := [...]string{"stdout", "stderr"}[i]
		streams.Go(func() { l.copy(f, stream) })
	}
	p.background.Add(1)
	go func() {
		defer p.background.Done()
		streams.Wait()
		l.end()
	}()
	p.background.Add(1)
	go func() {
		defer p.background.Done()
		select {
		case <-w.gone:
		case <-w.abandoned:
		}
		for _, f := range w.streams {
			_ = f.SetReadDeadline(time.Now().Add(logLinger))
		}
	}()
	return l
}

func newLineLog(log *slog.Logger, background *sync.WaitGroup) *lineLog {
	return &lineLog{
		log: log, background: background, drained: make(chan struct{}),
		at: time.Now(), lines: logBurst, bytes: logBytes, writing: -1,
	}
}

// copy logs each line of f until its end.
func (l *lineLog) copy(f *os.File, stream string) {
	defer f.Close()
	said := func(line []byte) {
		text := bounded(string(line), maxLogLine)
		if stream == "stderr" {
			l.keep(text)
		}
		l.line(slog.LevelInfo, text, "stream", stream)
	}
	buf := make([]byte, maxLogLine+1) // a byte more shows that the line goes on
	held, cut := 0, false             // bytes of an unfinished line; whether it was too long
	for {
		n, err := f.Read(buf[held:])
		rest := buf[:held+n]
		for {
			line, after, found := bytes.Cut(rest, []byte{'\n'})
			if !found {
				break
			}
			if !cut {
				said(line)
			}
			rest, cut = after, false
		}
		switch {
		case err != nil:
			if len(rest) > 0 && !cut {
				said(rest)
			}
			return
		case len(rest) == len(buf):
			if !cut {
				said(rest)
			}
			held, cut = 0, true
		default:
			held = copy(buf, rest)
		}
	}
}

// text logs text of several lines, as wsgi.errors gives it.
func (l *lineLog) text(level slog.Level, text string, args ...any) {
	for line := range strings.Lines(text) {
		if line = bounded(strings.TrimRight(line, "\n"), maxLogLine); line != "" {
			l.keep(line)
			l.line(level, line, args...)
		}
	}
}

// bounded cuts a text to most bytes, between two characters, and marks it.
func bounded(text string, most int) string {
	if len(text) <= most {
		return text
	}
	for range utf8.UTFMax - 1 {
		if utf8.RuneStart(text[most]) {
			break
		}
		most--
	}
	return text[:most] + lineCut
}

// keep remembers a line for an incident.
func (l *lineLog) keep(line string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.last = append(l.last, bounded(line, recentLine))
	if len(l.last) > recentLines {
		l.last = append(l.last[:0], l.last[1:]...)
	}
}

// recent returns the last lines of the worker's stderr and of wsgi.errors, oldest
// first, whether they were logged or dropped.
func (l *lineLog) recent() []string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.Clone(l.last)
}

// end is called when the streams have ended.
func (l *lineLog) end() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.pushDropped()
	close(l.drained)
}

// line logs one line, unless there were too many. It does not wait for the log.
func (l *lineLog) line(level slog.Level, text string, args ...any) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.admit(len(text)) {
		l.dropped++
		return
	}
	l.pushDropped()
	l.push(level, text, args...)
}

// admit spends n bytes and one line of the allowance. The caller holds l.mu.
func (l *lineLog) admit(n int) bool {
	now := time.Now()
	passed := now.Sub(l.at).Seconds()
	l.at = now
	l.lines = min(l.lines+passed*logPerTime, logBurst)
	l.bytes = min(l.bytes+passed*bytesTime, logBytes)
	if l.lines < 1 || l.bytes < float64(n) || len(l.unlogged)+l.writing >= maxUnlogged {
		return false
	}
	l.lines--
	l.bytes -= float64(n)
	return true
}

// pushDropped says how many lines are missing. The caller holds l.mu.
func (l *lineLog) pushDropped() {
	if l.dropped > 0 {
		l.push(slog.LevelWarn, "log lines dropped: the application writes too fast", "lines", l.dropped)
		l.dropped = 0
	}
}

// push hands a record to the goroutine that writes, which runs only while there is
// something to write. The caller holds l.mu.
func (l *lineLog) push(level slog.Level, text string, args ...any) {
	r := slog.NewRecord(time.Now(), level, text, 0)
	r.Add(args...)
	l.unlogged = append(l.unlogged, r)
	if l.writing < 0 {
		l.writing = 0
		l.background.Add(1)
		go l.write()
	}
}

// write writes to the log until nothing is left.
func (l *lineLog) write() {
	defer l.background.Done()
	for {
		batch := l.takeUnlogged()
		if batch == nil {
			return
		}
		for _, r := range batch {
			if h := l.log.Handler(); h.Enabled(context.Background(), r.Level) {
				_ = h.Handle(context.Background(), r) // there is no better place to say so
			}
		}
	}
}

// takeUnlogged returns what is to be written next; nil ends the writing.
func (l *lineLog) takeUnlogged() []slog.Record {
	l.mu.Lock()
	defer l.mu.Unlock()
	batch := l.unlogged
	l.unlogged, l.writing = nil, len(batch)
	if len(batch) == 0 {
		l.writing = -1
	}
	return batch
}
