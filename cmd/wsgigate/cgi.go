package main

import (
	"context"
	"log/slog"
	"os"
	"sync"

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
		Flags:       serveFlags(false),
		Action: func(c *cli.Context) error {
			app, err := oneApp(c)
			if err != nil {
				return err
			}
			cfg, err := load(c, false, app, 1)
			if err != nil {
				return configError{err}
			}
			return answerOnce(cfg, func(h environ.Handler) error {
				return cgi.Serve(c.Context, h, cfg.rules(), os.Environ(), os.Stdin, os.Stdout, os.Stderr)
			})
		},
	}
}

// answerOnce runs the application for one request. What the worker says on its
// streams and in wsgi.errors goes to stderr.
func answerOnce(cfg *config, request func(environ.Handler) error) error {
	log := slog.New(&console{mu: new(sync.Mutex), out: os.Stderr, level: slog.LevelWarn})
	poolConfig := cfg.pool()
	poolConfig.Log, poolConfig.Workers = log, 1
	pool, err := pyrunner.New(poolConfig)
	if err != nil {
		return err
	}
	err = pool.Start()
	if err == nil {
		err = request(pool)
	}
	ctx, cancel := context.WithTimeout(context.Background(), cfg.graceful)
	defer cancel()
	if stopErr := pool.Shutdown(ctx); err == nil {
		err = stopErr
	}
	return err
}
