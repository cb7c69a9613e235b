package main

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"time"
)

const (
	stopTime = 10 * time.Second // for a server to end after SIGTERM
	logTail  = 1 << 10          // bytes of a log that a failure shows
)

// process is a server that the benchmark started, in a process group of its own.
type process struct {
	log  string // file that has its stdout and stderr
	cmd  *exec.Cmd
	done chan struct{} // closed when it has ended
}

// startProcess runs a command in folder dir until stop is called.
func startProcess(dir, logFile string, args ...string) (*process, error) {
	out, err := os.OpenFile(logFile, os.O_CREATE|os.O_WRONLY|os.O_APPEND|os.O_TRUNC, 0o644)
	if err != nil {
		return nil, err
	}
	defer out.Close()
	p := &process{log: logFile, done: make(chan struct{}), cmd: exec.Command(args[0], args[1:]...)}
	p.cmd.Dir, p.cmd.Env = dir, plainEnvironment()
	p.cmd.Stdout, p.cmd.Stderr = out, out
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := p.cmd.Start(); err != nil {
		return nil, err
	}
	go func() { // ends with the process, which stop kills if need be
		_ = p.cmd.Wait() // how it ended is in cmd.ProcessState
		close(p.done)
	}()
	return p, nil
}

// plainEnvironment is the caller's without what would configure one side only.
func plainEnvironment() []string {
	var env []string
	for _, kv := range os.Environ() {
		name, _, _ := strings.Cut(kv, "=")
		prefix, _, _ := strings.Cut(name, "_")
		switch prefix {
		case "PYTHON", "PYTHONPATH", "PYTHONHOME", "VIRTUAL", "UWSGI", "GUNICORN", "WSGIGATE":
		default:
			env = append(env, kv)
		}
	}
	return env
}

// stop ends the process and what is left of its group.
func (p *process) stop() {
	_ = p.cmd.Process.Signal(syscall.SIGTERM)
	select {
	case <-p.done:
	case <-time.After(stopTime):
	}
	_ = syscall.Kill(-p.cmd.Process.Pid, syscall.SIGKILL)
	<-p.done
}

// ended returns an error if the process is not running any more.
func (p *process) ended() error {
	select {
	case <-p.done:
		return fmt.Errorf("it ended: %v\n%s", p.cmd.ProcessState, p.tail())
	default:
		return nil
	}
}

// tail returns the end of the process's log.
func (p *process) tail() string {
	b, err := os.ReadFile(p.log)
	if err != nil {
		return err.Error()
	}
	if len(b) > logTail {
		b = b[len(b)-logTail:]
		_, b, _ = bytes.Cut(b, []byte("\n")) // begins with a whole line
	}
	return string(bytes.TrimSpace(b))
}
