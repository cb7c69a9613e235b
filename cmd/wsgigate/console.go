package main

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"strconv"
	"strings"
	"sync"
	"unicode"
	"unicode/utf8"
)

// console is the log that people read: a time, a level, the message, then
// name=value. Whatever the text is, a line stays a line and moves no cursor:
// control characters are escaped. (slog's own text form quotes
// each line of a traceback.)
type console struct {
	mu    *sync.Mutex
	out   io.Writer
	level slog.Level
	attrs string
}

var _ slog.Handler = (*console)(nil)

// consoleTime is RFC 3339 with milliseconds.
const consoleTime = "2006-01-02T15:04:05.000Z07:00"

func newLogger(out io.Writer) *slog.Logger {
	return slog.New(&console{mu: new(sync.Mutex), out: out, level: slog.LevelInfo})
}

func (c *console) Enabled(_ context.Context, level slog.Level) bool { return level >= c.level }

func (c *console) Handle(_ context.Context, r slog.Record) error {
	var b strings.Builder
	b.WriteString(r.Time.Format(consoleTime))
	fmt.Fprintf(&b, " %-5s ", r.Level)
	b.WriteString(printable(r.Message))
	b.WriteString(c.attrs)
	r.Attrs(func(a slog.Attr) bool {
		b.WriteString(formatAttr(a))
		return true
	})
	b.WriteByte('\n')
	c.mu.Lock()
	defer c.mu.Unlock()
	_, err := io.WriteString(c.out, b.String())
	return err
}

func (c *console) WithAttrs(attrs []slog.Attr) slog.Handler {
	with := *c
	for _, a := range attrs {
		with.attrs += formatAttr(a)
	}
	return &with
}

// WithGroup is not used by this program; names stay as they are.
func (c *console) WithGroup(string) slog.Handler { return c }

func formatAttr(a slog.Attr) string {
	value := a.Value.Resolve().String()
	if value == "" || strings.ContainsAny(value, " \"=") || printable(value) != value {
		value = strconv.Quote(value)
	}
	return " " + a.Key + "=" + value
}

// printable escapes what is not a printable character, and bytes that are no
// UTF-8 (0x9b alone begins a control sequence on some terminals).
func printable(s string) string {
	if utf8.ValidString(s) && strings.IndexFunc(s, func(r rune) bool { return !unicode.IsPrint(r) }) < 0 {
		return s
	}
	var b strings.Builder
	for len(s) > 0 {
		r, size := utf8.DecodeRuneInString(s)
		switch {
		case r == utf8.RuneError && size == 1:
			fmt.Fprintf(&b, `\x%02x`, s[0])
		case unicode.IsPrint(r):
			b.WriteRune(r)
		default:
			quoted := strconv.QuoteRuneToASCII(r)
			b.WriteString(quoted[1 : len(quoted)-1])
		}
		s = s[size:]
	}
	return b.String()
}

// terse is the log of a command that makes one request: what the application
// prints comes as it is, without time and process, and of the rest only
// warnings. wsgi.errors is left out: the response brings it to the same place.
type terse struct{ console }

var _ slog.Handler = (*terse)(nil)

func newTerseLogger(out io.Writer) *slog.Logger {
	return slog.New(&terse{console{mu: new(sync.Mutex), out: out, level: slog.LevelInfo}})
}

func (t *terse) Handle(ctx context.Context, r slog.Record) error {
	var stream, phase string
	r.Attrs(func(a slog.Attr) bool {
		switch a.Key {
		case "stream":
			stream = a.Value.String()
		case "phase":
			phase = a.Value.String()
		}
		return true
	})
	switch {
	case stream == "wsgi.errors" && phase == "":
		return nil
	case stream != "":
		t.mu.Lock()
		defer t.mu.Unlock()
		_, err := io.WriteString(t.out, printable(r.Message)+"\n")
		return err
	case r.Level < slog.LevelWarn:
		return nil
	}
	return t.console.Handle(ctx, r)
}

func (t *terse) WithAttrs(attrs []slog.Attr) slog.Handler {
	return &terse{*t.console.WithAttrs(attrs).(*console)}
}

// WithGroup is not used by this program.
func (t *terse) WithGroup(string) slog.Handler { return t }
