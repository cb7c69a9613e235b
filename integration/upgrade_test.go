package integration

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"golang.org/x/sys/unix"
)

// start runs a gateway with listeners of the test's choice. The command before it, or
// variables for it, may be nil.
func (s *server) start(t *testing.T, command []string, gateway string, args ...string) {
	t.Helper()
	all := append(append([]string{"env"}, command...), gateway, "serve", "--python", python(t), "--chdir", s.apps())
	s.process = start(t, "wsgigate", filepath.Join(s.dir, "log"), append(all, args...)...)
	t.Cleanup(func() {
		s.stop(t)
		s.endAll()
		if text := s.text(t); gatewayFault.MatchString(text) {
			t.Errorf("the gateway's log: %s", gatewayFault.FindString(text))
		}
		showIfFailed(t, s.log)
	})
}

// endAll stops gateways that a failed test leaves: an upgraded one is no child of it.
func (s *server) endAll() {
	for _, pid := range s.gateways() {
		_ = unix.Kill(pid, sigterm)
	}
}

// gateways returns the gateways that run in the server's folder.
func (s *server) gateways() (pids []int) {
	for _, line := range processesOf(s.dir) {
		var pid int
		if _, err := fmt.Sscan(line, &pid); err == nil && (strings.Contains(line, " serve ") || strings.Contains(line, " fcgi ")) {
			pids = append(pids, pid)
		}
	}
	return pids
}

// end stops a gateway that is no child of the test.
func (s *server) end(t *testing.T, pid int) {
	t.Helper()
	if err := unix.Kill(pid, sigterm); err != nil {
		t.Fatal(err)
	}
	s.await(t, "end of the gateway", stopTime, func() bool { return !runs(pid) })
	s.awaitLog(t, fmt.Sprintf("stopped gateway=%d ", pid))
}

// upgrade sends SIGUSR2 to a gateway, waits for its end, and returns its successor.
func (s *server) upgrade(t *testing.T, old int) int {
	t.Helper()
	if err := unix.Kill(old, unix.SIGUSR2); err != nil {
		t.Fatal(err)
	}
	s.await(t, "end of the old gateway", startTime, func() bool { return !runs(old) })
	s.awaitLog(t, fmt.Sprintf("stopped gateway=%d ", old))
	next := s.identify(t, "fastcgi").PPID
	if next == old {
		t.Fatalf("gateway %d answers still", old)
	}
	return next
}

// upgradeApp has the pages of two applications.
const upgradeApp = `
import fault_app, process_app

def app(environ, start_response):
    path = environ["PATH_INFO"]
    return (process_app.PAGES.get(path) or fault_app.PAGES[path])(environ, start_response)
`

// replaceable is a gateway whose binary, configuration and application a test may replace.
type replaceable struct {
	*server
	binary, config string
	settings       map[string]string // of the configuration, in TOML
}

func newReplaceable(t *testing.T) *replaceable {
	t.Helper()
	s := prepare(t)
	r := &replaceable{server: s, binary: filepath.Join(s.dir, "wsgigate"), config: filepath.Join(s.dir, "wsgigate.toml")}
	r.settings = map[string]string{
		"workers": "1", "threads": "2", "app": `"upgrade_app:app"`,
		"fastcgi": fmt.Sprintf("['unix:%s']", s.addrs["fastcgi"]),
		"scgi":    fmt.Sprintf("[%q]", s.addrs["scgi"]),
		"http":    fmt.Sprintf("[%q]", s.addrs["http"]),
		"status":  fmt.Sprintf("'unix:%s'", r.path("status")),
		"control": fmt.Sprintf("'unix:%s'", r.path("control")),
		"env":     `["PYTHONDONTWRITEBYTECODE=1"]`,
	}
	r.install(t)
	r.configure(t)
	write(t, filepath.Join(s.apps(), "upgrade_app.py"), upgradeApp)
	r.start(t, nil, r.binary, "--config", r.config)
	r.awaitAnnounced(t)
	return r
}

func (r *replaceable) path(name string) string { return filepath.Join(r.dir, name) }

// install puts the binary in its place.
func (r *replaceable) install(t *testing.T) {
	t.Helper()
	if out, err := exec.Command("cp", "--", binary(t), r.binary+".new").CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	if err := os.Rename(r.binary+".new", r.binary); err != nil {
		t.Fatal(err)
	}
}

// configure writes the configuration. A setting without a value is left out.
func (r *replaceable) configure(t *testing.T) {
	t.Helper()
	var text strings.Builder
	for name, value := range r.settings {
		if value != "" {
			fmt.Fprintf(&text, "%s = %s\n", name, value)
		}
	}
	write(t, r.config, text.String())
}

func inodeOf(t *testing.T, path string) uint64 {
	t.Helper()
	var st unix.Stat_t
	if err := unix.Lstat(path, &st); err != nil {
		t.Fatal(err)
	}
	return st.Ino
}

// hammer connects and asks all the time until stop is called; nothing may fail.
func (s *server) hammer(t *testing.T) (stop func()) {
	t.Helper()
	var ended atomic.Bool
	var group sync.WaitGroup
	for _, transport := range transports {
		group.Go(func() {
			for !ended.Load() && !t.Failed() {
				if a := s.ask(transport, get("/ok")); a.err != nil || a.status != 200 {
					t.Errorf("%s: status %d, %v, %.200q", transport, a.status, a.err, a.body)
				}
			}
		})
	}
	return func() { ended.Store(true); group.Wait() }
}

// TestUpgradeChain: many binaries follow each other. Each has the listeners of the
// one before, the very same sockets, and no descriptor more; workers have nothing
// of it all. A listener that the configuration does not have any more is closed
// in all of them, and a new one opened.
func TestUpgradeChain(t *testing.T) {
	t.Parallel()
	const chain = 5
	r := newReplaceable(t)
	files := map[string]uint64{}
	for _, path := range []string{r.addrs["fastcgi"], r.path("status"), r.path("control")} {
		files[path] = inodeOf(t, path)
	}
	stop := r.hammer(t)
	pid := r.cmd.Process.Pid
	var open []int
	for range chain {
		pid = r.upgrade(t, pid)
		for path, inode := range files {
			if now := inodeOf(t, path); now != inode {
				t.Errorf("%s is inode %d, was %d", path, now, inode)
			}
		}
	}
	stop()
	if code := r.awaitExit(t, stopTime); code != 0 {
		t.Errorf("exit status %d", code)
	}
	for _, transport := range transports {
		wantNoManager(t, r.identify(t, transport))
		checkDescriptors(t, decode[map[string]string](t, r.want(t, transport, get("/descriptors"), 200).body))
	}
	open = append(open, r.filesAtRest(t, pid))
	for range 2 {
		pid = r.upgrade(t, pid)
		open = append(open, r.filesAtRest(t, pid))
	}
	if slices.Max(open) != slices.Min(open) {
		t.Errorf("open descriptors of one gateway and the next: %v", open)
	}
	r.changeListeners(t, pid)
}

// filesAtRest counts the descriptors of a gateway once they are the same for a while.
func (s *server) filesAtRest(t *testing.T, pid int) int {
	t.Helper()
	const looks = 10
	folder := fmt.Sprintf("/proc/%d/fd", pid)
	last, same := entries(folder), 0
	s.await(t, "rest", startTime, func() bool {
		now := entries(folder)
		if same++; now != last {
			last, same = now, 0
		}
		return same == looks
	})
	return last
}

// TestUpgradeFailsAccess: a successor that cannot serve leaves the socket files as they
// were, whatever its configuration wants of them.
func TestUpgradeFailsAccess(t *testing.T) {
	t.Parallel()
	s := prepare(t)
	conf, socket := filepath.Join(s.dir, "gate.toml"), filepath.Join(s.dir, "site.sock")
	text := "app = %q\nworkers = 1\nhttp = 'unix:%s%s'\n"
	write(t, conf, fmt.Sprintf(text, "manage_app:app", socket, ",mode=0666"))
	s.start(t, nil, binary(t), "--config", conf)
	s.awaitLog(t, " is answered by ")
	write(t, conf, fmt.Sprintf(text, "absent:app", socket, ""))
	s.signal(t, unix.SIGUSR2)
	s.awaitLog(t, "upgrade failed, this process goes on: there is no module 'absent'")
	s.await(t, "the old mode", startTime, func() bool {
		info, err := os.Lstat(socket)
		return err == nil && info.Mode().Perm() == 0o666
	})
	s.end(t, s.cmd.Process.Pid)
}

// changeListeners upgrades to a configuration with other listeners.
func (r *replaceable) changeListeners(t *testing.T, pid int) {
	t.Helper()
	added := r.path("added")
	r.settings["http"] = fmt.Sprintf("[%q, 'unix:%s']", r.addrs["http"], added)
	r.settings["scgi"], r.settings["status"] = "", ""
	r.configure(t)
	pid = r.upgrade(t, pid)
	if !accepts("unix", added) || !accepts("tcp", r.addrs["http"]) || !accepts("unix", r.path("control")) {
		t.Error("a listener of the configuration is not there")
	}
	if accepts("tcp", r.addrs["scgi"]) || accepts("unix", r.path("status")) {
		t.Error("a listener that the configuration has no more is there")
	}
	if _, err := os.Lstat(r.path("status")); err == nil {
		t.Error("the socket file of a listener that is gone is there")
	}
	r.end(t, pid)
	for _, path := range []string{added, r.addrs["fastcgi"], r.path("control")} {
		if _, err := os.Lstat(path); err == nil {
			t.Errorf("%s was left behind", path)
		}
	}
}

// TestUpgradeFails: whatever keeps a successor from serving, the old gateway serves
// on, says why, and can be asked again.
func TestUpgradeFails(t *testing.T) {
	t.Parallel()
	r := newReplaceable(t)
	stop := r.hammer(t)
	pid := r.cmd.Process.Pid
	app := filepath.Join(r.apps(), "upgrade_app.py")
	for _, c := range []struct {
		name  string
		spoil func()
		says  string
	}{
		{"no binary", func() { os.Remove(r.binary) }, `no such file or directory`},
		{"a text", func() { write(t, r.binary, "#!/nowhere\n") }, `permission denied`},
		{"no program", func() { os.Remove(r.binary); write(t, r.binary, "\x7fELF"); os.Chmod(r.binary, 0o755) }, `exec format error`},
		{"another program", func() { os.Remove(r.binary); write(t, r.binary, "#!/bin/sh\nexit 3\n"); os.Chmod(r.binary, 0o755) }, `exit status 3`},
		{"no TOML", func() { r.install(t); write(t, r.config, "workers = \n") }, `wsgigate\.toml: line 1`},
		{"bad configuration", func() { r.settings["workers"] = "0"; r.configure(t) }, `workers: "0" is not a whole number`},
		{"a listener that cannot be", func() { r.settings["workers"] = "2"; r.settings["status"] = "'unix:/nowhere/at/all'"; r.configure(t) }, `--status unix:/nowhere/at/all: there is no folder /nowhere/at`},
		{"import error", func() {
			r.settings["status"] = ""
			r.configure(t)
			write(t, app, "import no_such_module_there\n")
		}, `ModuleNotFoundError: No module named 'no_such_module_there'`},
	} {
		c.spoil()
		failures := strings.Count(r.text(t), "upgrade failed, this process goes on: ")
		r.signal(t, unix.SIGUSR2)
		r.await(t, "failure of an upgrade to "+c.name, startTime, func() bool {
			return strings.Count(r.text(t), "upgrade failed, this process goes on: ") > failures
		})
		r.awaitLog(t, "ERROR .*"+c.says)
		if now := r.identify(t, "http").PPID; now != pid {
			t.Fatalf("%s: gateway %d answers, not %d", c.name, now, pid)
		}
	}
	if !accepts("unix", r.path("status")) {
		t.Error("the status page of the old gateway is gone")
	}
	write(t, app, upgradeApp)
	pid = r.upgrade(t, pid)
	stop()
	if code := r.awaitExit(t, stopTime); code != 0 {
		t.Errorf("exit status %d", code)
	}
	r.end(t, pid)
}

// slowApp takes a while to import.
const slowApp = "import time\ntime.sleep(0.7)\nfrom process_app import app\n"

// TestUpgradeBusy: requests that run end where they began, whatever signals come;
// two wishes for an upgrade at once are one upgrade, and one that comes while the
// gateway before still has requests waits for it.
func TestUpgradeBusy(t *testing.T) {
	t.Parallel()
	s := prepare(t)
	write(t, filepath.Join(s.apps(), "slow_app.py"), slowApp)
	s.start(t, nil, binary(t), "--workers", "1", "--threads", "3", "slow_app:app",
		"--fastcgi", "unix:"+s.addrs["fastcgi"], "--scgi", s.addrs["scgi"], "--http", s.addrs["http"])
	s.await(t, "listener", startTime, func() bool { return accepts("tcp", s.addrs["http"]) })
	s.signal(t, unix.SIGHUP)
	s.awaitLog(t, "the application is being imported: this is done afterwards signal=SIGHUP")
	s.signal(t, unix.SIGUSR1)
	s.awaitLog(t, "logs reopened")
	s.awaitAnnounced(t)
	s.awaitLog(t, "reloaded generation=2 ")
	first := s.cmd.Process.Pid

	ended := s.runSlow(t, "/wall?2.5", first)
	s.signal(t, unix.SIGUSR2)
	s.awaitLog(t, "upgrade begins")
	s.signal(t, unix.SIGUSR2)
	s.awaitLog(t, "upgrade failed, this process goes on: an upgrade runs already")
	s.awaitLog(t, "a new process answers now")
	second := first
	s.await(t, "successor", startTime, func() bool { second = s.identify(t, "http").PPID; return second != first })
	if !runs(first) {
		t.Error("the first gateway has not waited for its requests")
	}
	again := s.runSlow(t, "/wall?2.5", second)
	if err := unix.Kill(second, unix.SIGUSR2); err != nil { // waits for the first
		t.Fatal(err)
	}
	ended()
	if code := s.awaitExit(t, stopTime); code != 0 {
		t.Errorf("exit status %d", code)
	}
	s.await(t, "second upgrade", startTime, func() bool { return strings.Count(s.text(t), "a new process answers now") == 2 })
	again()
	s.await(t, "end of the second gateway", startTime, func() bool { return !runs(second) })
	third := s.identify(t, "scgi").PPID

	last := s.runSlow(t, "/wall?1", third)
	for _, sig := range []unix.Signal{sigterm, unix.SIGUSR2, unix.SIGHUP, unix.SIGUSR1} {
		if err := unix.Kill(third, sig); err != nil {
			t.Fatal(err)
		}
		s.awaitLog(t, map[unix.Signal]string{
			sigterm: "stopping: running requests may end signal=terminated", unix.SIGUSR2: "too late: the server stops signal=SIGUSR2",
			unix.SIGHUP: "too late: the server stops signal=SIGHUP", unix.SIGUSR1: "logs reopened",
		}[sig])
	}
	last()
	s.await(t, "end of the third gateway", startTime, func() bool { return !runs(third) })
	s.awaitLog(t, fmt.Sprintf("stopped gateway=%d ", third))
	if n := strings.Count(s.text(t), " is answered by "); n != 3*len(transports) {
		t.Errorf("%d announcements, want those of 3 gateways", n)
	}
}

// TestUpgradeEarly: an upgrade that is asked for while the application is imported
// comes once it serves.
func TestUpgradeEarly(t *testing.T) {
	t.Parallel()
	s := prepare(t)
	write(t, filepath.Join(s.apps(), "slow_app.py"), slowApp)
	s.start(t, nil, binary(t), "--workers", "1", "slow_app:app", "--http", s.addrs["http"])
	first := s.cmd.Process.Pid
	s.await(t, "listener", startTime, func() bool { return accepts("tcp", s.addrs["http"]) })
	for range 2 {
		s.signal(t, unix.SIGUSR2)
		s.awaitLog(t, "the application is being imported: this is done afterwards signal=SIGUSR2")
	}
	s.awaitLog(t, "a new process answers now")
	if code := s.awaitExit(t, stopTime); code != 0 {
		t.Errorf("exit status %d", code)
	}
	second := s.identify(t, "http").PPID
	if second == first {
		t.Error("the first gateway answers")
	}
	s.end(t, second)
	if n := strings.Count(s.text(t), "upgrade begins"); n != 1 {
		t.Errorf("%d upgrades", n)
	}
}

// runSlow has a request run on each transport; ended waits for their answers.
func (s *server) runSlow(t *testing.T, target string, gateway int) (ended func()) {
	t.Helper()
	asleep := strings.Count(s.text(t), "sleeping")
	var group sync.WaitGroup
	for _, transport := range transports {
		group.Go(func() {
			if a := s.ask(transport, get(target)); a.err != nil || a.status != 200 {
				t.Errorf("%s through %d: status %d, %v, %.200q", transport, gateway, a.status, a.err, a.body)
			}
		})
	}
	s.await(t, "requests that sleep", startTime, func() bool { return strings.Count(s.text(t), "sleeping") == asleep+len(transports) })
	return group.Wait
}

// TestUpgradeProcessOne: a container would end with its process 1.
func TestUpgradeProcessOne(t *testing.T) {
	t.Parallel()
	command := []string{"unshare", "--pid", "--fork", "--mount-proc", "--kill-child=SIGKILL"}
	if os.Geteuid() != 0 {
		command = append(command, "--user", "--map-root-user")
	}
	s := runProcessApp(t, command, "--workers", "1")
	s.awaitAnnounced(t)
	one := s.within(t)
	for i := range 2 {
		one.signal(t, unix.SIGUSR2)
		s.await(t, "refusal", startTime, func() bool {
			return strings.Count(s.text(t), "upgrade failed, this process goes on: process 1 cannot have a successor, because its container ends with it: start another container") == i+1
		})
		s.want(t, "http", get("/ok"), 200)
	}
	one.signal(t, sigterm)
	if code := s.awaitExit(t, stopTime); code != 0 {
		t.Errorf("exit status %d", code)
	}
}

// TestUpgradeUnprivileged: with --user the logs belong to who must open them again, as
// a successor and when they were rotated. In a folder where only root may write,
// rotation is root's: the gateway says so and writes on where it did.
func TestUpgradeUnprivileged(t *testing.T) {
	t.Parallel()
	uid, gid := os.Geteuid(), os.Getegid()
	if uid == 0 {
		uid, gid = someone, somebody
	}
	s := prepare(t)
	logs := filepath.Join(s.dir, "logs")
	mkdir(t, logs)
	for _, dir := range []string{s.dir, logs} {
		if err := os.Chmod(dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	access, other := filepath.Join(logs, "access"), filepath.Join(logs, "error")
	s.start(t, nil, binary(t), "--workers", "1", "--user", fmt.Sprint(uid), "--group", fmt.Sprint(gid), "--access-log", access, "--error-log", other,
		"--fastcgi", "unix:"+s.addrs["fastcgi"], "--scgi", s.addrs["scgi"], "--http", s.addrs["http"], "process_app:app")
	s.awaitAnnounced(t)
	s.want(t, "scgi", get("/ok?before"), 200)
	old := s.cmd.Process.Pid
	s.signal(t, unix.SIGUSR2)
	if code := s.awaitExit(t, startTime); code != 0 {
		t.Errorf("exit status %d", code)
	}
	next := s.identify(t, "fastcgi")
	if next.PPID == old || next.UID != [3]int{uid, uid, uid} {
		t.Errorf("the worker is %v, its gateway %d, was %d", next.UID, next.PPID, old)
	}
	s.want(t, "http", get("/ok?after"), 200)
	s.awaitIn(t, access, "/ok?before", "/ok?after")

	if err := os.Chmod(logs, 0o555); err != nil {
		t.Fatal(err)
	}
	for _, file := range []string{access, other} {
		rotate(t, logs, file)
	}
	if err := unix.Kill(next.PPID, unix.SIGUSR1); err != nil {
		t.Fatal(err)
	}
	s.awaitIn(t, other+".1", "a log stays the file that it was error=\"--access-log: open "+access+": permission denied\"",
		"a log stays the file that it was error=\"--error-log: open "+other+": permission denied\"")
	s.want(t, "http", get("/ok?kept"), 200)
	s.awaitIn(t, access+".1", "/ok?kept")
	if text, _ := os.ReadFile(other + ".1"); strings.Contains(string(text), "logs reopened") {
		t.Error("logs were said to be reopened")
	}
	if err := unix.Kill(next.PPID, sigterm); err != nil {
		t.Fatal(err)
	}
	s.await(t, "end of the gateway", stopTime, func() bool { return !runs(next.PPID) })
	s.awaitIn(t, other+".1", fmt.Sprintf("stopped gateway=%d ", next.PPID))
}

// rotate renames a log, in a folder where its writer may not.
func rotate(t *testing.T, dir, file string) {
	t.Helper()
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(file, file+".1"); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(dir, 0o555); err != nil {
		t.Fatal(err)
	}
}

// awaitIn waits until a file has all these texts.
func (s *server) awaitIn(t *testing.T, file string, texts ...string) {
	t.Helper()
	for _, want := range texts {
		s.await(t, fmt.Sprintf("%q in %s", want, file), startTime, func() bool {
			text, err := os.ReadFile(file)
			return err == nil && strings.Contains(string(text), want)
		})
	}
}

// TestUpgradeStopped: a stop that meets the end of an upgrade ends either both
// gateways or the old one alone; it never takes the socket files from a successor that
// serves. The old one is stopped (SIGSTOP) until both have come.
func TestUpgradeStopped(t *testing.T) {
	t.Parallel()
	s := prepare(t)
	write(t, filepath.Join(s.apps(), "slow_app.py"), slowApp)
	s.start(t, nil, binary(t), "--workers", "1", "slow_app:app",
		"--fastcgi", "unix:"+s.addrs["fastcgi"], "--scgi", s.addrs["scgi"], "--http", s.addrs["http"])
	s.awaitAnnounced(t)
	old := s.cmd.Process.Pid
	s.signal(t, unix.SIGUSR2)
	s.await(t, "worker of a successor", startTime, func() bool { // which imports, and needs the old one no more
		pids := slices.DeleteFunc(s.gateways(), func(pid int) bool { return pid == old })
		return len(pids) == 1 && len(children(pids[0])) == 1
	})
	s.signal(t, unix.SIGSTOP)
	s.await(t, "end of the upgrade", startTime, func() bool { return strings.Count(s.text(t), " is answered by ") == 2*len(transports) })
	s.signal(t, sigterm)
	s.signal(t, unix.SIGCONT)
	if code := s.awaitExit(t, stopTime); code != 0 {
		t.Errorf("exit status %d", code)
	}
	s.await(t, "one of two ends", startTime, func() bool {
		if _, err := os.Lstat(s.addrs["fastcgi"]); err != nil {
			return len(s.gateways()) == 0
		}
		return s.ask("fastcgi", get("/ok")).status == 200
	})
	for _, pid := range s.gateways() {
		s.end(t, pid)
	}
}

// inherited is a program that becomes another one, with a socket on descriptor 0, as
// mod_fcgid, lighttpd and spawn-fcgi do it. Its first argument is the socket's path.
const inherited = `
import os, socket, sys
made = socket.socket(socket.AF_UNIX)
made.bind(sys.argv[1])
made.listen()
os.dup2(made.fileno(), 0)
os.execvp(sys.argv[2], sys.argv[2:])
`

// TestUpgradeInherited: "wsgigate fcgi" hands on the socket that it was started with.
func TestUpgradeInherited(t *testing.T) {
	t.Parallel()
	s := prepare(t)
	s.process = start(t, "wsgigate", filepath.Join(s.dir, "log"), python(t), "-c", inherited, s.addrs["fastcgi"],
		binary(t), "fcgi", "--python", python(t), "--chdir", s.apps(), "process_app:app")
	t.Cleanup(func() { s.endAll(); showIfFailed(t, s.log) })
	s.awaitLog(t, "fastcgi is answered by process_app:app")
	pid := s.cmd.Process.Pid
	for range 2 {
		pid = s.upgrade(t, pid)
	}
	if code := s.awaitExit(t, stopTime); code != 0 {
		t.Errorf("exit status %d", code)
	}
	s.end(t, pid)
	if _, err := os.Lstat(s.addrs["fastcgi"]); err != nil {
		t.Errorf("the socket file is the web server's: %v", err)
	}
}
