package pyrunner

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// fakeSystem is a tree of the kernel's files that oomWatch reads.
type fakeSystem struct {
	t    *testing.T
	root string
}

func newFakeSystem(t *testing.T) fakeSystem {
	f := fakeSystem{t, t.TempDir()}
	f.write("/proc/vmstat", "nr_free_pages 1\noom_kill 0\noom_killer 9\n")
	return f
}

func (f fakeSystem) write(name, text string) {
	f.t.Helper()
	name = f.root + name
	if err := os.MkdirAll(filepath.Dir(name), 0o700); err != nil {
		f.t.Fatal(err)
	}
	if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
		f.t.Fatal(err)
	}
}

func (f fakeSystem) kills(folder string, n int) {
	f.t.Helper()
	f.write(folder+"/memory.events", fmt.Sprintf("low 0\nhigh 0\nmax 7\noom 3\noom_kill %d\noom_group_kill 0\n", n))
}

func TestOOMWatch(t *testing.T) {
	const group = "/sys/fs/cgroup/system.slice/site.service"
	f := newFakeSystem(t)
	f.write("/proc/11/cgroup", "0::/system.slice/site.service\n")
	f.kills(group, 4)
	f.write(group+"/memory.max", "max\n")
	f.write("/sys/fs/cgroup/system.slice/memory.max", "1073741824\n")
	o := oomWatch{root: f.root}
	now := time.Now()
	name := o.begin(11, now)
	if limit, ok := o.killed(name); ok || limit != 0 {
		t.Error("kills of before count")
	}
	f.write("/proc/vmstat", "oom_kill 5\n")
	if _, ok := o.killed(name); ok {
		t.Error("the machine's kills count for a cgroup that has its own count")
	}
	f.kills(group, 5)
	for range 2 { // two workers may be killed at once
		if limit, ok := o.killed(name); !ok || limit != 1<<30 {
			t.Errorf("killed: %v, limit %d", ok, limit)
		}
	}
	o.look(now.Add(oomWindow))
	if _, ok := o.killed(name); !ok {
		t.Error("a slow end is not seen")
	}
	o.look(now.Add(2*oomWindow - 1))
	if _, ok := o.killed(name); !ok {
		t.Error("looks that follow one another at once shorten the window")
	}
	o.look(now.Add(2 * oomWindow))
	if _, ok := o.killed(name); ok {
		t.Error("a kill of long ago counts")
	}
}

// TestOOMCounts: where the count of a process is found.
func TestOOMCounts(t *testing.T) {
	f := newFakeSystem(t)
	f.kills("/sys/fs/cgroup/unified/v1and2", 0)
	f.kills("/sys/fs/cgroup", 0) // of a container, whose root is not the machine's
	f.write("/proc/11/cgroup", "4:memory:/x\n0::/v1and2\n")
	f.write("/proc/12/cgroup", "0::/\n")
	f.write("/proc/13/cgroup", "4:memory:/x\n0::/nocontroller\n")
	f.write("/proc/14/cgroup", "4:memory:/x\n")
	f.write("/proc/15/cgroup", "0::/../../..//etc\n")
	o := oomWatch{root: f.root}
	for pid, want := range map[int]string{
		11: "/sys/fs/cgroup/unified/v1and2/memory.events", 12: "/sys/fs/cgroup/memory.events",
		13: "/proc/vmstat", 14: "/proc/vmstat", 15: "/proc/vmstat", 16: "/proc/vmstat",
	} {
		if got := strings.TrimPrefix(o.begin(pid, time.Now()), f.root); got != want {
			t.Errorf("process %d: %s, want %s", pid, got, want)
		}
	}
	if _, ok := o.killed("unknown"); ok {
		t.Error("a group that nobody watches")
	}
}

// TestOOMHere: the machine that runs this test has a count.
func TestOOMHere(t *testing.T) {
	var o oomWatch
	name := o.begin(os.Getpid(), time.Now())
	if _, ok := oomCount(name); !ok {
		t.Errorf("%s has no oom_kill", name)
	}
	if _, ok := o.killed(name); ok {
		t.Error("out of memory")
	}
}

// TestOutOfMemory: a SIGKILL while the kernel's count stays is a crash; with the
// count it is a kill for want of memory. The count is a fake: a test must not have
// the kernel kill something.
func TestOutOfMemory(t *testing.T) {
	t.Parallel()
	f := newFakeSystem(t)
	p := newPool(t, preamble+`
def dies(environ, start_response):
    os.kill(os.getpid(), signal.SIGKILL)
`, Config{})
	p.oom.root = f.root
	if err := p.Start(); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{kindCrash, kindOutOfMemory} {
		p.servesOn()
		if want == kindOutOfMemory {
			f.write("/proc/vmstat", "oom_kill 1\n")
		}
		r := get("/dies")
		if got := p.serve(r); got.Status != 502 {
			t.Errorf("status %d", got.Status)
		}
		i := p.incident(r.Worker)
		if i.Kind != want || !strings.HasPrefix(i.Ended, "killed by SIGKILL") || i.Request == nil || i.Request.ID != r.ID {
			t.Errorf("%+v", i)
		}
		if says := strings.Contains(i.Ended, "out of memory: it had up to ") && strings.Contains(i.Ended, " MiB of memory"); says != (want == kindOutOfMemory) {
			t.Errorf("%q", i.Ended)
		}
		eventually(t, "the replacement", func() bool { return p.serve(get("/hello")).Status == 200 })
		p.servesOn()
	}
	// Any other end than by SIGKILL has nothing to do with it.
	w := p.onlySlot().worker
	if err := unix.Kill(w.pid, unix.SIGABRT); err != nil {
		t.Fatal(err)
	}
	if i := p.incident(w.pid); i.Kind != kindCrash || !strings.HasPrefix(i.Ended, "killed by SIGABRT") || i.Request != nil {
		t.Errorf("%+v", i)
	}
}

// TestOutOfMemoryAtStart: an application too large for its cgroup is told so, though it
// never was READY.
func TestOutOfMemoryAtStart(t *testing.T) {
	t.Parallel()
	f := newFakeSystem(t)
	p := newPool(t, fmt.Sprintf(`
import os, signal
with open(%q, "w") as count:
    count.write("oom_kill 1\n")
os.kill(os.getpid(), signal.SIGKILL)
`, f.root+"/proc/vmstat"), Config{})
	p.oom.root = f.root
	if err := p.Start(); err == nil || !strings.Contains(err.Error(), "killed by SIGKILL, out of memory") {
		t.Errorf("%v", err)
	}
}

// TestSignalNames: a real-time signal has no name, but a number.
func TestSignalNames(t *testing.T) {
	for sig, want := range map[syscall.Signal]string{unix.SIGSEGV: "killed by SIGSEGV", 40: "killed by signal 40"} {
		if got := (exit{status: syscall.WaitStatus(sig)}).String(); got != want {
			t.Errorf("%q, want %q", got, want)
		}
	}
	if got := (exit{status: syscall.WaitStatus(unix.SIGABRT) | 0x80}).String(); got != "killed by SIGABRT (core dumped)" {
		t.Errorf("%q", got)
	}
}
