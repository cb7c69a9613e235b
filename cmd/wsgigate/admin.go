package main

import (
	"cmp"
	"context"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"os"
	"time"

	"wsgigate/environ/wire"
	"wsgigate/pyrunner"
	"wsgigate/pyrunner/control"
	"wsgigate/pyrunner/status"
)

// adminServer answers administrators on a listener of its own, over HTTP.
type adminServer struct {
	flag     string
	listener *wire.Listener
	net      net.Listener
	server   http.Server
	log      *slog.Logger
}

// Limits of administrators' connections. There is none on how long an answer takes: a
// reload may import for long.
const (
	adminReadTime = 10 * time.Second
	adminIdleTime = 60 * time.Second
	adminEndTime  = time.Second // for answers that are under way when the server ends
	adminHeader   = 16 << 10    // bytes
)

func (g *gateway) newAdmin(flag string, l *wire.Listener) (*adminServer, error) {
	ln, err := l.NetListener()
	if err != nil {
		return nil, err
	}
	return &adminServer{flag: flag, listener: l, net: ln, log: g.log, server: http.Server{
		ReadTimeout: adminReadTime, IdleTimeout: adminIdleTime, MaxHeaderBytes: adminHeader,
		ErrorLog: slog.NewLogLogger(g.log.Handler(), slog.LevelWarn),
	}}, nil
}

// serveAdmin begins to answer administrators.
func (g *gateway) serveAdmin() {
	facts := g.facts()
	for _, a := range g.admin {
		if a.flag == "control" {
			a.server.Handler = control.Handler(facts, commands{g})
			a.server.ConnContext = control.ConnContext
		} else {
			a.server.Handler = status.OnlyFor(g.cfg.status.Host, status.Handler(facts, commands{g}))
			a.warnIfOpen()
		}
		go a.serve() // ends with closeAdmin
	}
}

// warnIfOpen says who can read the page if that is not this machine alone.
func (a *adminServer) warnIfOpen() {
	addr, ok := a.net.Addr().(*net.TCPAddr)
	if ok && !addr.IP.IsLoopback() {
		a.log.Warn("--status: whoever reaches this address sees the URLs of requests and tracebacks; a firewall or a loopback address keeps them from others", "address", addr)
	}
}

// commands is what the control socket may have a gateway do.
type commands struct{ g *gateway }

var _ control.Server = commands{}

// Status tells of the pool, and of the server around it when that stops first.
func (c commands) Status() pyrunner.Status { return c.g.status() }

// Reload replaces the workers.
func (c commands) Reload(ctx context.Context) error { return c.g.reload(ctx) }

// Stop asks for the end; a second time, for an end at once.
func (c commands) Stop() { c.g.askStop(slog.String("command", "stop")) }

// status is the pool's, which serves on for the requests that are there after the server
// has begun to stop. Load balancers must know it then: new connections are refused.
func (g *gateway) status() pyrunner.Status {
	s := g.pool.Status()
	if g.isStopping() {
		s.State = pyrunner.HealthStopping
	}
	return s
}

// facts are what an administrator is told of the server around the pool.
func (g *gateway) facts() status.Facts {
	facts := status.Facts{Version: version(), PID: os.Getpid(), Started: g.began}
	for _, t := range g.transports {
		facts.Listeners = append(facts.Listeners, t.name+" "+cmp.Or(t.listener.Addr().String(), "inherited socket"))
	}
	return facts
}

func (a *adminServer) serve() {
	if err := a.server.Serve(a.net); !errors.Is(err, http.ErrServerClosed) && !errors.Is(err, net.ErrClosed) {
		a.log.Error("administrators are not answered any more", "listener", "--"+a.flag, "error", err)
	}
}

// close ends the server. Its socket file goes, unless another process has the socket.
func (a *adminServer) close() {
	ctx, cancel := context.WithTimeout(context.Background(), adminEndTime)
	defer cancel()
	if a.server.Shutdown(ctx) != nil {
		_ = a.server.Close()
	}
	_ = a.net.Close() // of a server that never served
	_ = a.listener.Close()
	a.listener.Sweep()
}
