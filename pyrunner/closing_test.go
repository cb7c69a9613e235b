package pyrunner

import (
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
)

// closingApp hangs, or ends its process, when the answer is out.
const closingApp = stuckApp + `
class Answer:
    def __init__(self, close):
        self.close = close
    def __iter__(self):
        return iter([b"hello"])

def hang():
    while True:
        try:
            time.sleep(0.05) # hang
        except BaseException as err:
            with open("raised", "a") as f:
                f.write(type(err).__name__ + "\n")
            raise

def close_with(function):
    def app(environ, start_response):
        start_response("200 OK", [("Content-Length", "5")])
        return Answer(function)
    return app

def end():
    time.sleep(0.05) # so that the answer is seen first
    os._exit(3)

hangs, ends = close_with(hang), close_with(end)
`

// TestClosingIncidents: a request whose answer is out is still one, as long as the
// application closes it.
func TestClosingIncidents(t *testing.T) {
	t.Parallel()
	p := startPool(t, closingApp, Config{Slow: 200 * time.Millisecond, Timeout: time.Second, RaiseOnTimeout: true})
	r := get("/hangs")
	if w := p.serve(r); w.Status != 200 || w.Body.String() != "hello" {
		t.Errorf("status %d, %q", w.Status, w.Body.String())
	}
	eventually(t, "the request in the status", func() bool {
		current := p.Status().Workers[0].Current
		return len(current) == 1 && current[0].ID == r.ID && current[0].Phase == "close" && current[0].For > 0
	})
	for _, kind := range []string{kindSlow, kindTimeout} {
		eventually(t, kind, func() bool { return len(p.incidents.list()) > 0 && p.incidents.list()[0].Kind == kind })
		i := p.incidents.list()[0]
		if q := i.Request; q == nil || q.ID != r.ID || q.URI != "/hangs" || q.Phase != "close" || q.BytesOut != 5 || !strings.Contains(i.Stacks, " in hang\n") {
			t.Errorf("%s: %+v, %+v", kind, i, i.Request)
		}
	}
	p.log.await(t, "what became of it", func(l logLine) bool {
		return l.has("request failed after its answer") && l.num("request") == r.ID && l.str("uri") == "/hangs" && l.str("phase") == "close"
	})
	eventually(t, "the exception", func() bool {
		text, _ := os.ReadFile(filepath.Join(p.dir, "raised")) // not there yet
		return strings.HasPrefix(string(text), "RequestTimeout\n")
	})

	r = get("/ends")
	if w := p.serve(r); w.Status != 200 {
		t.Errorf("status %d", w.Status)
	}
	if i := p.incident(r.Worker); i.Kind != kindCrash || i.Request == nil || i.Request.ID != r.ID || i.Request.Phase != "close" {
		t.Errorf("%+v, %+v", i, i.Request)
	}
}

// TestTimeoutNeighbours: of requests in one worker that take too long, each has its
// incident with the stacks, also one that began later.
func TestTimeoutNeighbours(t *testing.T) {
	t.Parallel()
	p := startPool(t, stuckApp, Config{Timeout: 900 * time.Millisecond, Threads: 4})
	var group sync.WaitGroup
	for n := range 3 {
		group.Go(func() {
			time.Sleep(time.Duration(n) * 200 * time.Millisecond)
			if w := p.serve(get("/sleeps")); w.Status != 504 {
				t.Errorf("status %d", w.Status)
			}
		})
	}
	group.Wait()
	eventually(t, "three incidents", func() bool { return len(p.incidents.list()) == 3 })
	for _, i := range p.incidents.list() {
		if i.Kind != kindTimeout || i.Request == nil || !strings.Contains(i.Stacks, " in sleeps\n") {
			t.Errorf("%+v", i)
		}
	}
	p.servesOn()
	if s := p.Status(); s.Events.TimedOut != 3 || s.Events.Crashed != 0 {
		t.Errorf("%+v", s.Events)
	}
}
