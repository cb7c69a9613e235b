package integration

import (
	"bufio"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// server is a wsgigate with one listener for each transport, which a test runs
// without a front server: what it sends is what the gateway gets.
type server struct {
	*process
	dir   string
	addrs map[string]string // by transport; of FastCGI a path, else HOST:PORT
}

// transports are the listeners of a server.
var transports = []string{"fastcgi", "scgi", "http"}

// launch starts a server for an application of testdata/apps and waits until it
// has announced its listeners. It is stopped when the test ends.
func launch(t testing.TB, app string, flags ...string) *server {
	t.Helper()
	s := prepare(t)
	s.run(t, nil, app, flags...)
	s.awaitAnnounced(t)
	return s
}

// prepare makes the folder of a server and chooses its addresses.
func prepare(t testing.TB) *server {
	t.Helper()
	dir, err := os.MkdirTemp(runFolder, "server-")
	if err == nil {
		err = os.CopyFS(filepath.Join(dir, "apps"), os.DirFS("testdata/apps"))
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		awaitGone(t, dir)
		os.RemoveAll(dir)
	})
	return &server{dir: dir, addrs: map[string]string{
		"fastcgi": filepath.Join(dir, "f.sock"), "scgi": net127(freePort(t)), "http": net127(freePort(t)),
	}}
}

// run starts the gateway in an environment with these additions.
func (s *server) run(t testing.TB, env []string, app string, flags ...string) {
	t.Helper()
	args := append([]string{"env"}, env...)
	args = append(args, binary(t), "serve", "--python", python(t), "--chdir", s.apps(),
		"--fastcgi", "unix:"+s.addrs["fastcgi"], "--scgi", s.addrs["scgi"], "--http", s.addrs["http"])
	s.process = start(t, "wsgigate", filepath.Join(s.dir, "log"), append(append(args, flags...), app)...)
	t.Cleanup(func() {
		s.stop(t)
		if text := s.text(t); gatewayFault.MatchString(text) {
			t.Errorf("the gateway's log: %s", gatewayFault.FindString(text))
		}
		showIfFailed(t, s.log)
	})
}

// gatewayFault matches what no gateway's log may have, whatever a test does.
var gatewayFault = regexp.MustCompile(`panic(ked)?: .*|fatal error: .*|goroutine \d+ (gp=.*)?\[.*|SIGABRT: .*|DATA RACE`)

func (s *server) apps() string { return filepath.Join(s.dir, "apps") }

func (s *server) text(t testing.TB) string {
	t.Helper()
	text, err := os.ReadFile(s.log)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// awaitAnnounced waits until every listener is announced.
func (s *server) awaitAnnounced(t testing.TB) {
	t.Helper()
	const announced = " is answered by "
	s.await(t, "announcement", startTime, func() bool {
		select {
		case <-s.done:
			t.Fatalf("the gateway ended: %v\n%s", s.err, tail(s.log))
		default:
		}
		return strings.Count(s.text(t), announced) >= len(transports)
	})
}

// awaitLog waits for a line of the log that matches, and returns it.
func (s *server) awaitLog(t testing.TB, pattern string) string {
	t.Helper()
	re := regexp.MustCompile(`(?m)^.*` + pattern + `.*$`)
	var line string
	s.await(t, "a log line with "+pattern, startTime, func() bool {
		line = re.FindString(s.text(t))
		return line != ""
	})
	return line
}

// await polls until ok, and fails the test if that takes too long.
func (s *server) await(t testing.TB, what string, within time.Duration, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(within); !ok(); time.Sleep(pollEvery) {
		if time.Now().After(deadline) {
			t.Fatalf("no %s within %v; the log:\n%s", what, within, tail(s.log))
		}
	}
}

// signal sends a signal to the gateway.
func (s *server) signal(t testing.TB, sig syscall.Signal) {
	t.Helper()
	if err := s.cmd.Process.Signal(sig); err != nil {
		t.Fatal(err)
	}
}

// awaitExit waits for the gateway's end and returns its exit status.
func (s *server) awaitExit(t testing.TB, within time.Duration) int {
	t.Helper()
	select {
	case <-s.done:
		return s.cmd.ProcessState.ExitCode()
	case <-time.After(within):
		t.Fatalf("the gateway still runs after %v; its log:\n%s", within, tail(s.log))
		return 0
	}
}

// connect opens a connection that the test's end, or its caller, closes.
func (s *server) connect(t testing.TB, transport string) net.Conn {
	t.Helper()
	conn, err := net.Dial(s.network(transport), s.addrs[transport])
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	if err := conn.SetDeadline(time.Now().Add(clientTime)); err != nil {
		t.Fatal(err)
	}
	return conn
}

func (s *server) network(transport string) string {
	if transport == "fastcgi" {
		return "unix"
	}
	return "tcp"
}

// clientTime bounds what a client of the acceptance tests waits for.
const clientTime = 60 * time.Second

// workers returns the process ids of the gateway's children.
func (s *server) workers(t testing.TB) []int {
	t.Helper()
	threads, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", s.cmd.Process.Pid))
	if err != nil {
		t.Fatal(err)
	}
	var pids []int
	for _, file := range threads {
		list, _ := os.ReadFile(file) // a thread that ended has none
		for _, field := range strings.Fields(string(list)) {
			pid, err := strconv.Atoi(field)
			if err != nil {
				t.Fatal(err)
			}
			pids = append(pids, pid)
		}
	}
	return pids
}

// status returns a field of /proc/PID/status, such as "VmHWM", in bytes or as a
// plain number.
func status(t testing.TB, pid int, field string) int64 {
	t.Helper()
	file, err := os.Open(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	for lines := bufio.NewScanner(file); lines.Scan(); {
		rest, found := strings.CutPrefix(lines.Text(), field+":")
		if !found {
			continue
		}
		kilo, isSize := strings.CutSuffix(strings.TrimSpace(rest), " kB")
		n, err := strconv.ParseInt(kilo, 10, 64)
		if err != nil {
			t.Fatal(err)
		}
		if isSize {
			n <<= 10
		}
		return n
	}
	t.Fatalf("process %d has no %s", pid, field)
	return 0
}

// runs reports whether a process is there and not a zombie.
func runs(pid int) bool {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return false
	}
	_, rest, _ := strings.Cut(string(stat), ") ")
	return !strings.HasPrefix(rest, "Z")
}

// decode reads an answer in JSON.
func decode[T any](t testing.TB, body []byte) T {
	t.Helper()
	var v T
	if err := json.Unmarshal(body, &v); err != nil {
		t.Fatalf("%v in %.300q", err, body)
	}
	return v
}
