// The command wsgigate puts a Python WSGI application behind a web server. It
// wires the packages together and decides nothing else: flags, configuration
// file, listeners, signals.
package main

import (
	"errors"
	"fmt"
	"os"
	"os/signal"
	"runtime"
	"runtime/debug"
	"slices"
	"strings"
	"syscall"

	"github.com/hashicorp/go-multierror"
	"github.com/urfave/cli/v2"
	"golang.org/x/sys/unix"
)

// Exit statuses.
const (
	exitFailed = 1  // the application or a worker failed
	exitUsage  = 2  // wrong usage
	exitConfig = 78 // bad configuration (EX_CONFIG of sysexits.h)
)

func main() {
	sealDescriptors()
	boundThreads()
	// A pipe that its reader left is an error of the write and never fatal. Ignoring
	// the signal would be passed on to the workers; catching it is not.
	signal.Notify(make(chan os.Signal, 1), syscall.SIGPIPE)
	os.Exit(run(os.Args, os.Environ()))
}

// sealDescriptors keeps what a web server left open from the workers
// (mod_fcgid leaks two pipes into every process it starts).
func sealDescriptors() {
	if unix.CloseRange(3, ^uint(0), unix.CLOSE_RANGE_CLOEXEC) == nil {
		return
	}
	entries, err := os.ReadDir("/proc/self/fd") // a kernel before 5.11
	if err != nil {
		return
	}
	for _, e := range entries {
		var fd int
		if _, err := fmt.Sscan(e.Name(), &fd); err == nil && fd > 2 {
			unix.CloseOnExec(fd)
		}
	}
}

// boundThreads gives the gateway a quarter of the processors, unless GOMAXPROCS
// is set: the workers need the rest, and a gateway that spreads over more
// spends more time waking threads than it saves (with one processor instead of
// two, a request over FastCGI cost a tenth of the futex and a fifth of the
// epoll_wait calls).
func boundThreads() {
	if os.Getenv("GOMAXPROCS") == "" {
		runtime.GOMAXPROCS(max(1, runtime.NumCPU()/4))
	}
}

// run is the whole program; it returns the exit status.
func run(args, env []string) int {
	app := &cli.App{
		Name:                      "wsgigate",
		Usage:                     "put a Python WSGI application behind any web server",
		UsageText:                 "wsgigate [command] [flags] [APP]",
		Description:               appHelp,
		Version:                   version(),
		DisableSliceFlagSeparator: true,
		HideHelpCommand:           true,
		HideVersion:               true,
		Commands:                  []*cli.Command{serveCommand(), fcgiCommand(), cgiCommand(), callCommand(), versionCommand()},
		ExitErrHandler:            func(*cli.Context, error) {},
		OnUsageError:              usageError,
		Action:                    cli.ShowAppHelp,
	}
	for _, c := range app.Commands {
		c.OnUsageError = usageError
	}
	err := app.Run(commandLine(args, env, app.Commands))
	if err == nil {
		return 0
	}
	fmt.Fprintln(os.Stderr, message(err))
	if coder, ok := errors.AsType[cli.ExitCoder](err); ok {
		return coder.ExitCode()
	}
	return exitFailed
}

const appHelp = `APP is one of
  module:callable      import module from the working directory and --pythonpath
  module               the same, its "application" or "app"
  module:factory()     call the factory once in each worker, use what it returns
  path/to/file.py[:callable], path/to/file.wsgi
                       load that file, its folder first on sys.path
Without APP the built-in demo application runs.`

func usageError(_ *cli.Context, err error, _ bool) error {
	return cli.Exit(fmt.Sprintf("wsgigate: %v: see wsgigate --help", err), exitUsage)
}

// message puts each of several errors on a line of its own.
func message(err error) string {
	many, ok := errors.AsType[*multierror.Error](err)
	if !ok {
		text := err.Error()
		if !strings.HasPrefix(text, "wsgigate: ") {
			text = "wsgigate: " + text
		}
		return text
	}
	var lines []string
	for _, e := range many.Errors {
		lines = append(lines, "wsgigate: "+e.Error())
	}
	return strings.Join(lines, "\n")
}

// configError gives errors of the configuration their exit status.
type configError struct{ error }

func (e configError) Unwrap() error { return e.error }
func (e configError) ExitCode() int { return exitConfig }

var _ cli.ExitCoder = configError{}

// commandLine prepares the arguments for the parser: serve is the default command,
// flags may follow APP, and under a web server nothing of the request is parsed.
func commandLine(args, env []string, commands []*cli.Command) []string {
	if underWebServer(env) {
		return cgiCommandLine(args, env)
	}
	args = splitShebang(args)
	rest := args[1:]
	known := func(name string) bool {
		return slices.ContainsFunc(commands, func(c *cli.Command) bool { return c.Name == name })
	}
	if len(rest) == 0 || !known(rest[0]) && !slices.Contains([]string{"-h", "--help", "help", "--version"}, rest[0]) {
		rest = append([]string{"serve"}, rest...)
	}
	if rest[0] == "--version" {
		rest[0] = "version"
	}
	if i := slices.IndexFunc(commands, func(c *cli.Command) bool { return c.Name == rest[0] }); i >= 0 {
		rest = append(rest[:1:1], flagsFirst(commands[i].Flags, rest[1:])...)
	}
	return append(args[:1:1], rest...)
}

// flagsFirst moves the flags before the other arguments, because the parser
// stops at the first of those and people write "serve app:app --workers 2".
func flagsFirst(flags []cli.Flag, args []string) []string {
	var front, back []string
	for i := 0; i < len(args); i++ {
		arg := args[i]
		if arg == "--" {
			back = append(back, args[i+1:]...)
			break
		}
		if !strings.HasPrefix(arg, "-") || arg == "-" {
			back = append(back, arg)
			continue
		}
		front = append(front, arg)
		name := strings.TrimLeft(arg, "-")
		if takesValue(flags, name) && i+1 < len(args) {
			i++
			front = append(front, args[i])
		}
	}
	return append(append(front, "--"), back...)
}

func takesValue(flags []cli.Flag, name string) bool {
	for _, f := range flags {
		if _, isBool := f.(*cli.BoolFlag); !isBool && slices.Contains(f.Names(), name) {
			return true
		}
	}
	return false
}

func versionCommand() *cli.Command {
	return &cli.Command{
		Name:  "version",
		Usage: "print the version",
		Action: func(c *cli.Context) error {
			_, err := fmt.Fprintf(c.App.Writer, "wsgigate %s (%s, %s/%s)\n", version(), runtime.Version(), runtime.GOOS, runtime.GOARCH)
			return err
		},
	}
}

// version is the release, or what the build knows of itself.
func version() string {
	if info, ok := debug.ReadBuildInfo(); ok && info.Main.Version != "" && info.Main.Version != "(devel)" {
		return info.Main.Version
	}
	return "development"
}
