package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/fsnotify/fsnotify"
	"go.uber.org/goleak"
)

// watchTest has a folder, and counts the reloads that changes in it cause.
type watchTest struct {
	*testing.T
	dir     string
	pause   time.Duration // of the watch
	reloads chan struct{} // one for each, when it begins
	result  chan error    // what the next ones return, in place of nil
	log     lockedBuffer
}

type lockedBuffer struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (b *lockedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.Write(p)
}

func (b *lockedBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.String()
}

func newWatchTest(t *testing.T) *watchTest {
	leaks := goleak.IgnoreCurrent()
	t.Cleanup(func() { goleak.VerifyNone(t, leaks) })
	dir, err := filepath.EvalSymlinks(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	return &watchTest{T: t, dir: dir, pause: touchPause, reloads: make(chan struct{}, 100), result: make(chan error, 100)}
}

func (t *watchTest) reload(context.Context) error {
	t.reloads <- struct{}{}
	select {
	case err := <-t.result:
		return err
	default:
		return nil
	}
}

func (t *watchTest) logger() *slog.Logger {
	return slog.New(slog.NewTextHandler(&t.log, nil))
}

// touching starts watchTouch for a file of the folder.
func (t *watchTest) touching(name string) {
	t.Helper()
	t.inBackground(func(ctx context.Context) {
		if err := watchTouch(ctx, filepath.Join(t.dir, name), t.reload, t.logger()); err != nil {
			t.Error(err)
		}
	})
	// Watching begins soon after the call. A file beside shows when.
	t.await("inotify", func() bool { return t.inotifyWatches() > 0 })
}

// sources starts a watcher of imported files.
func (t *watchTest) sources(names ...string) *fileWatch {
	t.Helper()
	w := newSourceWatcher(t.reload, t.logger())
	t.pause = 50 * time.Millisecond
	w.pause, w.every = t.pause, t.pause
	t.inBackground(w.run)
	t.learn(w, names...)
	return w
}

// learn adds files and waits until they are watched.
func (t *watchTest) learn(w *fileWatch, names ...string) {
	t.Helper()
	var paths []string
	for _, name := range names {
		paths = append(paths, filepath.Join(t.dir, name))
	}
	w.add(paths)
	t.await("files to be taken", func() bool { return len(w.wake) == 0 })
	w.add(nil) // is seen to when the others are watched
	t.await("files to be watched", func() bool { return len(w.wake) == 0 })
}

func (t *watchTest) inBackground(run func(context.Context)) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { defer close(done); run(ctx) }()
	t.Cleanup(func() { cancel(); <-done })
}

// inotifyWatches counts the watches of this process.
func (t *watchTest) inotifyWatches() int {
	n := 0
	files, _ := filepath.Glob("/proc/self/fdinfo/*")
	for _, file := range files {
		text, _ := os.ReadFile(file)
		n += strings.Count(string(text), "inotify wd:")
	}
	return n
}

func (t *watchTest) await(what string, done func() bool) {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); !done(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("waited for %s; log:\n%s", what, &t.log)
		}
	}
}

// reloaded waits for a reload, and for that to be the only one.
func (t *watchTest) reloaded(announced string) {
	t.Helper()
	select {
	case <-t.reloads:
	case <-time.After(10 * time.Second):
		t.Fatalf("no reload; log:\n%s", &t.log)
	}
	lines := strings.Split(strings.TrimSpace(t.log.String()), "\n")
	if last := lines[len(lines)-1]; !strings.Contains(last, announced+": reloading") {
		t.Errorf("logged %s, want %q", last, announced)
	}
	select {
	case <-t.reloads:
		t.Errorf("another reload; log:\n%s", &t.log)
	case <-time.After(t.pause * 3 / 2):
	}
}

func (t *watchTest) write(name, text string) {
	t.Helper()
	path := filepath.Join(t.dir, name)
	if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, []byte(text), 0o644)); err != nil {
		t.Fatal(err)
	}
}

// replace saves a file as most editors do: a new one is renamed over it.
func (t *watchTest) replace(name, text string) {
	t.Helper()
	t.write(name+"~new", text)
	t.must(os.Rename(filepath.Join(t.dir, name+"~new"), filepath.Join(t.dir, name)))
}

func (t *watchTest) must(err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func (t *watchTest) path(name string) string { return filepath.Join(t.dir, name) }

// touch sets a file's times to now, as touch(1) does.
func (t *watchTest) touch(name string) {
	t.Helper()
	t.must(os.Chtimes(t.path(name), time.Now(), time.Now()))
}

func TestTouch(tt *testing.T) {
	t := newWatchTest(tt)
	t.touching("reload")
	announced := t.path("reload") + " touched"
	t.write("reload", "")
	t.reloaded(announced)
	t.touch("reload")
	t.reloaded(announced)
	t.replace("reload", "")
	t.reloaded(announced)
	t.write("reload", "longer")
	t.reloaded(announced)

	t.must(os.Remove(t.path("reload"))) // is no touch
	t.write("other", "")
	t.must(os.WriteFile(t.path("reload"), nil, 0o600))
	t.reloaded(announced)
	t.must(os.Chmod(t.path("reload"), 0o644)) // nor is this
	t.touch("other")
	for range 20 {
		t.touch("reload")
	}
	t.reloaded(announced)
}

func TestTouchFolder(tt *testing.T) {
	t := newWatchTest(tt)
	t.write("file", "")
	for name, want := range map[string]error{"nowhere/reload": os.ErrNotExist, "file/reload": syscall.ENOTDIR} {
		err := watchTouch(context.Background(), t.path(name), t.reload, t.logger())
		if !errors.Is(err, want) || !strings.HasPrefix(fmt.Sprint(err), "--touch-reload "+t.path(name)) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestTouchDeployment: "current" is a link to the release, which is switched.
func TestTouchDeployment(tt *testing.T) {
	t := newWatchTest(tt)
	for _, release := range []string{"1", "2", "3"} {
		t.must(os.MkdirAll(t.path("releases/"+release), 0o755))
	}
	switchTo := func(release string) {
		t.must(os.Symlink("releases/"+release, t.path("next")))
		t.must(os.Rename(t.path("next"), t.path("current")))
	}
	switchTo("1")
	t.touching("current/reload")
	announced := t.path("current/reload") + " touched"
	t.write("releases/1/reload", "")
	t.reloaded(announced)

	t.write("releases/2/reload", "")
	switchTo("2") // brings another file
	t.reloaded(announced)
	switchTo("3") // brings none
	t.write("current/reload", "")
	t.reloaded(announced)
}

// TestFolderMadeAnew: it is noticed, at the latest by the look of each second.
func TestFolderMadeAnew(tt *testing.T) {
	t := newWatchTest(tt)
	t.must(os.Mkdir(t.path("run"), 0o755))
	t.touching("run/reload")
	for _, away := range []func() error{
		func() error { return os.RemoveAll(t.path("run")) },
		func() error { return os.Rename(t.path("run"), t.path("old")) },
	} {
		t.must(away())
		t.write("run/reload", "")
		t.reloaded(t.path("run/reload") + " touched")
		t.touch("run/reload")
		t.reloaded(t.path("run/reload") + " touched")
	}
}

func TestSources(tt *testing.T) {
	t := newWatchTest(tt)
	t.Chdir(t.dir)
	t.write("app.py", "1")
	t.write("site/views.py", "1")
	w := t.sources("app.py", "site/views.py")
	t.write("app.py", "22")
	t.reloaded("app.py changed")
	t.replace("site/views.py", "2")
	t.reloaded("site/views.py changed")

	// All these are nobody's business.
	t.write("never_imported.py", "")
	t.write("site/__pycache__/views.cpython-311.pyc", "")
	t.write(".app.py.swp", "")
	t.write("app.py~", "")
	t.write("4913", "")
	t.touch("app.py")
	t.reloaded("app.py changed")

	t.learn(w, "later.py") // which is not there yet
	t.write("later.py", "")
	t.write("app.py", "333")
	t.reloaded("app.py and 1 more changed")
}

// TestSourcesQuickSaves: they are a few reloads, and the last is after the last save.
func TestSourcesQuickSaves(tt *testing.T) {
	t := newWatchTest(tt)
	t.write("app.py", "")
	loaded := make(chan string, 100)
	w := newSourceWatcher(func(context.Context) error {
		text, err := os.ReadFile(t.path("app.py"))
		loaded <- string(text)
		return err
	}, t.logger())
	t.inBackground(w.run)
	t.learn(w, "app.py")
	for i := range 20 {
		t.replace("app.py", fmt.Sprint(i))
	}
	if got := <-loaded; got != "19" {
		t.Errorf("loaded %q", got)
	}
	if n := len(loaded); n > 1 {
		t.Errorf("%d more reloads", n)
	}
}

// TestSourcesThatNeverRest: what changes all the time is reloaded all the same.
func TestSourcesThatNeverRest(tt *testing.T) {
	t := newWatchTest(tt)
	t.write("app.py", "")
	t.sources("app.py")
	t.await("a reload", func() bool {
		t.touch("app.py")
		return len(t.reloads) > 0
	})
}

// TestSourcesChangeDuringReload: what is saved while a reload runs is reloaded after it.
func TestSourcesChangeDuringReload(tt *testing.T) {
	t := newWatchTest(tt)
	t.write("app.py", "")
	goOn := make(chan struct{})
	began := make(chan struct{}, 10)
	w := newSourceWatcher(func(context.Context) error {
		began <- struct{}{}
		<-goOn
		return nil
	}, t.logger())
	w.pause = 30 * time.Millisecond
	t.inBackground(w.run)
	t.learn(w, "app.py")
	t.write("app.py", "1")
	<-began
	for i := range 3 {
		t.write("app.py", strings.Repeat("x", i+2))
		t.await("the change", func() bool { return strings.Count(t.log.String(), "reloading") == i+2 })
	}
	if len(began) > 0 {
		t.Error("two reloads at once")
	}
	goOn <- struct{}{}
	<-began
	goOn <- struct{}{}
	select {
	case <-began:
		t.Error("a third reload")
	case <-time.After(100 * time.Millisecond):
	}
}

// TestSourcesAfterFailure: then a new file may be what was missing.
func TestSourcesAfterFailure(tt *testing.T) {
	t := newWatchTest(tt)
	t.Chdir(t.dir)
	t.write("app.py", "1")
	t.write("unused.py", "1")
	w := t.sources("app.py")
	fail := func(change func(), announced string) {
		t.Helper()
		t.result <- errors.New("no module")
		change()
		t.reloaded(announced)
	}
	fail(func() { t.write("app.py", "import missing") }, "app.py changed")
	t.write("unused.py", "22")  // was there when it failed
	t.write(".#missing.py", "") // emacs' lock
	fail(func() { t.write("missing.py", "") }, "missing.py changed")

	// A package comes to be in three steps.
	t.must(os.Mkdir(t.path("package"), 0o755))
	t.await("its folder to be watched", func() bool { return t.watches(t.path("package")) })
	t.write("package/__init__.py", "")
	t.reloaded("package/__init__.py changed")

	t.write("new.py", "") // that one went well: new files are nobody's business again
	t.touch("app.py")
	fail(func() {}, "app.py changed")
	t.learn(w, "package/broken.py")
	t.write("package/broken.py", "")
	t.reloaded("package/broken.py changed")
}

// watches tells whether inotify watches a folder.
func (t *watchTest) watches(folder string) bool {
	info, err := os.Stat(folder)
	t.must(err)
	want := fmt.Sprintf("ino:%x ", info.Sys().(*syscall.Stat_t).Ino)
	files, _ := filepath.Glob("/proc/self/fdinfo/*")
	return slices.ContainsFunc(files, func(file string) bool {
		text, _ := os.ReadFile(file)
		return strings.Contains(string(text), want)
	})
}

// TestWatchWithoutInotify: the limits of inotify are few and shared with all else
// that the user runs.
func TestWatchWithoutInotify(tt *testing.T) {
	open, add := openWatcher, addFolder
	tt.Cleanup(func() { openWatcher, addFolder = open, add })
	for name, row := range map[string]struct {
		open func() (*fsnotify.Watcher, error)
		add  func(*fsnotify.Watcher, string) error
		want string
	}{
		"instances": {func() (*fsnotify.Watcher, error) { return nil, syscall.EMFILE }, add, "raise fs.inotify.max_user_instances"},
		"watches":   {open, func(*fsnotify.Watcher, string) error { return syscall.ENOSPC }, "raise fs.inotify.max_user_watches"},
		"refused":   {open, func(*fsnotify.Watcher, string) error { return syscall.EACCES }, "permission denied"},
	} {
		tt.Run(name, func(tt *testing.T) {
			openWatcher, addFolder = row.open, row.add
			t := newWatchTest(tt)
			t.Chdir(t.dir)
			t.write("app.py", "1")
			w := t.sources("app.py")
			t.result <- errors.New("no module")
			t.write("app.py", "22")
			t.reloaded("app.py changed")
			t.write("missing.py", "")
			t.reloaded("missing.py changed")
			t.learn(w)
			if got := t.log.String(); strings.Count(got, "once a second") != 1 || !strings.Contains(got, row.want) {
				t.Errorf("logged\n%s", got)
			}
		})
	}
}

func TestTrail(tt *testing.T) {
	t := newWatchTest(tt)
	t.must(os.MkdirAll(t.path("releases/1/app"), 0o755))
	t.must(os.Symlink("releases/1", t.path("current")))
	t.must(os.Symlink("../../../shared/x.py", t.path("releases/1/app/x.py")))
	t.must(os.Symlink(t.path("current"), t.path("absolute")))
	t.must(os.Symlink("loop", t.path("loop")))
	for path, want := range map[string][]string{
		"plain.py":           {"plain.py"},
		"no/such/folder.py":  {"no/such/folder.py"},
		"current/app/y.py":   {"current", "releases/1/app/y.py"},
		"current/../z.py":    {"current", "releases/z.py"},
		"current/app/x.py":   {"current", "releases/1/app/x.py", "shared/x.py"},
		"absolute/app/y.py":  {"absolute", "current", "releases/1/app/y.py"},
		"releases/1/../2/a/": {"releases/2/a"},
	} {
		var got []string
		for _, name := range trail(t.dir + "/" + path) {
			got = append(got, strings.TrimPrefix(name, t.dir+"/"))
		}
		if !slices.Equal(got, want) {
			t.Errorf("%s: %q, want %q", path, got, want)
		}
	}
	if got := trail(t.path("loop")); len(got) != maxLinks+1 {
		t.Errorf("a loop has %d names", len(got))
	}
}
