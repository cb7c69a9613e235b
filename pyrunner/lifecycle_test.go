package pyrunner

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"wsgigate/environ"
	"wsgigate/environ/environtest"
)

// TestTransitions: a worker's state only ever goes forward.
func TestTransitions(t *testing.T) {
	t.Parallel()
	states := []state{starting, standby, ready, draining, doomed, exited}
	allowed := map[[2]state]bool{
		{starting, standby}: true, {standby, ready}: true, {standby, draining}: true, {standby, doomed}: true, {standby, exited}: true, {starting, doomed}: true, {starting, exited}: true,
		{ready, draining}: true, {ready, doomed}: true, {ready, exited}: true,
		{draining, doomed}: true, {draining, exited}: true, {doomed, exited}: true,
	}
	for _, from := range states {
		for _, to := range states {
			w := &worker{state: from}
			want := from
			if allowed[[2]state{from, to}] {
				want = to
			}
			if got := w.become(to); got != allowed[[2]state{from, to}] || w.state != want {
				t.Errorf("%v to %v: %v, then it is %v", from, to, got, w.state)
			}
		}
	}
}

// TestStartFails: row 29. The error has the sentence with the mend, and the
// traceback if there is one.
func TestStartFails(t *testing.T) {
	t.Parallel()
	for name, row := range map[string]struct {
		source   string
		app      string
		sentence string
		trace    string
	}{
		"import error":   {source: "import not_installed", sentence: "not_installed", trace: "import not_installed"},
		"raises":         {source: "1 / 0", sentence: "ZeroDivisionError", trace: "1 / 0"},
		"syntax error":   {source: "def app(:\n", sentence: "app.py", trace: ""},
		"no attribute":   {source: "application2 = 1", sentence: "app", trace: ""},
		"not callable":   {source: "app = 1", sentence: "callable", trace: ""},
		"module missing": {source: preamble, app: "absent:app", sentence: "absent", trace: ""},
		"exits":          {source: "import os; os._exit(5)", sentence: "exit status 5", trace: ""},
		"crashes":        {source: "import ctypes; ctypes.string_at(0)", sentence: "SIGSEGV", trace: ""},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p := newPool(t, row.source, Config{QueueTimeout: 100 * time.Millisecond})
			if row.app != "" {
				p.cfg.App = row.app
			}
			err := p.Start()
			start, ok := errors.AsType[*startError](err)
			if !ok || !strings.Contains(start.sentence, row.sentence) || !strings.Contains(start.traceback, row.trace) {
				t.Errorf("Start: %v", err)
			}
			if row.trace == "" && !ok {
				t.Errorf("no startError: %v", err)
			}
			if w := p.serve(get("/hello")); w.Status != 503 {
				t.Errorf("status %d", w.Status)
			}
		})
	}
}

// TestStartWithoutInterpreter names what was not found.
func TestStartWithoutInterpreter(t *testing.T) {
	t.Parallel()
	p := newPool(t, preamble, Config{Python: "/nonexistent/python3"})
	if err := p.Start(); err == nil || !strings.Contains(err.Error(), "/nonexistent/python3") {
		t.Errorf("Start: %v", err)
	}
}

// TestStartupTimeout: the error says where the import hangs.
func TestStartupTimeout(t *testing.T) {
	t.Parallel()
	p := newPool(t, "import time\ndef hangs():\n    time.sleep(60)\nhangs()\n", Config{StartupTimeout: 3 * time.Second})
	err := p.Start()
	start, ok := errors.AsType[*startError](err)
	if !ok || !strings.Contains(start.sentence, "--startup-timeout") || !strings.Contains(start.traceback, "in hangs") {
		t.Errorf("Start: %v", err)
	}
}

// TestReplacementHangs: row 34's neighbour. A replacement that never becomes READY
// is given up, and another tried.
func TestReplacementHangs(t *testing.T) {
	t.Parallel()
	p := startPool(t, `
import os, time
if os.path.exists("hang"):
    time.sleep(60)
`+preamble+`
def dies(environ, start_response):
    open("hang", "w").close()
    os._exit(1)
`, Config{})
	p.servesOn()
	p.cfg.StartupTimeout = 2 * time.Second // for the replacements
	if w := p.serve(get("/dies")); w.Status != 502 {
		t.Errorf("status %d", w.Status)
	}
	line := p.log.awaitText(t, "worker failed to start")
	if !strings.Contains(line.str("error"), "--startup-timeout") {
		t.Errorf("log line %v", line)
	}
	if err := os.Remove(filepath.Join(p.dir, "hang")); err != nil {
		t.Fatal(err)
	}
	p.servesOn()
}

// TestShutdown: what workers do decides how long it takes and what it says.
func TestShutdown(t *testing.T) {
	t.Parallel()
	const source = clientApp + `
import atexit
atexit.register(mark, "left")
def hangs(environ, start_response):
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    mark("reading")
    time.sleep(60)
`
	t.Run("idle", func(t *testing.T) {
		t.Parallel()
		p := startPool(t, source, Config{Workers: 2})
		begun := time.Now()
		p.shutdown(patience)
		if took := time.Since(begun); took > 5*time.Second {
			t.Errorf("took %v", took)
		}
		p.awaitMark("left")
		stopped := p.log.find(func(l logLine) bool { return l.has("worker stopped") && l.str("exit") == "exit status 0" })
		if len(stopped) != 2 {
			t.Errorf("stopped: %v", stopped)
		}
		r := get("/hello")
		if w := p.serve(r); w.Status != 503 {
			t.Errorf("status %d behind the end", w.Status)
		}
		p.log.fault(t, r, "queue")
	})
	t.Run("busy", func(t *testing.T) {
		t.Parallel()
		p := startPool(t, source, Config{})
		body := newWaitingBody("")
		r := post("/reads", body, 4)
		r.ExpectContinue = true
		w := &environtest.Recorder{}
		done := p.serveTo(w, r)
		p.awaitMark("reading")
		waiting := p.later(get("/hello"))
		eventually(t, "the waiting request", func() bool { return p.queue.waitingNow() == 1 })
		stopped := make(chan struct{})
		go func() {
			defer close(stopped)
			p.shutdown(patience)
		}()
		if w := await(t, "the waiting request", waiting); w.Status != 503 {
			t.Errorf("a request that waited got %d", w.Status)
		}
		close(body.letGo)
		await(t, "the busy request", done)
		if w.Status != 200 {
			t.Errorf("the running request got %d", w.Status)
		}
		await(t, "the end", stopped)
		p.awaitMark("left")
	})
	t.Run("hung", func(t *testing.T) {
		t.Parallel()
		p := startPool(t, source, Config{})
		r := get("/hangs")
		w := &environtest.Recorder{}
		done := p.serveTo(w, r)
		p.awaitMark("reading")
		ctx, cancel := context.WithTimeout(context.Background(), 200*time.Millisecond)
		defer cancel()
		if err := p.Shutdown(ctx); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("shutdown: %v", err)
		}
		await(t, "the hung request", done)
		if w.Status != 502 {
			t.Errorf("the hung request got %d", w.Status)
		}
		p.log.fault(t, r, atApp)
		p.log.awaitText(t, "SIGKILL")
		if !gone(r.Worker) {
			t.Error("the worker lives on")
		}
	})
}

// TestWorkerEnvironment: S9, the allow-list.
func TestWorkerEnvironment(t *testing.T) {
	t.Parallel()
	gateway := []string{
		"PATH=/bin", "HOME=/h", "LANG=C", "LC_ALL=C", "TZ=UTC", "VIRTUAL_ENV=/v", "PYTHONUTF8=1", "TMPDIR=/t",
		"LISTEN_FDS=1", "LISTEN_PID=1", "LISTEN_FDNAMES=a", "NOTIFY_SOCKET=/n", "WATCHDOG_USEC=1", "SECRET=x", "AWS_KEY=y",
		"HTTP_PROXY=http://evil", "http_proxy=a", "REQUEST_METHOD=GET", "QUERY_STRING=a", "CONTENT_LENGTH=1", "HTTP_COOKIE=c",
		"SCRIPT_NAME=/x", "LD_PRELOAD=/evil.so", "PATH_INFO=/", "HOMELESS=1", "WANTED=1", "WANTED2=2",
	}
	got := workerEnv(gateway, []string{"MODE=a=b", "WANTED", "ABSENT", "HOME=/other", "EMPTY="})
	want := []string{
		"PATH=/bin", "HOME=/h", "LANG=C", "LC_ALL=C", "TZ=UTC", "VIRTUAL_ENV=/v", "PYTHONUTF8=1", "TMPDIR=/t",
		"MODE=a=b", "WANTED=1", "HOME=/other", "EMPTY=",
	}
	if !slices.Equal(got, want) {
		t.Errorf("environment\n%q, want\n%q", got, want)
	}
}

// TestWorkerSees: S9 and S10, from within.
func TestWorkerSees(t *testing.T) {
	for name, value := range map[string]string{"LISTEN_FDS": "3", "NOTIFY_SOCKET": "/n", "HTTP_PROXY": "http://evil", "SECRET": "x", "TZ": "UTC"} {
		t.Setenv(name, value)
	}
	leak, err := os.Open(os.Args[0])
	if err != nil {
		t.Fatal(err)
	}
	defer leak.Close()
	p := startPool(t, preamble+`
import subprocess
def names(environ, start_response):
    start_response("200 OK", [])
    return [" ".join(sorted(os.environ)).encode()]
def argv(environ, start_response):
    start_response("200 OK", [])
    return [" ".join(sys.argv).encode()]
def fds(environ, start_response):
    start_response("200 OK", [])
    found = []
    for fd in sorted(map(int, os.listdir("/proc/self/fd"))):
        try:
            found.append("%d=%s" % (fd, os.readlink("/proc/self/fd/%d" % fd).split(":")[0]))
        except OSError:
            pass  # of the listing
    return [" ".join(found).encode()]
def child_fds(environ, start_response):
    start_response("200 OK", [])
    code = "import os; print(*sorted(fd for fd in map(int, os.listdir('/proc/self/fd')) if fd < 3 or os.path.exists('/proc/self/fd/%d' % fd)))"
    return [subprocess.run([sys.executable, "-c", code], close_fds=False, stdout=subprocess.PIPE).stdout.strip()]
def signals(environ, start_response):
    start_response("200 OK", [])
    status = open("/proc/self/status").read()
    return [" ".join(line for line in status.splitlines() if line.startswith("SigBlk")).encode()]
`, Config{Env: []string{"MODE=test"}, Threads: 2})
	names := strings.Fields(p.text("/names"))
	for _, name := range []string{"LISTEN_FDS", "NOTIFY_SOCKET", "HTTP_PROXY", "SECRET"} {
		if slices.Contains(names, name) {
			t.Errorf("the worker has %s", name)
		}
	}
	for _, name := range []string{"MODE", "TZ", "PATH"} {
		if !slices.Contains(names, name) {
			t.Errorf("the worker lacks %s: %v", name, names)
		}
	}
	// 4 is the pipe for stacks; a slot has two sockets.
	if got, want := p.text("/fds"), "0=/dev/null 1=pipe 2=pipe 4=pipe 5=socket 6=socket 7=socket 8=socket"; got != want {
		t.Errorf("descriptors %q, want %q", got, want)
	}
	if got := p.text("/child-fds"); got != "0 1 2" {
		t.Errorf("descriptors of a child %q", got)
	}
	if got := strings.Fields(p.text("/signals")); len(got) != 2 || strings.Trim(got[1], "0") != "" {
		t.Errorf("blocked signals %v", got)
	}
}

// TestEnvirons: a worker keeps the environ of one request as the pattern of the
// next; no variable may go from one into the other.
func TestEnvirons(t *testing.T) {
	t.Parallel()
	p := startPool(t, preamble+`
import json
def show(environ, start_response):
    seen = {key: value for key, value in environ.items() if not key.startswith("wsgi.")}
    seen["scheme"] = environ["wsgi.url_scheme"]
    seen["once"] = str(environ["wsgi.run_once"])
    environ.clear()
    environ["HTTP_LEFT"] = "behind"
    start_response("200 OK", [])
    return [json.dumps(seen, sort_keys=True).encode()]
`, Config{})
	steps := [][]string{
		{}, {"HTTP_A=1", "HTTP_B=2"}, {"HTTP_A=1"}, {"HTTP_B=2"}, {"HTTP_B=3"}, {}, {"HTTP_COOKIE=secret"}, {},
		{"HTTP_AUTHORIZATION=x", "HTTP_COOKIE=other"}, {"HTTP_COOKIE=third"}, {}, {"HTTPS=on"}, {}, {"HTTPS=on", "HTTP_A=\xff\xe9"},
		{"HTTP_LONG=" + strings.Repeat("x", 20000)}, {"HTTP_A=1"}, {"HTTP_A="}, {}, {"REMOTE_USER=root"}, {}, manyVars(40), {}, manyVars(41), {"HTTP_X_1=other"}, {},
	}
	for round := range 2 {
		for i, step := range steps {
			r := get("/show")
			r.RunOnce = i%5 == 4
			want := map[string]string{"scheme": "http", "once": "False"}
			if r.RunOnce {
				want["once"] = "True"
			}
			for _, kv := range step {
				name, value, _ := strings.Cut(kv, "=")
				r.Environ.Add(name, value)
				if name == "HTTPS" {
					want["scheme"] = "https"
				}
			}
			for name, value := range r.Environ.All() {
				want[text(string(name))] = text(string(value))
			}
			w := p.serve(r)
			if diff := diffJSON(w.Body.Bytes(), want); diff != "" {
				t.Errorf("round %d, step %d: %s", round, i, diff)
			}
		}
	}
}

func manyVars(n int) (vars []string) {
	for _, kv := range many(n) {
		vars = append(vars, kv[0]+"="+kv[1])
	}
	return vars
}

// TestFilter: the second stream of a FastCGI Filter.
func TestFilter(t *testing.T) {
	t.Parallel()
	p := startPool(t, preamble+`
import hashlib
def filters(environ, start_response):
    data, body = environ["fcgi.data"], environ["wsgi.input"]
    start = data.read(10) + body.read(10)
    rest = data.read() + body.read()
    start_response("200 OK", [])
    return [hashlib.sha256(start + rest).hexdigest().encode()]
`, Config{})
	data, body := strings.Repeat("data", 200_000), strings.Repeat("body", 400_000)
	r := post("/filters", strings.NewReader(body), int64(len(body)))
	r.Role, r.Data = environ.Filter, strings.NewReader(data)
	w := p.serve(r)
	want := digest([]byte(data[:10]+body[:10]), []byte(data[10:]+body[10:]))
	if w.Status != 200 || w.Body.String() != want {
		t.Errorf("status %d, %q", w.Status, w.Body.String())
	}
	p.servesOn()
}
