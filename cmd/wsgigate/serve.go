package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"sync"
	"time"

	"github.com/hashicorp/go-multierror"
	"github.com/urfave/cli/v2"

	"wsgigate/environ"
	"wsgigate/environ/wire"
	"wsgigate/pyrunner"
)

func serveCommand() *cli.Command {
	return &cli.Command{
		Name:      "serve",
		Usage:     "run APP behind one or more listeners (the default command)",
		ArgsUsage: "[APP]",
		Flags:     serveFlags(listening),
		Action: func(c *cli.Context) error {
			catchEarly()
			app, err := oneApp(c)
			if err != nil {
				return err
			}
			cfg, err := load(c, listening, app, cpus())
			if err != nil {
				return configError(err)
			}
			return serve(cfg)
		},
	}
}

func fcgiCommand() *cli.Command {
	return &cli.Command{
		Name:      "fcgi",
		Usage:     "answer FastCGI on the socket that is open on descriptor 0 (mod_fcgid, lighttpd, spawn-fcgi)",
		ArgsUsage: "[APP]",
		Description: "One worker is the default here: such web servers start as many processes as they want.\n" +
			"A script's first line can be \"#!/path/to/wsgigate fcgi\", its Python code following.",
		Flags: serveFlags(serving),
		Action: func(c *cli.Context) error {
			catchEarly()
			app, err := oneApp(c)
			if err != nil {
				return err
			}
			cfg, err := load(c, serving, app, 1)
			if err != nil {
				return configError(err)
			}
			cfg.fastcgi, cfg.inherits = []wire.Addr{{IsFD: true, FD: 0}}, true
			return serve(cfg)
		},
	}
}

// oneApp returns the one argument that a command may have.
func oneApp(c *cli.Context) (string, error) {
	if c.NArg() > 1 {
		return "", usage("one APP at most, there are %d: %q", c.NArg(), c.Args().Slice())
	}
	return c.Args().First(), nil
}

// gateway is a server from its start to its end.
type gateway struct {
	cfg     *config
	log     *slog.Logger
	logs    []*logFile
	access  *logFile
	up      *upgrader
	notify  *notifier
	handler lateHandler
	pool    *pyrunner.Pool
	sources *fileWatch // of --reload, else nil
	began   time.Time

	transports []transport
	admin      []*adminServer

	stopAsked chan slog.Attr // why; the first gently, the second at once
	jobs      sync.WaitGroup // what signals have begun

	phases     sync.Mutex // guards the rest
	phase      phase
	afterwards map[string]func() // what signals asked for too early, by their names
}

// lateHandler is set before the first connection is accepted.
type lateHandler struct{ environ.Handler }

// serve runs until it is asked to stop, a successor takes over, or a listener fails.
func serve(cfg *config) error {
	up, err := newUpgrader(upgradeTime(cfg))
	if err != nil {
		return err
	}
	defer up.stop()
	g := &gateway{cfg: cfg, up: up, began: time.Now(), log: newLogger(stderrLog), stopAsked: make(chan slog.Attr, 2)}
	logErr := g.openLogs()
	defer g.closeLogs()
	defer pyrunner.ReapOrphans(g.log)()
	warnOfVariables(g.log, os.Environ())
	g.notify = newNotifier(g.log)
	defer g.watchSignals()()
	if errs := multierror.Append(logErr, g.open()); errs.ErrorOrNil() != nil {
		g.closeListeners()
		return configError(errs)
	}
	if err := g.settleIn(); err != nil {
		g.closeListeners()
		return configError(err)
	}
	err = g.run()
	if errors.Is(err, errStopped) {
		g.log.Info(err.Error())
		return nil
	}
	return err
}

// openLogs opens the access log and the log of everything else.
func (g *gateway) openLogs() error {
	other, otherErr := openLog("error-log", g.cfg.errorLog)
	other.reportTo(stderrLog)
	g.access, g.logs = other, []*logFile{other}
	var accessErr error
	if g.cfg.accessLog != g.cfg.errorLog {
		g.access, accessErr = openLog("access-log", g.cfg.accessLog)
		g.logs = []*logFile{g.access, other}
	}
	if g.access != other && !g.access.isStderr() {
		g.access.lostLine = g.cfg.logFormat.AppendLost
		g.access.reportTo(other)
	}
	g.log = newLogger(other)
	slog.SetDefault(g.log)
	return multierror.Append(accessErr, otherErr).ErrorOrNil()
}

// closeLogs writes what the logs still have; main does it for stderr.
func (g *gateway) closeLogs() {
	end := time.Now().Add(logFlush)
	for _, l := range g.logs { // the error log last: it hears how the other ended
		l.closeUntil(end)
	}
}

// settleIn gives up what is not needed once everything is open.
func (g *gateway) settleIn() error {
	if g.cfg.umask >= 0 {
		setUmask(g.cfg.umask)
	}
	if g.cfg.user == "" && g.cfg.group == "" {
		return nil
	}
	for _, l := range g.logs {
		if err := l.giveTo(g.cfg.user); err != nil {
			return err
		}
	}
	return dropPrivileges(g.cfg.user, g.cfg.group)
}

// run starts the workers, serves and stops.
func (g *gateway) run() error {
	cfg := g.cfg.pool()
	cfg.Log = g.log
	if g.cfg.reload {
		g.sources = newSourceWatcher(g.reload, g.log)
		cfg.Imported = g.sources.add
	}
	pool, err := pyrunner.New(cfg)
	if err != nil {
		g.closeListeners()
		return err
	}
	g.pool = pool
	if !g.up.isSuccessor() { // else those who ask would get now the one and now the other
		g.serveAdmin()
	}
	if err := startPool(pool, g.stopAsked); err != nil {
		g.closeListeners()
		return err
	}
	g.handler.Handler = pool
	if g.cfg.accessLog != "" {
		g.handler.Handler = environ.AccessLog(pool, g.access, g.cfg.logFormat)
	}
	ctx, cancel := context.WithCancel(context.Background())
	defer g.jobs.Wait()
	defer cancel()
	g.watchAll(ctx)
	if err := g.up.ready(); err != nil {
		g.log.Warn("the process before this one has ended already", "error", err)
	}
	g.notify.ready()
	g.enter(serves)
	return g.serveUntil()
}

// watchAll starts what goes on beside the requests, until ctx ends.
func (g *gateway) watchAll(ctx context.Context) {
	g.jobs.Go(func() { g.notify.run(ctx, g.status) })
	if g.sources != nil {
		g.jobs.Go(func() { g.sources.run(ctx) })
	}
	if file := g.cfg.touchReload; file != "" {
		g.jobs.Go(func() {
			if err := watchTouch(ctx, file, g.reload, g.log); err != nil {
				g.log.Error("--touch-reload watches nothing", "error", err)
			}
		})
	}
	if g.cfg.exitIdle > 0 {
		idle := newIdleWatch(g.handler.Handler)
		g.handler.Handler = idle
		g.jobs.Go(func() {
			if idle.wait(ctx, g.cfg.exitIdle) && g.isServing() { // else it would cut what a stop waits for
				g.askStop(slog.Duration("idle", g.cfg.exitIdle))
			}
		})
	}
}

// errStopped is what startPool returns when it was told to stop.
var errStopped = errors.New("stopped before the application was imported")

// startPool starts the workers, unless it is told to stop first: then nothing
// runs that is worth waiting for, and workers die with this process.
func startPool[T any](pool *pyrunner.Pool, stop <-chan T) error {
	started := make(chan error, 1)
	go func() { started <- pool.Start() }()
	select {
	case err := <-started:
		if err != nil {
			_ = shutdownPool(pool, 0) // the error that made it necessary is the one to tell
		}
		return err
	case <-stop:
		return errStopped
	}
}

// serveUntil serves until it is time to stop, then stops.
func (g *gateway) serveUntil() error {
	failed := make(chan error, len(g.transports))
	for _, t := range g.transports {
		go func() { // ends with the transport's shutdown
			if err := t.serve(); !errors.Is(err, net.ErrClosed) {
				failed <- fmt.Errorf("%s %s: %w", t.name, t.listener.Addr(), err)
			}
		}()
	}
	if g.up.isSuccessor() {
		g.serveAdmin()
	}
	announce(g.cfg, g.transports)
	var err error
	select {
	case why := <-g.stopAsked:
		g.enter(stopping) // before it is said
		g.log.Info("stopping: running requests may end", why, "within", g.cfg.graceful)
	case <-g.up.handed:
		g.enter(stopping)
		g.log.Info("a new process answers now: running requests may end here", "within", g.cfg.graceful)
	case err = <-failed:
		g.enter(stopping)
	}
	g.notify.stopping()
	g.stop()
	g.logStopped()
	return err
}

// logStopped says what became of all requests: of a gateway that has ended, nobody can
// ask any more.
func (g *gateway) logStopped() {
	n := g.pool.Status().Requests
	g.log.Info("stopped", "gateway", os.Getpid(), "requests", n.Total, "answered", n.Answered, "failed", n.Failed,
		"refused", n.Refused, "cancelled", n.Cancelled)
}

// stop lets the requests end and then the workers, within --graceful-timeout or until it
// is asked for again.
func (g *gateway) stop() {
	ctx, cancel := context.WithTimeout(context.Background(), g.cfg.graceful)
	defer cancel()
	go func() {
		select {
		case <-g.stopAsked:
			g.log.Warn("stopping at once")
			cancel()
		case <-ctx.Done():
		}
	}()
	g.up.stop() // its copies would keep the listeners open
	if g.up.handedOver() {
		g.leaveListeners() // though it was told to stop at the same time
	}
	g.drain(ctx)
	g.closeAdmin() // last: "wsgigate stop" waits for it
	for _, t := range g.transports {
		t.listener.Sweep()
	}
}

// Times of an end that cannot wait for the requests any more.
const (
	workersEnd = 3 * time.Second        // for workers: they may ignore SIGTERM
	answersEnd = 500 * time.Millisecond // then for telling their clients
)

// drain shuts the transports down and then the pool. When ctx ends first, the workers
// are ended, because a transport waits for the requests that they have; it then has time
// to answer those, and what it has still is cut.
func (g *gateway) drain(ctx context.Context) {
	var group multierror.Group
	patience, cut := context.WithCancel(context.WithoutCancel(ctx))
	defer cut()
	for _, t := range g.transports {
		group.Go(func() error { return t.shutdown(patience) })
	}
	drained := make(chan error, 1)
	go func() { drained <- group.Wait().ErrorOrNil() }()
	select {
	case err := <-drained:
		drained <- err
	case <-ctx.Done():
	}
	end := time.AfterFunc(workersEnd, cut) // or the pool waits for a client that does not read
	if err := g.pool.Shutdown(ctx); err != nil {
		g.log.Warn("workers had to be ended", "error", inOneLine(err))
	}
	end.Reset(answersEnd)
	if err := <-drained; err != nil {
		g.log.Warn("some requests did not end in time and were cut", "error", inOneLine(err))
	}
	end.Stop()
}
