package pyrunner

import (
	"encoding/json"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"time"

	"wsgigate/environ"
)

// logBook keeps what a pool logs.
type logBook struct {
	mu    sync.Mutex
	lines []logLine
	raw   strings.Builder
}

// logLine is one record: the attributes, and time, level and msg.
type logLine map[string]any

func (l logLine) str(key string) string { s, _ := l[key].(string); return s }
func (l logLine) num(key string) uint64 { n, _ := l[key].(float64); return uint64(n) }

// has reports whether the message contains all of parts.
func (l logLine) has(parts ...string) bool {
	for _, part := range parts {
		if !strings.Contains(l.str("msg"), part) {
			return false
		}
	}
	return true
}

func (b *logBook) logger() *slog.Logger {
	return slog.New(slog.NewJSONHandler(b, &slog.HandlerOptions{Level: slog.LevelDebug}))
}

// Write takes one record of a JSON handler.
func (b *logBook) Write(record []byte) (int, error) {
	var line logLine
	if err := json.Unmarshal(record, &line); err != nil {
		return 0, err
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.lines = append(b.lines, line)
	b.raw.Write(record)
	return len(record), nil
}

func (b *logBook) text() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.raw.String()
}

// find returns the lines that match.
func (b *logBook) find(match func(logLine) bool) []logLine {
	b.mu.Lock()
	defer b.mu.Unlock()
	var found []logLine
	for _, line := range b.lines {
		if match(line) {
			found = append(found, line)
		}
	}
	return found
}

// await waits for a line that matches and returns the first.
func (b *logBook) await(t testing.TB, what string, match func(logLine) bool) logLine {
	t.Helper()
	var found []logLine
	for end := time.Now().Add(patience); len(found) == 0; time.Sleep(2 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("the log has no line: %s", what)
		}
		found = b.find(match)
	}
	return found[0]
}

// awaitText waits for a line whose message contains all of parts.
func (b *logBook) awaitText(t testing.TB, parts ...string) logLine {
	t.Helper()
	return b.await(t, strings.Join(parts, ", "), func(l logLine) bool { return l.has(parts...) })
}

// fault waits for the line that a fault leaves, checks that there is only one
// beside the incident, and that it has the request's id, its worker and the phase, and
// returns it.
func (b *logBook) fault(t testing.TB, r *environ.Request, phase string) logLine {
	t.Helper()
	match := func(l logLine) bool {
		return l.num("request") == r.ID && l.str("phase") != "" && l.str("stream") == "" && l["incident"] == nil
	}
	line := b.await(t, "a fault of the request", match)
	if all := b.find(match); len(all) != 1 {
		t.Errorf("the fault has %d log lines: %v", len(all), all)
	}
	if line.num("pid") != uint64(r.Worker) {
		t.Errorf("log line names worker %d, the request had %d", line.num("pid"), r.Worker)
	}
	if line.str("phase") != phase {
		t.Errorf("log line has phase %q, want %q", line.str("phase"), phase)
	}
	return line
}
