package integration

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"text/template"
	"time"
)

// managed is a gateway that runs manage_app, for the tests of the process manager,
// with nginx before it.
type managed struct {
	*server
	control string // path of the control socket
	status  string // HOST:PORT of the status page
	front   *process
	ports   map[string]string // HOST:PORT by way, of those through nginx
	last    atomic.Int64      // number given to a request
	wrks    int               // started
}

// Ways in for requests. Through nginx and to the HTTP listener, clients keep their
// connections.
const (
	nginxKept = "nginx, kept connections"
	nginxNew  = "nginx, new connections"
	nginxSCGI = "nginx, SCGI"
	viaHTTP   = "http"
	viaSCGI   = "scgi"
	viaFCGI   = "fastcgi"

	apacheKept = "Apache, kept connections" // once startApache was called
)

// manage starts a gateway for manage_app, and nginx before it.
func manage(t testing.TB, flags ...string) *managed {
	t.Helper()
	m := &managed{server: prepare(t), status: net127(freePort(t)), ports: map[string]string{}}
	m.control = filepath.Join(m.dir, "control.sock")
	tmp := filepath.Join(m.dir, "tmp")
	mkdir(t, tmp)
	m.run(t, []string{"TMPDIR=" + tmp}, "manage_app:app", append([]string{
		// Two releases may come within the second that tells .pyc files apart.
		"--env", "PYTHONDONTWRITEBYTECODE=1",
		"--control", "unix:" + m.control, "--status", m.status,
	}, flags...)...)
	t.Cleanup(func() { m.stopAll(t) })
	m.awaitAnnounced(t)
	m.startNginx(t)
	return m
}

// frontText is the configuration of nginx. What its own retries would hide is seen:
// there are none.
var frontText = template.Must(template.New("nginx.conf").Parse(`daemon off;
{{if .Root}}user root;{{end}}
worker_processes 1;
pid {{.Dir}}/nginx.pid;
error_log {{.Dir}}/nginx.log error;
events { worker_connections 1024; }
http {
    access_log off;
    client_max_body_size 64m;
    client_body_temp_path {{.Dir}}/client_body;
    fastcgi_temp_path {{.Dir}}/fastcgi;
    scgi_temp_path {{.Dir}}/scgi;
    proxy_temp_path {{.Dir}}/proxy;
    uwsgi_temp_path {{.Dir}}/uwsgi;
    fastcgi_next_upstream off;
    fastcgi_read_timeout 120s;
    scgi_next_upstream off;
    scgi_read_timeout 120s;
    upstream kept { server unix:{{.FastCGI}}; keepalive 16; }
    server {
        listen {{index .Ports "` + nginxKept + `"}};
        location / { include /etc/nginx/fastcgi_params; fastcgi_keep_conn on; fastcgi_pass kept; }
    }
    server {
        listen {{index .Ports "` + nginxNew + `"}};
        location / { include /etc/nginx/fastcgi_params; fastcgi_pass unix:{{.FastCGI}}; }
    }
    server {
        listen {{index .Ports "` + nginxSCGI + `"}};
        location / { include /etc/nginx/scgi_params; scgi_pass {{.SCGI}}; }
    }
}
`))

func (m *managed) startNginx(t testing.TB) {
	t.Helper()
	for _, way := range []string{nginxKept, nginxNew, nginxSCGI} {
		m.ports[way] = net127(freePort(t))
	}
	var text bytes.Buffer
	err := frontText.Execute(&text, map[string]any{
		"Root": os.Geteuid() == 0, "Dir": m.dir, "Ports": m.ports, "FastCGI": m.addrs["fastcgi"], "SCGI": m.addrs["scgi"],
	})
	conf := filepath.Join(m.dir, "nginx.conf")
	if err == nil {
		err = os.WriteFile(conf, text.Bytes(), 0o644)
	}
	if err != nil {
		t.Fatal(err)
	}
	m.front = start(t, "nginx", filepath.Join(m.dir, "nginx.out"), sbin("nginx"), "-e", "stderr", "-c", conf)
	m.front.awaitListening(t, "tcp", slices.Collect(maps.Values(m.ports))...)
}

// apacheText is the configuration of Apache, which makes no attempt of its own a second
// time either.
var apacheText = template.Must(template.New("apache.conf").Parse(`ServerRoot "{{.Dir}}"
DefaultRuntimeDir "{{.Dir}}"
PidFile "{{.Dir}}/apache.pid"
ServerName localhost
{{if .Root}}User {{.User}}
Group {{.Group}}
{{end -}}
LoadModule mpm_event_module {{.Modules}}/mod_mpm_event.so
LoadModule authz_core_module {{.Modules}}/mod_authz_core.so
LoadModule proxy_module {{.Modules}}/mod_proxy.so
LoadModule proxy_fcgi_module {{.Modules}}/mod_proxy_fcgi.so
StartServers 1
ServerLimit 1
ThreadsPerChild 16
MaxRequestWorkers 16
ErrorLog "{{.Dir}}/apache.log"
Listen {{.Addr}}
ProxyPass "/" "fcgi://{{.FastCGI}}/" enablereuse=on
`))

// startApache starts Apache before a FastCGI listener that is bound to a TCP address.
func (m *managed) startApache(t testing.TB, fastcgi string) {
	t.Helper()
	m.ports[apacheKept] = net127(freePort(t))
	facts := map[string]any{"Root": os.Geteuid() == 0, "Dir": m.dir, "Modules": apacheModules, "Addr": m.ports[apacheKept], "FastCGI": fastcgi}
	if os.Geteuid() == 0 {
		facts["User"], facts["Group"] = unprivileged(t)
	}
	var text bytes.Buffer
	conf := filepath.Join(m.dir, "apache.conf")
	err := apacheText.Execute(&text, facts)
	if err == nil {
		err = os.WriteFile(conf, text.Bytes(), 0o644)
	}
	if err != nil {
		t.Fatal(err)
	}
	p := start(t, "apache", filepath.Join(m.dir, "apache.out"), append(slices.Clone(apache.command), conf)...)
	p.end = apache.end
	t.Cleanup(func() { p.stop(t) })
	p.awaitListening(t, "tcp", m.ports[apacheKept])
}

// stopAll stops all gateways: an upgraded one is no child of the test.
func (m *managed) stopAll(t testing.TB) {
	t.Helper()
	for _, pid := range m.gateways(t) {
		_ = syscall.Kill(pid, syscall.SIGTERM)
	}
	m.await(t, "end of the gateways", stopTime, func() bool { return len(m.gateways(t)) == 0 })
}

// gateways returns the process ids of the gateways, oldest first; one that hands
// over to another is still among them.
func (m *managed) gateways(t testing.TB) []int {
	t.Helper()
	var found []int
	for _, line := range processesOf(m.dir) {
		number, command, _ := strings.Cut(line, " ")
		pid, err := strconv.Atoi(number)
		if err != nil {
			t.Fatal(err)
		}
		if strings.HasPrefix(command, binary(t)+" serve ") {
			found = append(found, pid)
		}
	}
	slices.Sort(found)
	return found
}

// children returns the process ids of a process's children and of theirs: workers
// may be a template's.
func children(pid int) []int {
	threads, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", pid))
	var pids []int
	for _, file := range threads {
		list, _ := os.ReadFile(file) // a thread that ended has none
		for _, field := range strings.Fields(string(list)) {
			if child, err := strconv.Atoi(field); err == nil {
				pids = append(append(pids, child), children(child)...)
			}
		}
	}
	slices.Sort(pids)
	return pids
}

// release replaces the module that a reload is to import, at once: no worker finds half
// of it.
func (m *managed) release(t testing.TB, source string) {
	t.Helper()
	file := filepath.Join(m.apps(), "release.py")
	if err := os.WriteFile(file+".new", []byte(source), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(file+".new", file); err != nil {
		t.Fatal(err)
	}
}

// healthy is the source of a good release.
func healthy(code int) string { return fmt.Sprintf("CODE = %d\nHEALTHY = True\n", code) }

// command runs one of the commands that talk to the gateway.
func (m *managed) command(t testing.TB, name string, args ...string) (status int, stdout, stderr string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), clientTime)
	defer cancel()
	cmd := exec.CommandContext(ctx, binary(t), append([]string{name, "--control", "unix:" + m.control}, args...)...)
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err := cmd.Run(); err != nil {
		if _, ok := errors.AsType[*exec.ExitError](err); !ok {
			t.Fatal(err)
		}
	}
	return cmd.ProcessState.ExitCode(), out.String(), errs.String()
}

// poolStatus is what these tests read of the pool's status.
type poolStatus struct {
	State      string
	Generation int
	MinWorkers int `json:"min_workers"`
	Starting   int
	Waiting    int
	Workers    []workerStatus
	Requests   struct {
		Total, Answered, Failed, Refused, Cancelled, Retried uint64
		Status                                               map[string]uint64
	}
	Events struct {
		Started, Crashed, Recycled, Reloads uint64
		TimedOut                            uint64 `json:"timed_out"`
		ReloadFailures                      uint64 `json:"reload_failures"`
	}
	Reload *struct {
		Running bool
		Error   string
	}
}

type workerStatus struct {
	PID        int
	State      string
	Generation int
}

// look asks the gateway for its status over the control socket, on a connection
// of its own.
func (m *managed) look(t testing.TB) poolStatus {
	t.Helper()
	client := http.Client{Timeout: clientTime, Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", m.control)
		},
	}}
	return fetch[poolStatus](t, &client, "http://wsgigate/status")
}

// fetch gets an answer in JSON.
func fetch[T any](t testing.TB, client *http.Client, url string) (v T) {
	t.Helper()
	resp, err := client.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if err := json.NewDecoder(resp.Body).Decode(&v); err != nil || resp.StatusCode != http.StatusOK {
		t.Fatalf("%s: %s, %v", url, resp.Status, err)
	}
	return v
}

// footprint is what a gateway holds of its machine.
type footprint struct{ files, threads, goroutines, children int }

var goroutinesLine = regexp.MustCompile(`(?m)^go_goroutines (\d+)`)

// footprint measures the newest gateway.
func (m *managed) footprint(t testing.TB) footprint {
	t.Helper()
	pids := m.gateways(t)
	if len(pids) == 0 {
		t.Fatalf("no gateway runs:\n%s", tail(m.log))
	}
	pid := pids[len(pids)-1]
	client := http.Client{Timeout: clientTime, Transport: &http.Transport{DisableKeepAlives: true}}
	resp, err := client.Get("http://" + m.status + "/metrics")
	if err != nil {
		t.Fatal(err)
	}
	text, err := io.ReadAll(resp.Body)
	resp.Body.Close()
	found := goroutinesLine.FindSubmatch(text)
	if err != nil || found == nil {
		t.Fatalf("no goroutines among the metrics: %v\n%.300s", err, text)
	}
	goroutines, _ := strconv.Atoi(string(found[1]))
	return footprint{
		files:      entries(fmt.Sprintf("/proc/%d/fd", pid)),
		threads:    entries(fmt.Sprintf("/proc/%d/task", pid)),
		goroutines: goroutines,
		children:   len(children(pid)),
	}
}

func entries(dir string) int {
	list, _ := os.ReadDir(dir)
	return len(list)
}

// moreThreads is how many threads the gateway may have more than before: Go's
// runtime makes one when a system call blocks, and keeps it.
const moreThreads = 8

// moreGoroutines is the same of goroutines: those that rest between connections
// are as many as there were connections at once.
const moreGoroutines = 16

// atRest stops nginx, whose kept connections are the gateway's too, and measures
// the gateway once nothing runs in it any more.
func (m *managed) atRest(t testing.TB) footprint {
	t.Helper()
	m.front.stop(t)
	now := m.footprint(t)
	m.await(t, "rest", startTime, func() bool {
		before := now
		now = m.footprint(t)
		s := m.look(t)
		return now == before && s.State == "ready" && len(s.Workers) == s.MinWorkers && len(m.gateways(t)) == 1
	})
	return now
}

// wantFootprint waits until the gateway, at rest, holds no more than before.
func (m *managed) wantFootprint(t testing.TB, before footprint) {
	t.Helper()
	now := m.atRest(t)
	over := func() bool {
		return now.files > before.files || now.children != before.children || now.goroutines > before.goroutines+moreGoroutines
	}
	for deadline := time.Now().Add(stopTime); over() && time.Now().Before(deadline); time.Sleep(pollEvery) {
		now = m.footprint(t) // old workers may still be on their way out
	}
	if over() || now.threads > before.threads+moreThreads {
		t.Errorf("the gateway holds more than before: %+v, now %+v\n%s", before, now, m.filesOf())
	}
	t.Logf("the gateway before %+v, after %+v", before, now)
}

// filesOf lists the open files of the gateways, for messages.
func (m *managed) filesOf() string {
	var list []string
	folders, _ := filepath.Glob("/proc/[0-9]*/fd")
	for _, folder := range folders {
		exe, _ := os.Readlink(filepath.Join(filepath.Dir(folder), "exe"))
		if filepath.Base(exe) != "wsgigate" {
			continue
		}
		files, _ := os.ReadDir(folder)
		for _, file := range files {
			to, _ := os.Readlink(filepath.Join(folder, file.Name()))
			list = append(list, filepath.Join(folder, file.Name())+" "+to)
		}
	}
	return strings.Join(list, "\n")
}

// outcome is what a client saw of one request.
type outcome struct {
	way    string
	status int
	body   string // of what is no 200
	err    error
	began  time.Time
	took   time.Duration
}

func (o outcome) good() bool { return o.err == nil && o.status == 200 }

func (o outcome) String() string {
	return fmt.Sprintf("%s: status %d, %v, after %v, begun %s: %.200q", o.way, o.status, o.err, o.took.Round(time.Millisecond), o.began.Format("15:04:05.000"), o.body)
}

// load is clients that ask without a pause, each request with a number of its own.
type load struct {
	m     *managed
	stop  atomic.Bool
	group sync.WaitGroup

	mu       sync.Mutex
	outcomes map[int]outcome
}

func (m *managed) load() *load { return &load{m: m, outcomes: map[int]outcome{}} }

// add starts clients that use one of the ways in; query goes to manage_app.
func (l *load) add(way string, clients int, query string) {
	for range clients {
		l.group.Go(func() {
			c := &caller{m: l.m, way: way}
			defer c.hangUp()
			for !l.stop.Load() {
				l.one(c, query)
			}
		})
	}
}

// one makes a request and notes how it went.
func (l *load) one(c *caller, query string) outcome {
	id := int(l.m.last.Add(1))
	began := time.Now()
	o := c.call(get(fmt.Sprintf("/run?id=%d&%s", id, query)), id)
	o.way, o.began, o.took = c.way, began, time.Since(began)
	l.mu.Lock()
	l.outcomes[id] = o
	l.mu.Unlock()
	return o
}

// count is how many requests have ended.
func (l *load) count() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.outcomes)
}

// awaitMore waits until n more requests have ended.
func (l *load) awaitMore(t testing.TB, n int) {
	t.Helper()
	from := l.count()
	l.m.await(t, fmt.Sprintf("%d more requests", n), clientTime, func() bool { return l.count() >= from+n })
}

// end stops the clients after their present request.
func (l *load) end() {
	l.stop.Store(true)
	l.group.Wait()
}

// failures returns the requests that were not answered as they should be.
func (l *load) failures() map[int]outcome {
	failed := map[int]outcome{}
	for id, o := range l.outcomes {
		if !o.good() {
			failed[id] = o
		}
	}
	return failed
}

// shownMost is how many requests a failed test shows.
const shownMost = 10

// wantAllOnce wants every request answered, and run exactly once.
func (l *load) wantAllOnce(t testing.TB) {
	t.Helper()
	shown := 0
	complain := func(format string, args ...any) {
		if shown++; shown <= shownMost {
			t.Errorf(format, args...)
		}
	}
	for id, o := range l.failures() {
		complain("request %d failed: %v", id, o)
	}
	j := l.m.journal(t)
	ways, slowest := map[string]int{}, time.Duration(0)
	for id, o := range l.outcomes {
		ways[o.way]++
		slowest = max(slowest, o.took)
		if n := len(j.begun[id]); n != 1 && o.good() {
			complain("request %d ran %d times: %v", id, n, o)
		}
	}
	j.wantNoneTwice(t)
	t.Logf("%d requests, %d failed, slowest %v, by way: %v", len(l.outcomes), len(l.failures()), slowest.Round(time.Millisecond), ways)
}

// journal is what manage_app has noted: the workers that began, ended and closed
// each request.
type journal struct{ begun, ended, closed map[int][]int }

func (m *managed) journal(t testing.TB) journal {
	t.Helper()
	file, err := os.Open(filepath.Join(m.apps(), "journal"))
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	j := journal{map[int][]int{}, map[int][]int{}, map[int][]int{}}
	of := map[byte]map[int][]int{'B': j.begun, 'E': j.ended, 'C': j.closed}
	for lines := bufio.NewScanner(file); lines.Scan(); {
		var mark byte
		var id, pid int
		if _, err := fmt.Sscanf(lines.Text(), "%c %d %d", &mark, &id, &pid); err != nil || of[mark] == nil {
			t.Fatalf("the journal has %q: %v", lines.Text(), err)
		}
		if id != 0 { // wrk's
			of[mark][id] = append(of[mark][id], pid)
		}
	}
	return j
}

// lastBegun returns the worker that began a request last; 0 if none did.
func (m *managed) lastBegun(t testing.TB) (pid int) {
	t.Helper()
	lines := strings.Split(strings.TrimSpace(tail(filepath.Join(m.apps(), "journal"))), "\n")
	for _, line := range slices.Backward(lines) {
		var id int
		if n, _ := fmt.Sscanf(line, "B %d %d", &id, &pid); n == 2 {
			return pid
		}
	}
	return 0
}

// wantNoneTwice wants that no request ran twice.
func (j journal) wantNoneTwice(t testing.TB) {
	t.Helper()
	shown := 0
	for id, pids := range j.begun {
		if len(pids) < 2 {
			continue
		}
		if shown++; shown <= shownMost {
			t.Errorf("request %d ran %d times, in workers %v", id, len(pids), pids)
		}
	}
}

// caller makes one request after the other by one way in.
type caller struct {
	m    *managed
	way  string
	conn net.Conn
	in   *bufio.Reader
}

// call makes a request. A connection that was kept and breaks before its answer
// is a failure: nothing is tried again.
func (c *caller) call(m message, id int) outcome {
	addr := c.m.addrs["http"]
	switch c.way {
	case viaSCGI, viaFCGI:
		a := c.m.ask(c.way, m)
		return answered(a.status, a.body, a.err, id)
	case nginxKept, nginxNew, nginxSCGI, apacheKept:
		addr = c.m.ports[c.way]
	}
	if c.conn == nil {
		conn, err := net.Dial("tcp", addr)
		if err != nil {
			return outcome{err: err}
		}
		c.conn, c.in = conn, bufio.NewReader(conn)
	}
	status, body, keep, err := c.exchange(m)
	if !keep || err != nil {
		c.hangUp()
	}
	return answered(status, body, err, id)
}

func (c *caller) exchange(m message) (status int, body []byte, keep bool, err error) {
	_ = c.conn.SetDeadline(time.Now().Add(clientTime))
	if _, err := fmt.Fprintf(c.conn, "%s %s HTTP/1.1\r\nHost: localhost\r\n\r\n", m.verb(), m.target); err != nil {
		return 0, nil, false, err
	}
	resp, err := http.ReadResponse(c.in, nil)
	if err != nil {
		return 0, nil, false, fmt.Errorf("no answer: %w", err)
	}
	defer resp.Body.Close()
	body, err = io.ReadAll(resp.Body)
	return resp.StatusCode, body, !resp.Close, err
}

func (c *caller) hangUp() {
	if c.conn != nil {
		c.conn.Close()
	}
	c.conn = nil
}

// answered looks whether a page of manage_app is the one for that request.
func answered(status int, body []byte, err error, id int) outcome {
	o := outcome{status: status, body: string(body), err: err}
	if err == nil && status == 200 {
		var facts struct{ ID int }
		if err := json.Unmarshal(body, &facts); err != nil || facts.ID != id {
			o.err = fmt.Errorf("the answer is not that of request %d", id)
		}
	}
	return o
}

// wrk is a run of wrk in the background.
type wrk struct {
	*process
	way string
}

// wrk lets wrk ask through one of nginx's ways until end is called. Its requests
// carry no number.
func (m *managed) wrk(t testing.TB, way string) *wrk {
	t.Helper()
	m.wrks++
	log := filepath.Join(m.dir, fmt.Sprintf("wrk-%d", m.wrks))
	p := start(t, "wrk", log, "wrk", "-t1", "-c4", "-d600s", "--timeout", "60s", "http://"+m.ports[way]+"/run?id=0&ms=5")
	p.end = syscall.SIGINT
	return &wrk{p, way}
}

var (
	wrkCount  = regexp.MustCompile(`(\d+) requests in `)
	wrkFailed = regexp.MustCompile(`(?m)^ *(Socket errors|Non-2xx).*$`)
)

// end stops wrk, which must have met no failure.
func (w *wrk) end(t testing.TB) {
	t.Helper()
	w.stop(t)
	text := tail(w.log)
	count := wrkCount.FindString(text)
	if count == "" || strings.HasPrefix(count, "0 ") {
		t.Errorf("wrk through %s counted nothing:\n%s", w.way, text)
	}
	for _, line := range wrkFailed.FindAllString(text, -1) {
		t.Errorf("wrk through %s: %s", w.way, line)
	}
	t.Logf("wrk through %s: %s", w.way, strings.TrimSpace(count))
}
