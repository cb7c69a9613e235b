package status

import (
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"regexp"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"wsgigate/pyrunner"
)

// ask makes a request of a handler over a sample.
func ask(t *testing.T, s pyrunner.Status, method, path string, header ...string) *http.Response {
	t.Helper()
	r := httptest.NewRequest(method, path, nil)
	for i := 0; i < len(header); i += 2 {
		r.Header.Set(header[i], header[i+1])
	}
	w := httptest.NewRecorder()
	Handler(testFacts, &fixed{status: s}).ServeHTTP(w, r)
	return w.Result()
}

func body(t *testing.T, res *http.Response) string {
	t.Helper()
	text, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

func TestRoutes(t *testing.T) {
	for _, c := range []struct {
		method, path string
		code         int
		kind         string
	}{
		{"GET", "/", 200, "text/html; charset=utf-8"},
		{"HEAD", "/", 200, "text/html; charset=utf-8"},
		{"GET", "/?anything", 200, "text/html; charset=utf-8"},
		{"GET", "/fragment", 200, "text/html; charset=utf-8"},
		{"GET", "/status.json", 200, "application/json"},
		{"GET", "/metrics", 200, "text/plain; version=0.0.4; charset=utf-8; escaping=underscores"},
		{"HEAD", "/metrics", 200, "text/plain; version=0.0.4; charset=utf-8; escaping=underscores"},
		{"GET", "/ping", 200, "text/plain; charset=utf-8"},
		{"GET", "/ready", 200, "text/plain; charset=utf-8"},
		{"POST", "/", 405, "text/plain; charset=utf-8"},
		{"POST", "/metrics", 405, "text/plain; charset=utf-8"},
		{"DELETE", "/status.json", 405, "text/plain; charset=utf-8"},
		{"OPTIONS", "/ping", 405, "text/plain; charset=utf-8"},
		{"GET", "/favicon.ico", 404, "text/plain; charset=utf-8"},
		{"GET", "/status", 404, "text/plain; charset=utf-8"},
		{"GET", "/ready/", 404, "text/plain; charset=utf-8"},
		{"POST", "/reload", 404, "text/plain; charset=utf-8"},
	} {
		res := ask(t, busyStatus(), c.method, c.path)
		if res.StatusCode != c.code || res.Header.Get("Content-Type") != c.kind {
			t.Errorf("%s %s: %d %q, want %d %q", c.method, c.path, res.StatusCode, res.Header.Get("Content-Type"), c.code, c.kind)
		}
		if allow := res.Header.Get("Allow"); (allow == "GET, HEAD") != (c.code == 405) {
			t.Errorf("%s %s: Allow %q", c.method, c.path, allow)
		}
		for name, want := range map[string]string{"Cache-Control": "no-store", "X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer"} {
			if got := res.Header.Get(name); got != want {
				t.Errorf("%s %s: %s %q, want %q", c.method, c.path, name, got, want)
			}
		}
		if got := res.Header.Get("Content-Security-Policy"); !strings.HasPrefix(got, "default-src 'none'; ") {
			t.Errorf("%s %s: Content-Security-Policy %q", c.method, c.path, got)
		}
	}
}

// TestHealth: what load balancers and orchestrators ask.
func TestHealth(t *testing.T) {
	type change func(*pyrunner.Status)
	for name, c := range map[string]struct {
		status      pyrunner.Status
		change      change
		ping, ready string // the body; a success is "pong" and "ready"
	}{
		"busy":       {status: busyStatus(), ping: "pong", ready: "ready"},
		"idle":       {status: idleStatus(), ping: "pong", ready: "ready"},
		"crash loop": {status: crashLoopStatus(), ping: "no worker: crash loop: ModuleNotFoundError: No module named 'flask'", ready: "no worker is ready: crash loop: ModuleNotFoundError: No module named 'flask'"},
		"hostile crash loop": {status: crashLoopStatus(), change: func(s *pyrunner.Status) { s.CrashLoop.Reason = "x\r\nSet-Cookie: \x1b[2J" },
			ping: `no worker: crash loop: Set-Cookie: \x1b[2J`, ready: `no worker is ready: crash loop: Set-Cookie: \x1b[2J`},
		"crash loop beside old workers": {status: busyStatus(), change: func(s *pyrunner.Status) { s.State = pyrunner.HealthCrashLoop }, ping: "pong", ready: "ready"},
		"starting": {status: busyStatus(), change: func(s *pyrunner.Status) { s.State, s.Workers = pyrunner.HealthStarting, nil },
			ping: "no worker: starting", ready: "no worker is ready: starting"},
		"all drain": {status: busyStatus(), change: func(s *pyrunner.Status) { s.Workers = s.Workers[:1] }, ping: "pong", ready: "no worker is ready: ready"},
		"stopping":  {status: busyStatus(), change: func(s *pyrunner.Status) { s.State = pyrunner.HealthStopping }, ping: "pong", ready: "stopping"},
		"full":      {status: busyStatus(), change: func(s *pyrunner.Status) { s.Waiting = 1024 }, ping: "pong", ready: "the queue is full: 1024 requests wait"},
		"almost":    {status: busyStatus(), change: func(s *pyrunner.Status) { s.Waiting = 1023 }, ping: "pong", ready: "ready"},
		"no queue":  {status: busyStatus(), change: func(s *pyrunner.Status) { s.QueueLimit, s.Waiting = 0, 0 }, ping: "pong", ready: "ready"},
		"no queue, all busy": {status: busyStatus(), change: func(s *pyrunner.Status) { s.QueueLimit, s.Waiting, s.Workers = 0, 0, s.Workers[:2] },
			ping: "pong", ready: "all workers are busy, and no request may wait"},
	} {
		t.Run(name, func(t *testing.T) {
			if c.change != nil {
				c.change(&c.status)
			}
			for path, want := range map[string]string{"/ping": c.ping, "/ready": c.ready} {
				code := http.StatusServiceUnavailable
				if want == "pong" || want == "ready" {
					code = http.StatusOK
				}
				res := ask(t, c.status, "GET", path)
				if got := body(t, res); got != want+"\n" || res.StatusCode != code {
					t.Errorf("%s: %d %q, want %d %q", path, res.StatusCode, got, code, want)
				}
			}
		})
	}
}

// TestJSON: what comes out is what the pool said, beside the server's facts.
func TestJSON(t *testing.T) {
	var got Snapshot
	if err := json.Unmarshal([]byte(body(t, ask(t, busyStatus(), "GET", "/status.json"))), &got); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(busyStatus(), got.Status, cmp.Transformer("none", func(r []pyrunner.RequestStatus) int { return len(r) })); diff != "" {
		t.Errorf("the pool's status (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff(testFacts, got.Server); diff != "" {
		t.Errorf("the server's facts (-want +got):\n%s", diff)
	}
	if got.Time.IsZero() {
		t.Error("no time")
	}
}

// markup are the elements and attributes that a text may not bring along; quoted
// are the values of attributes, between which they would be.
var (
	markup = regexp.MustCompile(`(?i)<(script|img)|<[^>]*\son\w+=|\x1b|\x{202e}|\x00`)
	quoted = regexp.MustCompile(`="[^"]*"`)
)

func TestPageEscapes(t *testing.T) {
	for _, path := range []string{"/", "/fragment"} {
		text := body(t, ask(t, hostileStatus(), "GET", path))
		text = strings.ReplaceAll(text, "<script>"+pageJS+"</script>", "")
		if found := markup.FindString(quoted.ReplaceAllString(text, "")); found != "" {
			t.Errorf("%s has %q", path, found)
		}
		if strings.Contains(text, "\xff") {
			t.Errorf("%s is not UTF-8", path)
		}
		if want := "&lt;script&gt;alert(1)&lt;/script&gt;"; strings.Count(text, want) < 10 {
			t.Errorf("%s has %q %d times", path, want, strings.Count(text, want))
		}
	}
}

// TestPagePolicy: the policy names the very bytes that the page has.
func TestPagePolicy(t *testing.T) {
	res := ask(t, busyStatus(), "GET", "/")
	text, policy := body(t, res), res.Header.Get("Content-Security-Policy")
	for element, directive := range map[string]string{"style": "style-src", "script": "script-src"} {
		all := regexp.MustCompile(`(?s)<`+element+`[^>]*>(.*?)</`+element+`>`).FindAllStringSubmatch(text, -1)
		if len(all) != 1 {
			t.Fatalf("%d elements %s", len(all), element)
		}
		if want := directive + " '" + hash(all[0][1]) + "';"; !strings.Contains(policy, want) {
			t.Errorf("the policy %q has no %q", policy, want)
		}
	}
	if strings.Contains(policy, "unsafe") || regexp.MustCompile(`\sstyle=|\son[a-z]+=`).MatchString(text) {
		t.Error("the page needs more than the policy allows")
	}
	if found := regexp.MustCompile(`(?:src|href)="(?:https?:|//)[^"]*"`).FindString(text); found != "" {
		t.Errorf("the page loads %s", found)
	}
}

// TestPageShows: each thing that a person looks for is there.
func TestPageShows(t *testing.T) {
	for name, c := range map[string]struct {
		status pyrunner.Status
		want   []string
	}{
		"busy": {busyStatus(), []string{
			"mysite:application", "fastcgi unix:/run/app.sock", "4107", "gen 2", "forked", "draining", "14.2s", "/reports/yearly.pdf?year=2025&amp;format=a4",
			"740ms", "3 MiB in", "41 MiB out", "700<small> of 1,024", "130,616", "1,285", "6.8ms", "reports.py&#34;, line 88 in render", "SIGSEGV", "1 starting", "rendering 412 pages",
		}},
		"idle":       {idleStatus(), []string{"The first request starts one", "no slow request"}},
		"crash loop": {crashLoopStatus(), []string{"6 in a row", "No module named &#39;flask&#39;", "The last reload failed", "was never closed", "Preload is off"}},
	} {
		for _, path := range []string{"/", "/fragment"} {
			text := body(t, ask(t, c.status, "GET", path))
			for _, want := range c.want {
				if !strings.Contains(text, want) {
					t.Errorf("%s, %s: no %q", name, path, want)
				}
			}
		}
	}
}

// TestPageBounded: a long URL or traceback does not make a long page.
func TestPageBounded(t *testing.T) {
	s := busyStatus()
	size := len(body(t, ask(t, s, "GET", "/fragment")))
	s.Workers[0].Current[0].URI = "/" + strings.Repeat("x", 60<<10)
	s.Incidents[0].Stacks = strings.Repeat("line\n", 60<<10)
	if grown := len(body(t, ask(t, s, "GET", "/fragment"))) - size; grown > shownURI+shownText {
		t.Errorf("the page grew by %d bytes", grown)
	}
}
