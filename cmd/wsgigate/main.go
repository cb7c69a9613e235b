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
	"time"

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
	status := run(os.Args, os.Environ())
	stderrLog.finish(time.Now().Add(logFlush))
	os.Exit(status)
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
		Commands:                  []*cli.Command{serveCommand(), fcgiCommand(), cgiCommand(), callCommand(), statusCommand(), reloadCommand(), stopCommand(), versionCommand()},
		ExitErrHandler:            func(*cli.Context, error) {},
		OnUsageError:              usageError,
		Action:                    cli.ShowAppHelp,
	}
	for _, c := range app.Commands {
		c.OnUsageError = usageError
	}
	args, err := commandLine(args, env, app.Commands)
	if err != nil {
		err = answerFailed(usage("%w", err))
	} else {
		err = app.Run(args)
	}
	if err == nil {
		return 0
	}
	fmt.Fprintln(lastWords(), message(err))
	tellPredecessor(message(err))
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

// usageError puts the parser's words as a person would: that of package flag
// are "flag provided but not defined: -nope" and "flag needs an argument: -d".
func usageError(c *cli.Context, err error, _ bool) error {
	help := "wsgigate --help"
	if c.Command != nil && c.Command.Name != "" && c.Command.Name != c.App.Name {
		help = "wsgigate " + c.Command.Name + " --help"
	}
	text := err.Error()
	var value, flag string
	if _, err := fmt.Sscanf(text, "invalid boolean value %q for -%s", &value, &flag); err == nil { // a bad value like others
		return answerFailed(configError(fmt.Errorf("--%s: %q is neither true nor false", strings.TrimSuffix(flag, ":"), value)))
	}
	if name, ok := strings.CutPrefix(text, "flag provided but not defined: -"); ok {
		text = "there is no flag " + dashed(name)
	} else if name, ok := strings.CutPrefix(text, "flag needs an argument: -"); ok {
		text = dashed(name) + " needs a value"
	}
	return answerFailed(usage("%s: see %s", text, help))
}

func dashed(name string) string {
	if len(name) == 1 {
		return "-" + name
	}
	return "--" + name
}

// statusError is an error with the exit status that it makes.
type statusError struct {
	error
	status int
}

func (e statusError) Unwrap() error { return e.error }
func (e statusError) ExitCode() int { return e.status }

var _ cli.ExitCoder = statusError{}

// usage makes an error of wrong usage.
func usage(format string, args ...any) error {
	return statusError{fmt.Errorf(format, args...), exitUsage}
}

// configError gives errors of the configuration their exit status.
func configError(err error) error { return statusError{err, exitConfig} }

// inOneLine puts several errors behind each other, for the log.
func inOneLine(err error) string {
	many, ok := errors.AsType[*multierror.Error](err)
	if !ok {
		return plain(err)
	}
	texts := make([]string, len(many.Errors))
	for i, e := range many.Errors {
		texts[i] = inOneLine(e)
	}
	return strings.Join(texts, "; ")
}

// message puts each of several errors on a line of its own.
func message(err error) string {
	many, ok := errors.AsType[*multierror.Error](err)
	if !ok {
		return "wsgigate: " + plain(err)
	}
	var lines []string
	for _, e := range many.Errors {
		lines = append(lines, "wsgigate: "+plain(e))
	}
	return strings.Join(lines, "\n")
}

// plain returns an error's text without the name of the package that it comes
// from, which tells a user nothing.
func plain(err error) string {
	text := err.Error()
	for _, name := range []string{"pyrunner: ", "cgi: ", "environ: "} {
		text = strings.TrimPrefix(text, name)
	}
	return text
}

// commandLine prepares the arguments for the parser: serve is the default command,
// flags may follow APP, and under a web server nothing of the request is parsed.
func commandLine(args, env []string, commands []*cli.Command) ([]string, error) {
	if underWebServer(env) {
		return cgiCommandLine(args, env, commands)
	}
	args = splitShebang(args, commands)
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
	return append(args[:1:1], rest...), nil
}

// flagsFirst moves the flags before the other arguments, because the parser
// stops at the first of those and people write "serve app:app --workers 2".
// It also gives each flag its long name: the parser refuses -H beside --header.
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
		name, value, hasValue := strings.Cut(strings.TrimLeft(arg, "-"), "=")
		f := flagOf(flags, name)
		if f != nil {
			arg = "--" + f.Names()[0]
			if hasValue {
				arg += "=" + value
			}
		}
		front = append(front, arg)
		if hasValue || !takesValue(f) {
			continue
		}
		if i++; i == len(args) {
			return front // the parser must not take the "--" for its value
		}
		front = append(front, args[i])
	}
	return append(append(front, "--"), back...)
}

func flagOf(flags []cli.Flag, name string) cli.Flag {
	i := slices.IndexFunc(flags, func(f cli.Flag) bool { return slices.Contains(f.Names(), name) })
	if i < 0 {
		return nil
	}
	return flags[i]
}

// takesValue reports whether the next argument is the flag's, unless it has "=".
func takesValue(f cli.Flag) bool {
	_, isBool := f.(*cli.BoolFlag)
	return f != nil && !isBool
}

func versionCommand() *cli.Command {
	return &cli.Command{
		Name:  "version",
		Usage: "print the version",
		Action: func(c *cli.Context) error {
			if c.NArg() > 0 {
				return usage("version takes no argument")
			}
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
