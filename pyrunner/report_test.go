package pyrunner

import (
	"encoding/json"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"wsgigate/environ"
	"wsgigate/environ/environtest"
)

// TestSlowOnce: a request is one incident, however often it waits for its client.
func TestSlowOnce(t *testing.T) {
	t.Parallel()
	p := startPool(t, preamble+`
def in_steps(environ, start_response):
    for n in range(4):
        time.sleep(0.25)
        environ["wsgi.input"].read(1 << 19)
    return hello(environ, start_response)
`, Config{Slow: 150 * time.Millisecond})
	r := post("/in-steps", strings.NewReader(strings.Repeat("x", 3<<20)), 3<<20)
	if w := p.serve(r); w.Status != 200 {
		t.Errorf("status %d", w.Status)
	}
	p.incident(r.Worker)
	if s := p.Status(); s.Events.Slow != 1 || len(s.Incidents) != 1 {
		t.Errorf("%d slow, %d incidents", s.Events.Slow, len(s.Incidents))
	}
}

// TestStatus: what a pool says of itself from its begin to its end.
func TestStatus(t *testing.T) {
	t.Parallel()
	p := newPool(t, releaseApp, Config{Workers: 2, Threads: 2, Queue: 7})
	if s := p.Status(); s.State != HealthStarting || s.Generation != 1 || s.App != "app:app" || s.Workers == nil || s.Incidents == nil || s.MinWorkers != 2 || s.QueueLimit != 7 {
		t.Errorf("before the start: %+v", s)
	}
	if err := p.Start(); err != nil {
		t.Fatal(err)
	}
	s := p.Status()
	if s.State != HealthReady || len(s.Workers) != 2 || s.Threads != 2 || s.Requests.Total != 0 || s.Events.Started != 2 || s.CrashLoop != nil || s.Reload != nil || s.Started.IsZero() {
		t.Errorf("%+v", s)
	}
	for _, w := range s.Workers {
		if w.PID == 0 || w.State != "ready" || w.Generation != 1 || w.Started.IsZero() || w.RSS < 1<<20 || w.PeakRSS < w.RSS || w.CPU <= 0 || w.Requests != 0 || len(w.Current) != 0 || w.Current == nil || w.Forked {
			t.Errorf("%+v", w)
		}
	}
	if s.Workers[1].Started.Before(s.Workers[0].Started) {
		t.Error("not the oldest first")
	}
	p.checkBusyStatus()
	text, err := json.Marshal(p.Status())
	if err != nil || strings.Contains(string(text), ":null") {
		t.Errorf("%v, %s", err, text)
	}
	p.shutdown(patience)
	s = p.Status()
	if s.State != HealthStopping || s.App != "app:app" || s.Requests.Answered != 7 || len(s.Workers) != 0 {
		t.Errorf("after the end: %+v", s)
	}
	if text, err = json.Marshal(s); err != nil || strings.Contains(string(text), ":null") {
		t.Errorf("%v, %s", err, text)
	}
}

// checkBusyStatus looks at a pool of four slots that has seven requests.
func (p *testPool) checkBusyStatus() {
	p.t.Helper()
	end := p.occupy("a", 6)
	r := with("/until", "a")
	r.Environ.Add("REMOTE_ADDR", "192.0.2.7")
	last := p.later(r)
	var s Status
	eventually(p.t, "three to wait", func() bool { s = p.Status(); return s.Waiting == 3 })
	seen := map[uint64]bool{}
	for _, w := range s.Workers {
		if w.IdleFor != 0 || len(w.Current) != 2 {
			p.t.Errorf("%+v", w)
		}
		for _, c := range w.Current {
			seen[c.ID] = true
			if c.Method != "GET" || c.URI != "/until" || c.Phase != "app" || c.For <= 0 {
				p.t.Errorf("%+v", c)
			}
		}
	}
	if len(seen) != 4 || s.Requests.Total != 7 || s.Requests.Answered != 0 {
		p.t.Errorf("%v, %+v", seen, s.Requests)
	}
	end()
	await(p.t, "the last", last)
	eventually(p.t, "all to be idle", func() bool {
		s = p.Status()
		return s.Workers[0].IdleFor > 0 && s.Workers[1].IdleFor > 0
	})
	if s.Workers[0].Requests+s.Workers[1].Requests != 7 || s.Requests.Answered != 7 || s.Requests.Status[200] != 7 || s.Latency[len(s.Latency)-1].Count != 7 {
		p.t.Errorf("%+v", s)
	}
}

// TestCrashLoop503: who waits when the crash loop begins is told at once, who comes
// later too, with a Retry-After that fits; when the code is mended the pool serves by
// itself.
func TestCrashLoop503(t *testing.T) {
	t.Parallel()
	p := startPool(t, releaseApp, Config{QueueTimeout: time.Minute})
	p.servesOn()
	p.write("release", "raises")
	_, end := p.until("a")
	defer end()
	waiting := p.later(get("/hello"))
	eventually(t, "the request to wait", func() bool { return p.queue.waitingNow() == 1 })
	begun := time.Now()
	_ = unix.Kill(pidsIn(p.Status(), ready)[0], unix.SIGKILL)
	if w := await(t, "the request that waited", waiting); w.Status != 503 || w.Get("Retry-After") == "" {
		t.Errorf("status %d, Retry-After %q", w.Status, w.Get("Retry-After"))
	}
	fits := 0
	eventually(t, "three pauses", func() bool {
		w := p.serve(get("/hello"))
		s := p.Status()
		if w.Status != 503 || s.State != HealthCrashLoop || s.CrashLoop == nil || !strings.Contains(s.CrashLoop.Reason, "a broken release") {
			t.Errorf("status %d, %+v", w.Status, s)
			return true
		}
		left := time.Until(s.CrashLoop.RetryAt).Seconds()
		after, err := strconv.Atoi(w.Get("Retry-After"))
		if err != nil || after < 1 || after > 5 {
			t.Errorf("Retry-After %q", w.Get("Retry-After"))
		}
		if left > 0 && float64(after) >= left && float64(after) <= left+2 {
			fits++
		}
		return s.CrashLoop.Failures == 4
	})
	// Without delay, then after 1 s and 2 s.
	if took := time.Since(begun); took < 3*backoffMin || fits == 0 {
		t.Errorf("%v, %d fit", took, fits)
	}
	p.write("release", "2")
	eventually(t, "the recovery", func() bool { return p.serve(get("/release")).Status == 200 })
	eventually(t, "the end of the crash loop", func() bool { s := p.Status(); return s.CrashLoop == nil && s.State == HealthReady })
	if s := p.Status(); s.Waiting != 0 || s.Requests.Total != s.Requests.Answered+s.Requests.Failed+s.Requests.Refused {
		t.Errorf("%+v", s)
	}
}

// TestCrashLoopBesideHealthyWorkers: those serve as if there were none.
func TestCrashLoopBesideHealthyWorkers(t *testing.T) {
	t.Parallel()
	p := startPool(t, releaseApp, Config{Workers: 2})
	p.write("release", "raises")
	_ = unix.Kill(pidsIn(p.Status(), ready)[0], unix.SIGKILL)
	for looping := false; !looping; looping = p.Status().State == HealthCrashLoop {
		p.servesOn()
	}
	for range 50 {
		p.servesOn()
	}
	if s := p.Status(); workersIn(s, ready) != 1 || s.Requests.Refused != 0 || s.Requests.Failed != 0 {
		t.Errorf("%+v", s)
	}
	p.write("release", "2")
	if s := p.awaitReady(2); s.CrashLoop != nil || s.State != HealthReady {
		t.Errorf("%+v", s)
	}
}

// TestCountersAddUp after answers, faults, deaths, timeouts, refusals and clients that
// leave, and are what the clients saw.
func TestCountersAddUp(t *testing.T) {
	t.Parallel()
	p := startPool(t, releaseApp+`
def cut(environ, start_response):
    start_response("200 OK", [("Content-Type", "text/plain")])
    yield b"half"
    os._exit(4)

def naps(environ, start_response):
    time.sleep(0.02)
    return hello(environ, start_response)

def fails(environ, start_response):
    raise RuntimeError("no")
`, Config{Workers: 2, Threads: 2, Queue: 10, Timeout: 400 * time.Millisecond, QueueTimeout: 300 * time.Millisecond})
	paths := slices.Concat(slices.Repeat([]string{"/hello", "/naps", "/status"}, 12), slices.Repeat([]string{"/fails", "/leaves"}, 4), []string{"/dies", "/sleeps", "/cut", "/broken-body"})
	var group sync.WaitGroup
	var mu sync.Mutex
	statuses := map[int]uint64{}
	var total, aborted atomic.Uint64
	for client := range 16 {
		group.Go(func() {
			for n := range 40 {
				path := paths[(client*7+n)%len(paths)]
				r := with(path, "404 Not Found")
				switch path {
				case "/leaves":
					r = get("/naps")
					timer := time.AfterFunc(time.Duration(client+n)*time.Millisecond, func() { r.Cancel(environ.ErrClientGone) })
					defer timer.Stop()
				case "/broken-body":
					r = post("/length", strings.NewReader("short"), 100)
				}
				total.Add(1)
				w := p.serve(r)
				if w.AbortErr != nil {
					aborted.Add(1)
				}
				mu.Lock()
				statuses[w.Status]++
				mu.Unlock()
			}
		})
	}
	group.Wait()
	c := p.Status().Requests
	t.Logf("%+v; clients saw %v, %d cut", c, statuses, aborted.Load())
	if c.Total != total.Load() || c.Total != c.Answered+c.Failed+c.Refused+c.Cancelled {
		t.Errorf("%+v, sent %d", c, total.Load())
	}
	sent := uint64(0)
	for status, n := range c.Status {
		sent += n
		if status == 200 {
			continue // of which some left while they were answered
		}
		if statuses[status] != n {
			t.Errorf("%d answers of status %d, clients saw %d", n, status, statuses[status])
		}
	}
	if sent != c.Answered+c.Failed+c.Refused || c.Answered == 0 || c.Failed == 0 || c.Refused == 0 || c.Cancelled == 0 {
		t.Errorf("%d statuses for %+v", sent, c)
	}
	h := p.Status().Latency
	if n := h[len(h)-1].Count; n != c.Total {
		t.Errorf("%d in the histogram of %d", n, c.Total)
	}
}

// TestRaiseOnTimeout: the thread that hangs gets an exception, its finally clauses run,
// the client has its 504, and the neighbour its answer.
func TestRaiseOnTimeout(t *testing.T) {
	t.Parallel()
	p := startPool(t, releaseApp+`
def mark(name):
    open(name, "w").close()

def hangs(environ, start_response):
    try:
        while True:
            time.sleep(0.05)
    except Exception as err:
        mark("raised-" + type(err).__name__)
        raise
    finally:
        mark("finally")
`, Config{Threads: 2, Timeout: 3 * time.Second, RaiseOnTimeout: true})
	late := p.later(get("/hangs"))
	<-time.After(3 * time.Second / 2)
	neighbour, end := p.until("a")
	if w := await(t, "the late request", late); w.Status != 504 {
		t.Errorf("status %d", w.Status)
	}
	p.awaitMark("finally")
	p.awaitMark("raised-RequestTimeout")
	end()
	if w := await(t, "the neighbour", neighbour); w.Status != 200 {
		t.Errorf("the neighbour got %d", w.Status)
	}
	p.servesOn()
	if s := p.awaitReady(1); s.Events.TimedOut != 1 || s.Events.Crashed != 0 || s.CrashLoop != nil {
		t.Errorf("%+v", s)
	}
}

// TestTakenBackPastAnother: whichever of two unread requests is taken back first, the
// other one is not lost.
func TestTakenBackPastAnother(t *testing.T) {
	t.Parallel()
	for _, order := range [][]uint32{{1, 2}, {2, 1}} {
		q := newRequests(t)
		for _, id := range []uint32{1, 2} {
			if ok, err := q.send(requestFrame(id, 10)); !ok || err != nil {
				t.Fatal(ok, err)
			}
		}
		for _, id := range order {
			if !q.takeBack(id, true) {
				t.Errorf("order %v: request %d is lost", order, id)
			}
		}
		if q.takeBack(3, true) {
			t.Error("a request that was never sent is taken back")
		}
	}
}

// TestTakenBackUnread: what a worker has not read when it ends is answered by another,
// and runs once.
func TestTakenBackUnread(t *testing.T) {
	t.Parallel()
	p := startPool(t, releaseApp, Config{})
	old := p.servesOn()
	for range 3 {
		p.servesOn() // quickly, so that a request may be sent ahead
	}
	if err := unix.Kill(old, unix.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the worker to stand still", func() bool { return conditionOf(old).stopped() })
	var answers []<-chan *environtest.Recorder
	for n := range 3 {
		answers = append(answers, p.later(with("/run", strconv.Itoa(n))))
	}
	eventually(t, "the requests", func() bool { return p.Status().Requests.Total == 7 })
	_ = unix.Kill(old, unix.SIGKILL)
	for n, each := range answers {
		if w := await(t, "an answer", each); w.Status != 200 || w.Body.String() != strconv.Itoa(n) {
			t.Errorf("status %d, %q", w.Status, w.Body.String())
		}
	}
	runs := p.runs()
	for n := range answers {
		if runs[strconv.Itoa(n)] != 1 {
			t.Errorf("runs %v", runs)
		}
	}
	if c := p.Status().Requests; c.Retried != 1 || c.Answered != 7 || c.Total != 7 {
		t.Errorf("%+v", c)
	}
}
