package pyrunner

import (
	"os/exec"
	"runtime"
	"syscall"

	"golang.org/x/sys/unix"
)

// spawner starts processes from one thread that lives as long as the pool: the
// parent-death signal is sent when the *thread* that forked ends (prctl(2),
// PR_SET_PDEATHSIG), and Go gives no promise about any other.
type spawner struct{ requests chan spawnRequest }

type spawnRequest struct {
	cmd  *exec.Cmd
	done chan error
}

func newSpawner() *spawner {
	s := &spawner{make(chan spawnRequest)}
	go func() {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		for r := range s.requests {
			r.done <- r.cmd.Start()
		}
	}()
	return s
}

func (s *spawner) start(cmd *exec.Cmd) error {
	done := make(chan error, 1)
	s.requests <- spawnRequest{cmd, done}
	return <-done
}

// stop ends the thread. All processes must be gone.
func (s *spawner) stop() { close(s.requests) }

// workerAttributes puts a worker in a process group of its own, so that Ctrl-C
// reaches the gateway alone, and has the kernel kill it when the gateway dies.
func workerAttributes() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Setpgid: true, Pdeathsig: unix.SIGKILL}
}
