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
	if _, l := logOf(t, "stdout", "a\n"); len(l.recent()) != 0 {
		t.Errorf("stdout: %q", l.recent())
	}
	if _, l := logOf(t, "stderr", "a\nb"); strings.Join(l.recent(), "|") != "a|b" {
		t.Errorf("%q", l.recent())
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
	last := l.recent()
	if len(last) != recentLines || last[0] != fmt.Sprint(3*logBurst-recentLines+2) || last[19] != "last" || last[18] != strings.Repeat("y", recentLine)+lineCut {
		t.Errorf("%d lines: %.40q", len(last), last)
	}
	l.text(slog.LevelError, "one\ntwo\n\n")
	if last := l.recent(); len(last) != recentLines || strings.Join(last[17:], "|") != "last|one|two" {
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
	waiting, dropped := len(l.unlogged)+l.writing, l.dropped
	l.mu.Unlock()
	if waiting > maxUnlogged || dropped < 10000 {
		t.Errorf("%d lines wait, %d were dropped", waiting, dropped)
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
	if total := uint64(logged) + missing; total != 2*3000*6 || logged < maxUnlogged {
		t.Errorf("%d lines logged, %d missing", logged, missing)
	}
}
