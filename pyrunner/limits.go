package pyrunner

import (
	"errors"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// cpuGrace is how many seconds of CPU time a worker has from SIGXCPU, which a
// program may catch to end in order, until SIGKILL.
const cpuGrace = 5

// resourceLimit is a limit of setrlimit(2) for a worker.
type resourceLimit struct {
	flag     string // with its value, for messages
	resource int
	want     unix.Rlimit
}

// resourceLimits returns those that are configured. An application that meets
// one gets a MemoryError (RLIMIT_AS), EMFILE (RLIMIT_NOFILE) or SIGXCPU and
// SIGKILL (RLIMIT_CPU); the gateway itself has none of them.
func (c *Config) resourceLimits() (all []resourceLimit) {
	same := func(n uint64) unix.Rlimit { return unix.Rlimit{Cur: n, Max: n} }
	if c.LimitMemory > 0 {
		all = append(all, resourceLimit{fmt.Sprintf("--limit-memory %d", c.LimitMemory), unix.RLIMIT_AS, same(uint64(c.LimitMemory))})
	}
	if c.LimitFiles > 0 {
		all = append(all, resourceLimit{fmt.Sprintf("--limit-files %d", c.LimitFiles), unix.RLIMIT_NOFILE, same(uint64(c.LimitFiles))})
	}
	if c.LimitCPU > 0 {
		seconds := uint64((c.LimitCPU + time.Second - 1) / time.Second)
		all = append(all, resourceLimit{fmt.Sprintf("--limit-cpu %v", c.LimitCPU), unix.RLIMIT_CPU, unix.Rlimit{Cur: seconds, Max: seconds + cpuGrace}})
	}
	return all
}

// limitProcess sets the limits of a process that was just started and reads them
// back. The application is not imported before INIT, so none of its code has run
// without them.
func (c *Config) limitProcess(pid int) error {
	for _, l := range c.resourceLimits() {
		err := l.set(pid)
		if errors.Is(err, unix.ESRCH) {
			return nil // it has ended already; why, its exit tells
		}
		if err != nil {
			return fmt.Errorf("%s: %w", l.flag, err)
		}
	}
	return nil
}

// mendStart says what to do about an interpreter that does not start: a limit may be too
// low for it.
func (c *Config) mendStart() string {
	mend := "name another with --python"
	for _, l := range c.resourceLimits() {
		mend = "raise " + l.flag + ", or " + mend
	}
	return mend
}

func (l resourceLimit) set(pid int) error {
	var before, now unix.Rlimit
	if err := unix.Prlimit(pid, l.resource, nil, &before); err != nil {
		return os.NewSyscallError("prlimit", err)
	}
	err := unix.Prlimit(pid, l.resource, &l.want, nil)
	if errors.Is(err, unix.EPERM) && l.want.Max > before.Max {
		return fmt.Errorf("%w: the limit that wsgigate was started with is %d: raise that, or ask for less", os.NewSyscallError("prlimit", err), before.Max)
	}
	if err != nil {
		return os.NewSyscallError("prlimit", err)
	}
	if err := unix.Prlimit(pid, l.resource, nil, &now); err != nil {
		return os.NewSyscallError("prlimit", err)
	}
	if now != l.want {
		return fmt.Errorf("the system made it %d and %d instead", now.Cur, now.Max)
	}
	return nil
}
