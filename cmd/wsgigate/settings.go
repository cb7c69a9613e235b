package main

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/BurntSushi/toml"
	"github.com/hashicorp/go-multierror"
	"github.com/urfave/cli/v2"

	"wsgigate/environ"
	"wsgigate/environ/wire"
	"wsgigate/pyrunner"
)

// config is what the command line, the environment and the configuration file
// say together.
type config struct {
	app                   string
	fastcgi, scgi, http   []wire.Addr
	allow                 []netip.Prefix
	control, status       *wire.Addr // nil: none
	minWorkers, workers   int        // as in pyrunner.Config
	threads               int
	python, chdir         string
	pythonPath, env       []string
	timeout, queueTimeout time.Duration
	queue                 int
	graceful, startup     time.Duration
	idleTimeout, exitIdle time.Duration
	maxRequests           int
	maxAge                time.Duration
	maxMemory             int64
	slow                  time.Duration
	raiseOnTimeout        bool
	preload               bool
	reload                bool // when an imported file changes
	touchReload           string
	rolling               bool
	probe                 string // path of the request that a reload makes
	maxBody, maxHeaders   int64
	limitMemory           int64
	limitFiles            int
	limitCPU              time.Duration
	noNewPrivs            bool
	user, group           string
	umask                 int // -1: as it is
	debug                 bool
	inherits              bool // the listener is the one on descriptor 0
	accessLog, errorLog   string
	logFormat             environ.Format
}

// setting is one flag of serve, which is also WSGIGATE_NAME in the environment
// and a key of the configuration file.
type setting struct {
	name     string
	kind     kind
	fallback string // value if none is given; empty: leave the field alone
	usage    string // with the value's name in backquotes
	scope    scope
	apply    func(c *config, value string) error
}

// scope says which commands have a setting. A command with a wider scope has those
// of the narrower, too.
type scope uint8

const (
	running   scope = iota // whatever runs the application
	serving                // serve and fcgi: it runs on
	listening              // serve: it opens sockets for web servers
)

type kind uint8

const (
	single kind = iota
	list        // may be given more than once
	boolean
)

// settings is every flag of serve: name, help, default and meaning in one place.
var settings = []setting{
	{name: "fastcgi", kind: list, scope: listening, usage: "answer FastCGI on `ADDR`: unix:/path[,mode=0660,user=U,group=G], HOST:PORT, :PORT (loopback), fd:N or systemd[:NAME]", apply: addrs(func(c *config) *[]wire.Addr { return &c.fastcgi })},
	{name: "scgi", kind: list, scope: listening, usage: "answer SCGI on `ADDR`", apply: addrs(func(c *config) *[]wire.Addr { return &c.scgi })},
	{name: "http", kind: list, scope: listening, usage: "answer HTTP on `ADDR` (default 127.0.0.1:8000 if there is no other listener)", apply: addrs(func(c *config) *[]wire.Addr { return &c.http })},
	{name: "allow", kind: list, scope: listening, usage: "a TCP FastCGI or SCGI listener accepts peers in `CIDR` (default loopback)", apply: applyAllow},
	{name: "workers", usage: "run `N` worker processes, or as many as are needed from MIN to MAX if it is MIN:MAX; 0:MAX starts them on demand", apply: applyWorkers},
	{name: "threads", fallback: "1", usage: "`N` threads, so requests at once, in each worker", apply: counts(func(c *config) *int { return &c.threads }, 1)},
	{name: "python", usage: "run the workers with the interpreter `PATH` (default: $VIRTUAL_ENV, then .venv or venv beside the application, then python3)", apply: text(func(c *config) *string { return &c.python })},
	{name: "chdir", usage: "run the application in the folder `DIR`", apply: text(func(c *config) *string { return &c.chdir })},
	{name: "pythonpath", kind: list, usage: "put the folder `DIR`, seen from --chdir, first on sys.path", apply: texts(func(c *config) *[]string { return &c.pythonPath })},
	{name: "env", kind: list, usage: "set a variable for the workers and in each request's environ to `K=V`; K alone passes wsgigate's own on to the workers", apply: applyEnv},
	{name: "timeout", fallback: "60s", usage: "a request may take `D`, then 504 and the worker is replaced; 0: for ever", apply: durations(func(c *config) *time.Duration { return &c.timeout }, true)},
	{name: "queue-timeout", fallback: "30s", usage: "a request may wait `D` for a worker, then 503", apply: durations(func(c *config) *time.Duration { return &c.queueTimeout }, false)},
	{name: "queue", fallback: "1024", usage: "`N` requests may wait for a worker, then 503 at once", apply: counts(func(c *config) *int { return &c.queue }, 0)},
	{name: "graceful-timeout", fallback: "30s", usage: "running requests may take `D` when the server stops", apply: durations(func(c *config) *time.Duration { return &c.graceful }, false)},
	{name: "startup-timeout", fallback: "60s", usage: "importing the application may take `D`", apply: durations(func(c *config) *time.Duration { return &c.startup }, false)},
	{name: "idle-timeout", scope: serving, fallback: "60s", usage: "a worker above MIN that had no request for `D` is stopped", apply: durations(func(c *config) *time.Duration { return &c.idleTimeout }, false)},
	{name: "exit-idle", scope: serving, usage: "stop the whole server when no request came for `D` and none runs; 0: never", apply: durations(func(c *config) *time.Duration { return &c.exitIdle }, true)},
	{name: "max-requests", scope: serving, usage: "replace a worker after `N` requests, less up to a tenth; 0: never", apply: counts(func(c *config) *int { return &c.maxRequests }, 0)},
	{name: "max-age", scope: serving, usage: "replace a worker that is `D` old, less up to a tenth; 0: never", apply: durations(func(c *config) *time.Duration { return &c.maxAge }, true)},
	{name: "max-memory", scope: serving, usage: "replace a worker that uses more than `SIZE` of memory after a request", apply: sizes(func(c *config) *int64 { return &c.maxMemory })},
	{name: "slow", scope: serving, usage: "a request that takes `D` is logged with the Python stacks of its worker, and runs on; 0: none is", apply: durations(func(c *config) *time.Duration { return &c.slow }, true)},
	{name: "raise-on-timeout", scope: serving, kind: boolean, usage: "at --timeout raise an exception in the thread that hangs first, so that the application can clean up", apply: flags(func(c *config) *bool { return &c.raiseOnTimeout })},
	{name: "max-body", fallback: "1GiB", usage: "a request's body may have `SIZE`, then 413", apply: sizes(func(c *config) *int64 { return &c.maxBody })},
	{name: "max-headers", fallback: "64KiB", usage: "a request's header may have `SIZE`, then 431", apply: sizes(func(c *config) *int64 { return &c.maxHeaders })},
	{name: "limit-memory", usage: "a worker may have `SIZE` of address space (RLIMIT_AS): past it Python raises MemoryError", apply: sizes(func(c *config) *int64 { return &c.limitMemory })},
	{name: "limit-files", usage: "a worker may have `N` open files (RLIMIT_NOFILE)", apply: counts(func(c *config) *int { return &c.limitFiles }, 1)},
	{name: "limit-cpu", usage: "a worker may use `D` of CPU time in its life (RLIMIT_CPU, whole seconds), then it is killed; 0: no limit", apply: durations(func(c *config) *time.Duration { return &c.limitCPU }, true)},
	{name: "no-new-privs", kind: boolean, usage: "workers cannot gain privileges from files that they execute (sudo, setuid)", apply: flags(func(c *config) *bool { return &c.noNewPrivs })},
	{name: "preload", scope: serving, kind: boolean, usage: "import the application once and fork the workers from that process", apply: flags(func(c *config) *bool { return &c.preload })},
	{name: "reload", scope: serving, kind: boolean, usage: "development: reload when a file changes that the application has imported", apply: flags(func(c *config) *bool { return &c.reload })},
	{name: "touch-reload", scope: serving, usage: "reload when `FILE` is touched, made or replaced", apply: text(func(c *config) *string { return &c.touchReload })},
	{name: "reload-mode", scope: serving, fallback: "parallel", usage: "a reload starts the new workers beside the old ones or one after the other: `MODE` is parallel or rolling", apply: applyReloadMode},
	{name: "probe", scope: serving, usage: "a reload asks its first worker for `PATH` and is given up unless the status is 200 to 399", apply: text(func(c *config) *string { return &c.probe })},
	{name: "debug", kind: boolean, usage: "development: tracebacks in the browser, wsgiref.validate around the application", apply: flags(func(c *config) *bool { return &c.debug })},
	{name: "control", scope: serving, usage: "take commands (wsgigate status, reload, stop) on `ADDR`, a unix socket for this user alone: unix:/path", apply: addr(func(c *config) **wire.Addr { return &c.control })},
	{name: "status", scope: serving, usage: "show the status page, /metrics, /ping and /ready on `ADDR`; whoever reaches it sees the URLs of requests, so an address that is not loopback must be written out", apply: addr(func(c *config) **wire.Addr { return &c.status })},
	{name: "user", scope: serving, usage: "run as the user `U` once the listeners are open", apply: text(func(c *config) *string { return &c.user })},
	{name: "group", scope: serving, usage: "run as the group `G` once the listeners are open", apply: text(func(c *config) *string { return &c.group })},
	{name: "umask", scope: serving, usage: "take the octal `MASK` from the mode of new files, here and in the workers", apply: applyUmask},
	{name: "access-log", usage: "write a line for each request to `FILE`; - is stderr", apply: text(func(c *config) *string { return &c.accessLog })},
	{name: "log-format", fallback: "text", usage: "write the access log as `FORMAT`: text, json or combined", apply: applyLogFormat},
	{name: "error-log", scope: serving, usage: "write what else is logged to `FILE`; - is stderr; SIGUSR1 reopens both logs", apply: text(func(c *config) *string { return &c.errorLog })},
}

// envName returns the environment variable of a setting.
func (s *setting) envName() string {
	return "WSGIGATE_" + strings.ToUpper(strings.ReplaceAll(s.name, "-", "_"))
}

// flag returns the setting as a flag of a command. Values are strings here: they are
// read in one place, whatever they came by.
func (s *setting) flag(of scope) cli.Flag {
	usage := s.usage
	switch {
	case s.fallback != "":
		usage += " (default " + s.fallback + ")"
	case s.name == "workers" && of == listening:
		usage += " (default: number of CPUs)"
	case s.name == "workers":
		usage += " (default 1)"
	}
	switch s.kind {
	case list:
		return &cli.StringSliceFlag{Name: s.name, Usage: usage}
	case boolean:
		return &cli.BoolFlag{Name: s.name, Usage: usage, DisableDefaultText: true}
	default:
		return &cli.StringFlag{Name: s.name, Usage: usage}
	}
}

// serveFlags returns the flags of a command.
func serveFlags(of scope) []cli.Flag {
	all := []cli.Flag{&cli.StringFlag{Name: "config", Usage: "read the TOML `FILE`: its keys are app and the names of these flags"}}
	for i := range settings {
		if settings[i].scope <= of {
			all = append(all, settings[i].flag(of))
		}
	}
	return all
}

// sourced is a value and where it came from, for messages.
type sourced struct{ value, source string }

// load reads all settings of a command. Everything that is wrong is in one
// error.
func load(c *cli.Context, of scope, app string, workers int) (*config, error) {
	cfg := &config{app: app, workers: workers, umask: -1}
	file, err := readConfigFile(configPath(c))
	errs := multierror.Append(nil, err)
	if values := file["app"]; len(values) > 0 && app == "" {
		errs = multierror.Append(errs, once(values))
		cfg.app = values[0].value
	}
	for i := range settings {
		s := &settings[i]
		if s.scope <= of {
			errs = multierror.Append(errs, s.set(cfg, s.given(c, file)))
		}
	}
	if of == listening {
		errs = multierror.Append(errs, cfg.checkListeners()...)
	}
	errs = multierror.Append(errs, cfg.checkAdmin()...)
	errs = multierror.Append(errs, cfg.checkTogether()...)
	errs = multierror.Append(errs, cfg.checkLimits()...)
	if of >= serving {
		errs = multierror.Append(errs, cfg.checkPlaces()...)
		errs = multierror.Append(errs, thisSystem.check(cfg.user, cfg.group)...)
	}
	errs = multierror.Append(errs, cfg.settleFolders()...)
	errs = multierror.Append(errs, cfg.findPython())
	return cfg, errs.ErrorOrNil()
}

// set applies the values that were given, or the default.
func (s *setting) set(cfg *config, values []sourced) error {
	if values == nil && s.fallback != "" {
		values = []sourced{{s.fallback, "default of --" + s.name}}
	}
	if s.kind != list {
		if err := once(values); err != nil {
			return err
		}
	}
	var errs *multierror.Error
	for _, v := range values {
		if err := s.apply(cfg, v.value); err != nil {
			errs = multierror.Append(errs, fmt.Errorf("%s: %w", v.source, err))
		}
	}
	return errs.ErrorOrNil()
}

// once refuses a list where one value is meant.
func once(values []sourced) error {
	if len(values) > 1 {
		return fmt.Errorf("%s: one value is meant, not a list of %d", values[0].source, len(values))
	}
	return nil
}

// configPath returns the configuration file and what named it.
func configPath(c *cli.Context) (path, source string) {
	if c.IsSet("config") {
		return c.String("config"), "--config"
	}
	return os.Getenv("WSGIGATE_CONFIG"), "WSGIGATE_CONFIG"
}

// given returns what was said about the setting: by the flag, else in the
// environment, else in the file.
func (s *setting) given(c *cli.Context, file map[string][]sourced) []sourced {
	if c.IsSet(s.name) {
		source := "--" + s.name
		switch s.kind {
		case list:
			var values []sourced
			for _, v := range c.StringSlice(s.name) {
				values = append(values, sourced{v, source})
			}
			return values
		case boolean:
			return []sourced{{strconv.FormatBool(c.Bool(s.name)), source}}
		}
		return []sourced{{c.String(s.name), source}}
	}
	if value, ok := os.LookupEnv(s.envName()); ok && value != "" {
		if s.kind != list {
			return []sourced{{value, s.envName()}}
		}
		var values []sourced
		for line := range strings.Lines(value) {
			values = append(values, sourced{strings.TrimSpace(line), s.envName()})
		}
		return values
	}
	return file[s.name]
}

// readConfigFile reads a TOML file into strings; a list is several values.
func readConfigFile(path, source string) (map[string][]sourced, error) {
	if path == "" {
		return nil, nil
	}
	var raw map[string]any
	if _, err := toml.DecodeFile(path, &raw); err != nil {
		if parse, ok := errors.AsType[toml.ParseError](err); ok {
			return nil, fmt.Errorf("%s: line %d: %s", path, parse.Position.Line, parse.Message)
		}
		return nil, fmt.Errorf("%s: %w", source, err)
	}
	values := map[string][]sourced{}
	var errs *multierror.Error
	for _, key := range slices.Sorted(maps.Keys(raw)) {
		if key != "app" && !slices.ContainsFunc(settings, func(s setting) bool { return s.name == key }) {
			errs = multierror.Append(errs, fmt.Errorf("%s: %s: there is no such setting: wsgigate serve --help has the names", path, key))
			continue
		}
		items, isList := raw[key].([]any)
		if !isList {
			items = []any{raw[key]}
		}
		for _, item := range items {
			switch item.(type) {
			case string, bool, int64, float64:
				values[key] = append(values[key], sourced{fmt.Sprint(item), path + ": " + key})
			default:
				errs = multierror.Append(errs, fmt.Errorf("%s: %s: write a string, a number, true, false or a list of them", path, key))
			}
		}
	}
	return values, errs.ErrorOrNil()
}

// inFolder returns path as seen from dir.
func inFolder(dir, path string) string {
	if filepath.IsAbs(path) {
		return path
	}
	return filepath.Join(dir, path)
}

// pool returns the configuration of the worker pool.
func (c *config) pool() pyrunner.Config {
	forever := func(d time.Duration) time.Duration {
		if d == 0 {
			return -1
		}
		return d
	}
	queue := c.queue
	if queue == 0 {
		queue = -1
	}
	return pyrunner.Config{
		App: c.app, Python: c.python, Workers: c.workers, MinWorkers: c.minWorkers, Threads: c.threads,
		Chdir: c.chdir, PythonPath: c.pythonPath, Env: c.env, Debug: c.debug,
		Timeout: forever(c.timeout), QueueTimeout: c.queueTimeout, Queue: queue,
		GracefulTimeout: c.graceful, StartupTimeout: c.startup, IdleTimeout: c.idleTimeout, Limits: c.limits(),
		MaxRequests: c.maxRequests, MaxAge: c.maxAge, MaxMemory: c.maxMemory,
		Slow: c.slow, RaiseOnTimeout: c.raiseOnTimeout,
		Preload: c.preload, ReloadRolling: c.rolling, Probe: c.prober(),
		LimitMemory: c.limitMemory, LimitFiles: c.limitFiles, LimitCPU: c.limitCPU, NoNewPrivs: c.noNewPrivs,
	}
}

func (c *config) limits() environ.Limits {
	return environ.Limits{MaxBody: c.maxBody, MaxHeaders: int(c.maxHeaders)}.WithDefaults()
}

// rules returns what the deployment adds to each request.
func (c *config) rules() environ.Rules {
	rules := environ.Rules{Limits: c.limits()}
	for _, kv := range c.env {
		if name, value, ok := strings.Cut(kv, "="); ok {
			rules.Extra = append(rules.Extra, [2]string{name, value})
		}
	}
	return rules
}

func cpus() int { return runtime.NumCPU() }

// exists reports whether path is a file that can be looked at.
func exists(path string) bool {
	st, err := os.Stat(path)
	return err == nil && !st.IsDir() || errors.Is(err, fs.ErrPermission)
}

// appFolder is where the application's virtual environment is looked for.
func (c *config) appFolder() string {
	if file, _, _ := strings.Cut(c.app, ":"); strings.ContainsRune(file, '/') {
		return inFolder(c.chdir, filepath.Dir(file))
	}
	return c.chdir
}
