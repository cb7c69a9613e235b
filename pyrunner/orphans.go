package pyrunner

import (
	"log/slog"
	"os"
	"os/signal"
	"sync"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// family is the processes that this one has started itself and will wait for.
// Each other child is an orphan, which the kernel gives to process 1 of a
// container or another PID namespace (pid_namespaces(7)): it must be waited for
// too, or it stays a zombie for ever.
type family struct {
	mu   sync.Mutex  // held while a process is started
	own  map[int]int // by process id; 2 if the id is another's already
	kick chan struct{}
}

// ourChildren is one for the process, as wait(2) is.
var ourChildren = &family{own: map[int]int{}, kick: make(chan struct{}, 1)}

// StartChild runs start, which starts a process and returns its id. ReapOrphans
// leaves that alone until waited is called, which must be when the process has
// been waited for. Whatever starts a process in a gateway that may be process 1
// has to do it by this.
func StartChild(start func() (pid int, err error)) (waited func(), err error) {
	pid, err := ourChildren.start(start)
	return func() { ourChildren.waited(pid) }, err
}

func (c *family) start(start func() (pid int, err error)) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	pid, err := start()
	if err == nil {
		c.own[pid]++
	}
	return pid, err
}

func (c *family) waited(pid int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.own[pid]--; c.own[pid] <= 0 {
		delete(c.own, pid)
	}
	select {
	case c.kick <- struct{}{}: // it may have stood before orphans
	default:
	}
}

// ReapOrphans waits for orphans until stop is called, if this is process 1. All
// processes that it has started itself must be known by StartChild.
func ReapOrphans(log *slog.Logger) (stop func()) {
	if os.Getpid() != 1 {
		return func() {}
	}
	died := make(chan os.Signal, 1)
	signal.Notify(died, syscall.SIGCHLD)
	quit, done := make(chan struct{}), make(chan struct{})
	go func() { // ends with stop
		defer close(done)
		for {
			ourChildren.reap(log)
			select {
			case <-died:
			case <-ourChildren.kick:
			case <-quit:
				return
			}
		}
	}()
	return sync.OnceFunc(func() {
		signal.Stop(died)
		close(quit)
		<-done
	})
}

// reap waits for the orphans that have ended. At a process of our own it stops: that
// is waited for just now, which makes reap be called again.
func (c *family) reap(log *slog.Logger) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for {
		pid := endedChild()
		if pid == 0 || c.own[pid] > 0 {
			return
		}
		var status unix.WaitStatus
		if got, err := unix.Wait4(pid, &status, unix.WNOHANG, nil); err != nil || got != pid {
			return
		}
		log.Debug("orphan reaped", "pid", pid, "exit", exit{status: syscall.WaitStatus(status)}.String())
	}
}

// endedChild returns a child that could be waited for, or 0.
func endedChild() int {
	var info struct { // siginfo_t for SIGCHLD; the union is aligned as a pointer
		signo, errno, code int32
		_                  [unsafe.Sizeof(uintptr(0)) - 4]byte
		pid                int32
		rest               [112]byte
	}
	for {
		_, _, errno := unix.Syscall6(unix.SYS_WAITID, unix.P_ALL, 0, uintptr(unsafe.Pointer(&info)),
			unix.WEXITED|unix.WNOHANG|unix.WNOWAIT, 0, 0)
		if errno == unix.EINTR {
			continue
		}
		if errno != 0 {
			return 0
		}
		return int(info.pid)
	}
}
