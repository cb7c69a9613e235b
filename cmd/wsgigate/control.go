package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/urfave/cli/v2"
	"golang.org/x/sys/unix"

	"wsgigate/environ"
	"wsgigate/pyrunner/control"
	"wsgigate/pyrunner/status"
)

// answerTime is how long a server may take for an answer that needs no work.
const answerTime = 10 * time.Second

func statusCommand() *cli.Command {
	return controlCommand("status", "show what a running server is and does; exit 1 if it cannot serve", showStatus,
		&cli.BoolFlag{Name: "json", Usage: "print JSON", DisableDefaultText: true},
		&cli.BoolFlag{Name: "watch", Usage: "show it anew every second, until Ctrl-C", DisableDefaultText: true})
}

func reloadCommand() *cli.Command {
	return controlCommand("reload", "make a running server import its application anew, and wait until it has", reload)
}

func stopCommand() *cli.Command {
	return controlCommand("stop", "stop a running server gracefully, and wait until it has ended", stopServer,
		&cli.StringFlag{Name: "timeout", Value: "60s", Usage: "wait for `D`, then say that it still runs"})
}

// controlCommand makes a command that talks to a running server.
func controlCommand(name, usageText string, do func(context.Context, *cli.Context, control.Client) error, flags ...cli.Flag) *cli.Command {
	return &cli.Command{
		Name:        name,
		Usage:       usageText,
		ArgsUsage:   " ",
		Description: "The server is found by --control, else WSGIGATE_CONTROL, else \"control\" in --config FILE: as it was started.",
		Flags: append([]cli.Flag{
			&cli.StringFlag{Name: "control", Usage: "the server's control socket is `ADDR`: unix:/path"},
			&cli.StringFlag{Name: "config", Usage: "read the TOML `FILE` that the server reads"},
		}, flags...),
		Action: func(c *cli.Context) error {
			if c.NArg() > 0 {
				return usage("%s takes no argument, only flags: --control unix:PATH says which server is meant", name)
			}
			client, err := controlClient(c)
			if err != nil {
				return err
			}
			ctx, release := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
			defer release()
			return withoutPackage(do(ctx, c, client))
		},
	}
}

// controlClient finds the server's control socket as the server itself would.
func controlClient(c *cli.Context) (control.Client, error) {
	file, err := readConfigFile(configPath(c))
	if err != nil {
		return control.Client{}, configError(err)
	}
	var cfg config
	s := &settings[slices.IndexFunc(settings, func(s setting) bool { return s.name == "control" })]
	given := s.given(c, file)
	if given == nil {
		return control.Client{}, usage("which server? Give --control unix:PATH or --config FILE, or set WSGIGATE_CONTROL, as for the server")
	}
	if err := s.set(&cfg, given); err != nil {
		return control.Client{}, configError(err)
	}
	if cfg.control.Path == "" {
		return control.Client{}, configError(fmt.Errorf("%s: %q is not a unix socket: write unix:/path", given[0].source, given[0].value))
	}
	return control.Client{Path: cfg.control.Path, Patience: answerTime}, nil
}

// withoutPackage takes from an error's text what tells a user nothing.
func withoutPackage(err error) error {
	if err == nil {
		return nil
	}
	if text, ok := strings.CutPrefix(err.Error(), "control: "); ok {
		return errors.New(text)
	}
	return err
}

func showStatus(ctx context.Context, c *cli.Context, client control.Client) error {
	switch asJSON, watched := c.Bool("json"), c.Bool("watch"); {
	case asJSON && watched:
		return usage("--json and --watch do not go together: choose one")
	case watched:
		return watchStatus(ctx, c.App.Writer, client)
	default:
		s, err := askStatus(ctx, client)
		if err != nil {
			return err
		}
		if asJSON {
			err = status.WriteJSON(c.App.Writer, s)
		} else {
			err = status.WriteText(c.App.Writer, s, terminalOf(c.App.Writer).columns)
		}
		if err != nil {
			return err
		}
		if trouble := s.Trouble(); trouble != "" {
			return errors.New(trouble)
		}
		return nil
	}
}

func askStatus(ctx context.Context, client control.Client) (status.Snapshot, error) {
	ctx, cancel := context.WithTimeout(ctx, answerTime)
	defer cancel()
	return client.Status(ctx)
}

// watchEvery is how often --watch looks.
const watchEvery = time.Second

// watchStatus shows the status until ctx ends. A server that does not answer any
// more is waited for: it may be starting again.
func watchStatus(ctx context.Context, out io.Writer, client control.Client) error {
	if _, err := askStatus(ctx, client); err != nil {
		return err
	}
	tick := time.NewTicker(watchEvery)
	defer tick.Stop()
	for {
		screen := terminalOf(out)
		var text strings.Builder
		s, err := askStatus(ctx, client)
		if ctx.Err() != nil {
			return nil
		}
		if err != nil {
			fmt.Fprintf(&text, "%v\n", withoutPackage(err))
		} else if err := status.WriteText(&text, s, screen.columns); err != nil {
			return err
		}
		if _, err := io.WriteString(out, screen.draw(text.String())); err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

// terminal is the size of a terminal; zero is none.
type terminal struct{ columns, rows int }

func terminalOf(out io.Writer) terminal {
	f, ok := out.(*os.File)
	if !ok {
		return terminal{}
	}
	size, err := unix.IoctlGetWinsize(int(f.Fd()), unix.TIOCGWINSZ)
	if err != nil {
		return terminal{}
	}
	return terminal{int(size.Col), int(size.Row)}
}

// draw puts a text over the last one without clearing the screen between, which
// would flicker: each line clears its own rest, and the last what is below. Without
// a terminal, texts follow each other.
func (t terminal) draw(text string) string {
	const home, clearLine, clearBelow = "\x1b[H", "\x1b[K", "\x1b[J"
	if t.rows == 0 {
		return text + "\n"
	}
	lines := strings.Split(strings.TrimSuffix(text, "\n"), "\n")
	lines = lines[:min(len(lines), max(1, t.rows-1))]
	return home + strings.Join(lines, clearLine+"\n") + clearLine + "\n" + clearBelow
}

// reload waits as long as the server takes, which its --startup-timeout bounds, but not
// for a server that gives no sign of life.
func reload(ctx context.Context, c *cli.Context, client control.Client) error {
	done, err := client.Reload(ctx)
	if failed, ok := errors.AsType[*control.ReloadError](err); ok {
		text := "the reload failed, the old workers serve on: " + plain(failed)
		if failed.Traceback != "" {
			text += "\n" + strings.TrimRight(failed.Traceback, "\n")
		}
		return errors.New(string(environ.AppendVisible(nil, []byte(text))))
	}
	switch begun := errors.Is(err, control.ErrReloading); {
	case err != nil && ctx.Err() != nil && begun:
		return errors.New("interrupted: the reload goes on")
	case err != nil && ctx.Err() != nil:
		return errors.New("interrupted: the server has not said that it reloads; once it answers, it may")
	case err != nil:
		return err
	}
	_, err = fmt.Fprintf(c.App.Writer, "reloaded: %s in %.2fs\n", counted(done.Workers, "worker"), done.Took.Seconds())
	return err
}

func stopServer(ctx context.Context, c *cli.Context, client control.Client) error {
	var patience time.Duration
	read := durations(func(*config) *time.Duration { return &patience }, false)
	if err := read(nil, c.String("timeout")); err != nil {
		return configError(fmt.Errorf("--timeout: %w", err)) // as for serve
	}
	began := time.Now()
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	switch err := client.Stop(ctx); {
	case errors.Is(ctx.Err(), context.Canceled):
		return errors.New("interrupted: the server has not said that it stops; once it answers, it may")
	case err != nil:
		return err
	}
	if err := client.AwaitEnd(ctx); err != nil {
		if errors.Is(err, context.DeadlineExceeded) {
			return fmt.Errorf("the server still runs %v after it was told to stop: its running requests may take --graceful-timeout", patience)
		}
		return errors.New("interrupted: the server goes on stopping")
	}
	_, err := fmt.Fprintf(c.App.Writer, "stopped in %.2fs\n", time.Since(began).Seconds())
	return err
}
