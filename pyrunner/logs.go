package pyrunner

import (
	"bytes"
	"context"
	"log/slog"
	"os"
	"strings"
	"sync"
	"time"
)

// What workers print goes to the gateway's log line by line. A worker is never
// blocked by it: its pipes are always read, and what is over the rate is counted
// and dropped.
const (
	maxLogLine = 8 << 10 // bytes; the rest of a longer line is marked and dropped

	logBurst   = 2000    // lines at once
	logPerTime = 500     // lines a second
	logBytes   = 4 << 20 // bytes at once
	bytesTime  = 1 << 20 // bytes a second

	// A daemon that a worker left behind may hold the pipes open for ever: after
	// the worker's end they are read for so long.
	logLinger = time.Second
)

// lineLog is the log of one worker.
type lineLog struct {
	log *slog.Logger

	mu      sync.Mutex
	at      time.Time
	lines   float64
	bytes   float64
	dropped int
}

// logWorker starts to copy a worker's stdout and stderr to the log.
func (p *Pool) logWorker(w *worker) *lineLog {
	l := &lineLog{log: p.log.With("pid", w.pid), at: time.Now(), lines: logBurst, bytes: logBytes}
	for i, f := range w.streams {
		stream := [...]string{"stdout", "stderr"}[i]
		p.background.Add(1)
		go func() {
			defer p.background.Done()
			l.copy(f, stream)
		}()
	}
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

// copy logs each line of f until its end.
func (l *lineLog) copy(f *os.File, stream string) {
	defer f.Close()
	buf := make([]byte, maxLogLine)
	held, cut := 0, false // bytes of an unfinished line; whether it was too long
	for {
		n, err := f.Read(buf[held:])
		rest := buf[:held+n]
		for {
			line, after, found := bytes.Cut(rest, []byte{'\n'})
			if !found {
				break
			}
			if !cut {
				l.line(slog.LevelInfo, string(line), "stream", stream)
			}
			rest, cut = after, false
		}
		switch {
		case err != nil:
			if len(rest) > 0 && !cut {
				l.line(slog.LevelInfo, string(rest), "stream", stream)
			}
			return
		case len(rest) == len(buf):
			if !cut {
				l.line(slog.LevelInfo, string(rest)+" [line cut]", "stream", stream)
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
		line = strings.TrimRight(line, "\n")
		if len(line) > maxLogLine {
			line = line[:maxLogLine] + " [line cut]"
		}
		if line != "" {
			l.line(level, line, args...)
		}
	}
}

// line logs one line, unless there were too many.
func (l *lineLog) line(level slog.Level, text string, args ...any) {
	dropped, ok := l.admit(len(text))
	if dropped > 0 {
		l.log.Warn("log lines dropped: the application writes too fast", "lines", dropped)
	}
	if ok {
		l.log.Log(context.Background(), level, text, args...)
	}
}

// admit spends n bytes and one line of the allowance. It also returns how many
// lines were dropped before this one.
func (l *lineLog) admit(n int) (dropped int, ok bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	now := time.Now()
	passed := now.Sub(l.at).Seconds()
	l.at = now
	l.lines = min(l.lines+passed*logPerTime, logBurst)
	l.bytes = min(l.bytes+passed*bytesTime, logBytes)
	if l.lines < 1 || l.bytes < float64(n) {
		l.dropped++
		return 0, false
	}
	l.lines--
	l.bytes -= float64(n)
	dropped, l.dropped = l.dropped, 0
	return dropped, true
}
