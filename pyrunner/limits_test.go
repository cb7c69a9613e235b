package pyrunner

import (
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// sleeper is a process that a test may limit.
func sleeper(t *testing.T) *exec.Cmd {
	t.Helper()
	cmd := exec.Command("sleep", "60")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	return cmd
}

// limitOf returns a limit of a process as the kernel shows it.
func limitOf(t *testing.T, pid, resource int) (l unix.Rlimit) {
	t.Helper()
	if err := unix.Prlimit(pid, resource, nil, &l); err != nil {
		t.Fatal(err)
	}
	return l
}

func TestLimitProcess(t *testing.T) {
	t.Parallel()
	pid := sleeper(t).Process.Pid
	before := limitOf(t, pid, unix.RLIMIT_NOFILE)
	if err := (&Config{}).limitProcess(pid); err != nil || limitOf(t, pid, unix.RLIMIT_NOFILE) != before {
		t.Errorf("without limits: %v, %v", limitOf(t, pid, unix.RLIMIT_NOFILE), err)
	}
	cfg := Config{LimitMemory: 1 << 30, LimitFiles: 99, LimitCPU: 1500 * time.Millisecond}
	if err := cfg.limitProcess(pid); err != nil {
		t.Fatal(err)
	}
	for resource, want := range map[int]unix.Rlimit{
		unix.RLIMIT_AS: {Cur: 1 << 30, Max: 1 << 30}, unix.RLIMIT_NOFILE: {Cur: 99, Max: 99}, unix.RLIMIT_CPU: {Cur: 2, Max: 2 + cpuGrace},
	} {
		if got := limitOf(t, pid, resource); got != want {
			t.Errorf("limit %d is %v, want %v", resource, got, want)
		}
	}
}

// TestLimitImpossible: more than the system allows is an error that names the flag.
func TestLimitImpossible(t *testing.T) {
	t.Parallel()
	cmd := sleeper(t)
	cfg := Config{LimitFiles: 1 << 30} // above any fs.nr_open, so for root too
	err := cfg.limitProcess(cmd.Process.Pid)
	if err == nil || !strings.Contains(err.Error(), "--limit-files 1073741824: prlimit: operation not permitted: the limit that wsgigate was started with is ") {
		t.Errorf("error %v", err)
	}
	_ = cmd.Process.Kill()
	_ = cmd.Wait()
	if err := cfg.limitProcess(cmd.Process.Pid); err != nil {
		t.Errorf("of a process that has ended: %v", err)
	}
}

const limitsApp = preamble + `
import errno

def allocates(environ, start_response):
    block = bytearray(1 << 30)
    return hello(environ, start_response)

def opens(environ, start_response):
    files = []
    try:
        while True:
            files.append(open("/dev/null"))
    except OSError as error:
        found = errno.errorcode[error.errno]
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [("%s at %d" % (found, files[-1].fileno() + 1)).encode()]

def spins(environ, start_response):
    while True:
        pass

def stubborn(environ, start_response):
    signal.signal(signal.SIGXCPU, lambda *args: os.write(2, b"caught SIGXCPU\n"))
    spins(environ, start_response)

def limits(environ, start_response):
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [open("/proc/self/limits").read().encode()]

def privileges(environ, start_response):
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [" ".join(line.split(":")[1].strip() for line in open("/proc/self/status") if line.startswith("NoNewPrivs")).encode()]
`

// TestLimitMemory: what does not fit is the application's MemoryError, and its
// worker lives.
func TestLimitMemory(t *testing.T) {
	t.Parallel()
	p := startPool(t, limitsApp, Config{LimitMemory: 512 << 20})
	worker := p.servesOn()
	r := get("/allocates")
	if w := p.serve(r); w.Status != 500 {
		t.Errorf("status %d", w.Status)
	}
	if line := p.log.fault(t, r, atApp); !strings.Contains(line.str("error"), "MemoryError") {
		t.Errorf("log line %v", line)
	}
	if now := p.servesOn(); now != worker {
		t.Errorf("worker %d was replaced by %d", worker, now)
	}
}

// TestLimitFiles: the application gets EMFILE; the gateway has its own limit, so
// it can start a replacement.
func TestLimitFiles(t *testing.T) {
	t.Parallel()
	own := limitOf(t, os.Getpid(), unix.RLIMIT_NOFILE)
	p := startPool(t, limitsApp, Config{LimitFiles: 50})
	worker := p.servesOn()
	if got := p.text("/opens"); got != "EMFILE at 50" {
		t.Errorf("the application got %q", got)
	}
	if now := p.servesOn(); now != worker {
		t.Errorf("worker %d was replaced by %d", worker, now)
	}
	if now := limitOf(t, os.Getpid(), unix.RLIMIT_NOFILE); now != own {
		t.Errorf("the gateway's limit is %v, was %v", now, own)
	}
	if err := unix.Kill(worker, unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	p.awaitReplacement(worker)
	if got := p.text("/opens"); got != "EMFILE at 50" {
		t.Errorf("the replacement got %q", got)
	}
}

// TestLimitCPU: a worker that has used its time up is ended by SIGXCPU, or by
// SIGKILL if it goes on, and replaced.
func TestLimitCPU(t *testing.T) {
	t.Parallel()
	for path, name := range map[string]string{"/spins": "SIGXCPU", "/stubborn": "SIGKILL"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p := startPool(t, limitsApp, Config{LimitCPU: time.Second})
			worker := p.servesOn()
			if name == "SIGKILL" { // without the seconds between the two
				limit := unix.Rlimit{Cur: 1, Max: 2}
				if err := unix.Prlimit(worker, unix.RLIMIT_CPU, &limit, nil); err != nil {
					t.Fatal(err)
				}
			}
			r := get(path)
			if w := p.serve(r); w.Status != 502 {
				t.Errorf("status %d", w.Status)
			}
			p.log.fault(t, r, atApp)
			p.log.await(t, "how the worker ended", func(l logLine) bool {
				return l.num("pid") == uint64(worker) && strings.Contains(l.str("exit"), name)
			})
			if now := p.servesOn(); now == worker {
				t.Error("the worker was not replaced")
			}
		})
	}
}

// TestLimitFails: a limit that cannot be set ends the start, before the
// application runs.
func TestLimitFails(t *testing.T) {
	t.Parallel()
	p := newPool(t, `open("ran", "w").close()`+"\n"+preamble, Config{LimitFiles: 1 << 30})
	err := p.Start()
	if err == nil || !strings.Contains(err.Error(), "--limit-files 1073741824: ") {
		t.Errorf("error %v", err)
	}
	if _, err := os.Stat(p.dir + "/ran"); err == nil {
		t.Error("the application has run")
	}
}

// TestNoNewPrivs: workers have it if it was asked for, their replacements too. Of
// the gateway only the thread that starts them has.
func TestNoNewPrivs(t *testing.T) {
	t.Parallel()
	for want, cfg := range map[string]Config{"0": {}, "1": {NoNewPrivs: true}} {
		t.Run(want, func(t *testing.T) {
			t.Parallel()
			p := startPool(t, limitsApp, cfg)
			worker := p.servesOn()
			if got := p.text("/privileges"); got != want {
				t.Errorf("NoNewPrivs is %s, want %s", got, want)
			}
			if err := unix.Kill(worker, unix.SIGKILL); err != nil {
				t.Fatal(err)
			}
			p.awaitReplacement(worker)
			if got := p.text("/privileges"); got != want {
				t.Errorf("NoNewPrivs of the replacement is %s, want %s", got, want)
			}
			if n := restrictedThreads(t); cfg.NoNewPrivs && n != 1 {
				t.Errorf("%d threads of the gateway may not gain privileges, want that of the spawner", n)
			}
		})
	}
}

// awaitReplacement waits until another worker than that one answers.
func (p *testPool) awaitReplacement(worker int) {
	p.t.Helper()
	eventually(p.t, "the replacement", func() bool {
		r := get("/hello")
		return p.serve(r).Status == 200 && r.Worker != worker
	})
}

// restrictedThreads counts the threads of this process with no_new_privs.
func restrictedThreads(t *testing.T) (n int) {
	t.Helper()
	threads, err := os.ReadDir("/proc/self/task")
	if err != nil {
		t.Fatal(err)
	}
	for _, thread := range threads {
		status, _ := os.ReadFile("/proc/self/task/" + thread.Name() + "/status") // it may have ended
		if strings.Contains(string(status), "NoNewPrivs:\t1") {
			n++
		}
	}
	return n
}

// TestLimitTooLow: limits are named first when the interpreter does not start.
func TestLimitTooLow(t *testing.T) {
	c := Config{LimitMemory: 1 << 20, LimitFiles: 3}
	if got, want := c.mendStart(), "raise --limit-files 3, or raise --limit-memory 1048576, or name another with --python"; got != want {
		t.Errorf("%q, want %q", got, want)
	}
	if got := new(Config).mendStart(); got != "name another with --python" {
		t.Errorf("%q", got)
	}
}
