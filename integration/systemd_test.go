package integration

import (
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// activation is a program that does what systemd does with a .socket unit: it opens
// sockets, from descriptor 3 on, and becomes the program that they are for
// (sd_listen_fds(3)). Each of its first arguments is NAME=ADDRESS, up to "--".
const activation = `
import fcntl, os, socket, sys
end = sys.argv.index("--")
names, fds = [], []
for spec in sys.argv[1:end]:
    name, address = spec.split("=")
    kind = socket.SOCK_DGRAM if name == "datagrams" else socket.SOCK_STREAM
    if address.startswith("/"):
        made = socket.socket(socket.AF_UNIX, kind)
        made.bind(address)
    else:
        host, port = address.split(":")
        made = socket.socket(socket.AF_INET, kind)
        made.bind((host, int(port)))
    if kind == socket.SOCK_STREAM:
        made.listen()
    names.append(name)
    fds.append(fcntl.fcntl(made, fcntl.F_DUPFD, 100))
for i, fd in enumerate(fds):
    os.dup2(fd, 3 + i)
    os.close(fd)
os.environ.update(LISTEN_FDS=str(len(fds)), LISTEN_FDNAMES=":".join(names), LISTEN_PID=str(os.getpid()))
os.execvp(sys.argv[end + 1], sys.argv[end + 1:])
`

// activated is a command that runs another one with sockets.
func activated(t *testing.T, sockets ...string) []string {
	t.Helper()
	return append(append([]string{python(t), "-c", activation}, sockets...), "--")
}

// manager is systemd, as far as sd_notify(3) goes.
type manager struct {
	path string
	mu   sync.Mutex
	got  []notice
}

// notice is what one process has told, and when.
type notice struct {
	pid  int
	text string
	at   time.Time
}

// newManager listens until the test ends.
func newManager(t *testing.T, path string) *manager {
	t.Helper()
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	raw, err := conn.SyscallConn()
	if err == nil {
		err = raw.Control(func(fd uintptr) { err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_PASSCRED, 1) })
	}
	if err != nil {
		t.Fatal(err)
	}
	m := &manager{path: path}
	done := make(chan struct{})
	go func() { // ends with the socket
		defer close(done)
		m.listen(t, conn)
	}()
	t.Cleanup(func() { conn.Close(); <-done })
	return m
}

func (m *manager) listen(t *testing.T, conn *net.UnixConn) {
	text, oob := make([]byte, 4<<10), make([]byte, 256)
	for {
		n, oobn, _, _, err := conn.ReadMsgUnix(text, oob)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		messages, oobErr := unix.ParseSocketControlMessage(oob[:oobn])
		if err := errors.Join(err, oobErr); err != nil || len(messages) != 1 {
			t.Errorf("the notify socket: %v, %d control messages", err, len(messages))
			return
		}
		from, err := unix.ParseUnixCredentials(&messages[0])
		if err != nil {
			t.Error(err)
			return
		}
		m.mu.Lock()
		m.got = append(m.got, notice{int(from.Pid), string(text[:n]), time.Now()})
		m.mu.Unlock()
	}
}

// notices returns what matches, of a process or, with 0, of all.
func (m *manager) notices(pid int, pattern string) (found []notice) {
	re := regexp.MustCompile(pattern)
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, n := range m.got {
		if (pid == 0 || n.pid == pid) && re.MatchString(n.text) {
			found = append(found, n)
		}
	}
	return found
}

// await waits until that many notices match, and returns the last.
func (m *manager) await(t *testing.T, s *server, count, pid int, pattern string) notice {
	t.Helper()
	var found []notice
	s.await(t, fmt.Sprintf("notice %d of %q", count, pattern), startTime, func() bool {
		found = m.notices(pid, pattern)
		return len(found) >= count
	})
	return found[count-1]
}

// identify asks for what the worker is; its parent is the gateway.
func (s *server) identify(t *testing.T, transport string) identity {
	t.Helper()
	return decode[identity](t, s.want(t, transport, get("/identity"), 200).body)
}

// managers are variables that are between the service manager, the gateway and its
// successors.
var managers = regexp.MustCompile(`^(LISTEN_|NOTIFY_|WATCHDOG_|MAINPID|TABLEFLIP)`)

func wantNoManager(t *testing.T, worker identity) {
	t.Helper()
	for name := range worker.Environ {
		if managers.MatchString(name) {
			t.Errorf("%s reached a worker", name)
		}
	}
}

// TestSystemdService: the gateway as a service with sockets of three names, one of
// which it is not asked to use, and a watchdog; through reloads, good and bad, an
// upgrade, and its end.
func TestSystemdService(t *testing.T) {
	t.Parallel()
	s := prepare(t)
	m := newManager(t, filepath.Join(s.dir, "notify"))
	const watchdog = 2 * time.Second
	spare := filepath.Join(s.dir, "spare")
	command := append([]string{"NOTIFY_SOCKET=" + m.path, fmt.Sprintf("WATCHDOG_USEC=%d", watchdog.Microseconds())},
		activated(t, "app="+s.addrs["fastcgi"], "other="+s.addrs["scgi"], "web="+s.addrs["http"], "spare="+spare)...)
	// The listener that gives no name has the first socket that no other asks for.
	s.start(t, command, binary(t), "--workers", "1", "--scgi", "systemd", "--http", "systemd:web", "--fastcgi", "systemd:app", "process_app:app")
	s.awaitAnnounced(t)
	if accepts("unix", spare) {
		t.Error("a socket that no listener uses accepts connections")
	}
	s.awaitLog(t, `systemd has passed a socket that no listener uses: name it with systemd:NAME name=spare`)

	pid := s.cmd.Process.Pid
	if got := m.await(t, s, 1, pid, `^READY=1\n`); got.text != fmt.Sprintf("READY=1\nMAINPID=%d", pid) {
		t.Errorf("ready: %q", got.text)
	}
	m.await(t, s, 1, pid, `^STATUS=ready: 1 worker, 0 requests running, 0 waiting$`)
	for _, transport := range transports {
		wantNoManager(t, s.identify(t, transport))
	}
	wantReloads(t, s, m)
	wantWatchdog(t, s, m, pid, watchdog)

	s.signal(t, unix.SIGUSR2)
	if code := s.awaitExit(t, startTime); code != 0 {
		t.Errorf("exit status %d", code)
	}
	next := s.identify(t, "http").PPID
	if got := m.await(t, s, 1, pid, `^MAINPID=`); got.text != fmt.Sprintf("MAINPID=%d", next) {
		t.Errorf("after the upgrade: %q, the successor is %d", got.text, next)
	}
	if got := m.notices(pid, "STOPPING"); got != nil {
		t.Errorf("the service does not stop: %v", got)
	}
	m.await(t, s, 1, next, fmt.Sprintf(`^READY=1\nMAINPID=%d$`, next))
	wantWatchdog(t, s, m, next, watchdog)
	for _, transport := range transports {
		wantNoManager(t, s.identify(t, transport))
	}
	s.end(t, next)
	m.await(t, s, 1, next, `^STOPPING=1$`)
	if last := m.notices(next, ""); last[len(last)-1].text != "STOPPING=1" {
		t.Errorf("told after the end: %q", last[len(last)-1].text)
	}
	if _, err := os.Lstat(s.addrs["fastcgi"]); err != nil {
		t.Errorf("the socket file is systemd's: %v", err)
	}
}

// wantReloads: a reload is told from its beginning to its end, also if it fails.
func wantReloads(t *testing.T, s *server, m *manager) {
	t.Helper()
	file := filepath.Join(s.apps(), "process_app.py")
	good, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	pid := s.cmd.Process.Pid
	for i, source := range []string{string(good), "1 / 0\n", string(good) + "\n"} {
		write(t, file, source)
		before := unixMicroseconds(t)
		s.signal(t, unix.SIGHUP)
		began := m.await(t, s, i+1, pid, `^RELOADING=1\n`)
		at, err := strconv.ParseInt(strings.TrimPrefix(began.text, "RELOADING=1\nMONOTONIC_USEC="), 10, 64)
		if err != nil || at < before || at > unixMicroseconds(t) {
			t.Errorf("%q: signalled at %d, %v", began.text, before, err)
		}
		m.await(t, s, i+1, pid, `^READY=1$`)
	}
	s.awaitLog(t, "ZeroDivisionError")
	s.want(t, "http", get("/ok"), 200)
}

// unixMicroseconds is the clock of MONOTONIC_USEC.
func unixMicroseconds(t *testing.T) int64 {
	t.Helper()
	var now unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &now); err != nil {
		t.Fatal(err)
	}
	return now.Nano() / 1000
}

// wantWatchdog: the next pings are in time, which is half of what is asked for, so
// that one may be late.
func wantWatchdog(t *testing.T, s *server, m *manager, pid int, interval time.Duration) {
	t.Helper()
	n := len(m.notices(pid, `^WATCHDOG=1$`)) + 1
	last := m.await(t, s, n, pid, `^WATCHDOG=1$`)
	for i := range 2 {
		next := m.await(t, s, n+1+i, pid, `^WATCHDOG=1$`)
		if gap := next.at.Sub(last.at); gap > interval || gap < interval/4 {
			t.Errorf("%v between two pings, want half of %v", gap, interval)
		}
		last = next
	}
}

// TestSystemdSockets: what systemd has not passed, or not as it should, is a bad
// configuration, and the message has the names that there are.
func TestSystemdSockets(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		sockets []string
		flags   []string
		want    []string
	}{
		"none": {nil, []string{"--http", "systemd", "--scgi", "systemd:app"}, []string{
			"--scgi: systemd:app: systemd has passed no socket that is left: the service needs a .socket unit for each listener",
			"--http: systemd: systemd has passed no socket that is left: the service needs a .socket unit for each listener",
		}},
		"another": {[]string{"web", "app"}, []string{"--http", "systemd:wbe"}, []string{
			"--http: systemd:wbe: systemd has passed no such socket: there are web, app (FileDescriptorName= of the .socket unit)",
		}},
		"too few": {[]string{"web"}, []string{"--http", "systemd", "--scgi", "systemd"}, []string{
			"--http: systemd: systemd has passed no socket that is left: the service needs a .socket unit for each listener",
		}},
		"asked for by name": {[]string{"web"}, []string{"--scgi", "systemd", "--http", "systemd:web"}, []string{
			"--scgi: systemd: systemd has passed no such socket: there are web (FileDescriptorName= of the .socket unit)",
		}},
		"datagrams": {[]string{"datagrams"}, []string{"--http", "systemd"}, []string{
			"--http: systemd: descriptor 3 is not a listening socket: the web server, spawn-fcgi or systemd must open it before it starts wsgigate",
		}},
		"as control": {[]string{"web"}, []string{"--http", "systemd", "--control", "systemd"}, []string{
			"--control systemd: who may give commands is told by a file's owner: write unix:/path",
		}},
		"no name": {[]string{"web"}, []string{"--http", "systemd:"}, []string{
			`--http: address "systemd:": the name is missing: write systemd, or systemd:NAME with FileDescriptorName=NAME in the socket unit`,
		}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := prepare(t)
			var sockets []string
			for _, name := range c.sockets {
				sockets = append(sockets, name+"="+filepath.Join(s.dir, name))
			}
			s.start(t, activated(t, sockets...), binary(t), append(c.flags, "process_app:app")...)
			if code := s.awaitExit(t, startTime); code != 78 {
				t.Errorf("exit status %d", code)
			}
			var said []string
			for line := range strings.Lines(s.text(t)) {
				if text, ok := strings.CutPrefix(strings.TrimSpace(line), "wsgigate: "); ok {
					said = append(said, text)
				}
			}
			if !slices.Equal(said, c.want) {
				t.Errorf("%q, want %q", said, c.want)
			}
		})
	}
}

// TestSystemdForeign: sockets that were passed to another process are not taken, and
// a watchdog that watches another one gets no pings.
func TestSystemdForeign(t *testing.T) {
	t.Parallel()
	s := prepare(t)
	m := newManager(t, filepath.Join(s.dir, "notify"))
	command := append(activated(t, "web="+s.addrs["http"]), "env", "LISTEN_PID=1")
	s.start(t, command, binary(t), "--http", "systemd", "process_app:app")
	if code := s.awaitExit(t, startTime); code != 78 {
		t.Errorf("exit status %d", code)
	}
	s.awaitLog(t, "--http: systemd: systemd has passed no socket that is left")

	s.start(t, []string{"NOTIFY_SOCKET=" + m.path, "WATCHDOG_USEC=100000", "WATCHDOG_PID=1"}, binary(t), "--workers", "1",
		"--fastcgi", "unix:"+s.addrs["fastcgi"], "--scgi", s.addrs["scgi"], "--http", s.addrs["http"], "process_app:app")
	s.awaitAnnounced(t)
	m.await(t, s, 1, 0, `^READY=1`)
	s.signal(t, unix.SIGHUP)
	m.await(t, s, 1, 0, `^RELOADING=1`)
	m.await(t, s, 1, 0, `^READY=1$`)
	s.signal(t, sigterm)
	if code := s.awaitExit(t, stopTime); code != 0 {
		t.Errorf("exit status %d", code)
	}
	if got := m.notices(0, "WATCHDOG"); got != nil {
		t.Errorf("a watchdog was told of another process: %v", got)
	}
}

// onDemand is a program that starts another one when somebody connects, twice, and
// hands it the socket. Its first argument is HOST:PORT.
const onDemand = `
import fcntl, os, select, socket, subprocess, sys
host, port = sys.argv[1].split(":")
made = socket.create_server((host, int(port)))
kept = fcntl.fcntl(made, fcntl.F_DUPFD, 100)
os.dup2(kept, 3)
for _ in range(2):
    select.select([kept], [], [])
    started = ["sh", "-c", 'LISTEN_PID=$$ LISTEN_FDS=1 exec "$@"', "sh"] + sys.argv[2:]
    status = subprocess.call(started, close_fds=False)
    print("the service ended:", status, flush=True)
`

// TestSystemdOnDemand: a service that is started for a connection, and that leaves
// when nobody has asked for a while. The socket is there all the time: whoever
// connects meanwhile is answered by the next start.
func TestSystemdOnDemand(t *testing.T) {
	t.Parallel()
	s := prepare(t)
	s.start(t, []string{python(t), "-c", onDemand, s.addrs["http"]}, binary(t),
		"--http", "systemd", "--workers", "0:1", "--exit-idle", "500ms", "process_app:app")
	const ended = "the service ended: 0\n"
	for i := range 2 {
		var client net.Conn
		s.await(t, "connection", startTime, func() (ok bool) {
			var err error
			client, err = net.Dial("tcp", s.addrs["http"])
			return err == nil
		})
		defer client.Close()
		_ = client.SetDeadline(time.Now().Add(clientTime))
		slow := get("/wall?1.2") // longer than the server may be idle
		if _, err := client.Write(slow.opening("http")); err != nil {
			t.Fatal(err)
		}
		if a := slow.receive("http", client); a.err != nil || a.status != 200 {
			t.Errorf("status %d, %v", a.status, a.err)
		}
		s.await(t, "end of the idle service", startTime, func() bool { return strings.Count(s.text(t), ended) == i+1 })
	}
	if code := s.awaitExit(t, stopTime); code != 0 {
		t.Errorf("exit status %d", code)
	}
	if n := strings.Count(s.text(t), "stopping: running requests may end idle=500ms"); n != 2 {
		t.Errorf("%d stops for idleness, want 2", n)
	}
}
