package pyrunner

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"wsgigate/environ"
)

// TestProbe: what a canary has to answer for the reload to go on.
func TestProbe(t *testing.T) {
	t.Parallel()
	const app = releaseApp + `
def raises(environ, start_response):
    raise RuntimeError("not well")

def breaks(environ, start_response):
    start_response("200 OK", [("Content-Type", "text/plain")])
    yield b"half"
    raise RuntimeError("not well either")

def large(environ, start_response):
    start_response("200 OK", [("Content-Type", "text/plain")])
    for n in range(64):
        yield b"x" * 65536

def large_failure(environ, start_response):
    start_response("500 Oops", [("Content-Type", "text/plain")])
    for n in range(64):
        yield b"x" * 65536
`
	for name, row := range map[string]struct {
		probe *environ.Request
		want  []string // in the error; none: it is good
	}{
		"ok":            {get("/hello"), nil},
		"no content":    {with("/status", "204 No Content"), nil},
		"redirect":      {with("/status", "302 Found"), nil},
		"last good":     {with("/status", "399 Good"), nil},
		"large":         {get("/large"), nil},
		"first bad":     {with("/status", "400 Bad"), []string{"/status", "400", "some text"}},
		"not found":     {with("/status", "404 Not Found"), []string{"/status", "404", "some text"}},
		"error":         {with("/status", "500 Oops"), []string{"/status", "500", "some text"}},
		"large failure": {get("/large-failure"), []string{"/large-failure", "500", "xxx"}},
		"raises":        {get("/raises"), []string{"/raises", "500", "log"}},
		"breaks":        {get("/breaks"), []string{"/breaks", "200"}},
		"dies":          {get("/dies"), []string{"/dies", "exit status 3"}},
		"no end":        {get("/sleeps"), []string{"/sleeps", "--startup-timeout 4s"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p := startPool(t, app, Config{Probe: func() *environ.Request { return row.probe }})
			old := p.servesOn()
			p.cfg.StartupTimeout = 4 * time.Second
			if name != "no end" {
				p.cfg.StartupTimeout = patience
			}
			err := p.reload()
			if (err != nil) != (row.want != nil) {
				t.Errorf("reload: %v", err)
			}
			for _, want := range row.want {
				if err != nil && !strings.Contains(err.Error(), want) {
					t.Errorf("%.3000q has no %q", err.Error(), want)
				}
			}
			if err != nil && len(err.Error()) > probeText+500 {
				t.Errorf("an error of %d bytes", len(err.Error()))
			}
			if now := p.servesOn(); (now == old) != (row.want != nil) {
				t.Errorf("worker %d, before the reload %d", now, old)
			}
			s := p.awaitReady(1)
			if s.Requests.Total != 2 || s.Requests.Answered != 2 || s.CrashLoop != nil || s.Waiting != 0 {
				t.Errorf("%+v", s)
			}
		})
	}
}

// TestProbeIsBoundByTheTimeoutOfRequests too, if that is shorter.
func TestProbeIsBoundByTheTimeoutOfRequests(t *testing.T) {
	t.Parallel()
	p := startPool(t, releaseApp, Config{Workers: 2, Timeout: 200 * time.Millisecond, Probe: func() *environ.Request { return get("/sleeps") }})
	if err := p.reload(); err == nil || !strings.Contains(err.Error(), "status 504") {
		t.Errorf("reload: %v", err)
	}
	if s := p.awaitReady(2); s.State != HealthReady || s.Requests.Total != 0 {
		t.Errorf("%+v", s)
	}
}

// TestShutdownDuringProbe: the probe has the time that requests have.
func TestShutdownDuringProbe(t *testing.T) {
	t.Parallel()
	p := startPool(t, releaseApp, Config{Probe: func() *environ.Request { return with("/until", "ever") }})
	reloaded := p.reloadLater()
	eventually(t, "the probe", func() bool { return p.has("began-ever") })
	begun := time.Now()
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	if err := p.Shutdown(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("shutdown: %v", err)
	}
	if took := time.Since(begun); took > 10*time.Second {
		t.Errorf("took %v", took)
	}
	if err := await(t, "the reload", reloaded); !errors.Is(err, errStopped) {
		t.Errorf("reload: %v", err)
	}
}

// TestProbeWriter keeps what it has room for.
func TestProbeWriter(t *testing.T) {
	t.Parallel()
	w := &probeWriter{}
	for range 100 {
		if n, err := fmt.Fprint(w, strings.Repeat("x", 100)); n != 100 || err != nil {
			t.Fatal(n, err)
		}
	}
	if len(w.text) != probeText {
		t.Errorf("%d bytes", len(w.text))
	}
}

// TestProbeKeepsRefusedCodeOut: code that a reload has refused does not get in with the
// worker that replaces a worn one, or one that ended, either.
func TestProbeKeepsRefusedCodeOut(t *testing.T) {
	t.Parallel()
	p := startPool(t, releaseApp+`
def health(environ, start_response):
    start_response("500 Unfit" if "unfit" in RELEASE else "200 OK", [("Content-Type", "text/plain")])
    return [RELEASE.encode()]
`, Config{Workers: 2, MaxRequests: 10, Probe: func() *environ.Request { return get("/health") }})
	p.write("release", "unfit")
	if err := p.reload(); err == nil {
		t.Fatal("the reload succeeded")
	}
	for range 40 {
		if got := p.text("/release"); got != "1" {
			t.Fatalf("release %q answers", got)
		}
	}
	p.log.awaitText(t, "replacement worker failed to start")
	_ = unix.Kill(pidsIn(p.Status(), ready)[0], unix.SIGKILL)
	eventually(t, "two attempts", func() bool {
		if got := p.text("/release"); got != "1" {
			t.Errorf("release %q answers", got)
		}
		return len(p.log.find(func(l logLine) bool { return l.has("worker failed to start") && !l.has("replacement") })) >= 2
	})
	p.write("release", "2")
	if err := p.reload(); err != nil {
		t.Error(err)
	}
	for range 40 {
		if got := p.text("/release"); got != "2" {
			t.Errorf("release %q answers", got)
		}
	}
	if s := p.Status(); s.State != HealthReady || s.CrashLoop != nil {
		t.Errorf("%+v", s)
	}
}
