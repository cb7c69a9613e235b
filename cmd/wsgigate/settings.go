package main

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"math"
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
	workers, threads      int
	python, chdir         string
	pythonPath, env       []string
	timeout, queueTimeout time.Duration
	queue                 int
	graceful, startup     time.Duration
	maxBody, maxHeaders   int64
	debug                 bool
	inherits              bool // the listener is the one on descriptor 0
	accessLog             string
	logFormat             environ.Format
}

// setting is one flag of serve, which is also WSGIGATE_NAME in the environment
// and a key of the configuration file.
type setting struct {
	name     string
	kind     kind
	fallback string // value if none is given; empty: leave the field alone
	usage    string // with the value's name in backquotes
	listens  bool   // only commands that open listeners have it
	apply    func(c *config, value string) error
}

type kind uint8

const (
	single kind = iota
	list        // may be given more than once
	boolean
)

// settings is every flag of serve: name, help, default and meaning in one place.
var settings = []setting{
	{name: "fastcgi", kind: list, listens: true, usage: "answer FastCGI on `ADDR`: unix:/path[,mode=0660,user=U,group=G], HOST:PORT, :PORT (loopback) or fd:N", apply: addrs(func(c *config) *[]wire.Addr { return &c.fastcgi })},
	{name: "scgi", kind: list, listens: true, usage: "answer SCGI on `ADDR`", apply: addrs(func(c *config) *[]wire.Addr { return &c.scgi })},
	{name: "http", kind: list, listens: true, usage: "answer HTTP on `ADDR` (default 127.0.0.1:8000 if there is no other listener)", apply: addrs(func(c *config) *[]wire.Addr { return &c.http })},
	{name: "allow", kind: list, listens: true, usage: "a TCP FastCGI or SCGI listener accepts peers in `CIDR` (default loopback)", apply: applyAllow},
	{name: "workers", usage: "run `N` worker processes (default: number of CPUs)", apply: counts(func(c *config) *int { return &c.workers }, 1)},
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
	{name: "max-body", fallback: "1GiB", usage: "a request's body may have `SIZE`, then 413", apply: sizes(func(c *config) *int64 { return &c.maxBody })},
	{name: "max-headers", fallback: "64KiB", usage: "a request's header may have `SIZE`, then 431", apply: sizes(func(c *config) *int64 { return &c.maxHeaders })},
	{name: "debug", kind: boolean, usage: "development: tracebacks in the browser, wsgiref.validate around the application", apply: flags(func(c *config) *bool { return &c.debug })},
	{name: "access-log", usage: "write a line for each request to `FILE`; - is stderr", apply: text(func(c *config) *string { return &c.accessLog })},
	{name: "log-format", fallback: "text", usage: "write the access log as `FORMAT`: text, json or combined", apply: applyLogFormat},
}

func addrs(field func(*config) *[]wire.Addr) func(*config, string) error {
	return func(c *config, value string) error {
		addr, err := wire.ParseAddr(value)
		if err == nil {
			*field(c) = append(*field(c), addr)
		}
		return err
	}
}

func applyAllow(c *config, value string) error {
	if prefix, err := netip.ParsePrefix(value); err == nil {
		c.allow = append(c.allow, prefix.Masked())
		return nil
	}
	ip, err := netip.ParseAddr(value)
	if err != nil {
		return fmt.Errorf("%q is not an address or a network: write for example 10.0.0.0/8", value)
	}
	c.allow = append(c.allow, netip.PrefixFrom(ip, ip.BitLen()))
	return nil
}

func counts(field func(*config) *int, least int) func(*config, string) error {
	return func(c *config, value string) error {
		n, err := strconv.ParseUint(value, 10, 31)
		if err != nil || int(n) < least {
			return fmt.Errorf("%q is not a whole number of at least %d", value, least)
		}
		*field(c) = int(n)
		return nil
	}
}

func text(field func(*config) *string) func(*config, string) error {
	return func(c *config, value string) error {
		*field(c) = value
		return nil
	}
}

func texts(field func(*config) *[]string) func(*config, string) error {
	return func(c *config, value string) error {
		*field(c) = append(*field(c), value)
		return nil
	}
}

func flags(field func(*config) *bool) func(*config, string) error {
	return func(c *config, value string) (err error) {
		if *field(c), err = strconv.ParseBool(value); err != nil {
			return fmt.Errorf("%q is neither true nor false", value)
		}
		return nil
	}
}

// ownEnv are variables that no deployment can give: those of one request, and
// those between the service manager and this process.
var ownEnv = []string{"wsgi.", "REQUEST_METHOD", "CONTENT_LENGTH", "LISTEN_", "NOTIFY_SOCKET"}

func applyEnv(c *config, value string) error {
	name, _, _ := strings.Cut(value, "=")
	if name == "" {
		return fmt.Errorf("%q has no name: write NAME=value", value)
	}
	for _, own := range ownEnv {
		if name == own || strings.HasPrefix(name, own) && strings.ContainsAny(own[len(own)-1:], "._") {
			return fmt.Errorf("%s is not for a deployment to set: leave it out", name)
		}
	}
	c.env = append(c.env, value)
	return nil
}

func applyLogFormat(c *config, value string) (err error) {
	if c.logFormat, err = environ.ParseFormat(value); err != nil {
		return fmt.Errorf("%q is not text, json or combined", value)
	}
	return nil
}

// durations reads "90s", "1m30s", or a bare number of seconds.
func durations(field func(*config) *time.Duration, zero bool) func(*config, string) error {
	return func(c *config, value string) error {
		d, err := time.ParseDuration(value)
		if n, numErr := strconv.ParseFloat(value, 64); numErr == nil && math.Abs(n) < math.MaxInt64/1e9 {
			d, err = time.Duration(n*float64(time.Second)), nil
		}
		if err != nil || d < 0 || d == 0 && !zero {
			return fmt.Errorf("%q is not a length of time: write for example 90s or 5m", value)
		}
		*field(c) = d
		return nil
	}
}

// sizeUnits are powers of 1024, however they are written.
var sizeUnits = map[string]int64{"": 1, "b": 1, "k": 1 << 10, "kb": 1 << 10, "kib": 1 << 10, "m": 1 << 20, "mb": 1 << 20, "mib": 1 << 20, "g": 1 << 30, "gb": 1 << 30, "gib": 1 << 30}

func sizes(field func(*config) *int64) func(*config, string) error {
	return func(c *config, value string) error {
		digits := strings.TrimRight(value, "BGIKMbgikm")
		unit, known := sizeUnits[strings.ToLower(value[len(digits):])]
		n, err := strconv.ParseInt(digits, 10, 64)
		if err != nil || !known || n <= 0 || n > (1<<62)/unit {
			return fmt.Errorf("%q is not a size: write for example 64KiB, 200M or 1GiB", value)
		}
		*field(c) = n * unit
		return nil
	}
}

// envName returns the environment variable of a setting.
func (s *setting) envName() string {
	return "WSGIGATE_" + strings.ToUpper(strings.ReplaceAll(s.name, "-", "_"))
}

// flag returns the setting as a flag of the command line. Values are strings
// here: they are read in one place, whatever they came by.
func (s *setting) flag() cli.Flag {
	usage := s.usage
	if s.fallback != "" {
		usage += " (default " + s.fallback + ")"
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

// serveFlags returns the flags of a command; only serve listens.
func serveFlags(listens bool) []cli.Flag {
	all := []cli.Flag{&cli.StringFlag{Name: "config", Usage: "read the TOML `FILE`: its keys are app and the names of these flags"}}
	for i := range settings {
		if listens || !settings[i].listens {
			all = append(all, settings[i].flag())
		}
	}
	return all
}

// sourced is a value and where it came from, for messages.
type sourced struct{ value, source string }

// load reads all settings of a command. Everything that is wrong is in one
// error.
func load(c *cli.Context, listens bool, app string, workers int) (*config, error) {
	cfg := &config{app: app, workers: workers}
	file, err := readConfigFile(configPath(c))
	errs := multierror.Append(nil, err)
	if values := file["app"]; len(values) > 0 && app == "" {
		errs = multierror.Append(errs, once(values))
		cfg.app = values[0].value
	}
	for i := range settings {
		s := &settings[i]
		if !s.listens || listens {
			errs = multierror.Append(errs, s.set(cfg, s.given(c, file)))
		}
	}
	if listens {
		errs = multierror.Append(errs, cfg.checkListeners()...)
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

// defaultHTTP is where serve listens if nothing else is said.
var defaultHTTP = wire.Addr{Host: "127.0.0.1", Port: 8000}

// checkListeners refuses to open to the network what trusts its peers.
func (c *config) checkListeners() (errs []error) {
	if len(c.fastcgi)+len(c.scgi)+len(c.http) == 0 {
		c.http = []wire.Addr{defaultHTTP}
	}
	if c.allow != nil {
		return nil
	}
	for _, l := range []struct {
		flag  string
		addrs []wire.Addr
	}{{"--fastcgi", c.fastcgi}, {"--scgi", c.scgi}} {
		for _, addr := range l.addrs {
			if !addr.Loopback() {
				errs = append(errs, fmt.Errorf("%s %s: a peer can claim to be any client and any user, so other machines must be named: add --allow CIDR, or listen on a unix socket or loopback", l.flag, addr))
			}
		}
	}
	return errs
}

// settleFolders looks whether folders are there. Those of --pythonpath are seen
// from the working directory of the application, as Python would see them.
func (c *config) settleFolders() (errs []error) {
	if c.chdir != "" {
		errs = append(errs, checkFolder("--chdir", c.chdir))
	}
	for i, dir := range c.pythonPath {
		dir, err := filepath.Abs(inFolder(c.chdir, dir))
		errs = append(errs, err, checkFolder("--pythonpath", dir))
		c.pythonPath[i] = dir
	}
	return slices.DeleteFunc(errs, func(err error) bool { return err == nil })
}

func checkFolder(flag, dir string) error {
	switch st, err := os.Stat(dir); {
	case errors.Is(err, fs.ErrNotExist):
		return fmt.Errorf("%s: there is no folder %s", flag, dir)
	case err != nil:
		return fmt.Errorf("%s: %w", flag, err)
	case !st.IsDir():
		return fmt.Errorf("%s: %s is not a folder", flag, dir)
	}
	return nil
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
		App: c.app, Python: c.python, Workers: c.workers, Threads: c.threads,
		Chdir: c.chdir, PythonPath: c.pythonPath, Env: c.env, Debug: c.debug,
		Timeout: forever(c.timeout), QueueTimeout: c.queueTimeout, Queue: queue,
		GracefulTimeout: c.graceful, StartupTimeout: c.startup, Limits: c.limits(),
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
