package main

import (
	"bytes"
	"time"
)

// What a log has lost is said where it is missing, when the log takes lines again, and
// elsewhere at once: of the access log in the error log, of the error log on stderr.

// loss is how many lines are missing.
type loss struct {
	lines int
	since time.Time
}

func (s *loss) add(lines int) {
	if s.lines == 0 {
		s.since = time.Now()
	}
	s.lines += lines
}

// moment is since when, as the log of people has it.
func (s *loss) moment() string { return s.since.Format(consoleTime) }

// logNews is what is said elsewhere about a log.
type logNews struct {
	err  error // of the last write
	told int   // how bad it was said to be: 0 not at all, 1 lines wait, 2 lines are lost
	at   time.Time
	lost loss
}

// lose counts lines that are dropped. The caller holds l.mu, here and below.
func (l *logFile) lose(p []byte) {
	n := bytes.Count(p, []byte{'\n'})
	if n == 0 {
		return
	}
	l.lost.add(n)
	l.news.lost.add(n)
}

// trouble says elsewhere that the log does not work, and again when that costs lines.
func (l *logFile) trouble(err error) {
	n := &l.news
	level := 1
	if n.lost.lines > 0 {
		level = 2
	}
	if l.tell == nil || level <= n.told || time.Since(n.at) < logQuiet {
		return
	}
	if n.err != nil {
		err = n.err
	}
	n.told, n.at = level, time.Now()
	l.tell.Error("a log does not take its lines", "log", l.flag, "error", err, "lost", n.lost.lines)
}

// recovered says elsewhere that nothing waits any more.
func (l *logFile) recovered() {
	n := &l.news
	if l.tell == nil || n.told == 0 && (n.lost.lines == 0 || time.Since(n.at) < logQuiet) {
		return
	}
	attrs := []any{"log", l.flag, "lost", n.lost.lines}
	if n.lost.lines > 0 {
		attrs = append(attrs, "since", n.lost.moment())
	}
	l.tell.Warn("a log takes its lines again", attrs...)
	*n = logNews{at: time.Now()}
}

// resume takes lines again, after one about those that are missing.
func (l *logFile) resume() {
	if l.lostLine != nil {
		l.buf = l.lostLine(l.buf, l.lost.lines, l.lost.since)
	}
	l.dropping, l.lost = false, loss{}
}

// appendLost appends the line of a log that people read.
func appendLost(dst []byte, lines int, since time.Time) []byte {
	var b bytes.Buffer
	newLogger(&b).Warn("log lines were lost: the log did not take them", "lines", lines, "since", since.Format(consoleTime))
	return append(dst, b.Bytes()...)
}
