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

	// Of each stream.
	logBurst   = 2000    // lines at once
	logPerTime = 500     // lines a second
	logBytes   = 4 << 20 // bytes at once
	bytesTime  = 1 << 20 // bytes a second

	maxUnlogged = 1000 // lines that wait for the log

	droppedEvery = time.Second // how often the log is told of lines that it did not get

	// What an incident shows of what the worker has said.
	recentLines = 20
	recentLine  = 1 << 10 // bytes of each
	olderLines  = "[the lines above are from before the request]"
	// When a request began is known by and by: lines that are older by less are not told from its own.
	olderBy = 200 * time.Millisecond

	// What Python says before the stacks, when it ends the process (faulthandler does so too).
	fatalHead = "Fatal Python error: "

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
	streams map[string]*allowance // by their names
	dropped int                   // lines, since the log was told
	telling *time.Timer           // until it is told again; nil: nothing was dropped

	last  []said     // of stderr and wsgi.errors, oldest first
	fatal *fatalText // the newest; nil: none

	unlogged []slog.Record // in their order
	writing  int           // lines that write is busy with; -1: it does not run
}

// The streams of a worker.
const (
	streamStdout = "stdout"
	streamStderr = "stderr"
	streamErrors = "wsgi.errors"
)

// allowance is what a stream may log.
type allowance struct {
	at    time.Time
	lines float64
	bytes float64
	room  int // none of its lines is logged while so many wait
}

// said is a line that a worker has written.
type said struct {
	at   time.Time
	text string
}

// fatalText is what came on stderr from a line with fatalHead on.
type fatalText struct {
	text   excerpt
	latest time.Time // when its last line came
	before []said    // what was said last before it
}

// logWorker starts to copy a worker's stdout and stderr to the log, and to read its stacks.
func (p *Pool) logWorker(w *worker) *lineLog {
	l := newLineLog(p.log.With("pid", w.pid), &p.background)
	var streams sync.WaitGroup
	for i, f := range w.streams {
		stream := [...]string{streamStdout, streamStderr}[i]
		streams.Go(func() { l.copy(f, stream) })
	}
	if err := w.evidence.reader.open(w.dump); err == nil {
		p.background.Go(w.evidence.reader.run) // ends when the pipe is closed
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
	l := &lineLog{log: log, background: background, drained: make(chan struct{}), streams: map[string]*allowance{}, writing: -1}
	// A flood leaves room for what matters more, though the log is slow.
	for stream, room := range map[string]int{streamStdout: maxUnlogged * 6 / 10, streamStderr: maxUnlogged * 8 / 10, streamErrors: maxUnlogged} {
		l.streams[stream] = &allowance{at: time.Now(), lines: logBurst, bytes: logBytes, room: room}
	}
	return l
}

// copy logs each line of f until its end.
func (l *lineLog) copy(f *os.File, stream string) {
	defer f.Close()
	take := func(line []byte) {
		text := bounded(string(line), maxLogLine)
		if stream == streamStderr {
			l.keepStderr(text)
		}
		l.line(stream, slog.LevelInfo, text, "stream", stream)
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
				take(line)
			}
			rest, cut = after, false
		}
		switch {
		case err != nil:
			if len(rest) > 0 && !cut {
				take(rest)
			}
			return
		case len(rest) == len(buf):
			if !cut {
				take(rest)
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
			l.line(streamErrors, level, line, args...)
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
	l.remember(said{time.Now(), line})
}

// keepStderr remembers a line of stderr, where Python's last words may begin.
func (l *lineLog) keepStderr(line string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	now := time.Now()
	if begin := strings.Index(line, fatalHead); begin >= 0 {
		if begin > 0 { // of a line that was not ended, as a progress bar's
			l.remember(said{now, line[:begin]})
		}
		line = line[begin:]
		l.fatal = &fatalText{latest: now, before: slices.Clone(l.last)}
	}
	l.remember(said{now, line})
	if l.fatal == nil {
		return
	}
	if now.Sub(l.fatal.latest) > dumpTime {
		l.fatal = nil // the process has lived on: it was the application's text
		return
	}
	l.fatal.latest = now
	l.fatal.text.add([]byte(line + "\n"))
}

// remember makes a line the last. The caller holds l.mu.
func (l *lineLog) remember(line said) {
	line.text = bounded(line.text, recentLine)
	l.last = append(l.last, line)
	if len(l.last) > recentLines {
		l.last = append(l.last[:0], l.last[1:]...)
	}
}

// recent returns the last lines of the worker's stderr and of wsgi.errors, oldest
// first, whether they were logged or dropped. Those from before that time are marked.
func (l *lineLog) recent(since time.Time) []string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return marked(l.last, since)
}

// lastWords returns what Python has said of its end on stderr, and the last lines before
// that, as recent does. It returns false if Python has said no such thing. An application
// may write what looks so: it counts only if the process has ended as it says.
func (l *lineLog) lastWords(since time.Time) (fatal string, before []string, ok bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.fatal == nil {
		return "", nil, false
	}
	fatal = l.fatal.text.String()
	return fatal, marked(l.fatal.before, since), strings.Contains(fatal, stackHead)
}

// marked returns the texts of lines, with a mark behind those from before that time.
func marked(lines []said, since time.Time) (texts []string) {
	older := 0
	for _, line := range lines {
		if since.Sub(line.at) > olderBy {
			older++
		}
		texts = append(texts, line.text)
	}
	if older > 0 {
		texts = slices.Insert(texts, older, olderLines)
	}
	return texts
}

// end is called when the streams have ended.
func (l *lineLog) end() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.telling != nil && l.telling.Stop() {
		l.telling = nil
		l.background.Done()
	}
	l.pushDropped()
	close(l.drained)
}

// line logs one line of a stream, unless there were too many. It does not wait for the
// log.
func (l *lineLog) line(stream string, level slog.Level, text string, args ...any) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.streams[stream].admit(len(text), l.waiting()) {
		l.push(level, text, args...)
		return
	}
	l.dropped++
	if l.telling == nil {
		l.tellLater()
	}
}

// waiting is how many lines wait for the log. The caller holds l.mu.
func (l *lineLog) waiting() int { return len(l.unlogged) + max(l.writing, 0) }

// admit spends n bytes and one line of the allowance, while so many lines wait.
func (a *allowance) admit(n, waiting int) bool {
	now := time.Now()
	passed := now.Sub(a.at).Seconds()
	a.at = now
	a.lines = min(a.lines+passed*logPerTime, logBurst)
	a.bytes = min(a.bytes+passed*bytesTime, logBytes)
	if a.lines < 1 || a.bytes < float64(n) || waiting >= a.room {
		return false
	}
	a.lines--
	a.bytes -= float64(n)
	return true
}

// tellLater has the log told of dropped lines after a while: that must not be a flood
// itself. The caller holds l.mu.
func (l *lineLog) tellLater() {
	l.background.Add(1)
	l.telling = time.AfterFunc(droppedEvery, func() {
		defer l.background.Done()
		l.mu.Lock()
		defer l.mu.Unlock()
		l.telling = nil
		if l.waiting() < maxUnlogged {
			l.pushDropped()
		} else if l.dropped > 0 {
			l.tellLater()
		}
	})
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
