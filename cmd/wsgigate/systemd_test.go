package main

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/sys/unix"

	"wsgigate/environ/wire"
	"wsgigate/pyrunner"
)

// passed makes files as systemd's sockets with these names.
func passed(t *testing.T, asked string, names ...string) *activated {
	t.Helper()
	a := &activated{asked: strings.Fields(asked)}
	for _, name := range names {
		fd, err := unix.Open(os.DevNull, unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		a.files = append(a.files, os.NewFile(uintptr(fd), name))
	}
	t.Cleanup(func() { a.closeRest(slog.New(slog.DiscardHandler)) })
	return a
}

// TestActivated: names first, and who gives none gets what nobody asks for.
func TestActivated(t *testing.T) {
	for _, c := range []struct {
		asked, names string
		take         []string // "" gives no name
		want         string   // "!": an error
	}{
		{"", "a b", []string{"", ""}, "a b"},
		{"", "a", []string{"", ""}, "a !"},
		{"a", "a b c", []string{"", "a", ""}, "b a c"},
		{"a", "a", []string{"", "a"}, "! a"},
		{"b b", "b a b", []string{"b", "b", "b"}, "b b !"},
		{"x", "a", []string{"x", ""}, "! a"},
		{"x", "", []string{"x", ""}, "! !"},
	} {
		a := passed(t, c.asked, strings.Fields(c.names)...)
		var got []string
		for _, name := range c.take {
			f, err := a.take(name)
			if err != nil {
				got = append(got, "!")
				continue
			}
			got = append(got, f.Name())
			_ = f.Close()
		}
		if strings.Join(got, " ") != c.want {
			t.Errorf("%+v: %v", c, got)
		}
	}
}

// TestActivatedEnvironment: what systemd says is read once, and by one process.
func TestActivatedEnvironment(t *testing.T) {
	t.Setenv("LISTEN_PID", "1")
	t.Setenv("LISTEN_FDS", "3")
	t.Setenv("LISTEN_FDNAMES", "a:b:c")
	named := wire.Addr{Systemd: true, Name: "a"}
	a := newActivated([]listenerSetting{{flag: "http", addr: named}, {flag: "scgi", addr: wire.Addr{Systemd: true}}})
	if len(a.files) != 0 || !slices.Equal(a.asked, []string{"a"}) {
		t.Errorf("%d sockets of another process, asked %v", len(a.files), a.asked)
	}
	for _, name := range []string{"LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"} {
		if value, ok := os.LookupEnv(name); ok {
			t.Errorf("%s=%s is left", name, value)
		}
	}
}

// manager is systemd's end of the notify socket.
type manager struct {
	fd int
}

func newManager(t *testing.T) *manager {
	t.Helper()
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Close(fd) })
	path := filepath.Join(t.TempDir(), "notify")
	if err := unix.Bind(fd, &unix.SockaddrUnix{Name: path}); err != nil {
		t.Fatal(err)
	}
	t.Setenv("NOTIFY_SOCKET", path)
	return &manager{fd}
}

// told returns what has come since.
func (m *manager) told(t *testing.T) (texts []string) {
	t.Helper()
	buf := make([]byte, 4<<10)
	for {
		n, _, err := unix.Recvfrom(m.fd, buf, unix.MSG_DONTWAIT)
		if err == unix.EAGAIN {
			return texts
		}
		if err != nil {
			t.Fatal(err)
		}
		texts = append(texts, string(buf[:n]))
	}
}

// want looks at what has come since, without the clock of a reload.
func (m *manager) want(t *testing.T, want ...string) {
	t.Helper()
	got := m.told(t)
	for i := range got {
		got[i], _, _ = strings.Cut(got[i], "\nMONOTONIC_USEC=")
	}
	if !slices.Equal(got, want) {
		t.Errorf("%q, want %q", got, want)
	}
}

// TestNotifierReloads: reloads that overlap are one, and after STOPPING=1 or an upgrade
// nothing is told.
func TestNotifierReloads(t *testing.T) {
	m := newManager(t)
	n := newNotifier(slog.New(slog.DiscardHandler))
	n.reloading()
	n.reloaded()
	m.want(t) // part of the start
	n.ready()
	m.want(t, fmt.Sprintf("READY=1\nMAINPID=%d", os.Getpid()))
	n.reloading()
	n.reloading()
	m.want(t, "RELOADING=1")
	n.reloaded()
	m.want(t)
	n.reloaded()
	m.want(t, "READY=1")
	n.reloading()
	n.stopping()
	n.reloaded()
	n.tell("STATUS=x")
	m.want(t, "RELOADING=1", "STOPPING=1")

	n = newNotifier(slog.New(slog.DiscardHandler))
	n.handedOver("123")
	n.stopping()
	m.want(t, "MAINPID=123")
}

// TestNotifierOff: without systemd nothing is asked of the pool.
func TestNotifierOff(t *testing.T) {
	t.Setenv("NOTIFY_SOCKET", "")
	t.Setenv("WATCHDOG_USEC", "1000000")
	n := newNotifier(slog.New(slog.DiscardHandler))
	n.ready()
	n.run(t.Context(), func() pyrunner.Status { t.Error("asked"); return pyrunner.Status{} })
	if n.watchdog != 0 {
		t.Errorf("a watchdog of %v", n.watchdog)
	}
}

// TestNotifierWatchdog: pings come every half interval, or oftener, as long as the pool
// answers.
func TestNotifierWatchdog(t *testing.T) {
	for _, interval := range []time.Duration{100 * time.Millisecond, 3 * time.Second, time.Minute} {
		t.Setenv("WATCHDOG_USEC", fmt.Sprint(interval.Microseconds()))
		t.Setenv("WATCHDOG_PID", fmt.Sprint(os.Getpid()))
		m := newManager(t)
		n := newNotifier(slog.New(slog.DiscardHandler))
		if _, ok := os.LookupEnv("WATCHDOG_PID"); ok {
			t.Error("WATCHDOG_PID is left: a successor would take it for another process's")
		}
		synctest.Test(t, func(t *testing.T) {
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			hang := make(chan struct{})
			var hangs atomic.Bool
			go n.run(ctx, func() pyrunner.Status {
				if hangs.Load() {
					<-hang
				}
				return pyrunner.Status{State: pyrunner.HealthReady}
			})
			synctest.Wait()
			m.want(t, "WATCHDOG=1", "STATUS=ready: 0 workers, 0 requests running, 0 waiting")
			for range 4 {
				time.Sleep(interval / 2)
				synctest.Wait()
				if got := slices.Compact(m.told(t)); !slices.Equal(got, []string{"WATCHDOG=1"}) {
					t.Errorf("half of %v later: %q", interval, got)
				}
			}
			hangs.Store(true)
			time.Sleep(5 * interval)
			synctest.Wait()
			m.want(t)
			close(hang)
			synctest.Wait()
			m.want(t, "WATCHDOG=1")
		})
	}
}

// TestNotifierStatus: a line when it changes, at most one a second.
func TestNotifierStatus(t *testing.T) {
	t.Setenv("WATCHDOG_USEC", "")
	m := newManager(t)
	n := newNotifier(slog.New(slog.DiscardHandler))
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		began := time.Now()
		go n.run(ctx, func() pyrunner.Status { // another one every 3 s
			return pyrunner.Status{State: pyrunner.HealthReady, Waiting: int(time.Since(began) / (3 * time.Second))}
		})
		for i := range 4 {
			synctest.Wait()
			m.want(t, fmt.Sprintf("STATUS=ready: 0 workers, 0 requests running, %d waiting", i))
			time.Sleep(3 * time.Second)
		}
	})
}

func TestStatusLine(t *testing.T) {
	busy := pyrunner.WorkerStatus{Current: make([]pyrunner.RequestStatus, 2)}
	for want, s := range map[string]pyrunner.Status{
		"idle: 0 workers, 0 requests running, 0 waiting":                           {State: pyrunner.HealthIdle},
		"ready: 1 worker, 2 requests running, 3 waiting":                           {State: pyrunner.HealthReady, Workers: []pyrunner.WorkerStatus{busy}, Waiting: 3},
		`crash loop: 0 workers, 0 requests running, 0 waiting: a\x1b[2J is broken`: {State: pyrunner.HealthCrashLoop, CrashLoop: &pyrunner.CrashLoop{Reason: "a\x1b[2J is broken\nTraceback"}},
	} {
		if got := statusLine(s); got != want {
			t.Errorf("%q, want %q", got, want)
		}
	}
}
