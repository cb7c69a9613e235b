package integration

import (
	"encoding/json"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"
)

// The wall clock of a test's gateway jumps a day ahead and back every tenth of a
// second. No tool can do that to a static binary alone (a time namespace has no
// wall clock of its own, faketime needs the C library), so the binary is built with
// another time.Now: this line of it is followed by one more.
const (
	clockLine = "\tmono -= startNano\n"
	clockJump = "\tsec += mono / 1e8 % 2 * 86400\n"
)

// jumpyBinary builds such a gateway.
func jumpyBinary(t *testing.T) string {
	t.Helper()
	root, err := exec.Command("go", "env", "GOROOT").Output()
	if err != nil {
		t.Fatal(err)
	}
	original := filepath.Join(strings.TrimSpace(string(root)), "src", "time", "time.go")
	source, err := os.ReadFile(original)
	if err != nil {
		t.Fatal(err)
	}
	if n := strings.Count(string(source), clockLine); n != 1 {
		t.Fatalf("%s has the line of time.Now %d times: look for its new form", original, n)
	}
	dir := t.TempDir()
	patched, overlay := filepath.Join(dir, "time.go"), filepath.Join(dir, "overlay.json")
	write(t, patched, strings.Replace(string(source), clockLine, clockLine+clockJump, 1))
	replace, err := json.Marshal(map[string]any{"Replace": map[string]string{original: patched}})
	if err != nil {
		t.Fatal(err)
	}
	write(t, overlay, string(replace))
	path := filepath.Join(dir, "wsgigate")
	if out, err := exec.Command("go", "build", "-overlay", overlay, "-o", path, module+"/cmd/wsgigate").CombinedOutput(); err != nil {
		t.Fatalf("go build: %v\n%s", err, out)
	}
	return path
}

// TestFaultClock: no time that is measured depends on the wall clock: requests are
// neither cut early nor kept, workers and connections stay (row 54).
func TestFaultClock(t *testing.T) {
	t.Parallel()
	s := prepare(t)
	jumpy := []string{"sh", "-c", "shift; exec " + jumpyBinary(t) + " \"$@\"", "sh"} // in place of the usual binary
	s.run(t, jumpy, "process_app:app", "--workers", "1:2", "--timeout", "3s", "--queue-timeout", "10s", "--graceful-timeout", "10s",
		"--slow", "2s", "--idle-timeout", "1h", "--exit-idle", "1h", "--max-age", "1h")
	s.awaitAnnounced(t)
	client := &http.Client{Timeout: clientTime, Transport: &http.Transport{}} // keeps its connection
	t.Cleanup(client.CloseIdleConnections)
	pid := s.pidOf(t, client)
	dates := map[string]bool{}
	for range 3 {
		busy := []<-chan answer{s.background("fastcgi", get("/wall?0.7")), s.background("scgi", get("/wall?0.7"))}
		time.Sleep(150 * time.Millisecond) // so that the next waits, and jumps lie between
		waits := s.background("http", get("/wall?0.1"))
		for _, result := range append(busy, waits) {
			if a := <-result; a.status != 200 || a.err != nil {
				t.Errorf("status %d, %v", a.status, a.err)
			}
		}
		s.pidOf(t, client)
	}
	if text := s.text(t); strings.Contains(text, "slow") || strings.Contains(text, "WARN") {
		t.Errorf("something was found to take long:\n%s", tail(s.log))
	}
	if !runs(pid) {
		t.Error("the worker was recycled")
	}
	began := time.Now()
	if a := s.ask("http", get("/wall?60")); a.status != 504 {
		t.Errorf("status %d, %v", a.status, a.err)
	}
	if took := time.Since(began); took < 2900*time.Millisecond || took > 10*time.Second {
		t.Errorf("504 after %v, want 3s", took)
	}
	last := s.background("fastcgi", get("/wall?1"))
	s.await(t, "request", startTime, func() bool { return strings.Count(s.text(t), "sleeping") == 3*3+2 })
	s.signal(t, sigterm)
	if a := <-last; a.status != 200 {
		t.Errorf("the request that ran at the stop: status %d, %v", a.status, a.err)
	}
	if code := s.awaitExit(t, stopTime); code != 0 {
		t.Errorf("exit status %d", code)
	}
	for _, date := range regexp.MustCompile(`(?m)^\d{4}-\d\d-\d\d`).FindAllString(s.text(t), -1) {
		dates[date] = true
	}
	if len(dates) < 2 {
		t.Errorf("the log has the dates %v: did the clock jump?", dates)
	}
}

// pidOf asks for the process id of a worker over a connection that is kept.
func (s *server) pidOf(t *testing.T, client *http.Client) int {
	t.Helper()
	resp, err := client.Get("http://" + s.addrs["http"] + "/ok")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	var page map[string]int
	if err := json.NewDecoder(resp.Body).Decode(&page); err != nil || resp.StatusCode != 200 {
		t.Errorf("status %d, %v", resp.StatusCode, err)
	}
	return page["pid"]
}
