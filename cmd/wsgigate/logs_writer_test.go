package main

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"wsgigate/environ"
)

// makeFIFO makes a FIFO whose buffer is a page, and opens it for reading.
func makeFIFO(t testing.TB) (path string, reader *os.File) {
	t.Helper()
	path = filepath.Join(t.TempDir(), "fifo")
	if err := unix.Mkfifo(path, 0o600); err != nil {
		t.Fatal(err)
	}
	return path, openReader(t, path)
}

func openReader(t testing.TB, path string) *os.File {
	t.Helper()
	reader, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = reader.Close() })
	if _, err := unix.FcntlInt(reader.Fd(), unix.F_SETPIPE_SZ, os.Getpagesize()); err != nil {
		t.Fatal(err)
	}
	return reader
}

// listener is the log in which trouble is told.
type listener struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (h *listener) Write(p []byte) (int, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.text.Write(p)
}

func (h *listener) String() string {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.text.String()
}

// awaitText polls until a text is there.
func awaitText(t *testing.T, text fmt.Stringer, want string) []string {
	t.Helper()
	for end := time.Now().Add(patience); ; time.Sleep(time.Millisecond) {
		if m := regexp.MustCompile(want).FindStringSubmatch(text.String()); m != nil {
			return m
		}
		if time.Now().After(end) {
			t.Fatalf("%q has no %q", text, want)
		}
	}
}

const stuckLines = 40000 // of 40 bytes: more than logRoom

// fill writes numbered lines, and fails when that takes as long as a log that is stuck.
func fill(t *testing.T, l *logFile, from, to int) {
	t.Helper()
	began := time.Now()
	for i := from; i < to; i++ {
		fmt.Fprintf(l, "line %06d %s\n", i, strings.Repeat("x", 27))
	}
	if took := time.Since(began); took > patience/10 {
		t.Errorf("lines waited %v for the log", took)
	}
}

// TestLogNobodyReads: lines wait while there is room, then they are lost; what is left
// is whole and in order, and the gap is told where it is.
func TestLogNobodyReads(t *testing.T) {
	path, reader := makeFIFO(t)
	l, heard := openTestLog(t, path), new(listener)
	l.tell = newLogger(heard)
	fill(t, l, 0, stuckLines)
	awaitText(t, heard, `^\S+ ERROR a log does not take its lines log=access-log error="(it is too slow|nobody reads it)" lost=[1-9]\d*\n$`)
	l.mu.Lock()
	kept := l.waiting()
	l.mu.Unlock()
	if kept > logRoom || kept < logRoom/2 {
		t.Errorf("%d bytes wait", kept)
	}
	if err := reader.SetReadDeadline(time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	lines, want, lost, after := bufio.NewScanner(reader), 0, -1, 0
	for after < 10 && lines.Scan() {
		var n int
		switch m := regexp.MustCompile(`^\S+ WARN  log lines were lost: the log did not take them lines=(\d+) since=\S+$`).FindStringSubmatch(lines.Text()); {
		case m != nil && lost < 0:
			fmt.Sscan(m[1], &lost)
			want += lost
			fill(t, l, stuckLines, stuckLines+10)
		default:
			if k, err := fmt.Sscanf(lines.Text(), "line %06d xxx", &n); k != 1 || err != nil || n != want {
				t.Fatalf("%q, want line %d", lines.Text(), want)
			}
			if want++; n >= stuckLines {
				after++
			}
		}
	}
	if lost <= 0 || want != stuckLines+10 {
		t.Errorf("%d lines are said to be lost, the last line is %d: %v", lost, want-1, lines.Err())
	}
	m := awaitText(t, heard, `(?m) WARN  a log takes its lines again log=access-log lost=(\d+) since=\S+$`)
	if m[1] != fmt.Sprint(lost) || strings.Count(heard.String(), "\n") != 2 {
		t.Errorf("%d lines were lost, heard %q", lost, heard)
	}
}

// TestLogStuckAtEnd: the end waits for a log no longer than it may, and says what is lost.
func TestLogStuckAtEnd(t *testing.T) {
	path, _ := makeFIFO(t)
	l, heard := openTestLog(t, path), new(listener)
	l.tell = newLogger(heard)
	fill(t, l, 0, 1000)
	began := time.Now()
	l.Close()
	if took := time.Since(began); took > logFlush+patience/10 {
		t.Errorf("closed after %v", took)
	}
	m := awaitText(t, heard, `a log ends without all its lines log=access-log lost=(\d+) since=\S+\n$`)
	if lost := m[1]; lost < "8" || len(lost) != 3 { // the pipe has a page of a hundred lines
		t.Errorf("%s lines lost", lost)
	}
}

// TestLogReaderLeaves: SIGUSR1 with nobody at the FIFO changes nothing and does not wait;
// who reads it later gets the lines.
func TestLogReaderLeaves(t *testing.T) {
	path, reader := makeFIFO(t)
	l, heard := openTestLog(t, path), new(listener)
	l.tell = newLogger(heard)
	_ = reader.Close()
	fmt.Fprintln(l, "one")
	awaitText(t, heard, `ERROR a log does not take its lines log=access-log error="write `+path+`: broken pipe" lost=0\n$`)
	if err := l.Reopen(); !errors.Is(err, errNoReader) || !strings.HasPrefix(err.Error(), "--access-log: open "+path+": nobody reads the FIFO: ") {
		t.Errorf("reopened: %v", err)
	}
	reader = openReader(t, path)
	l.hurry()
	awaitText(t, heard, `WARN  a log takes its lines again log=access-log lost=0\n$`)
	fmt.Fprintln(l, "two")
	if err := l.Reopen(); err != nil {
		t.Error(err)
	}
	fmt.Fprintln(l, "three")
	l.flush(patience)
	got := make([]byte, 100)
	if n, err := reader.Read(got); string(got[:n]) != "one\ntwo\nthree\n" {
		t.Errorf("%q, %v", got[:n], err)
	}
}

// TestLogStuckMoves: a log that is stuck can be moved, and each line is whole in one file.
func TestLogStuckMoves(t *testing.T) {
	path, reader := makeFIFO(t)
	l := openTestLog(t, path)
	fmt.Fprintln(l, strings.Repeat("y", 3*pipeBatch)) // longer than the pipe
	fill(t, l, 0, 100)
	l.path = filepath.Join(t.TempDir(), "log")
	if err := l.Reopen(); err != nil {
		t.Fatal(err)
	}
	fmt.Fprintln(l, "last")
	l.flush(patience)
	text, err := os.ReadFile(l.path)
	if lines := bytes.SplitAfter(text, []byte("\n")); err != nil || len(lines) != 103 || len(lines[0]) != 3*pipeBatch+1 || string(lines[101]) != "last\n" {
		t.Errorf("%d lines, the first has %d bytes, %v", len(lines), len(lines[0]), err)
	}
	if n, err := reader.Read(make([]byte, pipeBatch)); n == 0 || err != nil {
		t.Errorf("%d bytes, %v", n, err)
	}
}

// TestLogDiskFull: it is told once, whatever is logged, and how it ended.
func TestLogDiskFull(t *testing.T) {
	l, heard := openTestLog(t, "/dev/full"), new(listener)
	l.tell = newLogger(heard)
	for range 100 {
		fmt.Fprintln(l, "line")
		l.hurry()
		time.Sleep(time.Millisecond / 4)
	}
	awaitText(t, heard, `error="write /dev/full: no space left on device" lost=0\n$`)
	l.Close()
	if text := heard.String(); strings.Count(text, "\n") != 2 || !strings.Contains(text, "ERROR a log ends without all its lines log=access-log lost=100 since=") {
		t.Errorf("heard %q", text)
	}
}

// TestLogTellsElsewhere: trouble of the access log is told in the error log, that of the
// error log on stderr, none to itself.
func TestLogTellsElsewhere(t *testing.T) {
	dir := t.TempDir()
	for name, c := range map[string]struct {
		access, errs string
		told         [2]bool
		shared       bool
	}{
		"two files": {filepath.Join(dir, "a"), filepath.Join(dir, "e"), [2]bool{true, true}, false},
		"one file":  {filepath.Join(dir, "a"), filepath.Join(dir, "a"), [2]bool{true, true}, true},
		"stderr":    {"-", "", [2]bool{}, true},
		"two names": {filepath.Join(dir, "a"), dir + "/./a", [2]bool{false, true}, false},
	} {
		g := &gateway{cfg: &config{accessLog: c.access, errorLog: c.errs, logFormat: environ.JSON}}
		if err := g.openLogs(); err != nil {
			t.Fatal(err)
		}
		other := g.logs[len(g.logs)-1]
		if got := [2]bool{g.access.tell != nil, other.tell != nil}; got != c.told || (g.access == other) != c.shared {
			t.Errorf("%s: told %v, shared %v", name, got, g.access == other)
		}
		want := "WARN"
		if !c.shared {
			want = `{"time":"`
		}
		if line := string(g.access.lostLine(nil, 3, time.Now())); !strings.Contains(line, want) {
			t.Errorf("%s: %q", name, line)
		}
		g.closeLogs()
	}
}

// BenchmarkLog compares a write for each line with the buffer, for crowds of lines. The
// time is what the request takes; cpu-ns is what both goroutines and the kernel do.
func BenchmarkLog(b *testing.B) {
	const crowd = 50
	line := []byte(strings.Repeat("x", 400) + "\n")
	path, reader := makeFIFO(b)
	for name, path := range map[string]string{"file": filepath.Join(b.TempDir(), "log"), "pipe": path} {
		file, err := openLogFile(path)
		if err != nil {
			b.Fatal(err)
		}
		if name == "pipe" {
			go func() { _, _ = io.Copy(io.Discard, reader) }() // ends with the writer
		}
		l := newLogFile("access-log", path, file)
		b.Run(name+"/direct", func(b *testing.B) {
			benchmarkLog(b, func() { _, _ = file.Write(line) }, crowd, func() {})
		})
		b.Run(name+"/buffered", func(b *testing.B) {
			benchmarkLog(b, func() { _, _ = l.Write(line) }, crowd, func() { l.flush(time.Minute) })
		})
		l.Close()
		if l.lost.lines > 0 {
			b.Errorf("%d lines lost", l.lost.lines)
		}
	}
}

func benchmarkLog(b *testing.B, write func(), crowd int, flush func()) {
	b.ReportAllocs()
	var before, after unix.Rusage
	_ = unix.Getrusage(unix.RUSAGE_SELF, &before)
	var took time.Duration
	n := 0
	for b.Loop() {
		began := time.Now()
		for range crowd {
			write()
		}
		took += time.Since(began)
		flush()
		n += crowd
	}
	_ = unix.Getrusage(unix.RUSAGE_SELF, &after)
	cpu := after.Utime.Nano() + after.Stime.Nano() - before.Utime.Nano() - before.Stime.Nano()
	b.ReportMetric(0, "ns/op")
	b.ReportMetric(float64(took.Nanoseconds())/float64(n), "ns/line")
	b.ReportMetric(float64(cpu)/float64(n), "cpu-ns/line")
}
