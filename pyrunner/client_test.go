package pyrunner

import (
	"bytes"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"wsgigate/environ"
	"wsgigate/environ/environtest"
)

// clientApp notes how far the application has come in files, so that a test can
// look while the worker is busy.
const clientApp = preamble + `
def mark(name):
    open(name, "w").close()

def wait(name):
    while not os.path.exists(name):
        time.sleep(0.005)

class Endless:
    "Blocks of 64 KiB; how many were taken is in a file."
    def __init__(self, limit=None):
        self.count, self.limit = 0, limit
    def __iter__(self):
        return self
    def __next__(self):
        if self.count == self.limit:
            raise StopIteration
        self.count += 1
        with open("count.new", "w") as f:
            f.write(str(self.count))
        os.rename("count.new", "count")
        return b"x" * 65536
    def close(self):
        notes.append("closed")
        mark("closed")

def endless(environ, start_response):
    start_response("200 OK", [("Content-Type", "text/plain")])
    return Endless()

def blocks(environ, start_response):
    start_response("200 OK", [("Content-Type", "text/plain")])
    return Endless(int(environ["HTTP_X_BLOCKS"]))

def reads(environ, start_response):
    mark("reading")
    try:
        environ["wsgi.input"].read()
    except OSError as err:
        notes.append(type(err).__name__ + " " + str(err).replace(" ", "_"))
        raise
    return hello(environ, start_response)

def ignores_body(environ, start_response):
    return hello(environ, start_response)

def sizes(environ, start_response):
    start_response("200 OK", [("Content-Type", "text/plain")])
    yield b"y" * 4000000
    total = 0
    while True:
        block = environ["wsgi.input"].read(65536)
        if not block:
            break
        total += len(block)
        yield block
    yield b" %d" % total

def slow_close(environ, start_response):
    start_response("200 OK", [("Content-Type", "text/plain")])
    class Slow:
        def __iter__(self):
            return iter([b"all of it"])
        def close(self):
            mark("closing")
            wait("close")
    return Slow()

def fails_close(environ, start_response):
    start_response("200 OK", [("Content-Type", "text/plain")])
    class Fails:
        def __iter__(self):
            return iter([b"all ", b"of it"])
        def close(self):
            1 / 0
    return Fails()

def fails_behind(environ, start_response):
    start_response("200 OK", [("Content-Length", "3")])
    yield b"all"
    1 / 0
`

func (p *testPool) mark(name string) {
	p.t.Helper()
	if err := os.WriteFile(filepath.Join(p.dir, name), nil, 0o600); err != nil {
		p.t.Fatal(err)
	}
}

func (p *testPool) awaitMark(name string) {
	p.t.Helper()
	eventually(p.t, "the application's mark "+name, func() bool {
		_, err := os.Stat(filepath.Join(p.dir, name))
		return err == nil
	})
}

// counted returns how many blocks the application of /endless has made.
func (p *testPool) counted() int {
	text, _ := os.ReadFile(filepath.Join(p.dir, "count"))
	n, _ := strconv.Atoi(string(text))
	return n
}

// held is a client that takes nothing until it is let go.
type held struct {
	environtest.Recorder
	letGo   chan struct{}
	blocked atomic.Bool
}

func newHeld() *held {
	h := &held{letGo: make(chan struct{})}
	h.OnWrite = func() {
		h.blocked.Store(true)
		<-h.letGo
	}
	return h
}

// onlySlot returns the slot of a pool that has one, which must be idle.
func (p *testPool) onlySlot() *slot {
	p.queue.mu.Lock()
	defer p.queue.mu.Unlock()
	return p.queue.idle[0]
}

func (p *testPool) serveTo(w environ.ResponseWriter, r *environ.Request) <-chan struct{} {
	done := make(chan struct{})
	go func() {
		defer close(done)
		p.ServeGateway(w, r)
	}()
	return done
}

// TestClientGone: row 37, told by the transport, and seen by a write that fails.
func TestClientGone(t *testing.T) {
	t.Parallel()
	for name, leave := range map[string]func(w *held, r *environ.Request){
		"cancelled": func(w *held, r *environ.Request) {
			r.Cancel(environ.ErrClientGone)
			close(w.letGo)
		},
		"write fails": func(w *held, r *environ.Request) {
			w.WriteErr = errors.New("connection reset by peer")
			close(w.letGo)
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p := startPool(t, clientApp, Config{})
			worker := p.servesOn()
			w, r := newHeld(), get("/endless")
			done := p.serveTo(w, r)
			eventually(t, "the first block", func() bool { return w.blocked.Load() && p.counted() > 3 })
			leave(w, r)
			await(t, "the end of the request", done)
			if w.AbortErr == nil || w.Misuse != nil {
				t.Errorf("abort %v, misuse %v", w.AbortErr, w.Misuse)
			}
			if line := p.log.fault(t, r, atAnswer); line.str("level") != "INFO" {
				t.Errorf("log line %v", line)
			}
			if notes := p.text("/noted"); notes != "closed" {
				t.Errorf("notes %q", notes)
			}
			if now := p.servesOn(); now != worker {
				t.Error("the worker was replaced")
			}
		})
	}
}

// TestWriteFailsAtTheEnd: an answer that came in one piece and cannot be written.
func TestWriteFailsAtTheEnd(t *testing.T) {
	t.Parallel()
	p := startPool(t, clientApp, Config{})
	worker := p.servesOn()
	r := get("/hello")
	w := &environtest.Recorder{WriteErr: errors.New("broken pipe")}
	p.ServeGateway(w, r)
	if w.AbortErr == nil {
		t.Error("not aborted")
	}
	if line := p.log.fault(t, r, atClose); line.str("level") != "INFO" || line.str("error") != "broken pipe" {
		t.Errorf("log line %v", line)
	}
	if now := p.servesOn(); now != worker {
		t.Error("the worker was replaced")
	}
}

// waitingBody is a client that sends a part, and the rest when it is let go.
type waitingBody struct {
	first  io.Reader
	letGo  chan struct{}
	rest   io.Reader
	asked  atomic.Bool
	reads  atomic.Int64 // bytes
	failed error
}

func (b *waitingBody) Read(p []byte) (int, error) {
	n, err := b.first.Read(p)
	b.reads.Add(int64(n))
	if n > 0 || err != io.EOF {
		return n, err
	}
	b.asked.Store(true)
	<-b.letGo
	if b.failed != nil {
		return 0, b.failed
	}
	n, err = b.rest.Read(p)
	b.reads.Add(int64(n))
	return n, err
}

func newWaitingBody(first string) *waitingBody {
	return &waitingBody{first: strings.NewReader(first), rest: strings.NewReader("rest"), letGo: make(chan struct{})}
}

// TestCancelWhileReading: the application waits for a body that never comes.
func TestCancelWhileReading(t *testing.T) {
	t.Parallel()
	p := startPool(t, clientApp, Config{Limits: environ.Limits{ReadAhead: 1000}})
	worker := p.servesOn()
	body := newWaitingBody(strings.Repeat("x", 1000))
	body.failed = io.ErrUnexpectedEOF
	r := post("/reads", body, 5000)
	w := &environtest.Recorder{}
	done := p.serveTo(w, r)
	p.awaitMark("reading")
	eventually(t, "the READ", body.asked.Load)
	r.Cancel(environ.ErrClientGone)
	close(body.letGo)
	await(t, "the end of the request", done)
	if w.AbortErr == nil || w.Status != 0 {
		t.Errorf("status %d, abort %v", w.Status, w.AbortErr)
	}
	p.log.fault(t, r, atApp)
	if notes := p.text("/noted"); !strings.Contains(notes, "gone") && !strings.Contains(notes, "early") {
		t.Errorf("the application saw %q", notes)
	}
	if now := p.servesOn(); now != worker {
		t.Error("the worker was replaced")
	}
}

// TestCancelTooLate: a CANCEL that crosses END reaches the worker while it is idle,
// or in its next request, and is dropped.
func TestCancelTooLate(t *testing.T) {
	t.Parallel()
	p := startPool(t, clientApp, Config{})
	worker := p.servesOn()
	s := p.onlySlot()
	for range 20 {
		if err := s.send(appendFrame(nil, frameCancel, 0, s.request, []byte("late"))); err != nil {
			t.Fatal(err)
		}
		if now := p.servesOn(); now != worker {
			t.Error("the worker was replaced")
		}
	}
}

// TestBodyEndsEarly: the application's read fails, and the client's fault is not
// called the application's.
func TestBodyEndsEarly(t *testing.T) {
	t.Parallel()
	p := startPool(t, clientApp, Config{Limits: environ.Limits{ReadAhead: 1000}})
	worker := p.servesOn()
	for name, row := range map[string]struct {
		err    error
		sent   int
		status int
		phase  string
	}{
		"early, ahead":  {io.ErrUnexpectedEOF, 10, 400, "body"},
		"early, pulled": {io.ErrUnexpectedEOF, 2000, 400, atApp},
		"slow, ahead":   {os.ErrDeadlineExceeded, 10, 408, "body"},
		"slow, pulled":  {os.ErrDeadlineExceeded, 2000, 408, atApp},
		"large, pulled": {environ.Errorf(413, "too large"), 2000, 413, atApp},
	} {
		body := newWaitingBody(strings.Repeat("x", row.sent))
		body.failed = row.err
		close(body.letGo)
		r := post("/reads", body, 5000)
		w := p.serve(r)
		if w.Status != row.status || w.AbortErr != nil {
			t.Errorf("%s: status %d, abort %v", name, w.Status, w.AbortErr)
		}
		p.log.fault(t, r, row.phase)
	}
	if now := p.servesOn(); now != worker {
		t.Error("the worker was replaced")
	}
}

// TestSlowBody: row 40. Below the bound a slow sender holds no worker, past it one.
func TestSlowBody(t *testing.T) {
	t.Parallel()
	p := startPool(t, clientApp, Config{Limits: environ.Limits{ReadAhead: 100_000}})
	below := newWaitingBody(strings.Repeat("x", 99_990))
	slow := p.serveTo(&environtest.Recorder{}, post("/reads", below, 99_994))
	eventually(t, "the slow body", below.asked.Load)
	p.servesOn() // with the only worker
	if p.queue.busyNow() != 0 {
		t.Error("the slow body holds a slot")
	}
	close(below.letGo)
	await(t, "the slow request", slow)

	if err := os.Remove(filepath.Join(p.dir, "reading")); err != nil {
		t.Fatal(err)
	}
	past := newWaitingBody(strings.Repeat("x", 100_000))
	w := &environtest.Recorder{}
	slow = p.serveTo(w, post("/reads", past, -1))
	p.awaitMark("reading")
	close(past.letGo)
	await(t, "the slow request", slow)
	if w.Status != 200 {
		t.Errorf("status %d", w.Status)
	}
}

// TestSlowBodyIsNotTheApplications: time that the client takes does not count
// against --timeout.
func TestSlowBodyIsNotTheApplications(t *testing.T) {
	t.Parallel()
	p := startPool(t, clientApp, Config{Timeout: 2 * time.Second, Limits: environ.Limits{ReadAhead: 10}})
	body := newWaitingBody(strings.Repeat("x", 100))
	w := &environtest.Recorder{}
	done := p.serveTo(w, post("/reads", body, -1))
	eventually(t, "the READ", body.asked.Load)
	<-time.After(3 * time.Second)
	close(body.letGo)
	await(t, "the answer", done)
	if w.Status != 200 {
		t.Errorf("status %d", w.Status)
	}
}

// TestExpectContinue: such a body is not read before the application asks.
func TestExpectContinue(t *testing.T) {
	t.Parallel()
	p := startPool(t, clientApp, Config{})
	for path, asked := range map[string]bool{"/ignores-body": false, "/reads": true} {
		body := newWaitingBody("")
		close(body.letGo)
		r := post(path, body, 4)
		r.ExpectContinue = true
		if w := p.serve(r); w.Status != 200 || body.asked.Load() != asked {
			t.Errorf("%s: status %d, body read: %v", path, w.Status, body.asked.Load())
		}
	}
}

// TestUnreadBody: row 20. Nothing but what is read ahead is taken of a body that
// the application ignores.
func TestUnreadBody(t *testing.T) {
	t.Parallel()
	p := startPool(t, clientApp, Config{Limits: environ.Limits{ReadAhead: 100_000}})
	body := newWaitingBody("")
	body.first = io.LimitReader(zeros{}, 64<<20)
	w := p.serve(post("/ignores-body", body, 64<<20))
	if w.Status != 200 || w.Body.String() != "hello" {
		t.Errorf("status %d, %q", w.Status, w.Body.String())
	}
	if n := body.reads.Load(); n > 100_000 {
		t.Errorf("%d bytes were read", n)
	}
	p.servesOn()
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) { clear(p); return len(p), nil }

// TestLargeBothWays: row 21. Output before the body is read, then as it is read.
func TestLargeBothWays(t *testing.T) {
	t.Parallel()
	p := startPool(t, clientApp, Config{})
	const length = 2 << 20
	w := p.serve(post("/sizes", io.LimitReader(zeros{}, length), length))
	if w.Status != 200 || w.AbortErr != nil || w.Body.Len() != 4_000_000+length+8 {
		t.Errorf("status %d, abort %v, %d bytes", w.Status, w.AbortErr, w.Body.Len())
	}
	if !bytes.HasSuffix(w.Body.Bytes(), []byte(" 2097152")) {
		t.Error("the body was not read whole")
	}
	p.servesOn()
}

// TestSlowReader: row 41. An answer that fits the buffer frees the worker while
// its client has taken nothing; a longer one makes the worker wait, and memory
// is bounded.
func TestSlowReader(t *testing.T) {
	t.Parallel()
	const buffer = 1 << 20
	p := startPool(t, clientApp, Config{Limits: environ.Limits{ResponseBuffer: buffer}})
	worker := p.servesOn()
	only := p.onlySlot()
	fits, r := newHeld(), get("/blocks")
	r.Environ.Add("HTTP_X_BLOCKS", "8")
	done := p.serveTo(fits, r)
	eventually(t, "the slow client", fits.blocked.Load)
	p.servesOn() // with the only worker
	close(fits.letGo)
	await(t, "the slow client", done)
	if fits.Body.Len() != 8*65536 || fits.AbortErr != nil {
		t.Errorf("%d bytes, abort %v", fits.Body.Len(), fits.AbortErr)
	}

	const least = buffer / 65536 / 2
	endless := newHeld()
	r = get("/endless")
	done = p.serveTo(endless, r)
	eventually(t, "back-pressure", func() bool { return endless.blocked.Load() && only.paused.Load() && p.counted() >= least })
	made := p.counted()
	// Beside the buffer, whose pieces may be half full: what the pump took first, one batch more, the slot's
	// buffer, the socket's.
	if most := (buffer+3*receiveBuffer)/65536 + 8; made > most {
		t.Errorf("%d blocks made, want %d to %d", made, least, most)
	}
	endless.WriteErr = os.ErrDeadlineExceeded // what a transport's write timeout gives
	close(endless.letGo)
	await(t, "the slow client", done)
	if endless.AbortErr == nil {
		t.Error("not aborted")
	}
	p.log.fault(t, r, atAnswer)
	if now := p.servesOn(); now != worker {
		t.Error("the worker was replaced")
	}
	p.awaitMark("closed")
}

// TestQueueFull: row 53.
func TestQueueFull(t *testing.T) {
	t.Parallel()
	p := startPool(t, clientApp, Config{Queue: 1, QueueTimeout: 300 * time.Millisecond})
	body := newWaitingBody("")
	busy := post("/reads", body, 4)
	busy.ExpectContinue = true
	done := p.serveTo(&environtest.Recorder{}, busy)
	p.awaitMark("reading")
	waits := get("/hello")
	begun := time.Now()
	waiting := p.later(waits)
	eventually(t, "the waiting request", func() bool { return p.queue.waitingNow() == 1 })
	full := get("/hello")
	if w := p.serve(full); w.Status != 503 || w.Get("Retry-After") == "" {
		t.Errorf("status %d from a full queue", w.Status)
	}
	if line := p.log.fault(t, full, "queue"); !strings.Contains(line.str("error"), "--queue)") {
		t.Errorf("log line %v", line)
	}
	if w := await(t, "the waiting request", waiting); w.Status != 503 {
		t.Errorf("status %d at the queue's timeout", w.Status)
	}
	if took := time.Since(begun); took < 300*time.Millisecond || took > 5*time.Second {
		t.Errorf("waited for %v", took)
	}
	if line := p.log.fault(t, waits, "queue"); !strings.Contains(line.str("error"), "--queue-timeout") {
		t.Errorf("log line %v", line)
	}
	close(body.letGo)
	await(t, "the busy request", done)
	p.servesOn()
}

// TestSlowClose: the client has its whole answer while close() runs; the slot is
// held until that has ended.
func TestSlowClose(t *testing.T) {
	t.Parallel()
	p := startPool(t, clientApp, Config{})
	w := p.serve(get("/slow-close"))
	if w.Status != 200 || w.Body.String() != "all of it" || w.AbortErr != nil {
		t.Errorf("status %d, %q, abort %v", w.Status, w.Body.String(), w.AbortErr)
	}
	p.awaitMark("closing")
	next := p.later(get("/hello"))
	eventually(t, "the next request", func() bool { return p.queue.waitingNow() == 1 })
	p.mark("close")
	if w := await(t, "the next request", next); w.Status != 200 {
		t.Errorf("status %d", w.Status)
	}
}

// TestFailsAfterTheAnswer: nothing changes for the client.
func TestFailsAfterTheAnswer(t *testing.T) {
	t.Parallel()
	p := startPool(t, clientApp, Config{})
	worker := p.servesOn()
	for path, want := range map[string]string{"/fails-close": "all of it", "/fails-behind": "all"} {
		r := get(path)
		w := p.serve(r)
		if w.Status != 200 || w.Body.String() != want || w.AbortErr != nil {
			t.Errorf("%s: status %d, %q, abort %v", path, w.Status, w.Body.String(), w.AbortErr)
		}
		if line := p.log.fault(t, r, atClose); !strings.Contains(line.str("msg"), "ZeroDivisionError") {
			t.Errorf("%s: log line %v", path, line)
		}
	}
	if now := p.servesOn(); now != worker {
		t.Error("the worker was replaced")
	}
}

// TestThreads: one worker answers several requests at once.
func TestThreads(t *testing.T) {
	t.Parallel()
	p := startPool(t, preamble+`
import threading
barrier = threading.Barrier(4, timeout=20)
def meets(environ, start_response):
    assert environ["wsgi.multithread"] is True
    assert environ["wsgi.multiprocess"] is False
    barrier.wait()
    return hello(environ, start_response)
`, Config{Threads: 4})
	for range 5 {
		var group sync.WaitGroup
		for range 4 {
			group.Go(func() { p.text("/meets") })
		}
		group.Wait()
	}
	if n := len(p.workers); n != 1 {
		t.Errorf("%d workers", n)
	}
}
