package pyrunner

import (
	"errors"
	"os"
	"os/exec"
	"runtime"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
)

// spawner starts processes from one thread that lives as long as the pool: the
// parent-death signal is sent when the *thread* that forked ends (prctl(2),
// PR_SET_PDEATHSIG), and Go gives no promise about any other.
type spawner struct{ requests chan spawnRequest }

type spawnRequest struct {
	do   func() error
	done chan error
}

func newSpawner() *spawner {
	reserveThreads()
	s := &spawner{make(chan spawnRequest)}
	go s.run()
	return s
}

// spareThreads is how many threads the Go runtime has in reserve, besides one for each
// processor that it uses. Limits on processes (RLIMIT_NPROC, pids.max of a cgroup)
// count threads as well, and the runtime aborts when it needs one and cannot have
// it. It never gives one back, so at a limit that lets no worker be started the
// gateway lives on with those that it has made before. It needs another when
// so many are in system calls at once: logs, files in /proc, the start of a process.
const spareThreads = 8

// reserveThreads makes them, once.
var reserveThreads = sync.OnceFunc(func() {
	var running sync.WaitGroup
	n := spareThreads + runtime.GOMAXPROCS(0)
	running.Add(n)
	for range n {
		go func() { // ends when all have a thread of their own
			runtime.LockOSThread()
			defer runtime.UnlockOSThread()
			running.Done()
			running.Wait()
		}()
	}
	running.Wait()
})

// run serves requests until stop. The thread ends with it, because it stays locked:
// it may have no_new_privs, which the rest of the gateway must not inherit.
func (s *spawner) run() {
	runtime.LockOSThread()
	if unix.Gettid() == os.Getpid() { // the main thread cannot end
		done := make(chan struct{})
		go func() { // cannot get this thread, which waits for it
			defer close(done)
			s.run()
		}()
		<-done
		runtime.UnlockOSThread()
		return
	}
	for r := range s.requests {
		r.done <- r.do()
	}
}

// onThread runs do on the thread that starts processes.
func (s *spawner) onThread(do func() error) error {
	done := make(chan error, 1)
	s.requests <- spawnRequest{do, done}
	return <-done
}

// start starts a process. When it was waited for, ourChildren must know.
func (s *spawner) start(cmd *exec.Cmd) error {
	return s.onThread(func() error {
		_, err := ourChildren.start(func() (int, error) {
			if err := cmd.Start(); err != nil {
				return 0, err
			}
			return cmd.Process.Pid, nil
		})
		return err
	})
}

// forbidPrivileges keeps what is started from then on from gaining privileges
// by executing a file, set-user-ID or with capabilities (prctl(2),
// PR_SET_NO_NEW_PRIVS). Processes inherit that from this one thread.
func (s *spawner) forbidPrivileges() error {
	return s.onThread(func() error {
		if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
			return os.NewSyscallError("prctl", err)
		}
		set, err := unix.PrctlRetInt(unix.PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0)
		if err == nil && set != 1 {
			err = errors.New("the system did not set it")
		}
		return err
	})
}

// stop ends the thread. All processes must be gone.
func (s *spawner) stop() { close(s.requests) }

// workerAttributes puts a worker in a process group of its own, so that Ctrl-C
// reaches the gateway alone, and has the kernel kill it when the gateway dies.
func workerAttributes() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Setpgid: true, Pdeathsig: unix.SIGKILL}
}
