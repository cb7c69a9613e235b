package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/cloudflare/tableflip"
	"golang.org/x/sys/unix"
)

// A gateway can start its own successor, a new binary perhaps, and hand it the
// listening sockets. The successor says that it is ready when its workers are; only
// then does the old process stop accepting, answer what it has, and end. No
// connection sees a moment at which nobody listens. When the successor fails, the
// old process goes on.

// upgrader makes successors and takes over from predecessors.
type upgrader struct {
	flip    *tableflip.Upgrader // nil if this process cannot have a successor
	why     error               // why it cannot
	report  *os.File            // in which a successor leaves its process id, or why it failed
	running sync.Mutex          // held by an upgrade
	handed  chan struct{}       // closed when a successor has taken over
	life    context.Context     // until stop
	end     context.CancelFunc
}

// sentinel is tableflip's mark of a process that is a successor.
const sentinel = "TABLEFLIP_HAS_PARENT_7DIU3"

// reportName is the report's among the files that a successor inherits.
const reportName = "report"

// thisUpgrader is the process's own: there can be one.
var thisUpgrader *upgrader

// newUpgrader takes what a predecessor has left. A successor that is not ready after
// patience is killed.
func newUpgrader(patience time.Duration) (*upgrader, error) {
	if thisUpgrader != nil {
		return thisUpgrader, nil
	}
	u := &upgrader{handed: make(chan struct{})}
	u.life, u.end = context.WithCancel(context.Background())
	thisUpgrader = u
	if os.Getpid() == 1 {
		u.why = errProcessOne
		return u, nil
	}
	successor := isSuccessor()
	if !successor {
		_ = os.Unsetenv(sentinel) // from elsewhere
	}
	err := u.open(patience)
	_ = os.Unsetenv(sentinel) // it has been read, and is for no other process
	if err != nil && !successor {
		u.flip, u.why, err = nil, err, nil // it can serve
	}
	return u, err
}

func (u *upgrader) open(patience time.Duration) (err error) {
	if u.flip, err = tableflip.New(tableflip.Options{UpgradeTimeout: patience}); err != nil {
		return fmt.Errorf("upgrade: %w", err)
	}
	if u.report, err = u.flip.File(reportName); err == nil && u.report == nil {
		u.report, err = newReport(u.flip)
	}
	if err != nil {
		u.flip.Stop()
		return fmt.Errorf("upgrade: %w", err)
	}
	return nil
}

// isSuccessor reports whether tableflip has started this process: the mark in the
// environment alone, which anybody can set, would have it read descriptors
// that are not its own.
func isSuccessor() bool {
	if os.Getenv(sentinel) == "" {
		return false
	}
	for fd := 3; fd <= 4; fd++ {
		var st unix.Stat_t
		if unix.Fstat(fd, &st) != nil || st.Mode&unix.S_IFMT != unix.S_IFIFO {
			return false
		}
	}
	return true
}

func newReport(flip *tableflip.Upgrader) (*os.File, error) {
	fd, err := unix.MemfdCreate("wsgigate-upgrade", unix.MFD_CLOEXEC)
	if err != nil {
		return nil, os.NewSyscallError("memfd_create", err)
	}
	report := os.NewFile(uintptr(fd), reportName)
	return report, flip.AddFile(reportName, report)
}

// tellPredecessor says why this process cannot take over, if it was to.
func tellPredecessor(text string) {
	if thisUpgrader == nil && isSuccessor() {
		_, _ = newUpgrader(0) // what it would say is on stderr already
	}
	if u := thisUpgrader; u != nil && u.isSuccessor() {
		u.write(text)
	}
}

func (u *upgrader) isSuccessor() bool { return u.flip != nil && u.flip.HasParent() }

// maxReport is how much of a successor's error is read: tracebacks are bounded elsewhere.
const maxReport = 64 << 10

func (u *upgrader) write(text string) {
	if u.report != nil && u.report.Truncate(0) == nil {
		_, _ = u.report.WriteAt([]byte(text), 0) // the same text is on stderr
	}
}

func (u *upgrader) read() string {
	text, _ := io.ReadAll(io.NewSectionReader(u.report, 0, maxReport))
	return string(text)
}

// inherited returns a file that a predecessor kept by that name, nil if there is none.
func (u *upgrader) inherited(name string) (*os.File, error) {
	if u.flip == nil {
		return nil, nil
	}
	return u.flip.File(name)
}

// keep notes a file for successors.
func (u *upgrader) keep(name string, f *os.File) error {
	if u.flip == nil {
		return nil
	}
	return u.flip.AddFile(name, f)
}

// ready ends the predecessor. What it has left and nobody took is closed.
func (u *upgrader) ready() error {
	if u.flip == nil {
		return nil
	}
	if u.isSuccessor() {
		u.write(strconv.Itoa(os.Getpid()))
	}
	return u.flip.Ready()
}

// Errors of an upgrade.
var (
	errProcessOne = errors.New("process 1 cannot have a successor, because its container ends with it: start another container")
	errUpgrading  = errors.New("an upgrade runs already")
	errDraining   = errors.New("the process before this one still has requests: try again when it has ended")
)

// run starts a successor and returns its process id when it serves. It waits at
// most patience for the predecessor of this process to end.
func (u *upgrader) run(patience time.Duration) (pid string, err error) {
	if u.flip == nil {
		return "", u.why
	}
	if !u.running.TryLock() {
		return "", errUpgrading
	}
	defer u.running.Unlock()
	ctx, cancel := context.WithTimeout(u.life, patience)
	defer cancel()
	if u.flip.WaitForParent(ctx) != nil && ctx.Err() != nil {
		return "", errDraining
	}
	u.write("")
	if err := u.start(ctx); err != nil {
		if said := u.read(); said != "" {
			return "", errors.New(said)
		}
		return "", err
	}
	<-u.flip.Exit() // tableflip has closed its copies of the listeners
	close(u.handed) // once: tableflip upgrades no more
	return u.read(), nil
}

// start upgrades, again if tableflip has yet to notice that the predecessor has
// ended: it learns of it in two places.
func (u *upgrader) start(ctx context.Context) error {
	for {
		err := u.flip.Upgrade()
		if err == nil || err.Error() != "parent hasn't exited" || ctx.Err() != nil {
			return err
		}
		time.Sleep(time.Millisecond)
	}
}

// stop ends a running upgrade and closes the copies of the listeners. After it,
// handedOver does not change any more.
func (u *upgrader) stop() {
	u.end()
	if u.flip != nil {
		u.flip.Stop()
		<-u.flip.Exit()
		u.running.Lock() // until a running upgrade has seen how it ended
		defer u.running.Unlock()
	}
}

// handedOver reports whether a successor has the listeners.
func (u *upgrader) handedOver() bool {
	select {
	case <-u.handed:
		return true
	default:
		return false
	}
}

// upgrade is what SIGUSR2 asks for.
func (g *gateway) upgrade() {
	g.log.Info("upgrade begins", "binary", os.Args[0])
	restore := g.keepAccess()
	pid, err := g.up.run(g.cfg.graceful + upgradeSlack)
	switch {
	case err == nil:
		g.notify.handedOver(pid)
	case g.up.life.Err() != nil:
		g.log.Info("upgrade given up: the server stops")
	default:
		restore()
		logLines(g.log, "upgrade failed, this process goes on: ", err.Error())
	}
}

// keepAccess notes who may connect to the socket files: a successor changes that as its
// configuration says, before it knows whether it can serve.
func (g *gateway) keepAccess() (restore func()) {
	var all []func() error
	for _, t := range g.transports {
		all = append(all, t.listener.KeepAccess())
	}
	for _, a := range g.admin {
		all = append(all, a.listener.KeepAccess())
	}
	return func() {
		for _, one := range all {
			if err := one(); err != nil {
				g.log.Error("the upgrade that failed has changed a socket file", "error", err)
			}
		}
	}
}

// upgradeSlack is how much longer than --graceful-timeout a process may live.
const upgradeSlack = 10 * time.Second

// upgradeTime bounds the start of a successor: its first worker, the others, and
// what is around them.
func upgradeTime(cfg *config) time.Duration { return 2*cfg.startup + upgradeSlack }

// logLines logs an error of several lines, a traceback perhaps, as lines.
func logLines(log *slog.Logger, prefix, text string) {
	for i, line := range strings.Split(strings.TrimRight(text, "\n"), "\n") {
		if line = strings.TrimPrefix(line, "wsgigate: "); i == 0 {
			line = prefix + line
		}
		log.Error(line)
	}
}
