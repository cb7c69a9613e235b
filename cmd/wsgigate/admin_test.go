package main

import (
	"context"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"wsgigate/environ/wire"
	"wsgigate/pyrunner"
)

// newTestAdmin serves a handler on a unix socket.
func newTestAdmin(t *testing.T, path string, handler http.HandlerFunc) *adminServer {
	t.Helper()
	g, _ := newTestGateway()
	l, err := wire.Listen(wire.Addr{Path: path})
	if err != nil {
		t.Fatal(err)
	}
	a, err := g.newAdmin("control", l)
	if err != nil {
		t.Fatal(err)
	}
	a.server.Handler = handler
	return a
}

// TestAdminHangs: clients that send nothing, half a request, or wait for an answer that
// takes for ever hold the end for a second at most, and nothing of them is left.
func TestAdminHangs(t *testing.T) {
	defer goleak.VerifyNone(t, goleak.IgnoreCurrent())
	path := filepath.Join(t.TempDir(), "control")
	asked, quit := make(chan struct{}, 1), make(chan struct{})
	a := newTestAdmin(t, path, func(_ http.ResponseWriter, r *http.Request) {
		asked <- struct{}{}
		<-quit
	})
	served := make(chan struct{})
	go func() { // ends with close
		defer close(served)
		a.serve()
	}()
	for _, text := range []string{"", "GET / HTTP/1.1\r\n", "GET / HTTP/1.1\r\nHost: x\r\n\r\n"} {
		c, err := net.Dial("unix", path)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		if _, err := io.WriteString(c, text); err != nil {
			t.Fatal(err)
		}
	}
	<-asked
	began := time.Now()
	a.close()
	if took := time.Since(began); took > adminEndTime+patience/10 {
		t.Errorf("took %v", took)
	}
	<-served
	close(quit)
	if _, err := os.Lstat(path); !os.IsNotExist(err) {
		t.Errorf("the socket file: %v", err)
	}
}

// TestAdminEnds: an answer that is under way is given to its end.
func TestAdminEnds(t *testing.T) {
	path := filepath.Join(t.TempDir(), "control")
	asked := make(chan struct{})
	a := newTestAdmin(t, path, func(w http.ResponseWriter, _ *http.Request) {
		_, _ = io.WriteString(w, "first ")
		_ = http.NewResponseController(w).Flush()
		close(asked)
		time.Sleep(adminEndTime / 10) // it is under way, however long it takes below the bound
		_, _ = io.WriteString(w, "last")
	})
	go a.serve()
	client := http.Client{Transport: &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", path)
	}}}
	got := make(chan string)
	go func() {
		res, err := client.Get("http://x/")
		if err != nil {
			got <- err.Error()
			return
		}
		defer res.Body.Close()
		text, err := io.ReadAll(res.Body)
		if err != nil {
			text = []byte(err.Error())
		}
		got <- string(text)
	}()
	<-asked
	a.close()
	if text := <-got; text != "first last" {
		t.Error(text)
	}
}

// TestAdminNeverServed: a server whose start failed leaves no socket file, but for that
// of a predecessor who still listens.
func TestAdminNeverServed(t *testing.T) {
	path := filepath.Join(t.TempDir(), "control")
	newTestAdmin(t, path, nil).close()
	if _, err := os.Lstat(path); !os.IsNotExist(err) {
		t.Errorf("the socket file: %v", err)
	}
	predecessor, err := wire.Listen(wire.Addr{Path: path})
	if err != nil {
		t.Fatal(err)
	}
	defer predecessor.Close()
	l, err := wire.Inherit(predecessor.File(), wire.Addr{Path: path})
	if err != nil {
		t.Fatal(err)
	}
	g, _ := newTestGateway()
	a, err := g.newAdmin("control", l)
	if err != nil {
		t.Fatal(err)
	}
	g.admin = []*adminServer{a}
	g.leaveListeners()
	g.closeAdmin()
	if c, err := net.Dial("unix", path); err != nil {
		t.Errorf("the predecessor: %v", err)
	} else {
		c.Close()
	}
}

// TestAdminStopping: load balancers learn of the end from its beginning, though the pool
// still has workers for the requests that are there.
func TestAdminStopping(t *testing.T) {
	pool, err := pyrunner.New(pyrunner.Config{})
	if err != nil {
		t.Fatal(err)
	}
	g, _ := newTestGateway()
	g.pool = pool
	for at, want := range map[phase]pyrunner.Health{starting: pool.Status().State, serves: pool.Status().State, stopping: pyrunner.HealthStopping} {
		g.enter(at)
		if got := (commands{g}).Status().State; got != want {
			t.Errorf("phase %d: %s, want %s", at, got, want)
		}
	}
}

// TestAdminOpen: a page that others can reach is warned of.
func TestAdminOpen(t *testing.T) {
	for addr, want := range map[wire.Addr]bool{{Host: "127.0.0.1"}: false, {Host: "0.0.0.0"}: true, {Path: filepath.Join(t.TempDir(), "s")}: false} {
		g, log := newTestGateway()
		l, err := wire.Listen(addr)
		if err != nil {
			t.Fatal(err)
		}
		a, err := g.newAdmin("status", l)
		if err != nil {
			t.Fatal(err)
		}
		a.warnIfOpen()
		a.close()
		if warned := strings.Contains(log.String(), " WARN  --status: whoever reaches this address sees "); warned != want {
			t.Errorf("%s: %q", addr, log)
		}
	}
}
