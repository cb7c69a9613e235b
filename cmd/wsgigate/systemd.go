package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/coreos/go-systemd/v22/activation"
	"github.com/coreos/go-systemd/v22/daemon"
	"golang.org/x/sys/unix"

	"wsgigate/pyrunner"
)

// activated is the sockets that systemd has opened for this process
// (sd_listen_fds(3)) and that no listener has yet.
type activated struct {
	files []*os.File
	asked []string // names that listeners ask for
}

// newActivated takes them out of the environment: no other process may.
func newActivated(listeners []listenerSetting) *activated {
	a := &activated{files: activation.Files(true)}
	for _, l := range listeners {
		if l.addr.Systemd && l.addr.Name != "" {
			a.asked = append(a.asked, l.addr.Name)
		}
	}
	return a
}

// take returns the socket of that name, or the first that nobody asks for by name.
func (a *activated) take(name string) (*os.File, error) {
	i := slices.IndexFunc(a.files, func(f *os.File) bool {
		return f.Name() == name || name == "" && !slices.Contains(a.asked, f.Name())
	})
	switch {
	case len(a.files) == 0:
		return nil, errors.New("systemd has passed no socket that is left: the service needs a .socket unit for each listener")
	case i < 0:
		return nil, fmt.Errorf("systemd has passed no such socket: there are %s (FileDescriptorName= of the .socket unit)", strings.Join(a.names(), ", "))
	}
	f := a.files[i]
	a.files = slices.Delete(a.files, i, i+1)
	return f, nil
}

func (a *activated) names() []string {
	var names []string
	for _, f := range a.files {
		names = append(names, f.Name())
	}
	return names
}

// closeRest closes what nobody wanted: clients would wait there for ever.
func (a *activated) closeRest(log *slog.Logger) {
	for _, f := range a.files {
		log.Warn("systemd has passed a socket that no listener uses: name it with systemd:NAME", "name", f.Name())
		_ = f.Close()
	}
	a.files = nil
}

// notifier tells systemd how the service is (sd_notify(3)); without NOTIFY_SOCKET
// it does nothing.
type notifier struct {
	log      *slog.Logger
	on       bool
	watchdog time.Duration // WATCHDOG=1 is due that often; 0: never

	mu      sync.Mutex
	up      bool   // READY=1 was told
	reloads int    // that run
	status  string // as last told
	ended   bool   // another process is the service's, or none
}

// newNotifier reads what systemd wants. WATCHDOG_PID names the first process: its
// successors take its place.
func newNotifier(log *slog.Logger) *notifier {
	n := &notifier{log: log, on: os.Getenv("NOTIFY_SOCKET") != ""}
	interval, err := daemon.SdWatchdogEnabled(false)
	if err != nil {
		log.Warn("no watchdog", "error", err)
	}
	if interval > 0 && n.on {
		n.watchdog = interval / 2
	} else {
		_ = os.Unsetenv("WATCHDOG_USEC")
	}
	_ = os.Unsetenv("WATCHDOG_PID")
	return n
}

// send tells systemd one or more assignments; the caller has mu.
func (n *notifier) send(state ...string) {
	if !n.on || n.ended {
		return
	}
	if _, err := daemon.SdNotify(false, strings.Join(state, "\n")); err != nil {
		n.log.Warn("systemd was not told", "state", state[0], "error", err)
	}
}

// ready tells that the service is up, by this process.
func (n *notifier) ready() {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.up = true
	n.send(daemon.SdNotifyReady, fmt.Sprintf("MAINPID=%d", os.Getpid()))
}

func (n *notifier) reloading() {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.reloads++; n.reloads == 1 && n.up { // one that is asked for before is part of the start
		n.send(daemon.SdNotifyReloading, fmt.Sprintf("MONOTONIC_USEC=%d", monotonicMicroseconds()))
	}
}

func (n *notifier) reloaded() {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.reloads--; n.reloads == 0 && n.up {
		n.send(daemon.SdNotifyReady)
	}
}

// monotonicMicroseconds is the clock by which systemd tells this reload from an
// earlier one (Type=notify-reload).
func monotonicMicroseconds() int64 {
	var now unix.Timespec
	_ = unix.ClockGettime(unix.CLOCK_MONOTONIC, &now) // the clock is always there
	return now.Nano() / int64(time.Microsecond)
}

func (n *notifier) stopping() {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.send(daemon.SdNotifyStopping)
	n.ended = true
}

// handedOver tells which process is the service's now. The new one says so itself,
// but unless NotifyAccess= is all, only the old one is listened to.
func (n *notifier) handedOver(pid string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if pid != "" {
		n.send("MAINPID=" + pid)
	}
	n.ended = true
}

// statusInterval is how often the line in "systemctl status" changes at most.
const statusInterval = time.Second

// run tells systemd about the pool until ctx ends. A pool whose owner does not answer
// gets no WATCHDOG=1, so that systemd ends a gateway that hangs.
func (n *notifier) run(ctx context.Context, status func() pyrunner.Status) {
	if !n.on {
		return
	}
	every := statusInterval
	if n.watchdog > 0 {
		every = min(every, n.watchdog)
	}
	ticks := time.NewTicker(every)
	defer ticks.Stop()
	var alive, told time.Time
	for {
		s := status()
		now := time.Now()
		if n.watchdog > 0 && now.Sub(alive) >= n.watchdog-every/2 {
			n.tell(daemon.SdNotifyWatchdog)
			alive = now
		}
		if line := statusLine(s); line != n.status && now.Sub(told) >= statusInterval {
			n.tell("STATUS=" + line)
			n.status, told = line, now
		}
		select {
		case <-ticks.C:
		case <-ctx.Done():
			return
		}
	}
}

func (n *notifier) tell(state string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.send(state)
}

// statusLine sums a pool up.
func statusLine(s pyrunner.Status) string {
	requests := 0
	for _, w := range s.Workers {
		requests += len(w.Current)
	}
	line := fmt.Sprintf("%s: %s, %s running, %d waiting", s.State, counted(len(s.Workers), "worker"), counted(requests, "request"), s.Waiting)
	if s.CrashLoop != nil {
		reason, _, _ := strings.Cut(s.CrashLoop.Reason, "\n")
		line += ": " + printable(reason)
	}
	return line
}
