package integration

import (
	"fmt"
	"net"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"
)

const (
	sigterm = syscall.SIGTERM
	sigkill = syscall.SIGKILL
)

// background is a request whose answer comes later.
func (s *server) background(transport string, m message) <-chan answer {
	result := make(chan answer, 1)
	go func() { result <- s.ask(transport, m) }() // ends within clientTime
	return result
}

// TestGatewayKilled: workers do not outlive a gateway that could not stop them.
// Idle ones go within a second (FAULTS.md, row 27), a busy one when its request
// has ended (row 28), and a new gateway takes over the socket that was left.
func TestGatewayKilled(t *testing.T) {
	t.Parallel()
	s := launch(t, "fault_app:app", "--workers", "3", "--graceful-timeout", "5s")
	busy := s.background("http", get("/sleep?2"))
	s.awaitLog(t, "sleeping")
	pids := s.workers(t)
	if len(pids) != 3 {
		t.Fatalf("workers %v", pids)
	}
	s.signal(t, sigkill)
	<-s.done
	s.await(t, "end of the two idle workers", time.Second, func() bool { return running(pids) <= 1 })
	s.await(t, "end of the busy worker", 5*time.Second, func() bool { return running(pids) == 0 })
	if a := <-busy; a.err == nil {
		t.Errorf("a request whose gateway was killed was answered with %d", a.status)
	}
	if !exists(s.addrs["fastcgi"]) {
		t.Error("the killed gateway removed its socket: nothing is there to take over")
	}
	s.run(t, nil, "fault_app:app", "--workers", "1")
	s.await(t, "answer of the next gateway", startTime, func() bool { return s.ask("fastcgi", get("/ok")).status == 200 })
}

func running(pids []int) (n int) {
	for _, pid := range pids {
		if runs(pid) {
			n++
		}
	}
	return n
}

// TestDrain: on SIGTERM the requests that run and those that wait are answered,
// new connections are refused, and the exit status is 0.
func TestDrain(t *testing.T) {
	t.Parallel()
	for _, transport := range transports {
		t.Run(transport, func(t *testing.T) {
			t.Parallel()
			s := launch(t, "fault_app:app", "--workers", "1", "--access-log", "-")
			quiet := s.descriptors(t)
			requests := []<-chan answer{s.background(transport, get("/sleep?1"))}
			s.awaitLog(t, "sleeping")
			for range 3 {
				requests = append(requests, s.background(transport, get("/sleep?0.1")))
			}
			s.await(t, "four connections", startTime, func() bool { return s.descriptors(t) >= quiet+4 })
			s.signal(t, sigterm)
			s.awaitLog(t, "stopping: running requests may end")
			s.await(t, "refused connection", time.Second, func() bool { return !accepts(s.network(transport), s.addrs[transport]) })
			for i, request := range requests {
				if a := <-request; a.err != nil || a.status != 200 || !strings.Contains(string(a.body), "slept") {
					t.Errorf("request %d: status %d, %v, %q", i, a.status, a.err, a.body)
				}
			}
			if code := s.awaitExit(t, stopTime); code != 0 {
				t.Errorf("exit status %d", code)
			}
			if transport == "fastcgi" && exists(s.addrs["fastcgi"]) {
				t.Error("the socket file is left behind")
			}
		})
	}
}

func exists(path string) bool {
	_, err := os.Lstat(path)
	return err == nil
}

// descriptors is how many the gateway has open.
func (s *server) descriptors(t testing.TB) int {
	t.Helper()
	entries, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", s.cmd.Process.Pid))
	if err != nil {
		t.Fatal(err)
	}
	return len(entries)
}

// TestStopAtOnce: a second SIGTERM does not wait for the requests.
func TestStopAtOnce(t *testing.T) {
	t.Parallel()
	s := launch(t, "fault_app:app", "--workers", "1", "--graceful-timeout", "60s")
	request := s.background("fastcgi", get("/sleep?3600"))
	s.awaitLog(t, "sleeping")
	s.signal(t, sigterm)
	s.awaitLog(t, "stopping: running requests may end")
	s.signal(t, sigterm)
	began := time.Now()
	if code := s.awaitExit(t, 10*time.Second); code != 0 {
		t.Errorf("exit status %d", code)
	}
	t.Logf("stopped after %v", time.Since(began))
	if a := <-request; a.err == nil && a.status == 200 {
		t.Error("the request was answered")
	}
	s.says(t, 1, "stopping at once")
}

// TestGracefulTimeout: what does not end in time is cut, and the server ends.
func TestGracefulTimeout(t *testing.T) {
	t.Parallel()
	s := launch(t, "fault_app:app", "--workers", "1", "--graceful-timeout", "500ms")
	request := s.background("http", get("/sleep?3600"))
	s.awaitLog(t, "sleeping")
	s.signal(t, sigterm)
	if code := s.awaitExit(t, 10*time.Second); code != 0 {
		t.Errorf("exit status %d", code)
	}
	if a := <-request; a.err == nil && a.status == 200 {
		t.Error("the request was answered")
	}
	if conn, err := net.Dial("tcp", s.addrs["http"]); err == nil {
		conn.Close()
		t.Error("somebody still listens")
	}
}
