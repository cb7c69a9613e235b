package integration

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"
)

// TestIncidentStuck: a request that is stuck leaves an incident with the line where it
// is, and its client gets a 504 and nothing more: what the worker answers later
// reaches nobody (rows 22 and 23).
func TestIncidentStuck(t *testing.T) {
	t.Parallel()
	for target, function := range map[string]string{"/sleeps": "sleeps", "/gil": "holds_gil", "/loops": "loops"} {
		for _, transport := range transports {
			t.Run(function+" "+transport, func(t *testing.T) {
				t.Parallel()
				stuck(t, target, function, transport)
			})
		}
	}
}

func stuck(t *testing.T, target, function, transport string) {
	const slow, timeout = 500 * time.Millisecond, 3 * time.Second
	s := launch(t, "incident_app:app", "--workers", "1", "--slow", slow.String(), "--timeout", timeout.String())
	before := string(s.want(t, transport, get("/"), 200).body)
	began := time.Now()
	conn := s.write(t, transport, kept(target, transport))

	line := s.awaitLog(t, `WARN  slow request incident=1 pid=`+before+` kind=slow request=\d+ .*method=GET uri=`+target+` remote=127\.0\.0\.1 in=0 out=0 for=`)
	if took := time.Since(began); took < slow || took > slow+time.Second {
		t.Errorf("incident after %v: %s", took, line)
	}
	stuckAt := s.lineOf(t, "incident_app.py", "stuck: "+function)
	where := strconv.Itoa(stuckAt)
	if function == "loops" { // one of the two of the inner loop
		where = fmt.Sprintf("(%d|%d)", stuckAt-1, stuckAt)
	}
	at := fmt.Sprintf(`incident_app\.py", line %s in %s incident=%%d pid=%s stream=stacks`, where, function, before)
	s.awaitLog(t, fmt.Sprintf(at, 1))

	a := get(target).receive(transport, answerOf(transport, conn))
	took := time.Since(began)
	if a.status != 504 || a.err != nil || took < timeout || took > timeout+time.Second {
		t.Errorf("status %d, %v, after %v", a.status, a.err, took)
	}
	s.awaitLog(t, `ERROR request took longer than --timeout incident=2 pid=`+before+` kind=timeout request=\d+ .*uri=`+target)
	if function != "holds_gil" { // that may just be between two calls
		s.awaitLog(t, fmt.Sprintf(at, 2))
	}
	write(t, filepath.Join(s.apps(), "go"), "") // the worker, which ignores SIGTERM, answers now
	s.await(t, "late answer", startTime, func() bool {
		_, err := os.Stat(filepath.Join(s.apps(), "answered"))
		return err == nil
	})
	after := string(s.want(t, transport, get("/"), 200).body)
	if after == before {
		t.Errorf("worker %s was not replaced", before)
	}
	s.nothingMore(t, conn, transport, after)
}

// kept is a GET whose connection stays open, where the transport has that.
func kept(target, transport string) []byte {
	raw := get(target).opening(transport)
	switch transport {
	case "fastcgi":
		raw = record(raw, fcgiStdin, 1, nil)
		raw[10] = 1 // FCGI_KEEP_CONN, in the flags of BEGIN_REQUEST
	case "http":
		raw = bytes.Replace(raw, []byte("Connection: close\r\n"), nil, 1)
	}
	return raw
}

// nothingMore checks that a connection brings no byte that was not asked for: where
// it is kept, the next request gets its own answer, which is want.
func (s *server) nothingMore(t *testing.T, conn net.Conn, transport, want string) {
	t.Helper()
	if transport != "scgi" {
		raw := get("/").opening(transport)
		if transport == "fastcgi" {
			raw = record(raw, fcgiStdin, 1, nil)
		}
		if _, err := conn.Write(raw); err != nil {
			t.Fatal(err)
		}
		a := get("/").receive(transport, answerOf(transport, conn))
		if a.status != 200 || a.err != nil || string(a.body) != want {
			t.Errorf("the next answer: status %d, %v, %q, want %q", a.status, a.err, a.body, want)
		}
	}
	if n, err := conn.Read(make([]byte, 100)); n > 0 || err == nil {
		t.Errorf("%d bytes more", n)
	}
}

// lineOf returns the number of the line of an application that has the text.
func (s *server) lineOf(t *testing.T, app, text string) int {
	t.Helper()
	source, err := os.ReadFile(filepath.Join(s.apps(), app))
	if err != nil {
		t.Fatal(err)
	}
	before, _, found := strings.Cut(string(source), text)
	if !found {
		t.Fatalf("%s has no %q", app, text)
	}
	return strings.Count(before, "\n") + 1
}

// TestIncidentRaise: with --raise-on-timeout the request that hangs gets an exception,
// so that it can clean up, after its stack was taken.
func TestIncidentRaise(t *testing.T) {
	t.Parallel()
	s := launch(t, "incident_app:app", "--workers", "1", "--timeout", "500ms", "--raise-on-timeout")
	before := string(s.want(t, "http", get("/"), 200).body)
	s.want(t, "http", get("/cleans"), 504)
	s.await(t, "cleaning up", startTime, func() bool {
		text, _ := os.ReadFile(filepath.Join(s.apps(), "cleaned"))
		return bytes.HasPrefix(text, []byte("RequestTimeout: "))
	})
	s.awaitLog(t, `incident_app\.py", line \d+ in cleans incident=1 pid=`+before+` stream=stacks`)
	if after := string(s.want(t, "http", get("/"), 200).body); after == before {
		t.Error("the worker was not replaced")
	}
}

// TestIncidentCrash: a crash leaves the same kind of record, with the signal's name and
// the stack (row 15).
func TestIncidentCrash(t *testing.T) {
	t.Parallel()
	s := launch(t, "fault_app:app", "--workers", "1")
	pid := s.worker(t, "scgi")
	if a := s.ask("scgi", get("/segfault")); a.status != 502 {
		t.Errorf("status %d", a.status)
	}
	s.awaitLog(t, fmt.Sprintf(`ERROR worker crashed incident=1 pid=%d kind=crash exit="killed by SIGSEGV.*" request=\d+ phase=app method=GET uri=/segfault remote=127\.0\.0\.1 `, pid))
	s.awaitLog(t, fmt.Sprintf(`fault_app\.py", line %d in segfault incident=1 pid=%d stream=stacks`, s.lineOf(t, "fault_app.py", "ctypes.string_at(0)"), pid))
	s.worker(t, "scgi")
}

// TestFaultExitStatus: whatever status a worker ends with, its request gets a 502,
// and the other worker serves on at once (row 14).
func TestFaultExitStatus(t *testing.T) {
	t.Parallel()
	s := launch(t, "fault_app:app", "--workers", "4")
	for n := range 256 {
		transport := transports[n%len(transports)]
		s.worker(t, transport) // so that one that ends has answered, mostly: there is no crash loop
		if a := s.ask(transport, get(fmt.Sprint("/leave?", n))); a.status != 502 || a.err != nil {
			t.Errorf("exit status %d: status %d, %v, %q", n, a.status, a.err, a.body)
		}
		asked := time.Now()
		s.worker(t, transport)
		if took := time.Since(asked); took > 5*time.Second {
			t.Errorf("exit status %d: the next request waited %v", n, took)
		}
	}
	ended := map[string]bool{}
	for n := range 256 {
		line := s.awaitLog(t, fmt.Sprintf(`worker crashed incident=\d+ pid=\d+ kind=crash exit="exit status %d" request=\d+ .*uri=/leave\?%d `, n, n))
		ended[regexp.MustCompile(` pid=\d+`).FindString(line)] = true
	}
	if len(ended) != 256 {
		t.Errorf("%d workers ended, want 256", len(ended))
	}
	text := s.text(t)
	if n := strings.Count(text, "request failed"); n != 256 {
		t.Errorf("%d requests failed, want 256", n)
	}
	if looping := regexp.MustCompile(`.*waiting before the next.*`).FindString(text); looping != "" {
		t.Errorf("a pause: %s", looping)
	}
}

// TestAccessLogUsage: the access log tells what a request has cost.
func TestAccessLogUsage(t *testing.T) {
	t.Parallel()
	file := filepath.Join(t.TempDir(), "access")
	s := launch(t, "fault_app:app", "--workers", "1", "--access-log", file, "--log-format", "json")
	pid := s.worker(t, "fastcgi")
	var line struct {
		Worker, Gateway int
		App, Path       string
		CPU, Memory     *float64
	}
	var text []byte
	s.await(t, "line of the access log", startTime, func() bool {
		text, _ = os.ReadFile(file)
		return bytes.HasSuffix(text, []byte("\n"))
	})
	if err := json.Unmarshal(text, &line); err != nil {
		t.Fatalf("%v in %q", err, text)
	}
	if line.Worker != pid || line.Gateway != s.cmd.Process.Pid || line.App != "fault_app:app" || line.Path != "/ok" || line.CPU == nil || line.Memory == nil {
		t.Fatalf("%s", text)
	}
	if peak := float64(status(t, pid, "VmHWM")); *line.CPU <= 0 || *line.CPU > 400 || *line.Memory < 1<<20 || *line.Memory > peak {
		t.Errorf("%s, peak %v", text, peak)
	}
}
