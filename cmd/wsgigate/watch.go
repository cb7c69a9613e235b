package main

import (
	"cmp"
	"context"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"
)

// Pauses after the last change, so that what is saved in several steps is reloaded
// once.
const (
	touchPause  = 100 * time.Millisecond
	sourcePause = 200 * time.Millisecond
)

// maxPauses bounds how many pauses the first change waits, should they never end.
const maxPauses = 10

// pollEvery is how often files are looked at that the kernel does not report.
const pollEvery = time.Second

// fileWatch calls reload when one of some files changes. What the kernel reports
// only makes it look: a file has changed if its state is another than at the last look,
// and it is there. So nothing depends on how an editor saves.
type fileWatch struct {
	log    *slog.Logger
	reload func(context.Context) error
	pause  time.Duration
	every  time.Duration // pollEvery
	verb   string        // what a change is called

	// After a reload that failed, a new source file may be the one that was missing.
	wantsNew bool

	mu      sync.Mutex
	pending []string
	wake    chan struct{} // holds one if there is something pending

	// The rest is owned by run.
	files   map[string]fileState
	names   map[string]struct{} // of which an event says that a file may have changed (see trail)
	folders *folderWatch
	listed  map[string]struct{} // sources that were there when a reload failed; nil: none failed
	fresh   map[string]struct{} // folders that were made since then: one may become a package
	lookBy  time.Time           // at the latest; zero: nothing has changed
	running bool                // a reload
	again   bool                // something changed since it began
}

// watchTouch calls reload whenever the file is touched, made or replaced, until ctx
// ends. The file need not be there, its folder must be. A symbolic link on the way
// to it that points elsewhere counts if the file there is another one.
func watchTouch(ctx context.Context, file string, reload func(context.Context) error, log *slog.Logger) error {
	path, err := filepath.Abs(file)
	if err != nil {
		return fmt.Errorf("--touch-reload %s: %w", file, err)
	}
	if info, err := os.Stat(filepath.Dir(path)); err != nil {
		return fmt.Errorf("--touch-reload %s: %w", file, err)
	} else if !info.IsDir() {
		return fmt.Errorf("--touch-reload %s: %w", file, syscall.ENOTDIR)
	}
	w := newFileWatch(reload, log)
	w.pause, w.verb = touchPause, "touched"
	w.add([]string{path})
	w.run(ctx)
	return nil
}

// newSourceWatcher returns what --reload needs: its add takes the files that the
// application has imported (pyrunner.Config.Imported), its run calls reload when one
// of them changes.
func newSourceWatcher(reload func(context.Context) error, log *slog.Logger) *fileWatch {
	w := newFileWatch(reload, log)
	w.pause, w.verb, w.wantsNew = sourcePause, "changed", true
	return w
}

func newFileWatch(reload func(context.Context) error, log *slog.Logger) *fileWatch {
	return &fileWatch{
		log: log, reload: reload, every: pollEvery, wake: make(chan struct{}, 1),
		files: map[string]fileState{},
	}
}

// add takes absolute paths of files to watch. It returns at once, at any time.
func (w *fileWatch) add(paths []string) {
	w.mu.Lock()
	w.pending = append(w.pending, paths...)
	w.mu.Unlock()
	select {
	case w.wake <- struct{}{}:
	default:
	}
}

// run watches until ctx ends and a reload that runs has returned.
func (w *fileWatch) run(ctx context.Context) {
	w.folders = newFolderWatch(w.log)
	defer w.folders.close()
	quiet := time.NewTimer(w.pause)
	quiet.Stop()
	poll := time.NewTicker(w.every)
	defer poll.Stop()
	reloaded := make(chan error)
	for {
		select {
		case <-ctx.Done():
			if w.running {
				<-reloaded
			}
			return
		case <-w.wake:
			w.takePending()
		case event := <-w.folders.events():
			if w.concerns(event.Name) || w.folders.lost(event) {
				quiet.Reset(w.untilLook())
			}
		case err := <-w.folders.errors(): // above all that events were lost
			w.log.Debug("file watch", "error", err)
			quiet.Reset(w.untilLook())
		case <-poll.C:
			if w.folders.blind() {
				w.look()
			}
		case <-quiet.C:
			w.look()
		case err := <-reloaded:
			w.finished(err)
		}
		if w.again && !w.running {
			w.again, w.running = false, true
			go func() { reloaded <- w.reload(ctx) }() // run waits for it
		}
	}
}

// untilLook returns how long to wait for more changes after one.
func (w *fileWatch) untilLook() time.Duration {
	if w.lookBy.IsZero() {
		w.lookBy = time.Now().Add(maxPauses * w.pause)
	}
	return min(w.pause, max(time.Until(w.lookBy), 0))
}

// takePending begins to watch the files that were added.
func (w *fileWatch) takePending() {
	w.mu.Lock()
	paths := w.pending
	w.pending = nil
	w.mu.Unlock()
	before := len(w.files)
	for _, path := range paths {
		if _, known := w.files[path]; !known {
			w.files[path] = stateOf(path)
		}
	}
	if len(w.files) > before {
		w.follow()
	}
}

// follow watches the folders where the files are by now.
func (w *fileWatch) follow() {
	w.names = make(map[string]struct{}, len(w.files))
	folders := map[string]struct{}{}
	for path := range w.files {
		for _, name := range trail(path) {
			w.names[name] = struct{}{}
			folders[filepath.Dir(name)] = struct{}{}
		}
	}
	maps.Copy(folders, w.fresh)
	w.folders.watch(folders)
}

// concerns tells whether a change of that name may be one of a file.
func (w *fileWatch) concerns(name string) bool {
	if _, ok := w.names[name]; ok {
		return true
	}
	if w.listed == nil {
		return false
	}
	if isSource(name) {
		return true
	}
	info, err := os.Stat(name)
	if err == nil && info.IsDir() && filepath.Base(name) != "__pycache__" {
		w.fresh[name] = struct{}{}
		w.folders.add(name)
		return true
	}
	return false
}

// look compares the files with the last look, and asks for a reload.
func (w *fileWatch) look() {
	w.lookBy = time.Time{}
	var changed []string
	for path, before := range w.files {
		now := stateOf(path)
		if now == before {
			continue
		}
		w.files[path] = now
		if now != (fileState{}) {
			changed = append(changed, path)
		}
	}
	if w.listed != nil {
		for path := range w.sources() {
			_, listed := w.listed[path]
			if _, known := w.files[path]; !listed && !known {
				w.listed[path] = struct{}{}
				changed = append(changed, path)
			}
		}
	}
	w.follow()
	if len(changed) > 0 {
		w.again = true
		w.announce(changed)
	}
}

func (w *fileWatch) announce(changed []string) {
	slices.Sort(changed)
	what := shortName(changed[0])
	if more := len(changed) - 1; more > 0 {
		what += fmt.Sprintf(" and %d more", more)
	}
	w.log.Info(what + " " + w.verb + ": reloading")
}

// finished remembers how a reload ended. The pool has logged it.
func (w *fileWatch) finished(err error) {
	w.running = false
	switch {
	case err == nil:
		w.listed, w.fresh = nil, nil
	case w.wantsNew:
		w.takePending() // what the failed import has told of
		w.listed, w.fresh = w.sources(), map[string]struct{}{}
	}
}

// sources returns the source files beside those that are watched, and those of
// packages there.
func (w *fileWatch) sources() map[string]struct{} {
	found := map[string]struct{}{}
	seen := map[string]struct{}{}
	for path := range w.files {
		folder := filepath.Dir(path)
		if _, ok := seen[folder]; ok {
			continue
		}
		seen[folder] = struct{}{}
		for _, pattern := range []string{"*.py", "*/__init__.py"} {
			matches, _ := fs.Glob(os.DirFS(folder), pattern)
			for _, match := range matches {
				if name := filepath.Join(folder, match); isSource(name) {
					found[name] = struct{}{}
				}
			}
		}
	}
	return found
}

// isSource tells a source file from what editors leave beside one: ".#views.py".
func isSource(name string) bool {
	return filepath.Ext(name) == ".py" && !strings.HasPrefix(filepath.Base(name), ".")
}

// fileState tells one content of a file from the next. Zero: there is no file.
type fileState struct {
	modified int64 // nanoseconds
	size     int64
	inode    uint64
}

func stateOf(path string) fileState {
	info, err := os.Stat(path)
	if err != nil || info.IsDir() {
		return fileState{}
	}
	s := fileState{modified: info.ModTime().UnixNano(), size: info.Size()}
	if sys, ok := info.Sys().(*syscall.Stat_t); ok {
		s.inode = sys.Ino
	}
	return s
}

// maxLinks is how many symbolic links Linux follows in a path (path_resolution(7)).
const maxLinks = 40

// trail returns the names whose change may change what is at an absolute path: each
// symbolic link on the way, as "current -> releases/7" of a deployment, and the
// file itself; all without links in their folders.
func trail(path string) []string {
	var names []string
	at, rest := "/", pathParts(path)
	for len(rest) > 0 {
		name := filepath.Join(at, rest[0])
		rest = rest[1:]
		target, err := os.Readlink(name)
		if err != nil || len(names) == maxLinks {
			at = name
			continue
		}
		names = append(names, name)
		if filepath.IsAbs(target) {
			at = "/"
		}
		rest = append(pathParts(target), rest...)
	}
	return append(names, at)
}

// pathParts splits a path without making ".." vanish: what it leaves may be a link.
func pathParts(path string) []string {
	return strings.FieldsFunc(path, func(r rune) bool { return r == '/' })
}

// shortName returns a path as seen from the working directory if it is below it.
func shortName(path string) string {
	here, err := os.Getwd()
	if err != nil {
		return path
	}
	short, err := filepath.Rel(here, path)
	if err != nil || short == ".." || strings.HasPrefix(short, "../") {
		return path
	}
	return cmp.Or(short, path)
}
