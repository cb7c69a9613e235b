package integration

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// identity is what a worker says it is.
type identity struct {
	PID, PPID    int
	UID, GID     [3]int
	Groups       []int
	Capabilities []string
	NoNewPrivs   string `json:"no_new_privs"`
	Environ      map[string]string
	Umask        int
	Limits       map[string][2]string
}

// runProcessApp starts a server for process_app in a folder that every user may
// look into, with a command before it if not nil.
func runProcessApp(t *testing.T, command []string, flags ...string) *server {
	t.Helper()
	s := prepare(t)
	if err := os.Chmod(s.dir, 0o755); err != nil {
		t.Fatal(err)
	}
	s.run(t, command, "process_app:app", flags...)
	return s
}

// asUser is a command that runs another as that user, without any privilege.
func asUser(uid int) []string {
	if os.Geteuid() != 0 {
		return nil // this process has none either
	}
	id := strconv.Itoa(uid)
	return []string{"setpriv", "--reuid=" + id, "--regid=" + id, "--clear-groups", "--inh-caps=-all"}
}

// Numbers of users that no system has.
const (
	someone   = 54321
	somebody  = 54322
	forkingID = 54323 // for a test that counts the processes of a user
)

// dropped is who a worker is to be with some flags.
type dropped struct {
	flags    []string
	uid, gid int
	groups   []int // nil: not looked at
	home     string
	user     string
}

// TestFaultPrivileges: gateway and workers, replacements too, are who --user and
// --group say, in every thread; the socket was bound before, by root in a folder of
// root's (row S8).
func TestFaultPrivileges(t *testing.T) {
	t.Parallel()
	if os.Geteuid() != 0 {
		refusePrivileges(t, nil, "only root can become another user or group", "--user", "www-data")
		return
	}
	www := id(t, "-u", "www-data")[0]
	for name, want := range map[string]dropped{
		"user":        {flags: []string{"--user", "www-data"}, uid: www, gid: id(t, "-g", "www-data")[0], groups: id(t, "-G", "www-data"), home: "/var/www", user: "www-data"},
		"number":      {flags: []string{"--user", strconv.Itoa(www)}, uid: www, gid: id(t, "-g", "www-data")[0], groups: id(t, "-G", "www-data"), home: "/var/www", user: "www-data"},
		"forked":      {flags: []string{"--user", "www-data", "--preload"}, uid: www, gid: id(t, "-g", "www-data")[0], groups: id(t, "-G", "www-data"), home: "/var/www", user: "www-data"},
		"both":        {flags: []string{"--user", "nobody", "--group", "daemon"}, uid: id(t, "-u", "nobody")[0], gid: 1, groups: []int{1}, home: "/nonexistent", user: "nobody"},
		"numbers":     {flags: []string{"--user", "54321", "--group", "54322"}, uid: 54321, gid: 54322, groups: []int{54322}, home: "/"},
		"group alone": {flags: []string{"--group", "daemon"}, uid: 0, gid: 1, home: os.Getenv("HOME"), user: os.Getenv("USER")},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := prepare(t)
			if err := os.Chmod(s.dir, 0o755); err != nil {
				t.Fatal(err)
			}
			control := filepath.Join(s.dir, "control")
			run := func() {
				s.run(t, nil, "process_app:app", append(want.flags, "--workers", "1", "--umask", "027", "--control", "unix:"+control)...)
			}
			run()
			s.awaitAnnounced(t)
			var st unix.Stat_t
			if err := unix.Lstat(control, &st); err != nil || int(st.Uid) != want.uid || st.Mode&0o777 != 0o600 {
				t.Errorf("the control socket is of user %d with mode %o, %v", st.Uid, st.Mode, err)
			}
			first := want.check(t, s)
			if err := unix.Kill(first, unix.SIGKILL); err != nil {
				t.Fatal(err)
			}
			s.await(t, "replacement", startTime, func() bool { return s.ask("http", get("/ok")).status == 200 })
			if second := want.check(t, s); second == first {
				t.Errorf("worker %d was not replaced", first)
			}
			s.signal(t, sigterm)
			if code := s.awaitExit(t, stopTime); code != 0 {
				t.Errorf("exit status %d", code)
			}
			// The folder is root's: sockets may have had to stay, and are no obstacle.
			run()
			s.await(t, "answer of the next gateway", startTime, func() bool { return s.ask("fastcgi", get("/ok")).status == 200 })
			pids := s.workers(t)
			s.signal(t, sigkill)
			s.await(t, "end of the workers of a gateway that was killed", 10*time.Second, func() bool { return running(pids) == 0 })
		})
	}
}

// check compares a worker and all threads of the gateway, and returns the
// worker's process id.
func (want dropped) check(t *testing.T, s *server) int {
	t.Helper()
	got := decode[identity](t, s.want(t, "fastcgi", get("/identity"), 200).body)
	wantUID, wantGID := [3]int{want.uid, want.uid, want.uid}, [3]int{want.gid, want.gid, want.gid}
	if got.UID != wantUID || got.GID != wantGID || want.groups != nil && !slices.Equal(got.Groups, want.groups) {
		t.Errorf("the worker is %v:%v with groups %v, want %d:%d and %v", got.UID, got.GID, got.Groups, want.uid, want.gid, want.groups)
	}
	for name, value := range map[string]string{"HOME": want.home, "USER": want.user, "LOGNAME": want.user} {
		if want.uid != 0 && got.Environ[name] != value {
			t.Errorf("the worker's %s is %q, want %q", name, got.Environ[name], value)
		}
	}
	const none = "0000000000000000"
	if want.uid != 0 && !slices.Equal(got.Capabilities, []string{none, none, none}) {
		t.Errorf("the worker has capabilities %v", got.Capabilities)
	}
	if got.Umask != 0o27 {
		t.Errorf("the worker's umask is %o", got.Umask)
	}
	for _, file := range glob(t, fmt.Sprintf("/proc/%d/task/*/status", s.cmd.Process.Pid)) {
		text, err := os.ReadFile(file)
		if err != nil {
			continue // the thread has ended
		}
		uid := regexp.MustCompile(fmt.Sprintf(`(?m)^Uid:(\t%d){4}$`, want.uid))
		gid := regexp.MustCompile(fmt.Sprintf(`(?m)^Gid:(\t%d){4}$`, want.gid))
		if !uid.Match(text) || !gid.Match(text) {
			t.Errorf("%s of the gateway:\n%s", file, text)
		}
	}
	return got.PID
}

// id is what id(1) prints, sorted.
func id(t *testing.T, args ...string) (ids []int) {
	t.Helper()
	out, err := exec.Command("id", args...).Output()
	if err != nil {
		t.Fatalf("id %v: %v", args, err)
	}
	for _, field := range strings.Fields(string(out)) {
		n, err := strconv.Atoi(field)
		if err != nil {
			t.Fatal(err)
		}
		ids = append(ids, n)
	}
	slices.Sort(ids)
	return ids
}

func glob(t *testing.T, pattern string) []string {
	t.Helper()
	files, err := filepath.Glob(pattern)
	if err != nil || len(files) == 0 {
		t.Fatalf("no %s: %v", pattern, err)
	}
	return files
}

// TestFaultPrivilegesRefused: a gateway that cannot become who it should does not
// start (row S8).
func TestFaultPrivilegesRefused(t *testing.T) {
	t.Parallel()
	refusePrivileges(t, nil, "--user nobody-of-that-name", "--user", "nobody-of-that-name")
	refusePrivileges(t, nil, "--group nothing-of-that-name", "--group", "nothing-of-that-name")
	refusePrivileges(t, nil, "add --group", "--user", "54321")
	refusePrivileges(t, nil, "that is root", "--user", "root")
	refusePrivileges(t, asUser(someone), "only root can become another user or group", "--user", "www-data")
	refusePrivileges(t, asUser(someone), "only root can become another user or group", "--group", "www-data")
}

func refusePrivileges(t *testing.T, command []string, sentence string, flags ...string) {
	t.Helper()
	s := prepare(t)
	s.addrs["fastcgi"] = filepath.Join("/tmp", filepath.Base(s.dir)+".sock") // where every user may bind
	if err := os.Chmod(s.dir, 0o755); err != nil {
		t.Fatal(err)
	}
	s.run(t, command, "process_app:app", flags...)
	if code := s.awaitExit(t, startTime); code != 78 {
		t.Errorf("%v: exit status %d, want 78", flags, code)
	}
	s.says(t, 1, sentence)
	if text := s.text(t); strings.Contains(text, "is answered by") || strings.Contains(text, "worker ready") {
		t.Errorf("%v: it started all the same", flags)
	}
	if exists(s.addrs["fastcgi"]) {
		t.Errorf("%v: the socket was left behind", flags)
	}
}

// TestFaultPrivilegesAgain: the flags of an unprivileged gateway name the user that
// it is, when a new binary starts in its place.
func TestFaultPrivilegesAgain(t *testing.T) {
	t.Parallel()
	uid := someone
	if os.Geteuid() != 0 {
		uid = os.Geteuid()
	}
	gid := uid
	if os.Geteuid() != 0 {
		gid = os.Getegid()
	}
	s := prepare(t)
	if err := os.Chmod(s.dir, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Chown(s.dir, uid, -1); err != nil {
		t.Fatal(err)
	}
	s.run(t, asUser(uid), "process_app:app", "--user", strconv.Itoa(uid), "--group", strconv.Itoa(gid), "--workers", "1")
	s.awaitAnnounced(t)
	if got := decode[identity](t, s.want(t, "fastcgi", get("/identity"), 200).body); got.UID != [3]int{uid, uid, uid} {
		t.Errorf("the worker is %v", got.UID)
	}
}

// TestFaultPrivilegesHandedOn: a gateway that has given up its privileges starts its
// successor without any, in a folder that it may not write to (row S8).
func TestFaultPrivilegesHandedOn(t *testing.T) {
	t.Parallel()
	uid, gid := os.Geteuid(), os.Getegid()
	if uid == 0 {
		uid, gid = someone, somebody
	}
	s := runProcessApp(t, nil, "--user", strconv.Itoa(uid), "--group", strconv.Itoa(gid), "--workers", "1")
	s.awaitAnnounced(t)
	old := s.cmd.Process.Pid
	s.signal(t, unix.SIGUSR2)
	if code := s.awaitExit(t, startTime); code != 0 {
		t.Errorf("exit status %d", code)
	}
	got := decode[identity](t, s.want(t, "fastcgi", get("/identity"), 200).body)
	if got.UID != [3]int{uid, uid, uid} || got.GID != [3]int{gid, gid, gid} || got.PPID == old {
		t.Errorf("the worker is %v:%v, its gateway %d, was %d", got.UID, got.GID, got.PPID, old)
	}
	if err := unix.Kill(got.PPID, unix.SIGTERM); err != nil {
		t.Fatal(err)
	}
	s.await(t, "end of the successor", stopTime, func() bool { return !runs(got.PPID) })
}

// TestFaultWorkerLimits: flags become limits of the workers, and of nobody else.
func TestFaultWorkerLimits(t *testing.T) {
	t.Parallel()
	for kind, flags := range workerKinds {
		t.Run(kind, func(t *testing.T) {
			t.Parallel()
			s := runProcessApp(t, nil, append(flags, "--workers", "1", "--limit-memory", "1GiB", "--limit-files", "77", "--limit-cpu", "600s", "--no-new-privs")...)
			s.awaitAnnounced(t)
			got := decode[identity](t, s.want(t, "http", get("/identity"), 200).body)
			for name, want := range map[string][2]string{
				"Max address space": {"1073741824", "1073741824"}, "Max open files": {"77", "77"}, "Max cpu time": {"600", "605"},
			} {
				if got.Limits[name] != want {
					t.Errorf("%s is %q, want %q", name, got.Limits[name], want)
				}
			}
			if got.NoNewPrivs != "1" {
				t.Errorf("NoNewPrivs is %s", got.NoNewPrivs)
			}
			if own := softLimit(t, s.cmd.Process.Pid, "Max open files"); own == "77" {
				t.Error("the gateway has the workers' limit")
			}
			if set := status(t, s.cmd.Process.Pid, "NoNewPrivs"); set != 0 {
				t.Errorf("the gateway has NoNewPrivs %d", set)
			}
		})
	}
}

// TestFaultDaemon: a daemon that an application leaves behind has no descriptor of
// the protocol, and nobody waits for it: not its worker's replacement, not the
// log, not the end of the gateway, which it outlives (row 19).
func TestFaultDaemon(t *testing.T) {
	t.Parallel()
	for kind, flags := range workerKinds {
		t.Run(kind, func(t *testing.T) {
			t.Parallel()
			leaveDaemon(t, flags)
		})
	}
}

func leaveDaemon(t *testing.T, flags []string) {
	s := runProcessApp(t, nil, append(flags, "--workers", "1", "--graceful-timeout", "60s")...)
	s.awaitAnnounced(t)
	worker := decode[map[string]int](t, s.want(t, "http", get("/ok"), 200).body)["pid"]
	before := s.descriptors(t)
	daemon := decode[int](t, s.want(t, "http", get("/daemon"), 200).body)
	t.Cleanup(func() { _ = unix.Kill(daemon, unix.SIGKILL) })
	file := filepath.Join(s.apps(), "daemon."+strconv.Itoa(daemon))
	s.await(t, "daemon's descriptors", startTime, func() bool { return exists(file) })
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	for fd, to := range decode[map[string]string](t, text) {
		if strings.HasPrefix(to, "socket:") {
			t.Errorf("the daemon's descriptor %s is %s", fd, to)
		}
	}
	if err := unix.Kill(worker, unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	s.await(t, "replacement", startTime, func() bool { return s.ask("http", get("/ok")).status == 200 })
	s.await(t, "end of the first worker's pipes", 10*time.Second, func() bool { return s.descriptors(t) <= before })
	s.signal(t, sigterm)
	began := time.Now()
	if code := s.awaitExit(t, stopTime); code != 0 {
		t.Errorf("exit status %d", code)
	}
	if took := time.Since(began); took > 5*time.Second {
		t.Errorf("stopped after %v", took)
	}
	if !runs(daemon) {
		t.Error("the daemon was ended")
	}
	if err := unix.Kill(daemon, unix.SIGKILL); err != nil {
		t.Error(err)
	}
}

// TestFaultProcessOne: as process 1 the gateway waits for orphans, a burst of
// them too and those that end while workers are started, and takes none for a
// worker: those end with the status that they had (row 35).
func TestFaultProcessOne(t *testing.T) {
	t.Parallel()
	for kind, flags := range workerKinds {
		t.Run(kind, func(t *testing.T) {
			t.Parallel()
			beProcessOne(t, flags)
		})
	}
}

func beProcessOne(t *testing.T, flags []string) {
	const each, rounds = 25, 4
	command := []string{"unshare", "--pid", "--fork", "--mount-proc", "--kill-child=SIGKILL"}
	if os.Geteuid() != 0 {
		command = append(command, "--user", "--map-root-user")
	}
	s := runProcessApp(t, command, append(flags, "--workers", "2")...)
	s.awaitAnnounced(t)
	one := s.within(t)
	children := len(one.workers(t)) // workers, or the template
	statuses := []int{0, 7, 200, 255}
	for round := range rounds {
		var group sync.WaitGroup
		for range 2 {
			group.Go(func() {
				if a := s.ask("fastcgi", get(fmt.Sprintf("/orphans?%d", each))); a.status != 200 {
					t.Errorf("orphans: status %d, %v", a.status, a.err)
				}
			})
		}
		group.Wait()
		// They end while a worker does and its replacement is started.
		if a := s.ask("http", get("/kill")); a.status != 502 {
			t.Errorf("status %d", a.status)
		}
		s.await(t, "answer", startTime, func() bool { return s.ask("http", get("/ok")).status == 200 })
		if a := s.ask("scgi", get(fmt.Sprintf("/leave?%d", statuses[round]))); a.status != 502 {
			t.Errorf("status %d", a.status)
		}
		s.await(t, "answer", startTime, func() bool { return s.ask("http", get("/ok")).status == 200 })
	}
	s.await(t, "state without orphans", startTime, func() bool {
		pids := one.workers(t)
		return len(pids) == children && running(pids) == children
	})
	said := map[string]int{"killed by SIGKILL": rounds}
	for _, status := range statuses {
		said[fmt.Sprintf("exit status %d", status)] = 1
	}
	for exit, want := range said {
		count := func() int { return strings.Count(s.text(t), `"`+exit+`"`) }
		s.await(t, "log line with "+exit, startTime, func() bool { return count() >= want })
		if n := count(); n != want {
			t.Errorf("%d times %q in the log, want %d", n, exit, want)
		}
	}
	text := s.text(t)
	for _, wrong := range []string{"no child processes", "exit status 9"} {
		if strings.Contains(text, wrong) {
			t.Errorf("the log says %q", wrong)
		}
	}
	one.signal(t, sigterm)
	if code := s.awaitExit(t, stopTime); code != 0 {
		t.Errorf("exit status %d", code)
	}
}

// within is the server that the command before it has started as its child.
func (s *server) within(t *testing.T) *server {
	t.Helper()
	child, err := os.FindProcess(s.workers(t)[0])
	if err != nil {
		t.Fatal(err)
	}
	inner := *s
	inner.process = &process{name: s.name, log: s.log, cmd: &exec.Cmd{Process: child}}
	return &inner
}

// TestFaultFork: where no process can be started the pool serves with what it has,
// tries again with pauses, and recovers (row 51).
func TestFaultFork(t *testing.T) {
	t.Parallel()
	s := prepare(t)
	if err := os.Chmod(s.dir, 0o755); err != nil {
		t.Fatal(err)
	}
	uid := os.Geteuid()
	if uid == 0 {
		uid = forkingID
		if err := os.Chown(s.dir, uid, -1); err != nil {
			t.Fatal(err)
		}
	}
	s.run(t, asUser(forkingID), "process_app:app", "--workers", "2", "--access-log", filepath.Join(s.dir, "access"))
	s.awaitAnnounced(t)
	s.want(t, "http", get("/ok"), 200)
	pids := s.workers(t)
	limit := func(soft string) {
		t.Helper()
		args := append(asUser(forkingID), "prlimit", "--pid", strconv.Itoa(s.cmd.Process.Pid), "--nproc="+soft+":")
		if out, err := exec.Command(args[0], args[1:]...).CombinedOutput(); err != nil {
			t.Fatalf("prlimit: %v\n%s", err, out)
		}
	}
	before := softLimit(t, s.cmd.Process.Pid, "Max processes")
	limit("1")
	if err := unix.Kill(pids[0], unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	s.awaitLog(t, `resource temporarily unavailable`)
	var group sync.WaitGroup
	end := time.Now().Add(window)
	for i := range 12 { // so that the gateway, which can have no thread either, needs those that it has
		group.Go(func() {
			for time.Now().Before(end) {
				if a := s.ask(transports[i%len(transports)], get("/ok")); a.status != 200 {
					t.Errorf("status %d, %v with one worker", a.status, a.err)
					return
				}
			}
		})
	}
	group.Wait()
	if n := strings.Count(s.text(t), "resource temporarily unavailable"); n > 5 {
		t.Errorf("%d attempts in %v: no pause", n, window)
	}
	if now := s.workers(t); !slices.Equal(now, pids[1:]) {
		t.Errorf("workers %v, want the one that was left of %v", now, pids)
	}
	limit(before)
	s.await(t, "second worker", startTime, func() bool { return running(s.workers(t)) == 2 })
	s.want(t, "http", get("/ok"), 200)
}

// softLimit is a limit of a process as /proc shows it: a number, or "unlimited".
func softLimit(t *testing.T, pid int, name string) string {
	t.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/limits", pid))
	if err != nil {
		t.Fatal(err)
	}
	_, rest, found := strings.Cut(string(text), "\n"+name+" ")
	if !found {
		t.Fatalf("no %q in\n%s", name, text)
	}
	return strings.Fields(rest)[0]
}

// adminSockets are the socket files that a server may have.
var adminSockets = []string{"fastcgi", "control", "status"}

// TestFaultSocketFiles: nothing is done to what is already at a path, unless it is a
// socket of this user's on which nobody listens (row 55).
func TestFaultSocketFiles(t *testing.T) {
	t.Parallel()
	for _, kind := range adminSockets {
		t.Run(kind, func(t *testing.T) {
			t.Parallel()
			s := prepare(t)
			path := filepath.Join(s.dir, kind+".socket")
			if kind == "fastcgi" {
				s.addrs["fastcgi"] = path
			}
			run := func() {
				t.Helper()
				s.run(t, nil, "process_app:app", "--workers", "1",
					"--control", "unix:"+socketOr(kind, "control", s), "--status", "unix:"+socketOr(kind, "status", s))
			}
			run()
			s.awaitAnnounced(t)
			live := s.process
			other := *s // of the same addresses for unix sockets, live
			other.addrs = map[string]string{"fastcgi": s.addrs["fastcgi"], "scgi": net127(freePort(t)), "http": net127(freePort(t))}
			other.run(t, nil, "process_app:app", "--workers", "1",
				"--control", "unix:"+socketOr(kind, "control", s), "--status", "unix:"+socketOr(kind, "status", s))
			if code := other.awaitExit(t, startTime); code != 78 {
				t.Errorf("live: exit status %d, want 78", code)
			}
			s.await(t, "sentence", startTime, func() bool {
				return strings.Contains(s.text(t), "--"+kind+": listen on unix:"+path+": another process listens on that socket")
			})
			s.want(t, "fastcgi", get("/ok"), 200)
			s.signal(t, sigkill)
			<-live.done
			for what, c := range map[string]struct {
				make func() error
				says string
			}{
				"foreign": {func() error { return foreign(path) }, "the socket there belongs to user 54321"},
				"link":    {func() error { return os.Symlink(filepath.Join(s.dir, "other"), path) }, "the path is a symbolic link"},
				"file":    {func() error { return os.WriteFile(path, []byte("precious"), 0o644) }, "the path exists and is not a socket"},
				"folder":  {func() error { return os.Mkdir(path, 0o755) }, "the path exists and is not a socket"},
			} {
				if what == "foreign" && os.Geteuid() != 0 {
					continue // only root can make one
				}
				if err := os.Rename(path, path+".stale"); err != nil {
					t.Fatal(err)
				}
				if err := c.make(); err != nil {
					t.Fatal(err)
				}
				was, _ := os.Lstat(path)
				run()
				if code := s.awaitExit(t, startTime); code != 78 {
					t.Errorf("%s: exit status %d, want 78", what, code)
				}
				if text := s.text(t); !regexp.MustCompile("--" + kind + "(: listen on)? unix:" + regexp.QuoteMeta(path) + ": " + c.says).MatchString(text) {
					t.Errorf("%s: no %q in the log:\n%s", what, c.says, tail(s.log))
				}
				if is, err := os.Lstat(path); err != nil || !os.SameFile(was, is) || was.Mode() != is.Mode() {
					t.Errorf("%s: the path was changed: %v", what, err)
				}
				if exists(filepath.Join(s.dir, "other")) {
					t.Errorf("%s: something was made where the link leads", what)
				}
				if err := os.Remove(path); err != nil {
					t.Fatal(err)
				}
				if err := os.Rename(path+".stale", path); err != nil {
					t.Fatal(err)
				}
			}
			run() // stale: taken over
			s.await(t, "answer of the next gateway", startTime, func() bool { return s.ask("fastcgi", get("/ok")).status == 200 })
			s.signal(t, sigterm)
			if code := s.awaitExit(t, stopTime); code != 0 || exists(path) {
				t.Errorf("exit status %d, the socket file is there: %v", code, exists(path))
			}
		})
	}
}

// socketOr is the path of a socket of that kind.
func socketOr(kind, want string, s *server) string {
	if kind == want {
		return filepath.Join(s.dir, kind+".socket")
	}
	return filepath.Join(s.dir, want+".usual")
}

// foreign makes a socket of another user's on which nobody listens.
func foreign(path string) error {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if err := unix.Bind(fd, &unix.SockaddrUnix{Name: path}); err != nil {
		return err
	}
	return os.Lchown(path, someone, -1)
}

// TestFaultSocketModes: a socket file never lets somebody in whom its final mode and
// owner would not: another user tries all the time while the gateway starts and
// is stopped (row S7).
func TestFaultSocketModes(t *testing.T) {
	t.Parallel()
	for range 4 {
		checkSocketModes(t)
	}
}

func checkSocketModes(t *testing.T) {
	s := prepare(t)
	if err := os.Chmod(s.dir, 0o755); err != nil {
		t.Fatal(err)
	}
	path, control, page := s.addrs["fastcgi"], filepath.Join(s.dir, "control"), filepath.Join(s.dir, "status")
	paths := map[string]os.FileMode{path: 0o660, control: 0o600, page: 0o600}
	owner, group := os.Geteuid(), os.Getegid()
	options := ",mode=0660"
	if os.Geteuid() == 0 {
		owner, group = someone, somebody
		options += fmt.Sprintf(",user=%d,group=%d", owner, group)
	}
	stop := watchSockets(t, paths)
	s.addrs["fastcgi"] = path + options
	s.run(t, []string{"sh", "-c", "umask 0; exec \"$@\"", "sh"}, "process_app:app", "--workers", "1", "--control", "unix:"+control, "--status", "unix:"+page)
	s.addrs["fastcgi"] = path
	s.awaitAnnounced(t)
	s.want(t, "fastcgi", get("/ok"), 200)
	for path, mode := range paths {
		var st unix.Stat_t
		if err := unix.Lstat(path, &st); err != nil || os.FileMode(st.Mode&0o777) != mode {
			t.Errorf("%s: mode %o, want %o; %v", path, st.Mode, mode, err)
		}
		if mode == 0o660 && (int(st.Uid) != owner || int(st.Gid) != group) {
			t.Errorf("%s belongs to %d:%d, want %d:%d", path, st.Uid, st.Gid, owner, group)
		}
	}
	if seen := stop(); seen < len(paths) {
		t.Errorf("only %d files were seen", seen)
	}
	s.signal(t, sigterm)
	if code := s.awaitExit(t, stopTime); code != 0 {
		t.Errorf("exit status %d", code)
	}
}

// watchSockets tries to connect as another user, and looks at the modes, until it
// is told to stop; it returns how many files it has seen.
func watchSockets(t *testing.T, paths map[string]os.FileMode) (stop func() int) {
	quit, done := make(chan struct{}), make(chan int)
	go func() { // ends with stop
		if os.Geteuid() == 0 {
			becomeOnThread(t, 54399)
		}
		seen := map[string]bool{}
		for open := true; open; {
			select {
			case <-quit:
				open = false
			default:
			}
			if t.Failed() {
				continue // once is enough
			}
			for path, final := range paths {
				var st unix.Stat_t
				if unix.Lstat(path, &st) == nil {
					seen[path] = true
					if mode := os.FileMode(st.Mode & 0o777); mode&^final != 0 {
						t.Errorf("%s had mode %o on its way to %o", path, mode, final)
					}
				}
				if os.Geteuid() == 0 && connects(path) {
					t.Errorf("another user could connect to %s", path)
				}
			}
		}
		done <- len(seen)
	}()
	return func() int {
		close(quit)
		return <-done
	}
}

func connects(path string) bool {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return false
	}
	defer unix.Close(fd)
	return unix.Connect(fd, &unix.SockaddrUnix{Name: path}) == nil
}

// becomeOnThread makes the caller's thread, which ends with its goroutine, another
// user for the file system, without root's capabilities (setfsuid(2)).
func becomeOnThread(t *testing.T, uid int) {
	runtime.LockOSThread()
	_, gidErr := unix.SetfsgidRetGid(uid)
	_, uidErr := unix.SetfsuidRetUid(uid)
	if now, err := unix.SetfsuidRetUid(-1); gidErr != nil || uidErr != nil || err != nil || now != uid {
		t.Errorf("this thread is user %d, not %d", now, uid)
	}
}
