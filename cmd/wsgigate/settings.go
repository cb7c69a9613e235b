package main

import (
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
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
	accessLog             string
	logFormat             environ.Format
}

// setting is one flag of serve, which is also WSGIGATE_NAME in the environment
// and a key of the configuration file.
type setting struct {
	name     string
	kind     kind
	fallback string // value if none is given; empty: leave the field alone
	arg      string // what the help calls the value
	usage    string
	listens  bool // only commands that open listeners have it
	apply    func(c *config, value string) error
}

type kind uint8

const (
	single kind = iota
	list        // may be given more than once
	boolean
)

// settings is every flag. A later issue of a flag's meaning belongs here and nowhere else.
var settings = []setting{
	{name: "fastcgi", kind: list, arg: "ADDR", listens: true, usage: "answer FastCGI on `ADDR`: unix:/path[,mode=0660,user=U,group=G], HOST:PORT, :PORT (loopback), fd:N; repeatable", apply: addrs(func(c *config) *[]wire.Addr { return &c.fastcgi })},
	{name: "scgi", kind: list, arg: "ADDR", listens: true, usage: "answer SCGI on `ADDR`; repeatable", apply: addrs(func(c *config) *[]wire.Addr { return &c.scgi })},
	{name: "http", kind: list, arg: "ADDR", listens: true, usage: "answer HTTP on `ADDR`; repeatable (default 127.0.0.1:8000 if there is no other listener)", apply: addrs(func(c *config) *[]wire.Addr { return &c.http })},
	{name: "allow", kind: list, arg: "CIDR", listens: true, usage: "peers that a TCP FastCGI or SCGI listener accepts (default loopback); repeatable", apply: applyAllow},
	{name: "workers", arg: "N", usage: "worker `N` processes (default: number of CPUs)", apply: counts(func(c *config) *int { return &c.workers }, 1)},
	{name: "threads", arg: "N", fallback: "1", usage: "`N` threads, so requests at once, in each worker", apply: counts(func(c *config) *int { return &c.threads }, 1)},
	{name: "python", arg: "PATH", usage: "interpreter (default: $VIRTUAL_ENV, then .venv or venv beside the application, then python3)", apply: text(func(c *config) *string { return &c.python })},
	{name: "chdir", arg: "DIR", usage: "working directory of the application", apply: text(func(c *config) *string { return &c.chdir })},
	{name: "pythonpath", kind: list, arg: "DIR", usage: "folder put first on sys.path; repeatable", apply: texts(func(c *config) *[]string { return &c.pythonPath })},
	{name: "env", kind: list, arg: "K=V", usage: "variable for the workers and for each request's environ; K alone passes the gateway's own to the workers; repeatable", apply: applyEnv},
	{name: "timeout", arg: "D", fallback: "60s", usage: "a request may take this long, then 504 and the worker is replaced; 0: for ever", apply: durations(func(c *config) *time.Duration { return &c.timeout }, true)},
	{name: "queue-timeout", arg: "D", fallback: "30s", usage: "a request may wait this long for a worker, then 503", apply: durations(func(c *config) *time.Duration { return &c.queueTimeout }, false)},
	{name: "queue", arg: "N", fallback: "1024", usage: "this many requests may wait for a worker, then 503 at once", apply: counts(func(c *config) *int { return &c.queue }, 0)},
	{name: "graceful-timeout", arg: "D", fallback: "30s", usage: "running requests may take this long when the server stops", apply: durations(func(c *config) *time.Duration { return &c.graceful }, false)},
	{name: "startup-timeout", arg: "D", fallback: "60s", usage: "importing the application may take this long", apply: durations(func(c *config) *time.Duration { return &c.startup }, false)},
	{name: "max-body", arg: "SIZE", fallback: "1GiB", usage: "a request's body may have this size, then 413", apply: sizes(func(c *config) *int64 { return &c.maxBody })},
	{name: "max-headers", arg: "SIZE", fallback: "64KiB", usage: "a request's header may have this size, then 431", apply: sizes(func(c *config) *int64 { return &c.maxHeaders })},
	{name: "debug", kind: boolean, usage: "development: tracebacks in the browser, wsgiref.validate around the application", apply: flags(func(c *config) *bool { return &c.debug })},
	{name: "access-log", arg: "FILE", usage: "write a line for each request to `FILE`; - is stderr", apply: text(func(c *config) *string { return &c.accessLog })},
	{name: "log-format", arg: "FORMAT", fallback: "text", usage: "form of the access log: text, json or combined", apply: applyLogFormat},
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

func applyEnv(c *config, value string) error {
	if name, _, _ := strings.Cut(value, "="); name == "" {
		return fmt.Errorf("%q has no name: write NAME=value", value)
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
		if n, numErr := strconv.ParseFloat(value, 64); numErr == nil {
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
	if !strings.Contains(usage, "`") && s.arg != "" {
		usage = strings.Replace("`"+s.arg+"`: ", "``: ", "", 1) + usage
	}
	switch s.kind {
	case list:
		return &cli.StringSliceFlag{Name: s.name, Usage: usage}
	case boolean:
		return &cli.BoolFlag{Name: s.name, Usage: usage}
	default:
		return &cli.StringFlag{Name: s.name, Usage: usage}
	}
}

// serveFlags returns the flags of a command; only serve listens.
func serveFlags(listens bool) []cli.Flag {
	all := []cli.Flag{&cli.StringFlag{Name: "config", Usage: "`FILE`: TOML, its keys are the names of these flags, and app"}}
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
	file, fileErrs := readConfigFile(configPath(c))
	errs := multierror.Append(nil, fileErrs...)
	if values, ok := file["app"]; ok && app == "" {
		cfg.app = values[0].value
	}
	delete(file, "app")
	for i := range settings {
		s := &settings[i]
		values := s.given(c, file)
		delete(file, s.name)
		if s.listens && !listens {
			continue
		}
		if values == nil && s.fallback != "" {
			values = []sourced{{s.fallback, "default of --" + s.name}}
		}
		for _, v := range values {
			if err := s.apply(cfg, v.value); err != nil {
				errs = multierror.Append(errs, fmt.Errorf("%s: %w", v.source, err))
			}
		}
	}
	for key, values := range file {
		errs = multierror.Append(errs, fmt.Errorf("%s: no such setting: see wsgigate serve --help for the names (%q)", values[0].source, key))
	}
	if listens {
		errs = multierror.Append(errs, cfg.checkListeners()...)
	}
	errs = multierror.Append(errs, cfg.checkFolders()...)
	if err := cfg.findPython(); err != nil {
		errs = multierror.Append(errs, err)
	}
	return cfg, errs.ErrorOrNil()
}

func configPath(c *cli.Context) string {
	if c.IsSet("config") {
		return c.String("config")
	}
	return os.Getenv("WSGIGATE_CONFIG")
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
func readConfigFile(path string) (map[string][]sourced, []error) {
	if path == "" {
		return nil, nil
	}
	var raw map[string]any
	if _, err := toml.DecodeFile(path, &raw); err != nil {
		if parse, ok := errors.AsType[toml.ParseError](err); ok {
			return nil, []error{fmt.Errorf("--config %s: line %d: %s", path, parse.Position.Line, parse.Message)}
		}
		return nil, []error{fmt.Errorf("--config: %w", err)}
	}
	values := map[string][]sourced{}
	var errs []error
	for key, value := range raw {
		source := path + ": " + key
		items, isList := value.([]any)
		if !isList {
			items = []any{value}
		}
		for _, item := range items {
			switch item.(type) {
			case string, bool, int64, float64:
				values[key] = append(values[key], sourced{fmt.Sprint(item), source})
			default:
				errs = append(errs, fmt.Errorf("%s: write a string, a number, true, false or a list of them", source))
			}
		}
	}
	return values, errs
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

func (c *config) checkFolders() (errs []error) {
	for _, dir := range append([]string{c.chdir}, c.pythonPath...) {
		if dir == "" {
			continue
		}
		flag := "--pythonpath"
		if dir == c.chdir {
			flag = "--chdir"
		}
		if st, err := os.Stat(dir); err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", flag, err))
		} else if !st.IsDir() {
			errs = append(errs, fmt.Errorf("%s: %s is not a folder", flag, dir))
		}
	}
	return errs
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
		return filepath.Join(c.chdir, filepath.Dir(file))
	}
	return c.chdir
}
