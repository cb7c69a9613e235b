package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"os/signal"
	"syscall"

	"github.com/hashicorp/go-multierror"
	"github.com/urfave/cli/v2"

	"wsgigate/environ"
	"wsgigate/environ/wire"
	"wsgigate/fcgi"
	"wsgigate/httpd"
	"wsgigate/pyrunner"
	"wsgigate/scgi"
)

func serveCommand() *cli.Command {
	return &cli.Command{
		Name:      "serve",
		Usage:     "run APP behind one or more listeners (the default command)",
		ArgsUsage: "[APP]",
		Flags:     serveFlags(listening),
		Action: func(c *cli.Context) error {
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

// transport is a server of any gateway protocol on one listener.
type transport struct {
	name     string // of the flag
	listener *wire.Listener
	serve    func() error
	shutdown func(context.Context) error
}

// serve runs until a signal or until a listener fails.
func serve(cfg *config) error {
	log := newLogger(os.Stderr)
	slog.SetDefault(log)
	handler := &lateHandler{}
	access, accessErr := openAccessLog(cfg.accessLog)
	transports, err := openAll(cfg, handler, log)
	if errs := multierror.Append(accessErr, err); errs.ErrorOrNil() != nil {
		closeAll(transports)
		return configError(errs)
	}
	defer access.Close()
	signals := make(chan os.Signal, 2)
	signal.Notify(signals, syscall.SIGTERM, syscall.SIGINT)
	defer signal.Stop(signals)

	poolConfig := cfg.pool()
	poolConfig.Log = log
	pool, err := pyrunner.New(poolConfig)
	if err != nil {
		closeAll(transports)
		return err
	}
	if err := startPool(pool, signals); err != nil {
		closeAll(transports)
		if errors.Is(err, errStopped) {
			log.Info(err.Error())
			return nil
		}
		return err
	}
	handler.Handler = pool
	if cfg.accessLog != "" {
		handler.Handler = environ.AccessLog(pool, access, cfg.logFormat)
	}
	return serveUntil(cfg, transports, pool, signals, log)
}

// lateHandler is set before the first connection is accepted.
type lateHandler struct{ environ.Handler }

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

// serveUntil serves until a signal comes or a listener fails, then stops.
func serveUntil(cfg *config, transports []transport, pool *pyrunner.Pool, signals <-chan os.Signal, log *slog.Logger) error {
	failed := make(chan error, len(transports))
	for _, t := range transports {
		go func() {
			if err := t.serve(); !errors.Is(err, net.ErrClosed) {
				failed <- fmt.Errorf("%s %s: %w", t.name, t.listener.Addr(), err)
			}
		}()
	}
	announce(cfg, transports)
	var errs *multierror.Error
	select {
	case sig := <-signals:
		log.Info("stopping: running requests may end", "signal", sig.String(), "within", cfg.graceful)
	case err := <-failed:
		errs = multierror.Append(errs, err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), cfg.graceful)
	defer cancel()
	go func() {
		select {
		case <-signals:
			log.Warn("stopping at once")
			cancel()
		case <-ctx.Done():
		}
	}()
	stop(ctx, transports, pool, log)
	log.Info("stopped")
	return errs.ErrorOrNil()
}

// stop lets the requests end and then the workers. When ctx ends first, the workers
// are ended too, because a transport waits for the requests that they have.
func stop(ctx context.Context, transports []transport, pool *pyrunner.Pool, log *slog.Logger) {
	var group multierror.Group
	for _, t := range transports {
		group.Go(func() error { return t.shutdown(ctx) })
	}
	drained := make(chan error, 1)
	go func() { drained <- group.Wait().ErrorOrNil() }()
	select {
	case err := <-drained:
		drained <- err
	case <-ctx.Done():
	}
	if err := pool.Shutdown(ctx); err != nil {
		log.Warn("workers had to be ended", "error", err)
	}
	if err := <-drained; err != nil {
		log.Warn("some requests did not end in time and were cut", "error", err)
	}
}

// openAll opens every listener, or none and says all that is wrong.
func openAll(cfg *config, h environ.Handler, log *slog.Logger) ([]transport, error) {
	var all []transport
	var errs *multierror.Error
	open := func(name string, addrs []wire.Addr, make func(*wire.Listener) (transport, error)) {
		for _, addr := range addrs {
			l, err := wire.Listen(addr)
			if err == nil {
				var t transport
				if t, err = make(l); err == nil {
					t.name, t.listener = name, l
					all = append(all, t)
					continue
				}
			}
			if cfg.inherits {
				err = fmt.Errorf("fcgi: %w; to listen on a socket of its own: wsgigate serve --fastcgi unix:/run/app.sock APP", err)
			} else {
				err = fmt.Errorf("--%s: %w", name, err)
			}
			errs = multierror.Append(errs, err)
		}
	}
	webServers, err := fcgi.ParseWebServerAddrs(os.Getenv("FCGI_WEB_SERVER_ADDRS"))
	if err != nil {
		errs = multierror.Append(errs, err)
	}
	open("fastcgi", cfg.fastcgi, func(l *wire.Listener) (transport, error) {
		s := &fcgi.Server{Handler: h, Rules: cfg.rules(), Log: log, Allow: cfg.allow, WebServerAddrs: webServers}
		return transport{serve: func() error { return s.Serve(l) }, shutdown: s.Shutdown}, nil
	})
	open("scgi", cfg.scgi, func(l *wire.Listener) (transport, error) {
		s := &scgi.Server{Handler: h, Rules: cfg.rules(), Log: log, Allow: cfg.allow}
		return transport{serve: func() error { return s.Serve(l) }, shutdown: s.Shutdown}, nil
	})
	open("http", cfg.http, func(l *wire.Listener) (transport, error) {
		s := &httpd.Server{Handler: h, Rules: cfg.rules(), Log: log}
		ln, err := l.NetListener()
		return transport{serve: func() error { return s.Serve(ln) }, shutdown: func(ctx context.Context) error {
			defer l.Close()
			return s.Shutdown(ctx)
		}}, err
	})
	if errs.ErrorOrNil() != nil {
		closeAll(all)
	}
	return all, errs.ErrorOrNil()
}

// closeAll closes listeners that never served.
func closeAll(transports []transport) {
	for _, t := range transports {
		_ = t.listener.Close()
	}
}

// announce says where the application answers, and what to try next.
func announce(cfg *config, transports []transport) {
	app := cfg.app
	if app == "" {
		app = "the built-in demo application"
	}
	for _, t := range transports {
		addr := t.listener.Addr().String()
		if addr == "" {
			addr = "inherited socket"
		}
		if t.name == "http" && t.listener.Addr().Network() == "tcp" {
			addr = "http://" + addr
		}
		fmt.Fprintf(os.Stderr, "wsgigate: %s is answered by %s on %s (%s)\n", t.name, app, addr, cfg.capacity())
	}
	if cfg.app != "" {
		return
	}
	for _, t := range transports {
		if t.name == "http" && t.listener.Addr().Network() == "tcp" {
			fmt.Fprintf(os.Stderr, "wsgigate: try it:     curl http://%s/\nwsgigate: your own:   wsgigate serve mysite:application\nwsgigate: to nginx:   wsgigate serve --fastcgi unix:/run/app.sock,mode=0660,group=www-data mysite:application\n", t.listener.Addr())
			return
		}
	}
}

// capacity says how many requests can run at once.
func (c *config) capacity() string {
	text := counted(c.workers, "worker")
	switch {
	case c.minWorkers < 0:
		text = "up to " + text
	case c.minWorkers > 0 && c.minWorkers < c.workers:
		text = fmt.Sprintf("%d to %s", c.minWorkers, text)
	}
	if c.threads > 1 {
		text += " of " + counted(c.threads, "thread")
	}
	return text
}

func counted(n int, thing string) string {
	if n != 1 {
		thing += "s"
	}
	return fmt.Sprintf("%d %s", n, thing)
}

// openAccessLog opens the file for appending.
func openAccessLog(path string) (io.WriteCloser, error) {
	switch path {
	case "", "-":
		return nopCloser{os.Stderr}, nil
	}
	f, err := os.OpenFile(path, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o640)
	if err != nil {
		return nil, fmt.Errorf("--access-log: %w", err)
	}
	return f, nil
}

type nopCloser struct{ io.Writer }

func (nopCloser) Close() error { return nil }
