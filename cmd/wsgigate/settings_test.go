package main

import (
	"errors"
	"math"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/go-multierror"
	"github.com/urfave/cli/v2"
)

func TestSizes(t *testing.T) {
	for text, want := range map[string]int64{
		"1": 1, "1b": 1, "64k": 64 << 10, "64KB": 64 << 10, "64KiB": 64 << 10,
		"10M": 10 << 20, "10mib": 10 << 20, "2G": 2 << 30, "1GiB": 1 << 30, "4294967296G": 1 << 62,
		"": 0, "0": 0, "-1": 0, "+1": 1, "1.5G": 0, "G": 0, "1X": 0, "1 G": 0, "1GG": 0, "1ib": 0, "0x10": 0,
		"4294967297G": 0, "9223372036854775808": 0,
	} {
		var c config
		err := sizes(func(c *config) *int64 { return &c.maxBody })(&c, text)
		if (err == nil) != (want != 0) || c.maxBody != want {
			t.Errorf("%q: %d, %v, want %d", text, c.maxBody, err, want)
		}
	}
}

func TestDurations(t *testing.T) {
	for text, want := range map[string]time.Duration{
		"90s": 90 * time.Second, "1m30s": 90 * time.Second, "90": 90 * time.Second, "1.5": 1500 * time.Millisecond, "250ms": 250 * time.Millisecond,
		"": -1, "-1": -1, "-1s": -1, "soon": -1, "0": -1, "0s": -1, "1 s": -1,
		"nan": -1, "inf": -1, "-inf": -1, "1e300": -1, "9223372037": -1, "9000000000": 9e18,
	} {
		c := config{timeout: -1}
		err := durations(func(c *config) *time.Duration { return &c.timeout }, false)(&c, text)
		if (err == nil) != (want != -1) || c.timeout != want {
			t.Errorf("%q: %v, %v, want %v", text, c.timeout, err, want)
		}
	}
	c := config{timeout: 1}
	if err := durations(func(c *config) *time.Duration { return &c.timeout }, true)(&c, "0"); err != nil || c.timeout != 0 {
		t.Errorf("0 where it is allowed: %v, %v", c.timeout, err)
	}
}

func TestCounts(t *testing.T) {
	for text, want := range map[string]int{"1": 1, "2147483647": math.MaxInt32, "0": -1, "-1": -1, "1:4": -1, "x": -1, "": -1, "2147483648": -1, "1.0": -1} {
		c := config{workers: -1}
		err := counts(func(c *config) *int { return &c.workers }, 1)(&c, text)
		if (err == nil) != (want >= 0) || c.workers != want {
			t.Errorf("%q: %d, %v, want %d", text, c.workers, err, want)
		}
	}
}

func TestWorkers(t *testing.T) {
	for text, want := range map[string][2]int{ // MinWorkers and Workers as pyrunner.Config has them
		"1": {0, 1}, "4": {0, 4}, "2:8": {2, 8}, "3:3": {3, 3}, "0:4": {-1, 4}, "0:1": {-1, 1},
		"0": {}, "0:0": {}, "4:2": {}, ":4": {}, "4:": {}, "": {}, "-1:2": {}, "1:2:3": {}, "x": {}, "2147483648": {},
	} {
		var c config
		err := applyWorkers(&c, text)
		if got := [2]int{c.minWorkers, c.workers}; (err == nil) != (want[1] > 0) || got != want {
			t.Errorf("%q: %v, %v, want %v", text, got, err, want)
		}
	}
}

func TestUmask(t *testing.T) {
	for text, want := range map[string]int{"027": 0o27, "0": 0, "777": 0o777, "0o22": -1, "1000": -1, "8": -1, "-1": -1, "": -1} {
		c := config{umask: -1}
		if err := applyUmask(&c, text); (err == nil) != (want >= 0) || c.umask != want {
			t.Errorf("%q: %o, %v, want %o", text, c.umask, err, want)
		}
	}
}

// TestPlaces: two addresses are the same place or are not.
func TestPlaces(t *testing.T) {
	for _, c := range []struct {
		control, status string
		same            bool
	}{
		{"unix:a", "unix:./a", true}, {"unix:a", "unix:b", false}, {"unix:a", ":1", false},
		{"unix:a", "systemd", false}, {"unix:a", ":0", false}, {"unix:a", "0.0.0.0:9", false}, {"unix:a", "fd:3", false},
	} {
		_, err := parse(t, "--http", ":1234", "--control", c.control, "--status", c.status)
		if (err != nil) != c.same {
			t.Errorf("%+v: %v", c, err)
		}
	}
	for _, taken := range []string{":1234", "localhost:1234", "127.0.0.1:1234"} {
		if _, err := parse(t, "--http", "127.0.0.1:1234", "--status", taken); err == nil || !strings.Contains(err.Error(), "that is the address of --http") {
			t.Errorf("%s: %v", taken, err)
		}
	}
	for _, chosen := range []string{":0", "systemd"} { // by the system, another one each time
		if _, err := parse(t, "--http", chosen, "--scgi", chosen, "--status", chosen); err != nil {
			t.Error(err)
		}
	}
	if _, err := parse(t, "--http", "systemd:a", "--status", "systemd:a"); err == nil {
		t.Error("one socket of systemd's is given to two listeners")
	}
}

// TestProbe: the request of --probe is one as the application's others are.
func TestProbe(t *testing.T) {
	cfg, err := parse(t, "--probe", "/up%20there?x=1", "--env", "HTTPS=on")
	if err != nil {
		t.Fatal(err)
	}
	probe := cfg.pool().Probe
	first, second := probe(), probe()
	if first == second || first.ID == second.ID {
		t.Error("two probes are one request")
	}
	for name, want := range map[string]string{"PATH_INFO": "/up there", "QUERY_STRING": "x=1", "REQUEST_METHOD": "GET", "HTTPS": "on", "SERVER_NAME": "localhost"} {
		if got := string(first.Environ.Get(name)); got != want {
			t.Errorf("%s is %q, want %q", name, got, want)
		}
	}
	if cfg, err = parse(t); err != nil || cfg.pool().Probe != nil {
		t.Errorf("without --probe: %v", err)
	}
}

func TestAllow(t *testing.T) {
	for text, want := range map[string]string{"10.1.2.3/8": "10.0.0.0/8", "10.1.2.3": "10.1.2.3/32", "::1": "::1/128", "fd00::/8": "fd00::/8", "x": "", "10.0.0.0/33": "", "": ""} {
		var c config
		err := applyAllow(&c, text)
		if want == "" {
			if err == nil {
				t.Errorf("%q: %v", text, c.allow)
			}
		} else if err != nil || !slices.Equal(c.allow, []netip.Prefix{netip.MustParsePrefix(want)}) {
			t.Errorf("%q: %v, %v", text, c.allow, err)
		}
	}
}

func TestEnv(t *testing.T) {
	for text, ok := range map[string]bool{
		"A=1": true, "A=": true, "A": true, "SCRIPT_NAME=/x": true, "LISTENER=1": true, "NOTIFY_SOCKETS=1": true, "wsgi=1": true, "HTTPS=on": true,
		"": false, "=": false, "=x": false, "LISTEN_FDS": false, "LISTEN_PID=1": false, "NOTIFY_SOCKET=x": false,
		"wsgi.url_scheme=https": false, "REQUEST_METHOD=GET": false, "CONTENT_LENGTH=1": false,
	} {
		if err := applyEnv(new(config), text); (err == nil) != ok {
			t.Errorf("%q: %v", text, err)
		}
	}
}

// parse gives a command line to load, as serve does.
func parse(t *testing.T, args ...string) (*config, error) {
	t.Helper()
	var cfg *config
	var loadErr error
	app := &cli.App{Flags: serveFlags(listening), DisableSliceFlagSeparator: true, Action: func(c *cli.Context) error {
		cfg, loadErr = load(c, listening, c.Args().First(), 4)
		return nil
	}}
	if err := app.Run(append([]string{"wsgigate"}, flagsFirst(app.Flags, args)...)); err != nil {
		t.Fatal(err)
	}
	return cfg, loadErr
}

// TestPrecedence: a flag is before the environment, that is before the file, and
// that before the default. Each setting is settled by itself.
func TestPrecedence(t *testing.T) {
	file := filepath.Join(t.TempDir(), "wsgigate.toml")
	text := "app = 'file:app'\nthreads = 2\nqueue = 2\ntimeout = '2s'\nhttp = [':2', ':3']\ndebug = true\nenv = ['A=file', 'B=file']\n"
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	t.Setenv("WSGIGATE_CONFIG", file)
	t.Setenv("WSGIGATE_QUEUE", "3")
	t.Setenv("WSGIGATE_TIMEOUT", "3s")
	t.Setenv("WSGIGATE_ENV", "C=first\nD=second, with a comma\n")
	t.Setenv("WSGIGATE_HTTP", "")
	cfg, err := parse(t, "--timeout", "4s", "--debug=false", "--fastcgi", "unix:a", "--fastcgi", "unix:b,mode=0660")
	if err != nil {
		t.Fatal(err)
	}
	if cfg.app != "file:app" || cfg.threads != 2 || cfg.queue != 3 || cfg.timeout != 4*time.Second || cfg.debug {
		t.Errorf("%+v", cfg)
	}
	if cfg.workers != 4 || cfg.graceful != 30*time.Second || cfg.maxBody != 1<<30 {
		t.Errorf("defaults: %+v", cfg)
	}
	if !slices.Equal(cfg.env, []string{"C=first", "D=second, with a comma"}) {
		t.Errorf("env: %q", cfg.env)
	}
	if len(cfg.http) != 2 || cfg.http[1].Port != 3 || len(cfg.fastcgi) != 2 || cfg.fastcgi[1].Mode != 0o660 {
		t.Errorf("http %v, fastcgi %v", cfg.http, cfg.fastcgi)
	}
	if cfg, err = parse(t, "given:app"); err != nil || cfg.app != "given:app" {
		t.Errorf("APP: %q, %v", cfg.app, err)
	}
}

func TestListeners(t *testing.T) {
	for _, c := range []struct {
		args    string
		refused string // the flag that is
	}{
		{args: ""},
		{args: "--fastcgi unix:x --scgi :1 --fastcgi localhost:1 --scgi [::1]:1 --fastcgi fd:0"},
		{args: "--http 0.0.0.0:80"},
		{args: "--fastcgi 0.0.0.0:9000", refused: "--fastcgi"},
		{args: "--scgi example.org:9000", refused: "--scgi"},
		{args: "--scgi [::]:9000", refused: "--scgi"},
		{args: "--fastcgi 0.0.0.0:9000 --scgi [::]:9000 --allow 10.0.0.0/8"},
	} {
		cfg, err := parse(t, strings.Fields(c.args)...)
		if c.refused == "" {
			if err != nil || len(cfg.http)+len(cfg.fastcgi)+len(cfg.scgi) == 0 {
				t.Errorf("%q: %v", c.args, err)
			}
			continue
		}
		many, ok := errors.AsType[*multierror.Error](err)
		if !ok || len(many.Errors) != 1 || !strings.HasPrefix(many.Errors[0].Error(), c.refused) || !strings.Contains(err.Error(), "--allow") {
			t.Errorf("%q: %v", c.args, err)
		}
	}
}

func TestAppFolder(t *testing.T) {
	for _, c := range [][3]string{ // chdir, app, folder
		{"", "site:app", ""},
		{"/srv", "site:app", "/srv"},
		{"/srv", "", "/srv"},
		{"", "sub/site.py:app", "sub"},
		{"/srv", "sub/site.py", "/srv/sub"},
		{"/srv", "/opt/site.py", "/opt"},
		{"/srv", "./site.py", "/srv"},
	} {
		if got := (&config{chdir: c[0], app: c[1]}).appFolder(); got != c[2] {
			t.Errorf("--chdir %q %q: %q, want %q", c[0], c[1], got, c[2])
		}
	}
}

// TestSettings: each setting is whole, so that each way of giving it works.
func TestSettings(t *testing.T) {
	seen := map[string]bool{"app": true, "config": true}
	for i := range settings {
		s := &settings[i]
		if s.name == "" || seen[s.name] || s.apply == nil || s.kind != boolean && strings.Count(s.usage, "`") != 2 {
			t.Errorf("%+v", s)
		}
		seen[s.name] = true
		if s.fallback != "" {
			if err := s.apply(new(config), s.fallback); err != nil {
				t.Errorf("default of %s: %v", s.name, err)
			}
		}
	}
}

// TestBadValues: each setting that can be given a bad value says what is wrong with it,
// after the flag's name, and does so beside all the others.
func TestBadValues(t *testing.T) {
	const positive, natural = "must be more than 0: write for example 90s or 5m", "must be 0 or more: write for example 90s or 5m"
	const count, length, size, truth = "is not a whole number of at least 1", "is not a length of time: write for example 90s or 5m",
		"is not a size: write for example 64KiB, 200M or 1GiB", "is neither true nor false"
	bad := map[string][2]string{ // value and message
		"fastcgi": {"nowhere", `address "nowhere": write unix:/path, HOST:PORT, :PORT, fd:N or systemd[:NAME]`},
		"scgi":    {"unix:", `address "unix:": the path is missing, for example unix:/run/app.sock`},
		"http":    {"systemd:", `address "systemd:": the name is missing`},
		"allow":   {"10.0.0.0/33", `"10.0.0.0/33" is not an address or a network: write for example 10.0.0.0/8`},
		"workers": {"8:2", `"8:2" is not a whole number of at least 1, nor MIN:MAX: write for example 4, 2:8 or 0:4`},
		"threads": {"0", count}, "env": {"=x", `"=x" has no name: write NAME=value`},
		"timeout": {"soon", length}, "queue-timeout": {"0", positive}, "queue": {"-1", "is not a whole number of at least 0"},
		"graceful-timeout": {"0s", positive}, "startup-timeout": {"-5s", positive}, "idle-timeout": {"0", positive}, "exit-idle": {"-1", natural},
		"max-requests": {"-1", "is not a whole number of at least 0"}, "max-age": {"1 day", length}, "max-memory": {"0", size},
		"slow": {"1x", length}, "raise-on-timeout": {"perhaps", truth}, "max-body": {"1.5G", size}, "max-headers": {"-1", size},
		"limit-memory": {"much", size}, "limit-files": {"0", count}, "limit-cpu": {"-1s", natural}, "no-new-privs": {"2", truth},
		"preload": {"x", truth}, "reload": {"x", truth}, "reload-mode": {"serial", `"serial" is neither parallel nor rolling`}, "debug": {"x", truth},
		"control": {"/run/x", `address "/run/x": for a unix socket write unix:/run/x`}, "status": {":99999", `port "99999" is not a number from 0 to 65535`},
		"umask": {"8", `"8" is not a mask of permissions: write an octal number such as 027`}, "log-format": {"xml", `"xml" is not text, json or combined`},
		"probe": {"nope", `the path "nope" must begin with a slash`}, "touch-reload": {"/nowhere/at/all", "there is no folder /nowhere/at"},
		"chdir": {"/nowhere/at/all", "there is no folder /nowhere/at/all"}, "pythonpath": {"/nowhere/there", "there is no folder /nowhere/there"},
		"python": {"/nowhere/python", "/nowhere/python"}, "user": {"no-such-user", "unknown user no-such-user"}, "group": {"no-such-group", "unknown group no-such-group"},
		"access-log": {"/nowhere/at/all", "there is no folder /nowhere/at"}, "error-log": {"/", "/ is a folder: name a file in it"},
	}
	var args []string
	for i := range settings {
		s := &settings[i]
		if c, ok := bad[s.name]; ok {
			args = append(args, "--"+s.name+"="+c[0])
		} else {
			t.Errorf("--%s: no bad value is known", s.name)
		}
	}
	args = slices.DeleteFunc(args, func(arg string) bool { // package flag reads these itself
		name, value, _ := strings.Cut(arg[2:], "=")
		if bad[name][1] != truth {
			return false
		}
		t.Setenv("WSGIGATE_"+strings.ToUpper(strings.ReplaceAll(name, "-", "_")), value)
		return true
	})
	_, err := parse(t, args...)
	many, ok := errors.AsType[*multierror.Error](err)
	if !ok || len(many.Errors) != len(bad) {
		t.Errorf("%d errors are told, want %d", len(many.Errors), len(bad))
	}
	for name, c := range bad {
		source := "--" + name
		if c[1] == truth {
			source = "WSGIGATE_" + strings.ToUpper(strings.ReplaceAll(name, "-", "_"))
		}
		if !slices.ContainsFunc(many.Errors, func(err error) bool {
			return strings.HasPrefix(err.Error(), source) && strings.Contains(err.Error(), c[1])
		}) {
			t.Errorf("--%s=%s: no %q in\n%v", name, c[0], c[1], err)
		}
	}
}

func TestMessage(t *testing.T) {
	many := multierror.Append(errors.New("--a: wrong"), errors.New("pyrunner: b"))
	for want, err := range map[string]error{
		"wsgigate: x":                        errors.New("x"),
		"wsgigate: no module":                errors.New("pyrunner: no module"),
		"wsgigate: --a: wrong\nwsgigate: b":  configError(many),
		"wsgigate: one APP at most, not two": usage("one APP at most, not %s", "two"),
	} {
		if got := message(err); got != want {
			t.Errorf("%q, want %q", got, want)
		}
	}
	if code := configError(many).(cli.ExitCoder).ExitCode(); code != exitConfig {
		t.Errorf("exit status %d", code)
	}
}
