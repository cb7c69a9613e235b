package integration

import (
	"bytes"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

const (
	startTime = 30 * time.Second      // for a server to accept connections, Django's import included
	stopTime  = 15 * time.Second      // for it to end when it was asked to
	pollEvery = 20 * time.Millisecond // between two looks at something that takes a while
	logTail   = 4 << 10               // bytes of a log that a failure shows
)

// process is a server that a test started, in a process group of its own.
type process struct {
	name string
	log  string // file that has its stdout and stderr
	cmd  *exec.Cmd
	end  syscall.Signal // that asks it to stop
	done chan struct{}  // closed when it has ended
	err  error          // of Wait, valid after done
}

// start runs a command until the test ends or stop is called.
func start(t testing.TB, name, logFile string, args ...string) *process {
	t.Helper()
	path, err := exec.LookPath(args[0])
	if err != nil {
		t.Fatalf("%v: \"scripts/test\" installs what the integration tests need", err)
	}
	out, err := os.OpenFile(logFile, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o644)
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	p := &process{name: name, log: logFile, end: syscall.SIGTERM, done: make(chan struct{})}
	p.cmd = exec.Command(path, args[1:]...)
	p.cmd.Stdout, p.cmd.Stderr = out, out
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := p.cmd.Start(); err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	go func() { // ends with the process, which stop kills if need be
		p.err = p.cmd.Wait()
		close(p.done)
	}()
	t.Cleanup(func() { p.stop(t) })
	return p
}

// stop ends the process as an administrator would and fails the test if it
// does not go.
func (p *process) stop(t testing.TB) {
	t.Helper()
	select {
	case <-p.done:
		return
	default:
	}
	_ = p.cmd.Process.Signal(p.end)
	select {
	case <-p.done:
	case <-time.After(stopTime):
		t.Errorf("%s still runs %v after %v", p.name, stopTime, p.end)
	}
	_ = syscall.Kill(-p.cmd.Process.Pid, syscall.SIGKILL) // what is left of its group
	<-p.done
}

// awaitListening waits until something accepts connections at every address.
func (p *process) awaitListening(t testing.TB, network string, addrs ...string) {
	t.Helper()
	deadline := time.Now().Add(startTime)
	for _, addr := range addrs {
		for !accepts(network, addr) {
			select {
			case <-p.done:
				t.Fatalf("%s ended: %v\n%s", p.name, p.err, tail(p.log))
			case <-time.After(pollEvery):
			}
			if time.Now().After(deadline) {
				t.Fatalf("%s does not listen on %s after %v\n%s", p.name, addr, startTime, tail(p.log))
			}
		}
	}
}

func accepts(network, addr string) bool {
	conn, err := net.Dial(network, addr)
	if err != nil {
		return false
	}
	conn.Close()
	return true
}

// tail returns the end of a log file.
func tail(file string) string {
	text, err := os.ReadFile(file)
	if err != nil {
		return err.Error()
	}
	return string(text[max(0, len(text)-logTail):])
}

// Ports are given out one after the other, each once, from below the range that
// the kernel takes for outgoing connections (32768 and up on Linux): a port that was
// free stays free until its server starts.
const firstPort, portCount = 20000, 12000

var portsGiven atomic.Int32

// freePort returns a loopback TCP port that nothing listens on.
func freePort(t testing.TB) int {
	t.Helper()
	for range portCount {
		port := firstPort + (os.Getpid()*37+int(portsGiven.Add(1)))%portCount
		if l, err := net.Listen("tcp", net127(port)); err == nil {
			l.Close()
			return port
		}
	}
	t.Fatal("no free port")
	return 0
}

// awaitGone waits until no process is left that works in dir or names it on its
// command line: front servers and gateways must take theirs with them.
func awaitGone(t testing.TB, dir string) {
	t.Helper()
	var left []string
	for deadline := time.Now().Add(stopTime); time.Now().Before(deadline); time.Sleep(pollEvery) {
		if left = processesOf(dir); len(left) == 0 {
			return
		}
	}
	t.Errorf("processes left behind %v after the servers stopped:\n%s", stopTime, strings.Join(left, "\n"))
}

// processesOf returns a line for each such process.
func processesOf(dir string) []string {
	var found []string
	folders, _ := filepath.Glob("/proc/[0-9]*")
	for _, folder := range folders {
		pid, _ := strconv.Atoi(filepath.Base(folder))
		command, err := os.ReadFile(filepath.Join(folder, "cmdline"))
		if err != nil || len(command) == 0 || pid == os.Getpid() {
			continue // gone, or a zombie
		}
		cwd, _ := os.Readlink(filepath.Join(folder, "cwd"))
		if within(cwd, dir) || bytes.Contains(command, []byte(dir+"/")) {
			found = append(found, fmt.Sprintf("%d %s", pid, bytes.ReplaceAll(command, []byte{0}, []byte{' '})))
		}
	}
	return found
}

// within reports whether path is dir or below it.
func within(path, dir string) bool {
	return path == dir || strings.HasPrefix(path, dir+"/")
}
