package integration

import (
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// workerFault is a row of FAULTS.md whose fault is in the worker or the
// application, seen through every transport.
type workerFault struct {
	name   string // with the row's number
	target string
	inject func(*testing.T, *server) // while the request runs, if not nil
	status int                       // what the client gets
	cut    bool                      // the client must see that the body is not whole
	logs   []string                  // patterns of lines that each request leaves
	kept   bool                      // the worker lives
}

// failed matches the one line of a request that failed: its id, the worker and the
// phase.
const failed = `request failed.* request=\d+ pid=\d+ phase=(app|answer) .*uri=/`

var workerFaults = []workerFault{
	{name: "02 raises in mid-body", target: "/cut?raise", status: 200, cut: true, kept: true, logs: []string{failed + ".*ValueError: in the middle"}},
	{name: "14 leaves with 0", target: "/leave?0", status: 502, logs: []string{failed, "exit status 0"}},
	{name: "14 leaves with 255", target: "/leave?255", status: 502, logs: []string{failed, "exit status 255"}},
	{name: "15 crashes", target: "/segfault", status: 502, logs: []string{failed, "SIGSEGV", "Segmentation fault"}},
	{name: "15 is killed in mid-body", target: "/cut?kill", status: 200, cut: true, logs: []string{failed, "SIGKILL"}},
	{name: "17 prints", target: "/prints", status: 200, kept: true, logs: []string{
		`printed\\x1b\[31m red pid=\d+ stream=stdout`, `written to 1 pid=\d+ stream=stdout`,
		`written to 2 pid=\d+ stream=stderr`, `said on stderr pid=\d+ stream=stderr`, `told wsgi.errors \\x1b\[0m\\rover .*request=\d+`,
	}},
	{name: "18 closes 0 to 2", target: "/close?0-3", status: 200, kept: true},
	{name: "18 closes all", target: "/close?3-64", status: 502, logs: []string{failed, "worker is replaced|worker ended unexpectedly"}},
	{name: "22 sleeps for ever", target: "/sleep?3600", status: 504, logs: []string{failed + ".*--timeout", `in sleep .*stream=stacks`, "worker ended"}},
	{name: "23 holds the GIL", target: "/gil", status: 504, logs: []string{failed, `in holds_gil .*stream=stacks`, "ignores SIGTERM: SIGKILL", "SIGKILL"}},
	{name: "24 ignores SIGTERM", target: "/term", status: 504, logs: []string{failed, `in ignores_term .*stream=stacks`, "ignores SIGTERM: SIGKILL"}},
	{name: "26 is stopped", target: "/sleep?3600", status: 504, inject: stopWorker, logs: []string{failed, "ignores SIGTERM: SIGKILL"}},
}

func stopWorker(t *testing.T, s *server) {
	s.awaitLog(t, "sleeping")
	for _, pid := range s.workers(t) {
		if err := syscall.Kill(pid, syscall.SIGSTOP); err != nil {
			t.Error(err)
		}
	}
}

// TestFaultWorkers: what the client gets, what the log says, and that the pool
// goes on serving.
func TestFaultWorkers(t *testing.T) {
	t.Parallel()
	for _, f := range workerFaults {
		t.Run(f.name, func(t *testing.T) {
			t.Parallel()
			for _, transport := range transports {
				t.Run(transport, func(t *testing.T) { f.through(t, transport) })
			}
		})
	}
}

func (f *workerFault) through(t *testing.T, transport string) {
	s := launch(t, "fault_app:app", "--workers", "1", "--timeout", "500ms", "--graceful-timeout", "5s")
	before := s.worker(t, transport)
	result := s.background(transport, get(f.target))
	if f.inject != nil {
		f.inject(t, s)
	}
	a := <-result
	if a.status != f.status || (a.err != nil) != f.cut {
		t.Errorf("status %d, error %v, body %q; want %d, cut: %v", a.status, a.err, a.body, f.status, f.cut)
	}
	if f.cut && string(a.body) != "begun\n" {
		t.Errorf("the client got %q before the cut", a.body)
	}
	if strings.Contains(string(a.body), "fault_app") {
		t.Errorf("the client sees details: %q", a.body)
	}
	if after := s.worker(t, transport); (after == before) != f.kept {
		t.Errorf("worker %d before, %d after; want it kept: %v", before, after, f.kept)
	}
	for _, pattern := range f.logs {
		s.awaitLog(t, pattern)
	}
}

// worker returns the process id of the one worker, which must answer.
func (s *server) worker(t testing.TB, transport string) int {
	t.Helper()
	return int(decode[map[string]float64](t, s.want(t, transport, get("/ok"), 200).body)["pid"])
}

// TestFaultQueue: with all workers busy requests wait, up to the queue's length and
// time; the rest is refused at once (row 53).
func TestFaultQueue(t *testing.T) {
	t.Parallel()
	const waits, room, surplus = 2 * time.Second, 2, 4
	s := launch(t, "fault_app:app", "--workers", "1", "--queue", strconv.Itoa(room), "--queue-timeout", waits.String())
	running := s.background("http", get("/sleep?4"))
	s.awaitLog(t, "sleeping")
	var mu sync.Mutex
	var atOnce, late int
	var group sync.WaitGroup
	for i := range room + surplus {
		group.Go(func() {
			began := time.Now()
			a := s.ask(transports[i%len(transports)], get("/ok"))
			took := time.Since(began)
			mu.Lock()
			defer mu.Unlock()
			switch {
			case a.status != 503:
				t.Errorf("status %d, %v after %v", a.status, a.err, took)
			case took < waits/2:
				atOnce++
			case took >= waits:
				late++
			}
		})
	}
	group.Wait()
	if atOnce != surplus || late != room {
		t.Errorf("%d requests refused at once, %d after %v; want %d and %d", atOnce, late, waits, surplus, room)
	}
	if a := <-running; a.status != 200 {
		t.Errorf("the running request: status %d, %v", a.status, a.err)
	}
	s.awaitLog(t, `request refused .*phase=queue .*the queue is full \(--queue\)`)
	s.awaitLog(t, `request refused .*phase=queue .*--queue-timeout`)
	s.worker(t, "http")
}

// TestFaultSocketPath: a second gateway does not take the path of one that lives,
// nor anything that is no socket (row 55; TestGatewayKilled has the dead one).
func TestFaultSocketPath(t *testing.T) {
	t.Parallel()
	s := launch(t, "fault_app:app", "--workers", "1")
	file, link := filepath.Join(s.dir, "file"), filepath.Join(s.dir, "link")
	write(t, file, "precious")
	if err := os.Symlink(s.addrs["fastcgi"], link); err != nil {
		t.Fatal(err)
	}
	for path, sentence := range map[string]string{
		s.addrs["fastcgi"]: "another process listens on that socket",
		file:               "the path exists and is not a socket",
		link:               "the path is a symbolic link",
	} {
		other := prepare(t)
		other.addrs["fastcgi"] = path
		other.run(t, nil, "fault_app:app")
		if code := other.awaitExit(t, startTime); code != 78 {
			t.Errorf("%s: exit status %d, want 78", sentence, code)
		}
		other.says(t, 1, sentence, path)
	}
	if text, err := os.ReadFile(file); err != nil || string(text) != "precious" {
		t.Errorf("the file is now %q, %v", text, err)
	}
	s.worker(t, "fastcgi")
}
