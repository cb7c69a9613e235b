package main

import (
	"context"
	"log/slog"
	"os"
	"os/signal"
	"syscall"
)

// phase is how far a gateway is in its life.
type phase uint8

const (
	starting phase = iota
	serves
	stopping
)

// catchEarly keeps what a running server is told by signals from ending one that still
// reads its configuration: there is nothing yet to reload, reopen or upgrade.
func catchEarly() {
	signal.Notify(make(chan os.Signal, 1), syscall.SIGHUP, syscall.SIGUSR1, syscall.SIGUSR2)
}

// watchSignals does what signals ask for until release is called. None of them
// ends the process by itself, whenever it comes.
func (g *gateway) watchSignals() (release func()) {
	signals := make(chan os.Signal, 16)
	signal.Notify(signals, syscall.SIGTERM, syscall.SIGINT, syscall.SIGHUP, syscall.SIGUSR1, syscall.SIGUSR2)
	quit, done := make(chan struct{}), make(chan struct{})
	go func() { // ends with release
		defer close(done)
		for {
			select {
			case sig := <-signals:
				g.signalled(sig)
			case <-quit:
				return
			}
		}
	}()
	return func() {
		// Caught to the end: SIGHUP and the SIGUSRs would kill a process that does
		// not catch them, though it is about to end well.
		close(quit)
		<-done
		g.jobs.Wait()
	}
}

func (g *gateway) signalled(sig os.Signal) {
	switch sig {
	case syscall.SIGTERM, syscall.SIGINT:
		g.askStop(slog.String("signal", sig.String()))
	case syscall.SIGHUP:
		g.whenServing("SIGHUP", func() { _ = g.reload(context.Background()) }) // the pool logs how it went
	case syscall.SIGUSR1:
		g.reopenLogs()
	case syscall.SIGUSR2:
		g.whenServing("SIGUSR2", g.upgrade)
	}
}

// whenServing does what a signal asks for beside everything else: while the application
// is being imported, after that, and once for all signals of a kind; when the server
// stops, not at all.
func (g *gateway) whenServing(signal string, do func()) {
	g.phases.Lock()
	defer g.phases.Unlock()
	switch g.phase {
	case starting:
		g.log.Info("the application is being imported: this is done afterwards", "signal", signal)
		if g.afterwards == nil {
			g.afterwards = map[string]func(){}
		}
		g.afterwards[signal] = do
	case stopping:
		g.log.Warn("too late: the server stops", "signal", signal)
	default:
		g.jobs.Go(do)
	}
}

// enter begins the next phase, with what was asked for before it.
func (g *gateway) enter(next phase) {
	g.phases.Lock()
	defer g.phases.Unlock()
	g.phase = next
	for _, do := range g.afterwards {
		g.jobs.Go(do)
	}
	g.afterwards = nil
}

// isServing reports whether the server has begun to serve and does not stop.
func (g *gateway) isServing() bool {
	g.phases.Lock()
	defer g.phases.Unlock()
	return g.phase == serves
}

// isStopping reports whether the server has begun to stop, or a successor serves.
func (g *gateway) isStopping() bool {
	g.phases.Lock()
	defer g.phases.Unlock()
	return g.phase == stopping
}

// askStop asks for the end of the server; a second time, for an end at once.
func (g *gateway) askStop(why slog.Attr) {
	select {
	case g.stopAsked <- why:
	default: // asked twice already
	}
}

// reload replaces the workers by new ones, and tells the service manager.
func (g *gateway) reload(ctx context.Context) error {
	g.notify.reloading()
	defer g.notify.reloaded()
	return g.pool.Reload(ctx)
}

// reopenLogs is for logrotate(8).
func (g *gateway) reopenLogs() {
	failed := false
	for _, l := range g.logs {
		if err := l.Reopen(); err != nil {
			failed = true
			g.log.Error("a log stays the file that it was", "error", err)
		}
	}
	if !failed {
		g.log.Info("logs reopened")
	}
}
