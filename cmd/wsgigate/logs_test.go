package main

import (
	"bytes"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
)

// openTestLog opens a log that the test's end closes.
func openTestLog(t *testing.T, path string) *logFile {
	t.Helper()
	l, err := openLog("access-log", path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(l.Close)
	return l
}

func wantText(t *testing.T, path, want string) {
	t.Helper()
	if text, err := os.ReadFile(path); err != nil || string(text) != want {
		t.Errorf("%s: %q, %v, want %q", filepath.Base(path), text, err, want)
	}
}

// TestLogRotation: after a rename, lines go to the old file until Reopen.
func TestLogRotation(t *testing.T) {
	path := filepath.Join(t.TempDir(), "log")
	l := openTestLog(t, path)
	if info, err := os.Stat(path); err != nil || info.Mode().Perm()&^0o640 != 0 {
		t.Errorf("mode %v, %v", info.Mode(), err)
	}
	fmt.Fprintln(l, "one")
	if err := os.Rename(path, path+".1"); err != nil {
		t.Fatal(err)
	}
	fmt.Fprintln(l, "two")
	if err := l.Reopen(); err != nil {
		t.Fatal(err)
	}
	fmt.Fprintln(l, "three")
	l.flush(patience)
	wantText(t, path+".1", "one\ntwo\n")
	wantText(t, path, "three\n")

	// Some rotate by a symbolic link.
	if err := os.Rename(path, path+".2"); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("log.3", path); err != nil {
		t.Fatal(err)
	}
	if err := l.Reopen(); err != nil {
		t.Fatal(err)
	}
	fmt.Fprintln(l, "four")
	l.flush(patience)
	wantText(t, path+".3", "four\n")
}

// TestLogKept: what cannot be opened leaves the log where it was.
func TestLogKept(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "logs")
	path := filepath.Join(dir, "log")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	l := openTestLog(t, path)
	if err := os.Rename(dir, dir+".old"); err != nil {
		t.Fatal(err)
	}
	if err := l.Reopen(); err == nil || !strings.HasPrefix(err.Error(), "--access-log: open "+path) {
		t.Errorf("reopened in a folder that is gone: %v", err)
	}
	fmt.Fprintln(l, "kept")
	l.flush(patience)
	wantText(t, filepath.Join(dir+".old", "log"), "kept\n")
}

// TestLogWhileReopened: no line is lost or torn.
func TestLogWhileReopened(t *testing.T) {
	const writers, lines, rotations = 4, 200, 20
	path := filepath.Join(t.TempDir(), "log")
	l := openTestLog(t, path)
	var group sync.WaitGroup
	for w := range writers {
		group.Go(func() {
			for i := range lines {
				fmt.Fprintf(l, "line %d %d\n", w, i)
			}
		})
	}
	for i := range rotations {
		if err := os.Rename(path, fmt.Sprintf("%s.%d", path, i)); err != nil {
			t.Fatal(err)
		}
		if err := l.Reopen(); err != nil {
			t.Fatal(err)
		}
	}
	group.Wait()
	l.flush(patience)
	seen := map[string]int{}
	files, err := filepath.Glob(path + "*")
	if err != nil || len(files) != rotations+1 {
		t.Fatalf("%d files, %v", len(files), err)
	}
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		for line := range bytes.Lines(text) {
			seen[string(line)]++
		}
	}
	for w := range writers {
		for i := range lines {
			if n := seen[fmt.Sprintf("line %d %d\n", w, i)]; n != 1 {
				t.Fatalf("line %d of writer %d is there %d times", i, w, n)
			}
		}
	}
	if len(seen) != writers*lines {
		t.Errorf("%d different lines, want %d", len(seen), writers*lines)
	}
}

// TestLogStderr: there is nothing to open or to close.
func TestLogStderr(t *testing.T) {
	for _, path := range []string{"", "-"} {
		l := openTestLog(t, path)
		if err := l.Reopen(); err != nil || l != stderrLog {
			t.Errorf("%q: %v", path, err)
		}
		if err := l.giveTo("nobody"); err != nil {
			t.Errorf("%q: %v", path, err)
		}
		l.Close()
	}
	if _, err := os.Stderr.Stat(); err != nil {
		t.Errorf("stderr: %v", err)
	}
}

// TestLogClosed: a close is repeated without harm; what is logged after it is no error.
func TestLogClosed(t *testing.T) {
	path := filepath.Join(t.TempDir(), "log")
	l := openTestLog(t, path)
	fmt.Fprintln(l, "before")
	l.Close()
	l.Close()
	wantText(t, path, "before\n")
	if err := l.Reopen(); err != nil || l.next.File != nil {
		t.Errorf("a closed log was opened again: %v", err)
	}
	if _, err := fmt.Fprintln(l, "said after the end of the log"); err != nil || l.running != nil {
		t.Errorf("%v, or written to the closed file", err)
	}
}

// TestLogGiven: a log that root has made becomes the user's; nothing else does.
func TestLogGiven(t *testing.T) {
	nobody, err := thisSystem.find("nobody", "0")
	if err != nil {
		t.Fatal(err)
	}
	root := os.Geteuid() == 0
	dir := t.TempDir()
	file := func(name string) string { return filepath.Join(dir, name) }
	for name, prepare := range map[string]func(path string) error{
		"new": func(string) error { return nil },
		"linked": func(path string) error {
			return os.WriteFile(path, nil, 0o600)
		},
		"another's": func(path string) error {
			if err := os.WriteFile(path, nil, 0o600); err != nil || !root {
				return err
			}
			return os.Chown(path, 4321, -1)
		},
	} {
		path := file(name)
		if err := prepare(path); err != nil {
			t.Fatal(err)
		}
		if name == "linked" {
			if err := os.Link(path, path+".too"); err != nil {
				t.Fatal(err)
			}
		}
		before := ownerOf(t, path)
		l := openTestLog(t, path)
		if err := l.giveTo("nobody"); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		want := before
		if name == "new" {
			want = os.Geteuid()
			if root {
				want = nobody.uid
			}
		}
		if got := ownerOf(t, path); got != want {
			t.Errorf("%s: belongs to %d, want %d", name, got, want)
		}
	}
	before := ownerOf(t, "/dev/null")
	if err := openTestLog(t, "/dev/null").giveTo("nobody"); err != nil || ownerOf(t, "/dev/null") != before {
		t.Errorf("/dev/null belongs to %d, was %d; %v", ownerOf(t, "/dev/null"), before, err)
	}
	if err := openTestLog(t, file("x")).giveTo("nobody-of-that-name"); (err != nil) != root {
		t.Errorf("a user that is not there: %v", err)
	}
}

// ownerOf returns the owner of a file, -1 if there is none.
func ownerOf(t *testing.T, path string) int {
	t.Helper()
	info, err := os.Stat(path)
	if os.IsNotExist(err) {
		return -1
	}
	if err != nil {
		t.Fatal(err)
	}
	return int(info.Sys().(*syscall.Stat_t).Uid)
}

// TestLogMissing: a log that cannot be opened at the start is the configuration's error.
func TestLogMissing(t *testing.T) {
	_, err := openLog("error-log", filepath.Join(t.TempDir(), "absent", "log"))
	if _, ok := err.(*fs.PathError); ok || err == nil || !strings.HasPrefix(err.Error(), "--error-log: ") {
		t.Error(err)
	}
}
