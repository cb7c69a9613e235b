package integration

import (
	"context"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/chromedp/cdproto/emulation"
	"github.com/chromedp/cdproto/network"
	"github.com/chromedp/chromedp"
)

// chromium is the browser of Debian's package of that name.
const chromium = "/usr/bin/chromium"

// screenshotsEnv names a folder where the pictures stay.
const screenshotsEnv = "WSGIGATE_SCREENSHOTS"

// tab is a page in a browser, and what has come out of it.
type tab struct {
	ctx    context.Context
	origin string // that the page is from

	mu       sync.Mutex
	console  []string
	requests []string
}

// browse opens a page in a browser of its own, which reaches nothing but the page's
// origin: everything else goes to a proxy that is not there.
func browse(t *testing.T, addr string) *tab {
	t.Helper()
	if _, err := os.Stat(chromium); err != nil {
		t.Fatalf("%v: \"scripts/test\" installs what the integration tests need", err)
	}
	options := append(chromedp.DefaultExecAllocatorOptions[:], chromedp.ExecPath(chromium), chromedp.UserDataDir(t.TempDir()),
		chromedp.Flag("proxy-server", net127(1)), chromedp.Flag("proxy-bypass-list", "<-loopback>;"+addr))
	if os.Geteuid() == 0 {
		options = append(options, chromedp.NoSandbox) // Chromium's sandbox needs another user than root
	}
	ctx, release := context.WithTimeout(context.Background(), browserTime) // that of the test ends before its clean-up
	ctx, endBrowser := chromedp.NewExecAllocator(ctx, options...)
	ctx, endTab := chromedp.NewContext(ctx)
	p := &tab{ctx: ctx, origin: "http://" + addr}
	var readers sync.WaitGroup
	t.Cleanup(func() {
		if err := chromedp.Cancel(ctx); err != nil {
			t.Errorf("the browser does not end: %v", err)
		}
		endTab()
		endBrowser()
		release()
		readers.Wait()
	})
	messages := chromedp.Console(ctx)
	readers.Go(func() { // ends with the tab
		for m, err := range messages {
			if err == nil {
				p.note(&p.console, m.String())
			}
		}
	})
	requests := chromedp.Events(ctx, network.RequestWillBeSent)
	readers.Go(func() { // ends with the tab
		for e, err := range requests {
			if err == nil {
				p.note(&p.requests, e.Request.URL)
			}
		}
	})
	p.do(t, chromedp.EmulateViewport(1280, 900), chromedp.Navigate(p.origin+"/"))
	return p
}

// browserTime bounds what a test does with its browser.
const browserTime = 2 * time.Minute

func (p *tab) note(list *[]string, text string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	*list = append(*list, text)
}

func (p *tab) do(t *testing.T, steps ...chromedp.Action[chromedp.Void]) {
	t.Helper()
	if err := chromedp.Do(p.ctx, steps...); err != nil {
		t.Fatal(err)
	}
}

// text returns the text of the first element that a CSS selector finds, or nothing.
func (p *tab) text(t *testing.T, selector string) string {
	t.Helper()
	return evaluate[string](t, p, fmt.Sprintf("(document.querySelector(%q) || {innerText: ''}).innerText", selector))
}

// evaluate runs JavaScript in the page. (DevTools may, whatever the page's policy.)
func evaluate[T any](t *testing.T, p *tab, expression string) T {
	t.Helper()
	value, err := chromedp.Run(p.ctx, chromedp.Evaluate[T](expression))
	if err != nil {
		t.Fatalf("%s: %v", expression, err)
	}
	return value
}

// clean fails the test for what the page said, and for what it asked of others.
func (p *tab) clean(t *testing.T) {
	t.Helper()
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, m := range p.console {
		t.Errorf("the page's console has: %s", m)
	}
	fragments := 0
	for _, url := range p.requests {
		switch {
		case url == p.origin+"/fragment":
			fragments++
		case url != p.origin+"/" && !strings.HasPrefix(url, "data:"):
			t.Errorf("the page asked for %s", url)
		}
	}
	if fragments < 2 {
		t.Errorf("the page refreshed itself %d times, or the test does not see its requests: %q", fragments, p.requests)
	}
}

// longVersion gives the page a version as a build from a repository has it.
const longVersion = `document.querySelector(".version dd").textContent = "v0.0.0-20260102030405-0123456789ab+dirty"; `

// beyond lists what sticks out at the side.
const beyond = `[...document.querySelectorAll("body *")].filter(e => e.getBoundingClientRect().right > innerWidth + 0.5)
	.map(e => e.tagName + "." + e.className + " " + e.textContent.trim().slice(0, 40)).join("; ")`

// shoot takes pictures of the whole page: wide and narrow, light and dark. Nothing
// may stick out at the side.
func (p *tab) shoot(t *testing.T, name string) {
	t.Helper()
	dir := os.Getenv(screenshotsEnv)
	if dir == "" {
		dir = t.TempDir()
	}
	for _, width := range []int64{1280, 400} {
		for _, scheme := range []string{"light", "dark"} {
			if _, err := chromedp.Call(p.ctx, emulation.SetEmulatedMedia, emulation.SetEmulatedMediaParams{
				Features: []*emulation.MediaFeature{{Name: "prefers-color-scheme", Value: scheme}},
			}); err != nil {
				t.Fatal(err)
			}
			p.do(t, chromedp.EmulateViewport(width, 900))
			if wide := evaluate[int64](t, p, longVersion+"document.documentElement.scrollWidth"); wide > width {
				t.Errorf("%s, %d pixels wide: the page has %d; beyond the edge: %s", name, width, wide, evaluate[string](t, p, beyond))
			}
			image, err := chromedp.Run(p.ctx, chromedp.FullScreenshot(100))
			if err != nil {
				t.Fatal(err)
			}
			const least = 10 << 10 // a picture of nothing is smaller
			if len(image) < least {
				t.Errorf("%s, %d, %s: a picture of %d bytes", name, width, scheme, len(image))
			}
			file := filepath.Join(dir, fmt.Sprintf("status-%s-%d-%s.png", name, width, scheme))
			if err := os.WriteFile(file, image, 0o644); err != nil {
				t.Fatal(err)
			}
		}
	}
	p.do(t, chromedp.EmulateViewport(1280, 900))
}

// TestStatusPage: the page in a real browser, without network access. It refreshes
// itself in place: what is open stays open.
func TestStatusPage(t *testing.T) {
	t.Parallel()
	addr := net127(freePort(t))
	s := launch(t, "fault_app:app", "--workers", "2", "--slow", "500ms", "--status", addr)
	p := browse(t, addr)
	if title := evaluate[string](t, p, "document.title"); title != "fault_app:app – ready" {
		t.Errorf("title %q", title)
	}
	evaluate[bool](t, p, "window.loaded = true")
	p.shoot(t, "idle")

	const requests = 7
	for range requests {
		s.want(t, "http", get("/ok?<script>alert(1)</script>"), http.StatusOK)
	}
	s.await(t, "count of requests on the page", startTime, func() bool { return p.text(t, "#total") == strconv.Itoa(requests) })

	slow := s.background("http", get("/sleep?8"))
	s.await(t, "running request on the page", startTime, func() bool { return strings.Contains(p.text(t, "td.now code"), "GET /sleep?8") })
	first := p.seconds(t)
	s.await(t, "longer time on the page", startTime, func() bool { return p.seconds(t) > first })
	s.await(t, "incident on the page", startTime, func() bool { return strings.Contains(p.text(t, "summary"), "GET /sleep?8") })
	evaluate[bool](t, p, "document.querySelector('details').open = true")
	clock := p.text(t, "footer time")
	s.await(t, "refresh of the page", startTime, func() bool { return p.text(t, "footer time") != clock })
	if !evaluate[bool](t, p, "document.querySelector('details').open") {
		t.Error("the page closed what was open")
	}
	if text := p.text(t, "details"); !regexp.MustCompile(`fault_app\.py", line \d+ in sleep`).MatchString(text) {
		t.Errorf("the incident has no stack:\n%s", text)
	}
	p.shoot(t, "busy")
	if a := <-slow; a.status != http.StatusOK {
		t.Errorf("the slow request: %d, %v", a.status, a.err)
	}
	s.await(t, "end of the request on the page", startTime, func() bool { return p.text(t, "td.now code") == "" })
	if !evaluate[bool](t, p, "window.loaded === true") {
		t.Error("the page loaded itself anew")
	}
	p.clean(t)
}

// seconds returns for how long the page says that the running request has been so;
// without one, 0.
func (p *tab) seconds(t *testing.T) float64 {
	t.Helper()
	text := p.text(t, "td.now .for")
	if text == "" {
		return 0
	}
	d, err := time.ParseDuration(text)
	if err != nil {
		t.Fatal(err)
	}
	return d.Seconds()
}

// TestStatusPageCrashLoop: the page says that workers do not start any more, and
// why, and that all is well again when the application is mended.
func TestStatusPageCrashLoop(t *testing.T) {
	t.Parallel()
	addr := net127(freePort(t))
	s := launch(t, "fault_app:app", "--workers", "1", "--status", addr)
	p := browse(t, addr)
	file := filepath.Join(s.apps(), "fault_app.py")
	good, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, append(good, "\nraise RuntimeError('out of <b>cheese</b>')\n"...), 0o644); err != nil {
		t.Fatal(err)
	}
	for _, pid := range s.workers(t) {
		if err := syscall.Kill(pid, sigkill); err != nil {
			t.Fatal(err)
		}
	}
	s.await(t, "banner", startTime, func() bool { return strings.Contains(p.text(t, ".banner.bad"), "out of <b>cheese</b>") })
	if state := p.text(t, ".state"); state != "crash loop" {
		t.Errorf("state %q", state)
	}
	p.shoot(t, "crash-loop")
	if err := os.WriteFile(file, good, 0o644); err != nil {
		t.Fatal(err)
	}
	s.await(t, "recovery", 2*startTime, func() bool { return p.text(t, ".banner") == "" && p.text(t, ".state") == "ready" })
	p.clean(t)
}
