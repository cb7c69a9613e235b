package pyrunner

import (
	"cmp"
	"fmt"
	"os/exec"
	"syscall"

	"golang.org/x/sys/unix"
)

// process is a worker's process, however it was started: by exec, or forked from a
// template that has imported the application.
type process interface {
	pid() int
	// signal sends a signal. After wait it returns os.ErrProcessDone.
	signal(unix.Signal) error
	// wait returns when the process has ended and its number may be another's. It
	// is called once.
	wait() exit
}

// exit is how a process ended.
type exit struct {
	status syscall.WaitStatus
	peak   int64 // bytes of resident memory that it had at most; 0: nobody knows
	err    error // that it cannot be told
}

// String is "exit status 3" or "killed by SIGSEGV", for people.
func (e exit) String() string {
	switch {
	case e.err != nil:
		return e.err.Error()
	case e.status.Signaled() && e.status.CoreDump():
		return "killed by " + signalName(e.status.Signal()) + " (core dumped)"
	case e.status.Signaled():
		return "killed by " + signalName(e.status.Signal())
	}
	return fmt.Sprintf("exit status %d", e.status.ExitStatus())
}

// signalName is "SIGSEGV", or "signal 40": real-time signals have no names.
func signalName(sig syscall.Signal) string {
	return cmp.Or(unix.SignalName(sig), fmt.Sprintf("signal %d", sig))
}

// execProcess is a process that the gateway started itself.
type execProcess struct{ cmd *exec.Cmd }

func (p execProcess) pid() int { return p.cmd.Process.Pid }

func (p execProcess) signal(sig unix.Signal) error { return p.cmd.Process.Signal(sig) }

func (p execProcess) wait() exit {
	err := p.cmd.Wait()
	ourChildren.waited(p.pid())
	if p.cmd.ProcessState == nil {
		return exit{err: err}
	}
	status, _ := p.cmd.ProcessState.Sys().(syscall.WaitStatus)
	e := exit{status: status}
	if used, ok := p.cmd.ProcessState.SysUsage().(*syscall.Rusage); ok {
		e.peak = used.Maxrss << 10 // getrusage(2): kilobytes
	}
	return e
}
