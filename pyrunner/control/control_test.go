package control

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"

	"wsgigate/pyrunner"
	"wsgigate/pyrunner/status"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// patience is how long anything may take on a busy machine.
const patience = 10 * time.Second

var facts = status.Facts{Version: "1.2.0", Listeners: []string{"http 127.0.0.1:8000"}, PID: 4100, Started: time.Date(2026, 3, 14, 15, 9, 26, 0, time.UTC)}

// fake is a Server.
type fake struct {
	reload  func(context.Context) error
	reloads atomic.Int32 // that have ended
	stopped chan struct{}
}

var _ Server = (*fake)(nil)

// Status has two workers, one of which takes requests.
func (f *fake) Status() pyrunner.Status {
	return pyrunner.Status{App: "mysite:application", State: pyrunner.HealthReady, Generation: 3,
		Workers: []pyrunner.WorkerStatus{{PID: 1, State: "draining"}, {PID: 2, State: "ready"}}}
}

// Reload does what the test wants.
func (f *fake) Reload(ctx context.Context) error {
	defer f.reloads.Add(1)
	if f.reload == nil {
		return nil
	}
	return f.reload(ctx)
}

// Stop is noted.
func (f *fake) Stop() { close(f.stopped) }

// serve runs a server on a socket until the test ends.
func serve(t *testing.T, h http.Handler) Client {
	t.Helper()
	c := Client{Path: filepath.Join(t.TempDir(), "control")}
	l, err := net.Listen("unix", c.Path)
	if err != nil {
		t.Fatal(err)
	}
	server := &http.Server{Handler: h, ConnContext: ConnContext, ReadTimeout: 50 * time.Millisecond, WriteTimeout: 50 * time.Millisecond}
	ended := make(chan error, 1)
	go func() { ended <- server.Serve(l) }()
	t.Cleanup(func() {
		if err := server.Shutdown(t.Context()); err != nil && !errors.Is(err, context.Canceled) {
			t.Error(err)
		}
		_ = server.Close()
		if err := <-ended; !errors.Is(err, http.ErrServerClosed) {
			t.Error(err)
		}
	})
	return c
}

func control(t *testing.T, f *fake) Client {
	t.Helper()
	f.stopped = make(chan struct{})
	return serve(t, Handler(facts, f))
}

func TestStatus(t *testing.T) {
	f := &fake{}
	got, err := control(t, f).Status(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	want := status.Snapshot{Time: got.Time, Server: facts, Status: f.Status()}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

// TestReload: a reload may take longer than the server's times to read and write.
func TestReload(t *testing.T) {
	f := &fake{reload: func(context.Context) error { time.Sleep(120 * time.Millisecond); return nil }}
	got, err := control(t, f).Reload(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if got.Took < 120*time.Millisecond || got.Generation != 3 || got.Workers != 1 {
		t.Errorf("%+v", got)
	}
}

// TestReloadSlow: signs of life keep a client from giving up on a reload that takes
// longer than its patience.
func TestReloadSlow(t *testing.T) {
	const times = 50 * time.Millisecond
	f := &fake{reload: func(context.Context) error { time.Sleep(10 * times); return nil }}
	c := serve(t, newHandler(facts, f, times/10))
	c.Patience = 5 * times
	if got, err := c.Reload(t.Context()); err != nil || got.Took < 10*times {
		t.Errorf("%+v, %v", got, err)
	}
}

// TestReloadMute: a server that says nothing is given up, and whether it has begun
// is known.
func TestReloadMute(t *testing.T) {
	const patience = 50 * time.Millisecond
	quit := make(chan struct{})
	for _, begun := range []bool{false, true} {
		c := serve(t, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			if begun {
				w.WriteHeader(http.StatusProcessing)
			}
			<-quit
		}))
		c.Patience = patience
		began := time.Now()
		_, err := c.Reload(t.Context())
		if errors.Is(err, ErrReloading) != begun || !strings.Contains(fmt.Sprint(err), "has said nothing for 50ms: it hangs or is suspended") {
			t.Errorf("begun %v: %v", begun, err)
		}
		if took := time.Since(began); took < patience {
			t.Errorf("begun %v: gave up after %v", begun, took)
		}
	}
	close(quit)
}

func TestReloadFails(t *testing.T) {
	f := &fake{reload: func(context.Context) error {
		return errors.New("the application cannot be imported\nTraceback (most recent call last):\n  oops")
	}}
	_, err := control(t, f).Reload(t.Context())
	failed, ok := errors.AsType[*ReloadError](err)
	if !ok {
		t.Fatalf("%T: %v", err, err)
	}
	want := &ReloadError{"the application cannot be imported", "Traceback (most recent call last):\n  oops"}
	if diff := cmp.Diff(want, failed); diff != "" {
		t.Error(diff)
	}
}

// TestReloadOutlivesClient: a client that leaves does not cancel what others
// wait for.
func TestReloadOutlivesClient(t *testing.T) {
	began, goOn := make(chan struct{}), make(chan struct{})
	f := &fake{reload: func(ctx context.Context) error {
		close(began)
		<-goOn
		return ctx.Err()
	}}
	c := control(t, f)
	ctx, leave := context.WithCancel(t.Context())
	left := make(chan error, 1)
	go func() {
		_, err := c.Reload(ctx)
		left <- err
	}()
	<-began
	leave()
	if err := <-left; !errors.Is(err, context.Canceled) {
		t.Errorf("the client that left: %v", err)
	}
	if f.reloads.Load() != 0 {
		t.Error("the reload ended with its client")
	}
	close(goOn)
	for end := time.Now().Add(patience); f.reloads.Load() == 0; time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("the reload never ended")
		}
	}
}

func TestStop(t *testing.T) {
	f := &fake{}
	c := control(t, f)
	if err := c.Stop(t.Context()); err != nil {
		t.Fatal(err)
	}
	select {
	case <-f.stopped:
	case <-time.After(patience):
		t.Error("the server was not told")
	}
}

func TestAwaitEnd(t *testing.T) {
	path := filepath.Join(t.TempDir(), "control")
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	c := Client{Path: path}
	short, cancel := context.WithTimeout(t.Context(), 60*time.Millisecond)
	defer cancel()
	if err := c.AwaitEnd(short); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("while the server listens: %v", err)
	}
	l.SetUnlinkOnClose(false)
	l.Close()
	if err := c.AwaitEnd(t.Context()); err != nil {
		t.Errorf("after the server ended, the socket left behind: %v", err)
	}
	os.Remove(path)
	if err := c.AwaitEnd(t.Context()); err != nil {
		t.Errorf("after the server ended: %v", err)
	}
}

// TestRefused: what the protocol does not have.
func TestRefused(t *testing.T) {
	for _, c := range []struct {
		method, path string
		code         int
		text         string
	}{
		{"GET", "/reload", 405, "/reload takes POST, not GET"},
		{"GET", "/stop", 405, "/stop takes POST, not GET"},
		{"POST", "/status", 405, "/status takes GET, not POST"},
		{"GET", "/", 404, "there is no /: known are"},
		{"POST", "/kill", 404, "there is no /kill: known are"},
	} {
		w := request(c.method, c.path, os.Geteuid())
		if w.Code != c.code || !strings.HasPrefix(w.Body.String(), `{"error":"`+c.text) {
			t.Errorf("%s %s: %d %s", c.method, c.path, w.Code, w.Body)
		}
	}
}

// request makes a request of a user, or of nobody known if uid is negative.
func request(method, path string, uid int) *httptest.ResponseRecorder {
	r := httptest.NewRequest(method, path, nil)
	if uid >= 0 {
		r = r.WithContext(context.WithValue(r.Context(), peerKey{}, uint32(uid)))
	}
	w := httptest.NewRecorder()
	Handler(facts, &fake{stopped: make(chan struct{})}).ServeHTTP(w, r)
	return w
}

// TestPeer: root and the server's own user may, nobody else may anything.
func TestPeer(t *testing.T) {
	own := os.Geteuid()
	for uid, want := range map[int]int{own: 200, 0: 200, own + 1: 403, 65534: 403, -1: 403} {
		for _, call := range []struct{ method, path string }{{"GET", "/status"}, {"POST", "/reload"}, {"POST", "/stop"}, {"GET", "/else"}} {
			code := request(call.method, call.path, uid).Code
			if (code == 403) != (want == 403) {
				t.Errorf("user %d, %s: %d", uid, call.path, code)
			}
		}
	}
	for _, c := range []struct {
		uid  uint32
		own  int
		want bool
	}{{0, 33, true}, {33, 33, true}, {34, 33, false}, {33, 0, false}, {1<<32 - 1, -1, false}} {
		if got := permitted(c.uid, c.own); got != c.want {
			t.Errorf("permitted(%d, %d) = %v", c.uid, c.own, got)
		}
	}
}

// TestPeerOfTCP: a connection that cannot say who is there is refused.
func TestPeerOfTCP(t *testing.T) {
	server := httptest.NewUnstartedServer(Handler(facts, &fake{}))
	server.Config.ConnContext = ConnContext
	server.Start()
	defer server.Close()
	res, err := server.Client().Get(server.URL + "/status")
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	if res.StatusCode != http.StatusForbidden {
		t.Errorf("status %d", res.StatusCode)
	}
}

// TestClientErrors: what is wrong, and what to do.
func TestClientErrors(t *testing.T) {
	dir := t.TempDir()
	path := func(name string) string { return filepath.Join(dir, name) }
	stale, err := net.ListenUnix("unix", &net.UnixAddr{Name: path("stale"), Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	stale.SetUnlinkOnClose(false)
	stale.Close()
	if err := os.WriteFile(path("file"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	other := serve(t, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "hello") }))
	silent := serve(t, http.HandlerFunc(func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) }))
	similar := serve(t, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", contentType)
		_, _ = io.WriteString(w, "{}")
	}))
	foreign := serve(t, checked(http.NotFoundHandler()))
	for _, c := range []struct{ path, want string }{
		{path("none"), "control: there is no socket PATH: is the server running with --control unix:PATH?"},
		{path("stale"), "control: nobody listens on PATH: the server that made it has ended without removing it; start the server again"},
		{path("file"), "control: PATH is not a socket: is the server running with --control unix:PATH?"},
		{other.Path, "control: what answers on PATH is not the control socket of wsgigate (status 200)"},
		{similar.Path, "control: what answers on PATH is not the control socket of wsgigate (status 200)"},
		{silent.Path, "control: the server at PATH ended before it answered"},
		{foreign.Path, "control: what answers on PATH is not the control socket of wsgigate (status 404)"},
	} {
		want := strings.ReplaceAll(c.want, "PATH", c.path)
		client := Client{Path: c.path}
		_, statusErr := client.Status(t.Context())
		_, reloadErr := client.Reload(t.Context())
		for _, err := range []error{statusErr, reloadErr, client.Stop(t.Context())} {
			if err == nil || err.Error() != want {
				t.Errorf("%s: %v\nwant %s", filepath.Base(c.path), err, want)
			}
		}
	}
}

// TestClientPermission: whose socket it is. (Root may open every socket, so the
// kernel's error is made here.)
func TestClientPermission(t *testing.T) {
	c := serve(t, http.NotFoundHandler())
	denied := fmt.Errorf("dial: %w", os.ErrPermission)
	if got := c.explain(denied).Error(); !strings.Contains(got, "no permission to connect to "+c.Path+", which belongs to ") || !strings.HasSuffix(got, ": run this as that user or as root") {
		t.Error(got)
	}
	hidden := Client{Path: filepath.Join(t.TempDir(), "no", "such")}
	if got := hidden.explain(denied).Error(); !strings.HasSuffix(got, ": its folder is closed to you; run this as the server's user or as root") {
		t.Error(got)
	}
}
