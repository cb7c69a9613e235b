package pyrunner

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"os"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// logOf returns what is logged of a stream that has the text, and the lineLog.
func logOf(t *testing.T, stream, text string) ([]string, *lineLog) {
	t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	go func() { // ends with its write
		_, _ = io.WriteString(w, text)
		_ = w.Close()
	}()
	var book logBook
	var background sync.WaitGroup
	l := newLineLog(book.logger(), &background)
	l.copy(r, stream)
	l.end()
	background.Wait()
	var lines []string
	for _, line := range book.find(func(l logLine) bool { return true }) {
		lines = append(lines, line.str("msg"))
	}
	return lines, l
}

func TestLogLines(t *testing.T) {
	t.Parallel()
	full := strings.Repeat("x", maxLogLine)
	for name, row := range map[string]struct {
		text string
		want []string
	}{
		"none":                {"", nil},
		"lines":               {"a\n\nb\r\n", []string{"a", "", "b\r"}},
		"partial last line":   {"a\nb", []string{"a", "b"}},
		"as long as it may":   {full + "\nb\n", []string{full, "b"}},
		"the same at the end": {full, []string{full}},
		"a byte longer":       {full + "y\nb\n", []string{full + lineCut, "b"}},
		"longer at the end":   {full + "y", []string{full + lineCut}},
		"much longer":         {strings.Repeat(full, 5) + "\nb\n" + strings.Repeat(full, 3), []string{full + lineCut, "b", full + lineCut}},
		"between characters":  {full[1:] + "é\nb\n", []string{full[1:] + lineCut, "b"}},
		"no characters":       {strings.Repeat("\xbf", maxLogLine+1) + "\n", []string{strings.Repeat("\ufffd", maxLogLine-3) + lineCut}},
	} {
		got, _ := logOf(t, "stdout", row.text)
		if len(got) != len(row.want) {
			t.Errorf("%s: %d lines, want %d", name, len(got), len(row.want))
			continue
		}
		for i := range got {
			if got[i] != row.want[i] {
				t.Errorf("%s: line %d is %.40q... of %d bytes, want %d", name, i, got[i], len(got[i]), len(row.want[i]))
			}
		}
	}
}

func TestRecentLines(t *testing.T) {
	t.Parallel()
	if _, l := logOf(t, "stdout", "a\n"); len(l.recent(time.Time{})) != 0 {
		t.Errorf("stdout: %q", l.recent(time.Time{}))
	}
	if _, l := logOf(t, "stderr", "a\nb"); strings.Join(l.recent(time.Time{}), "|") != "a|b" {
		t.Errorf("%q", l.recent(time.Time{}))
	}
	var text strings.Builder
	for n := range 3 * logBurst { // more than the log takes
		fmt.Fprintln(&text, n)
	}
	text.WriteString(strings.Repeat("y", 2*maxLogLine) + "\nlast")
	got, l := logOf(t, "stderr", text.String())
	if len(got) > 2*logBurst {
		t.Errorf("%d lines logged", len(got))
	}
	last := l.recent(time.Time{})
	if len(last) != recentLines || last[0] != fmt.Sprint(3*logBurst-recentLines+2) || last[19] != "last" || last[18] != strings.Repeat("y", recentLine)+lineCut {
		t.Errorf("%d lines: %.40q", len(last), last)
	}
	l.text(slog.LevelError, "one\ntwo\n\n")
	if last := l.recent(time.Time{}); len(last) != recentLines || strings.Join(last[17:], "|") != "last|one|two" {
		t.Errorf("%.40q", last)
	}
	l.background.Wait()
}

// heldLog is a log that takes nothing until it is let go.
type heldLog struct {
	slog.Handler
	letGo chan struct{}
}

func (h heldLog) Handle(ctx context.Context, r slog.Record) error {
	stream := false
	r.Attrs(func(a slog.Attr) bool { stream = stream || a.Key == "stream" || a.Key == "lines"; return !stream })
	if stream {
		<-h.letGo
	}
	return h.Handler.Handle(ctx, r)
}

func (h heldLog) WithAttrs(attrs []slog.Attr) slog.Handler {
	return heldLog{h.Handler.WithAttrs(attrs), h.letGo}
}

// TestLogNeverBlocks: row 48. A log that takes nothing holds no worker; what does not
// fit is counted.
func TestLogNeverBlocks(t *testing.T) {
	t.Parallel()
	book, letGo := &logBook{}, make(chan struct{})
	p := startPool(t, preamble+`
def floods(environ, start_response):
    for n in range(3000):
        os.write(1, b"out\n" + b"x" * 1000 + b"\n")
        os.write(2, b"err\n" + b"x" * 1000 + b"\n")
        environ["wsgi.errors"].write("said\n" + "x" * 1000 + "\n")
    return hello(environ, start_response)
`, Config{Log: slog.New(heldLog{book.logger().Handler(), letGo}), Timeout: -1})
	var held sync.Once
	defer held.Do(func() { close(letGo) })
	for range 2 {
		if w := await(t, "the answer", p.later(get("/floods"))); w.Status != 200 {
			t.Errorf("status %d", w.Status)
		}
	}
	l := p.onlySlot().worker.logs
	l.mu.Lock()
	waiting := l.waiting()
	l.mu.Unlock()
	if waiting > maxUnlogged {
		t.Errorf("%d lines wait", waiting)
	}
	held.Do(func() { close(letGo) })
	eventually(t, "the log", func() bool {
		l.mu.Lock()
		defer l.mu.Unlock()
		return l.writing < 0
	})
	p.shutdown(10 * time.Second)
	logged, missing := 0, uint64(0)
	for _, line := range book.find(func(l logLine) bool { return l.str("stream") != "" || l["lines"] != nil }) {
		missing += line.num("lines")
		if line["lines"] == nil {
			logged++
		}
	}
	if total := uint64(logged) + missing; total != 2*3000*6 || logged < maxUnlogged || missing < 10000 {
		t.Errorf("%d lines logged, %d missing", logged, missing)
	}
}

// TestDroppedLinesAreTold: the log is told of lines that it did not get once a second,
// also when nothing is said any more, and once more at the end.
func TestDroppedLinesAreTold(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var book logBook
		var background sync.WaitGroup
		l := newLineLog(book.logger(), &background)
		count := func() (logged, told, missing int) {
			synctest.Wait()
			for _, line := range book.find(func(logLine) bool { return true }) {
				if line["lines"] != nil {
					told++
					missing += int(line.num("lines"))
				} else {
					logged++
				}
			}
			return logged, told, missing
		}
		said := 0
		flood := func(d time.Duration) {
			for range d / time.Millisecond {
				time.Sleep(time.Millisecond)
				for range 3 {
					l.line(streamStdout, slog.LevelInfo, "x", "stream", streamStdout)
					said++
				}
				synctest.Wait()
			}
		}
		flood(5 * time.Second)
		if logged, told, missing := count(); told < 3 || told > 5 || logged < logBurst+4*logPerTime || missing == 0 {
			t.Errorf("%d lines logged, %d missing, told %d times", logged, missing, told)
		}
		time.Sleep(droppedEvery)
		logged, told, missing := count()
		if logged+missing != said {
			t.Errorf("%d lines logged and %d missing of %d, a while later", logged, missing, said)
		}
		time.Sleep(time.Hour)
		if _, again, _ := count(); again != told {
			t.Errorf("told %d times more of nothing", again-told)
		}
		flood(2500 * time.Millisecond)
		l.end()
		if logged, _, missing = count(); logged+missing != said {
			t.Errorf("%d lines logged and %d missing of %d, at the end", logged, missing, said)
		}
		flood(2500 * time.Millisecond) // of wsgi.errors, which may go on
		background.Wait()
		if logged, _, missing = count(); logged+missing != said {
			t.Errorf("%d lines logged and %d missing of %d, after the end", logged, missing, said)
		}
	})
}

// TestDroppedLinesOfASlowLog: a log that takes nothing gets no pile of such records.
func TestDroppedLinesOfASlowLog(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		book, letGo := &logBook{}, make(chan struct{})
		var background sync.WaitGroup
		l := newLineLog(slog.New(heldLog{book.logger().Handler(), letGo}), &background)
		const lines = 3 * maxUnlogged
		for range lines {
			l.text(slog.LevelError, "x", "stream", streamErrors)
		}
		time.Sleep(10 * time.Minute)
		l.mu.Lock()
		waiting := l.waiting()
		l.mu.Unlock()
		if waiting > maxUnlogged {
			t.Errorf("%d records wait", waiting)
		}
		close(letGo)
		background.Wait() // ends: the log is told
		told := book.find(func(l logLine) bool { return l["lines"] != nil })
		if all := book.find(func(logLine) bool { return true }); len(told) != 1 || len(all)-1+int(told[0].num("lines")) != lines {
			t.Errorf("%d records, %v", len(all), told)
		}
	})
}

// TestFloodLeavesRoom: what a request's failure says is logged whole beside a flood on
// stdout, which itself is told of once a second.
func TestFloodLeavesRoom(t *testing.T) {
	t.Parallel()
	p := startPool(t, preamble+`
import threading

over = threading.Event()

def flood():
    while not over.is_set():
        os.write(1, b"flood\n" * 500)

def starts(environ, start_response):
    threading.Thread(target=flood, daemon=True).start()
    return hello(environ, start_response)

def ends(environ, start_response):
    over.set()
    return hello(environ, start_response)

def failed_deeply(n):
    if n:
        return failed_deeply(n - 1)
    print("said on stderr", file=sys.stderr)
    raise ValueError("the cause")

def fails(environ, start_response):
    print("before the end", file=environ["wsgi.errors"])
    failed_deeply(100)
`, Config{})
	p.text("/starts")
	dropped := func(l logLine) bool { return l["lines"] != nil }
	p.log.await(t, "dropped lines", dropped)
	begun := time.Now()
	for range 5 {
		r := get("/fails")
		if w := p.serve(r); w.Status != 500 {
			t.Errorf("status %d", w.Status)
		}
		of := func(text string) func(logLine) bool {
			return func(l logLine) bool {
				return l.num("request") == r.ID && l.str("stream") == streamErrors && l.has(text)
			}
		}
		p.log.await(t, "the cause", of("ValueError: the cause"))
		for _, text := range []string{"before the end", "in fails", "in failed_deeply"} {
			if len(p.log.find(of(text))) == 0 {
				t.Errorf("no line %q", text)
			}
		}
	}
	eventually(t, "stderr", func() bool {
		return len(p.log.find(func(l logLine) bool { return l.str("stream") == streamStderr && l.has("said on stderr") })) == 5
	})
	eventually(t, "another record of dropped lines", func() bool { return len(p.log.find(dropped)) > 1 })
	p.text("/ends")
	told := len(p.log.find(dropped))
	if most := 2 + int(time.Since(begun)/droppedEvery); told > most {
		t.Errorf("told %d times of dropped lines, want %d at most", told, most)
	}
}

// TestFatalText: what came on stderr from the newest such line on is kept, unless the
// process goes on to speak long after it.
func TestFatalText(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		l := newLineLog(slog.New(slog.DiscardHandler), nil)
		say := func(lines ...string) {
			for _, line := range lines {
				l.keepStderr(line)
			}
		}
		const stack = "Current thread 0x1 (most recent call first):"
		if _, _, ok := l.lastWords(time.Time{}); ok {
			t.Error("last words of nothing")
		}
		say("a", fatalHead+"one", "", stack, "  File one")
		time.Sleep(time.Minute) // while the kernel writes the core
		if fatal, before, ok := l.lastWords(time.Time{}); !ok || fatal != fatalHead+"one\n\n"+stack+"\n  File one\n" || strings.Join(before, "|") != "a" {
			t.Errorf("%q, %q, %v", fatal, before, ok)
		}
		say("b")
		if fatal, _, ok := l.lastWords(time.Time{}); ok || l.fatal != nil {
			t.Errorf("%q of a process that speaks on", fatal)
		}
		say("50%" + fatalHead + "two")
		if _, _, ok := l.lastWords(time.Time{}); ok {
			t.Error("last words without a stack")
		}
		for n := range 100_000 {
			say(fmt.Sprint(stack, n))
		}
		fatal, before, ok := l.lastWords(time.Time{})
		if size := cap(l.fatal.text.head) + cap(l.fatal.text.tail); !ok || len(fatal) > dumpMax+100 || size > 4*dumpMax || before[len(before)-1] != "50%" ||
			!strings.HasPrefix(fatal, fatalHead+"two\n") || !strings.HasSuffix(fatal, stack+"99999\n") {
			t.Errorf("%d bytes, %d held, before %q", len(fatal), size, before)
		}
		if said := l.recent(time.Time{}); len(said) != recentLines || said[19] != stack+"99999" {
			t.Errorf("%q", said)
		}
	})
}
