package main

import (
	"context"
	"errors"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/urfave/cli/v2"

	"wsgigate/cgi"
	"wsgigate/environ"
	"wsgigate/pyrunner"
)

func cgiCommand() *cli.Command {
	return &cli.Command{
		Name:        "cgi",
		Usage:       "answer one CGI request from the environment and stdin, then exit",
		ArgsUsage:   "[APP]",
		Description: "A script's first line can be \"#!/path/to/wsgigate cgi\", its Python code following.",
		Flags:       serveFlags(running),
		Action: func(c *cli.Context) error {
			if lookup(os.Environ(), "REQUEST_METHOD") == "" {
				return statusError{cgi.ErrNotCGI, exitUsage}
			}
			cfg, err := cgiConfig(c)
			if err != nil {
				return answerFailed(err)
			}
			started := false
			err = answerOnce(cfg, func(ctx context.Context, h environ.Handler) error {
				started = true
				return serveCGI(ctx, h, cfg.rules())
			})
			if !started {
				return answerFailed(err)
			}
			return err
		},
	}
}

func cgiConfig(c *cli.Context) (*config, error) {
	app, err := oneApp(c)
	if err != nil {
		return nil, err
	}
	cfg, err := load(c, running, app, 1)
	if err == nil {
		err = cfg.checkPassedOn()
	}
	if err != nil {
		return nil, configError(err)
	}
	return cfg, nil
}

func serveCGI(ctx context.Context, h environ.Handler, rules environ.Rules) error {
	return cgi.Serve(ctx, h, rules, os.Environ(), os.Stdin, os.Stdout, os.Stderr)
}

// failing is the application of a request that cannot have its own.
type failing struct{ err error }

func (f failing) ServeGateway(w environ.ResponseWriter, r *environ.Request) {
	environ.Fail(w, r, f.err)
}

// answerFailed gives the client a 500 for what keeps a CGI request from its
// application, and returns the reason for the web server's log.
func answerFailed(err error) error {
	if lookup(os.Environ(), "REQUEST_METHOD") == "" {
		return err
	}
	_ = serveCGI(context.Background(), failing{err}, environ.Rules{}) // err says why there is none
	return err
}

// answerOnce runs the application for one request. What the worker says on its
// streams and in wsgi.errors goes to stderr. A signal cancels the request, a
// second one ends the process.
func answerOnce(cfg *config, request func(context.Context, environ.Handler) error) error {
	ctx, release := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer release()
	defer context.AfterFunc(ctx, release)()
	poolConfig := cfg.pool()
	poolConfig.Log = newTerseLogger(os.Stderr)
	poolConfig.Workers, poolConfig.MinWorkers = 1, 0
	pool, err := pyrunner.New(poolConfig)
	if err != nil {
		return err
	}
	if err := startPool(pool, ctx.Done()); err != nil {
		return err
	}
	done := make(chan error, 1)
	go func() { done <- request(ctx, pool) }()
	select {
	case err = <-done:
		if stopErr := shutdownPool(pool, cfg.graceful); err == nil {
			err = stopErr
		}
		return err
	case <-ctx.Done(): // an application that does not notice is ended with its worker
		_ = shutdownPool(pool, 0)
		<-done
		return errSignal
	}
}

// errSignal is why a request ended before its time.
var errSignal = errors.New("stopped by a signal")

func shutdownPool(pool *pyrunner.Pool, patience time.Duration) error {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	return pool.Shutdown(ctx)
}
