package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/urfave/cli/v2"

	"wsgigate/pyrunner"
	"wsgigate/pyrunner/control"
	"wsgigate/pyrunner/status"
)

// controlled is a server that does what a test wants.
type controlled struct {
	status pyrunner.Status
	reload error
	stop   func()
}

var _ control.Server = (*controlled)(nil)

// Status returns the test's.
func (s *controlled) Status() pyrunner.Status { return s.status }

// Reload returns the test's error.
func (s *controlled) Reload(context.Context) error { return s.reload }

// Stop does what the test wants.
func (s *controlled) Stop() { s.stop() }

// listen serves the control protocol on a socket until the test or stop ends it.
func (s *controlled) listen(t *testing.T) (path string) {
	t.Helper()
	path = filepath.Join(t.TempDir(), "control")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	facts := status.Facts{Version: "1.2.0", Listeners: []string{"http 127.0.0.1:8000"}, PID: 4100, Started: time.Now()}
	server := &http.Server{Handler: control.Handler(facts, s), ConnContext: control.ConnContext}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		_ = server.Serve(l)
	}()
	s.stop = func() { _ = l.Close() }
	t.Cleanup(func() {
		_ = server.Close()
		<-ended
	})
	return path
}

// told runs a command of the control group and returns what it prints.
func told(args ...string) (string, error) {
	var out bytes.Buffer
	app := &cli.App{
		Writer: &out, ErrWriter: &out, ExitErrHandler: func(*cli.Context, error) {},
		Commands: []*cli.Command{statusCommand(), reloadCommand(), stopCommand()},
	}
	err := app.Run(append([]string{"wsgigate"}, args...))
	return out.String(), err
}

func readyStatus() pyrunner.Status {
	return pyrunner.Status{App: "mysite:application", State: pyrunner.HealthReady, Generation: 1, MinWorkers: 1, MaxWorkers: 1, Threads: 1,
		Workers: []pyrunner.WorkerStatus{{PID: 4107, State: "ready", Generation: 1, Started: time.Now()}}}
}

func TestControlStatus(t *testing.T) {
	s := &controlled{status: readyStatus()}
	path := s.listen(t)
	out, err := told("status", "--control", "unix:"+path)
	if err != nil {
		t.Error(err)
	}
	if want := regexp.MustCompile(`(?s)^mysite:application: ready, .*\nworkers   1 of 1, 1 ready.*\n4107 +ready `); !want.MatchString(out) {
		t.Errorf("no %s in\n%s", want, out)
	}
	out, err = told("status", "--json", "--control", "unix:"+path)
	if err != nil {
		t.Error(err)
	}
	var got status.Snapshot
	if err := json.Unmarshal([]byte(out), &got); err != nil || got.Workers[0].PID != 4107 || got.Server.PID != 4100 {
		t.Errorf("%v in\n%s", err, out)
	}
}

// TestControlStatusExit: the exit status of "status" is that of a health check.
func TestControlStatusExit(t *testing.T) {
	for _, c := range []struct {
		state   pyrunner.Health
		workers int
		want    string // the error
	}{
		{pyrunner.HealthReady, 1, ""}, {pyrunner.HealthReloading, 1, ""}, {pyrunner.HealthStarting, 0, ""}, {pyrunner.HealthIdle, 0, ""},
		{pyrunner.HealthStopping, 1, ""}, {pyrunner.HealthStopping, 0, "no worker is there"}, {pyrunner.HealthReady, 0, "no worker is there"},
		{pyrunner.HealthCrashLoop, 0, "workers end before they have answered anything (crash loop)"},
		{pyrunner.HealthCrashLoop, 1, "workers end before they have answered anything (crash loop)"},
	} {
		s := &controlled{status: readyStatus()}
		s.status.State, s.status.Workers = c.state, s.status.Workers[:c.workers]
		path := s.listen(t)
		for _, flags := range [][]string{{"status"}, {"status", "--json"}} {
			out, err := told(append(flags, "--control", "unix:"+path)...)
			if fmt.Sprint(err) != c.want && (err != nil || c.want != "") {
				t.Errorf("%s, %d workers: %v, want %q", c.state, c.workers, err, c.want)
			}
			if !strings.Contains(out, string(c.state)) {
				t.Errorf("%s is not told:\n%s", c.state, out)
			}
		}
	}
}

// interrupting ends a context with the second text that it is given.
type interrupting struct {
	texts  []string
	cancel context.CancelFunc
}

// Write takes a text.
func (w *interrupting) Write(p []byte) (int, error) {
	if w.texts = append(w.texts, string(p)); len(w.texts) == 2 {
		w.cancel()
	}
	return len(p), nil
}

func TestControlWatch(t *testing.T) {
	s := &controlled{status: readyStatus()}
	client := control.Client{Path: s.listen(t)}
	ctx, cancel := context.WithCancel(t.Context())
	out := &interrupting{cancel: cancel}
	if err := watchStatus(ctx, out, client); err != nil {
		t.Error(err)
	}
	for _, text := range out.texts {
		if !strings.HasPrefix(text, "mysite:application: ready") {
			t.Errorf("%q", text)
		}
	}
	if err := watchStatus(t.Context(), out, control.Client{Path: "/nowhere/at/all"}); err == nil {
		t.Error("a server that is not there is waited for")
	}
}

func TestDraw(t *testing.T) {
	for _, c := range []struct {
		screen terminal
		text   string
		want   string
	}{
		{terminal{}, "a\nb\n", "a\nb\n\n"},
		{terminal{80, 24}, "a\nb\n", "\x1b[Ha\x1b[K\nb\x1b[K\n\x1b[J"},
		{terminal{80, 2}, "a\nb\nc\n", "\x1b[Ha\x1b[K\n\x1b[J"},
		{terminal{80, 1}, "a\nb\n", "\x1b[Ha\x1b[K\n\x1b[J"},
	} {
		if got := c.screen.draw(c.text); got != c.want {
			t.Errorf("%+v: %q, want %q", c.screen, got, c.want)
		}
	}
}

func TestControlReload(t *testing.T) {
	s := &controlled{status: readyStatus()}
	path := s.listen(t)
	out, err := told("reload", "--control", "unix:"+path)
	if err != nil || !regexp.MustCompile(`^reloaded: 1 worker in \d+\.\d\ds\n$`).MatchString(out) {
		t.Errorf("%v, %q", err, out)
	}
	s.reload = errors.New("pyrunner: mysite cannot be imported\nTraceback:\n\toops\x1b[2J\n")
	out, err = told("reload", "--control", "unix:"+path)
	if want := "the reload failed, the old workers serve on: mysite cannot be imported\nTraceback:\n\toops\\x1b[2J"; err == nil || err.Error() != want || out != "" {
		t.Errorf("%v, want %s; printed %q", err, want, out)
	}
}

// TestControlMute: a server that is suspended is given up, and nothing is said of it that
// is not known.
func TestControlMute(t *testing.T) {
	path := filepath.Join(t.TempDir(), "control")
	l, err := net.Listen("unix", path) // the kernel takes connections for it
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	client := control.Client{Path: path, Patience: 50 * time.Millisecond}
	if err := reload(t.Context(), nil, client); err == nil || !strings.HasSuffix(err.Error(), "has said nothing for 50ms: it hangs or is suspended") {
		t.Error(err)
	}
	ctx, interrupt := context.WithCancel(t.Context())
	interrupt()
	if err := reload(ctx, nil, client); err == nil || err.Error() != "interrupted: the server has not said that it reloads; once it answers, it may" {
		t.Error(err)
	}
}

// TestControlReloadInterrupted: a reload that has begun goes on.
func TestControlReloadInterrupted(t *testing.T) {
	path := filepath.Join(t.TempDir(), "control")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	ctx, interrupt := context.WithCancel(t.Context())
	server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.WriteHeader(http.StatusProcessing)
		<-r.Context().Done()
	})}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		_ = server.Serve(l)
	}()
	defer func() {
		_ = server.Close()
		<-ended
	}()
	time.AfterFunc(time.Second, interrupt) // it has begun long before
	if err := reload(ctx, nil, control.Client{Path: path}); err == nil || err.Error() != "interrupted: the reload goes on" {
		t.Error(err)
	}
}

func TestControlStop(t *testing.T) {
	s := &controlled{}
	path := s.listen(t)
	out, err := told("stop", "--control", "unix:"+path)
	if err != nil || !regexp.MustCompile(`^stopped in \d+\.\d\ds\n$`).MatchString(out) {
		t.Errorf("%v, %q", err, out)
	}
	deaf := &controlled{}
	path = deaf.listen(t)
	deaf.stop = func() {}
	if _, err = told("stop", "--timeout", "0.1", "--control", "unix:"+path); err == nil || !strings.HasPrefix(err.Error(), "the server still runs 100ms after") {
		t.Error(err)
	}
}

// TestControlFinds: the server is found as it was started.
func TestControlFinds(t *testing.T) {
	s := &controlled{status: readyStatus()}
	path := s.listen(t)
	file := filepath.Join(t.TempDir(), "wsgigate.toml")
	if err := os.WriteFile(file, fmt.Appendf(nil, "app = 'mysite'\nworkers = 2\ncontrol = 'unix:%s'\n", path), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		env, config string
		args        []string
		err         string
	}{
		"flag":              {args: []string{"--control", "unix:" + path}},
		"environment":       {env: "unix:" + path},
		"file":              {args: []string{"--config", file}},
		"file, environment": {config: file},
		"flag first":        {env: "unix:/nowhere", config: file, args: []string{"--control", "unix:" + path}},
		"environment first": {env: "unix:/nowhere", config: file, err: "there is no socket /nowhere: is the server running with --control unix:/nowhere?"},
		"none":              {err: "which server? Give --control unix:PATH or --config FILE, or set WSGIGATE_CONTROL, as for the server"},
		"TCP":               {env: "127.0.0.1:80", err: `WSGIGATE_CONTROL: "127.0.0.1:80" is not a unix socket: write unix:/path`},
		"bare path":         {args: []string{"--control", "/run/x"}, err: `--control: address "/run/x": for a unix socket write unix:/run/x`},
		"an argument":       {args: []string{"--control", "unix:" + path, "mysite"}, err: "status takes no argument, only flags: --control unix:PATH says which server is meant"},
		"two forms":         {args: []string{"--control", "unix:" + path, "--json", "--watch"}, err: "--json and --watch do not go together: choose one"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Setenv("WSGIGATE_CONTROL", c.env)
			t.Setenv("WSGIGATE_CONFIG", c.config)
			_, err := told(append([]string{"status"}, c.args...)...)
			if c.err == "" && err != nil || c.err != "" && (err == nil || strings.TrimSpace(message(err)) != "wsgigate: "+c.err) {
				t.Errorf("%v, want %s", err, c.err)
			}
		})
	}
}
