package main

import (
	"fmt"
	"os"
	"strconv"
	"strings"
)

const backlog = 1024 // pending connections of a listener, if the kernel allows

// command is how a side is started on addr, a unix socket's path or HOST:PORT.
// Each gateway gets its quickest sensible settings: no access log, one thread
// in each worker.
func (b *bench) command(s side, addr string) []string {
	workers := strconv.Itoa(b.workers)
	const app = "bench_app:application"
	switch s.gateway {
	case wsgigate:
		if s.wire != direct {
			addr = "unix:" + addr
		}
		return []string{b.wsgigate, "serve", "--" + s.Protocol(), addr,
			"--workers", workers, "--threads", "1", "--python", b.python, app}
	case gunicorn:
		return []string{b.python, "-m", "gunicorn", "--bind", addr, "--worker-class", "sync",
			"--workers", workers, "--log-level", "warning", app}
	default:
		return []string{"uwsgi", "--plugin", "python3", "--" + s.wire + "-socket", addr,
			"--master", "--processes", workers, "--threads", "1", "--single-interpreter",
			"--listen", strconv.Itoa(listenBacklog()), "--disable-logging",
			"--need-app", "--die-on-term", "--chdir", b.appDir(), "--module", app}
	}
}

// listenBacklog is what uWSGI may ask for: it refuses to start above somaxconn.
func listenBacklog() int {
	text, err := os.ReadFile("/proc/sys/net/core/somaxconn")
	if err != nil {
		return 100 // uWSGI's default
	}
	n, err := strconv.Atoi(strings.TrimSpace(string(text)))
	if err != nil || n < 1 {
		return 100
	}
	return min(n, backlog)
}

// running is a side that has been started.
type running struct {
	side
	*process
	url string // of the case, through nginx or not
}

// startSide starts a gateway for a case. It does not wait for it.
func (b *bench) startSide(s side, c benchCase) (*running, error) {
	addr, origin := b.socket(s), fmt.Sprintf("127.0.0.1:%d", b.ports[s])
	if s.wire == direct {
		addr = origin
	} else if err := os.RemoveAll(addr); err != nil {
		return nil, err
	}
	p, err := startProcess(b.appDir(), b.logFile(s), b.command(s, addr)...)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", s, err)
	}
	return &running{side: s, process: p, url: "http://" + origin + c.path()}, nil
}
