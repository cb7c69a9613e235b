package main

import (
	"errors"
	"io/fs"
	"log/slog"
	"syscall"

	"github.com/fsnotify/fsnotify"
)

// folderWatch has the kernel report changes in folders, by inotify(7). Files are not
// watched themselves: most editors save by putting a new file in the old one's
// place. If inotify cannot be had, or no more of it, it is blind from then on.
type folderWatch struct {
	log     *slog.Logger
	watcher *fsnotify.Watcher // nil: it is blind
	watched map[string]struct{}
	missing bool // a folder is not there, so nobody will tell when it is
}

// Opens an inotify instance, and adds a folder to it; tests have other ones.
var (
	openWatcher = fsnotify.NewWatcher
	addFolder   = (*fsnotify.Watcher).Add
)

func newFolderWatch(log *slog.Logger) *folderWatch {
	f := &folderWatch{log: log, watched: map[string]struct{}{}}
	watcher, err := openWatcher()
	if err != nil {
		f.giveUp(err, "fs.inotify.max_user_instances, or the limit of open files")
		return f
	}
	f.watcher = watcher
	return f
}

// blind tells whether the files must be looked at without being told.
func (f *folderWatch) blind() bool { return f.watcher == nil || f.missing }

// events and errors block for ever once it is blind.
func (f *folderWatch) events() <-chan fsnotify.Event {
	if f.watcher == nil {
		return nil
	}
	return f.watcher.Events
}

func (f *folderWatch) errors() <-chan error {
	if f.watcher == nil {
		return nil
	}
	return f.watcher.Errors
}

// watch watches these folders and no others.
func (f *folderWatch) watch(folders map[string]struct{}) {
	f.missing = false
	for folder := range f.watched {
		if _, wanted := folders[folder]; !wanted && f.watcher != nil {
			delete(f.watched, folder)
			_ = f.watcher.Remove(folder) // it may be gone, and its watch with it
		}
	}
	for folder := range folders {
		f.add(folder)
	}
}

// add watches a folder too.
func (f *folderWatch) add(folder string) {
	if _, known := f.watched[folder]; known || f.watcher == nil {
		return
	}
	switch err := addFolder(f.watcher, folder); {
	case err == nil:
		f.watched[folder] = struct{}{}
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, syscall.ENOTDIR):
		f.missing = true
	default:
		f.giveUp(err, "fs.inotify.max_user_watches")
	}
}

// lost takes account of a folder that was removed or moved away.
func (f *folderWatch) lost(event fsnotify.Event) bool {
	if _, known := f.watched[event.Name]; !known || !event.Has(fsnotify.Remove|fsnotify.Rename) {
		return false
	}
	delete(f.watched, event.Name)
	if f.watcher != nil {
		_ = f.watcher.Remove(event.Name) // of a folder that was moved it would go on to tell
	}
	return true
}

// giveUp goes on without inotify. limit is the usual cause.
func (f *folderWatch) giveUp(err error, limit string) {
	args := []any{"error", err}
	if errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EMFILE) || errors.Is(err, syscall.ENFILE) {
		args = append(args, "mend", "raise "+limit)
	}
	f.log.Warn("changed files are not reported by the kernel: looking at them once a second instead", args...)
	f.close()
}

func (f *folderWatch) close() {
	if f.watcher != nil {
		_ = f.watcher.Close()
		f.watcher = nil
	}
}
