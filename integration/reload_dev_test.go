package integration

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"
)

// developed is a server with --reload, whose application a test edits while it is
// asked all the time.
type developed struct {
	*server
	stop  chan struct{}
	asked sync.WaitGroup
}

const developedApp = `
import shown

def app(environ, start_response):
    text = shown.TEXT
    if environ["PATH_INFO"] == "/lazy":
        import lazily
        text = lazily.TEXT
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [text.encode()]
`

func develop(t *testing.T, flags ...string) *developed {
	t.Helper()
	d := &developed{server: prepare(t), stop: make(chan struct{})}
	d.save(t, "developed.py", developedApp)
	d.shows(t, "shown", "first")
	d.shows(t, "lazily", "lazy")
	d.run(t, nil, "developed:app", append(flags, "--reload")...)
	d.awaitAnnounced(t)
	for _, transport := range transports {
		d.asked.Go(func() { d.keepAsking(t, transport) })
	}
	t.Cleanup(func() { close(d.stop); d.asked.Wait() })
	d.awaitText(t, "/", "first")
	return d
}

// keepAsking makes requests until the test ends. None may fail.
func (d *developed) keepAsking(t *testing.T, transport string) {
	for {
		select {
		case <-d.stop:
			return
		case <-time.After(5 * time.Millisecond):
		}
		if a := d.ask(transport, get("/")); a.err != nil || a.status != 200 {
			t.Errorf("%s: status %d, error %v, body %.200q", transport, a.status, a.err, a.body)
			return
		}
	}
}

func (d *developed) path(name string) string { return filepath.Join(d.apps(), name) }

func (d *developed) save(t *testing.T, name, text string) {
	t.Helper()
	write(t, d.path(name), text)
}

// shows saves a module with that text.
func (d *developed) shows(t *testing.T, module, text string) {
	t.Helper()
	d.save(t, module+".py", fmt.Sprintf("TEXT = %q\n", text))
}

// awaitText waits until an answer has that text.
func (d *developed) awaitText(t *testing.T, target, text string) {
	t.Helper()
	d.await(t, fmt.Sprintf("%q in the answer to %s", text, target), startTime, func() bool {
		return string(d.want(t, "http", get(target), 200).body) == text
	})
}

// fails waits until another reload has failed with that in its error.
func (d *developed) fails(t *testing.T, change func(), said ...string) {
	t.Helper()
	before := len(d.text(t))
	change()
	d.await(t, "failed reload", startTime, func() bool {
		return strings.Contains(d.text(t)[before:], "reload failed: the old workers serve on")
	})
	text := d.text(t)[before:]
	for _, each := range said {
		if !strings.Contains(text, each) {
			t.Errorf("the log of the failed reload has no %q:\n%s", each, text)
		}
	}
}

func TestReloadOnChange(t *testing.T) {
	t.Parallel()
	d := develop(t, "--workers", "1") // that of the lazy import
	d.shows(t, "shown", "second")
	d.awaitText(t, "/", "second")
	d.says(t, 1, "shown.py changed: reloading")

	d.save(t, "shown.py~", "TEXT = 'third'\n")
	if err := os.Rename(d.path("shown.py~"), d.path("shown.py")); err != nil {
		t.Fatal(err)
	}
	d.awaitText(t, "/", "third")

	d.awaitText(t, "/lazy", "lazy") // imported in this request
	d.shows(t, "lazily", "later")
	d.await(t, "reload", startTime, func() bool {
		// The file may have been saved before the gateway had heard of it.
		now := time.Now()
		return os.Chtimes(d.path("lazily.py"), now, now) == nil && strings.Contains(d.text(t), "lazily.py changed: reloading")
	})
	d.awaitText(t, "/lazy", "later")
	d.says(t, 2, "shown.py changed: reloading")
	d.saysNot(t, "reload failed")
}

func TestReloadOfMistakes(t *testing.T) {
	t.Parallel()
	d := develop(t, "--workers", "2")
	d.fails(t, func() { d.save(t, "shown.py", "TEXT = (\n") }, "syntax error at "+d.path("shown.py"), "Traceback")
	d.awaitText(t, "/", "first")
	d.shows(t, "shown", "mended")
	d.awaitText(t, "/", "mended")

	// A module of which the first version that was ever imported is broken.
	d.save(t, "fresh.py", "def (\n")
	d.fails(t, func() { d.save(t, "shown.py", "from fresh import TEXT\n") }, "syntax error at "+d.path("fresh.py"))
	d.awaitText(t, "/", "mended")
	d.shows(t, "fresh", "fresh")
	d.awaitText(t, "/", "fresh")

	// One that is not there yet.
	d.fails(t, func() { d.save(t, "shown.py", "from absent import TEXT\n") }, "imports 'absent', which is missing")
	d.awaitText(t, "/", "fresh")
	d.shows(t, "absent", "present")
	d.awaitText(t, "/", "present")

	d.fails(t, func() { d.save(t, "shown.py", "1/0\n") }, "ZeroDivisionError")
	d.fails(t, func() { d.save(t, "shown.py", "undefined\n") }, "NameError")
	d.shows(t, "shown", "last")
	d.awaitText(t, "/", "last")
}

func TestReloadOfQuickSaves(t *testing.T) {
	t.Parallel()
	d := develop(t, "--workers", "2")
	const saves = 20
	for i := range saves {
		d.shows(t, "shown", fmt.Sprintf("save %02d", i+1))
	}
	d.awaitText(t, "/", fmt.Sprintf("save %02d", saves))
	if n := len(regexp.MustCompile(`reload begins`).FindAllString(d.text(t), -1)); n > saves/4 {
		t.Errorf("%d reloads for %d saves:\n%s", n, saves, d.text(t))
	}
}
