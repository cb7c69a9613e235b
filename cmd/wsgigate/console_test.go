package main

import (
	"errors"
	"log/slog"
	"regexp"
	"strings"
	"testing"
	"time"
	"unicode"
	"unicode/utf8"
)

// TestConsole: a line stays a line, and moves no cursor (S6).
func TestConsole(t *testing.T) {
	var b strings.Builder
	log := newLogger(&b).With("pid", 7)
	log.Info("plain", "after", 1500*time.Millisecond, "uri", "/a?b")
	log.Warn("tab\tLF\nCR\rESC\x1b[2J C1\x9b \u202e", "error", errors.New("two\nlines"))
	log.Error("quotes", "empty", "", "space", "a b", "equal", "a=b", "quote", `a"b`, "é", "é")
	log.Debug("not shown")
	want := []string{
		`INFO  plain pid=7 after=1.5s uri=/a?b`,
		`WARN  tab\tLF\nCR\rESC\x1b[2J C1\x9b \u202e pid=7 error="two\nlines"`,
		`ERROR quotes pid=7 empty="" space="a b" equal="a=b" quote="a\"b" é=é`,
	}
	lines := strings.Split(strings.TrimSuffix(b.String(), "\n"), "\n")
	if len(lines) != len(want) {
		t.Fatalf("%d lines:\n%s", len(lines), b.String())
	}
	stamp := regexp.MustCompile(`^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}(Z|[+-]\d\d:\d\d) `)
	for i, line := range lines {
		if !stamp.MatchString(line) {
			t.Errorf("no time: %s", line)
		}
		if got := stamp.ReplaceAllString(line, ""); got != want[i] {
			t.Errorf("got  %s\nwant %s", got, want[i])
		}
	}
}

func TestTerse(t *testing.T) {
	var b strings.Builder
	log := newTerseLogger(&b).With("pid", 7)
	log.Info("worker ready")
	log.Info("printed\x1b", "stream", "stdout")
	log.Error("told by the response", "request", 1, "stream", "wsgi.errors")
	log.Error("after the answer", "request", 1, "stream", "wsgi.errors", "phase", "close")
	log.Warn("a warning", "request", 1)
	lines := strings.Split(b.String(), "\n")
	if len(lines) != 4 || lines[0] != `printed\x1b` || lines[1] != "after the answer" ||
		!strings.HasSuffix(lines[2], " WARN  a warning pid=7 request=1") || lines[3] != "" {
		t.Errorf("%q", lines)
	}
	if log.Enabled(t.Context(), slog.LevelDebug) {
		t.Error("DEBUG is shown")
	}
}

// FuzzPrintable: what is printable stays, and nothing else comes out.
func FuzzPrintable(f *testing.F) {
	for _, s := range []string{"", "plain é", "\x1b[31m", "a\nb\r", "\x9b", "\xff\xfe", "\u202e", "\u00a0", "\U0010ffff", "\ufffd"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		got := printable(s)
		if !utf8.ValidString(got) || strings.ContainsFunc(got, func(r rune) bool { return !unicode.IsPrint(r) }) {
			t.Errorf("%q became %q", s, got)
		}
		if utf8.ValidString(s) && !strings.ContainsFunc(s, func(r rune) bool { return !unicode.IsPrint(r) }) && got != s {
			t.Errorf("%q became %q", s, got)
		}
	})
}
