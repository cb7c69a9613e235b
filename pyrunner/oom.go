package pyrunner

import (
	"bytes"
	"fmt"
	"os"
	"path"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// The kernel does not say why a process got SIGKILL. It counts those that it killed
// for want of memory, though, for each cgroup (version 2, memory.events; the
// count has the kills by the cgroup's own limit, by those above it and by the
// machine's) and for the machine (/proc/vmstat). A worker that SIGKILL ended, and that the
// pool did not kill, is taken for one of them if the count has just grown.

// oomWindow is how much older than a worker's end the growth may be: at least so
// long, at most twice. A process with much memory takes a while to end.
const oomWindow = 5 * time.Second

// oomWatch looks at the counts of the cgroups that the workers are in.
type oomWatch struct {
	root string // where proc and sys are; empty: /

	mu     sync.Mutex
	groups map[string]*oomGroup // by the file with the count
}

// oomGroup is a count at two times.
type oomGroup struct {
	folder       string // of the cgroup; empty: the machine
	older, newer oomSample
}

type oomSample struct {
	count uint64
	at    time.Time
}

// begin notes the cgroup of a worker that has just started, and how often it ran out
// of memory so far. It returns the group's name.
func (o *oomWatch) begin(pid int, now time.Time) string {
	o.mu.Lock()
	defer o.mu.Unlock()
	file, folder := o.countOf(pid)
	if o.groups == nil {
		o.groups = map[string]*oomGroup{}
	}
	if o.groups[file] == nil {
		count, _ := oomCount(file)
		first := oomSample{count, now}
		o.groups[file] = &oomGroup{folder, first, first}
	}
	return file
}

// look reads the counts, now and then: what has grown long ago is no reason for an
// end that is still to come.
func (o *oomWatch) look(now time.Time) {
	o.mu.Lock()
	defer o.mu.Unlock()
	for file, g := range o.groups {
		if now.Sub(g.newer.at) < oomWindow {
			continue
		}
		if count, ok := oomCount(file); ok {
			g.older, g.newer = g.newer, oomSample{count, now}
		}
	}
}

// killed reports whether the kernel has just killed a process of the group for want of
// memory, and the group's limit in bytes, 0 if it has none.
func (o *oomWatch) killed(name string) (limit int64, ok bool) {
	o.mu.Lock()
	defer o.mu.Unlock()
	g := o.groups[name]
	if g == nil {
		return 0, false
	}
	count, _ := oomCount(name)
	if count <= g.older.count {
		return 0, false
	}
	return o.limitOf(g.folder), true
}

// cgroupMounts is where systems mount version 2: alone, or beside version 1.
var cgroupMounts = []string{"/sys/fs/cgroup", "/sys/fs/cgroup/unified"}

// countOf returns the file that counts for a process, and its cgroup's folder.
func (o *oomWatch) countOf(pid int) (file, folder string) {
	text, _ := os.ReadFile(fmt.Sprintf("%s/proc/%d/cgroup", o.root, pid))
	if group := fieldOf(text, "0::"); strings.HasPrefix(string(group), "/") {
		for _, mount := range cgroupMounts {
			folder = path.Join(o.root, mount, path.Clean(string(group)))
			file = folder + "/memory.events"
			if _, ok := oomCount(file); ok {
				return file, folder
			}
		}
	}
	return o.root + "/proc/vmstat", ""
}

// oomCount reads the line "oom_kill N" of a file.
func oomCount(file string) (uint64, bool) {
	text, err := os.ReadFile(file)
	if err != nil {
		return 0, false
	}
	n := fieldOf(text, "oom_kill ")
	return uint64(decimal(n)), len(n) > 0
}

// limitOf returns the lowest memory.max of a cgroup and those above it.
func (o *oomWatch) limitOf(folder string) (limit int64) {
	for ; len(folder) > 1; folder = path.Dir(folder) {
		text, err := os.ReadFile(folder + "/memory.max")
		n, bad := strconv.ParseInt(string(bytes.TrimSpace(text)), 10, 64) // or "max"
		if err == nil && bad == nil && (limit == 0 || n < limit) {
			limit = n
		}
	}
	return limit
}

// outOfMemory reports whether a worker that was reaped was killed for want of memory,
// and says it with the figures that are known.
func (p *Pool) outOfMemory(w *worker) (why string, ok bool) {
	if w.exit.err != nil || !w.exit.status.Signaled() || w.exit.status.Signal() != unix.SIGKILL {
		return "", false
	}
	limit, ok := p.oom.killed(w.evidence.group)
	if !ok {
		return "", false
	}
	why = "out of memory"
	if peak := max(w.exit.peak, w.usage().PeakRSS); peak > 0 {
		why += fmt.Sprintf(": it had up to %s of memory", mebibytes(peak))
	}
	if limit > 0 {
		why += fmt.Sprintf(", the limit of its cgroup is %s", mebibytes(limit))
	}
	return why, true
}

// endOf says how a worker ended that was lost at that point; it waits for that for a
// moment. The process may also run on without its sockets, which it loses at execve(2).
func (p *Pool) endOf(w *worker, who, when string) string {
	end := w.exitStatus(exitGrace)
	select {
	case <-w.gone:
		if why, ok := p.outOfMemory(w); ok {
			end += ", " + why
		}
		return fmt.Sprintf("%s ended %s: %s", who, when, end)
	default:
	}
	name, _ := os.ReadFile(fmt.Sprintf("/proc/%d/comm", w.pid))
	return fmt.Sprintf("%s closed its sockets to the gateway %s, but its process still runs, as %q: the application must neither run another program in its place (os.exec*) nor close descriptors that it did not open",
		who, when, bytes.TrimSpace(name))
}

func mebibytes(n int64) string { return fmt.Sprintf("%.1f MiB", float64(n)/(1<<20)) }
