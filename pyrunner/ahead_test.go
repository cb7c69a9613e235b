package pyrunner

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
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

// aheadQueue is a queue with slots that were quick, without workers: the tests
// read what is sent ahead out of the slots' sockets.
func aheadQueue(t *testing.T, n int) (*queue, []*slot) {
	t.Helper()
	q := &queue{limit: 100, timeout: time.Hour}
	slots := aheadSlots(t, q, n)
	q.add(slots)
	return q, slots
}

func aheadSlots(t *testing.T, q *queue, n int) []*slot {
	t.Helper()
	w := &worker{queue: q}
	for range n {
		s, peer := fakeSlot(t, w)
		s.requests, s.quick = newRequests(t), true
		w.slots = append(w.slots, s)
		t.Cleanup(func() {
			s.close()
			_ = peer.Close()
		})
	}
	return w.slots
}

// fakeSender sends packets of its id ahead.
type fakeSender struct {
	id      uint32
	rebased bool
	fails   bool
	hold    chan struct{} // if not nil, sending waits for it before it sends
	tell    chan struct{} // if not nil, sending waits for it after it sent
	called  atomic.Int32
}

func (f *fakeSender) sendAhead(s *slot) sentAhead {
	f.called.Add(1)
	if f.hold != nil {
		<-f.hold
	}
	ok := false
	if !f.fails {
		ok, _ = s.requests.send(requestFrame(f.id, 10))
	}
	if f.tell != nil {
		<-f.tell
	}
	return sentAhead{ok, f.id, f.rebased}
}

// aheadOutcome is what acquire returned to a request that may be sent ahead.
type aheadOutcome struct {
	slot *slot
	sent bool
	err  error
}

// acquireAhead calls acquire in a goroutine.
func acquireAhead(q *queue, r *environ.Request, early sender) <-chan aheadOutcome {
	done := make(chan aheadOutcome, 1)
	go func() {
		s, sent, err := q.acquire(r, early, time.Time{})
		done <- aheadOutcome{s, sent, err}
	}()
	return done
}

// future makes a busy slot's request look young for a while, so that the watch
// lets alone what lies behind it.
func future(s *slot) { s.busySince.Store(monotonic() + int64(time.Hour)) }

// isAhead reports whether a request was sent ahead to the slot, and told so.
func isAhead(q *queue, s *slot) bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	return s.ahead != nil && s.ahead.ahead.sent == s
}

// putAhead takes a slot whose request goes on, and puts another one behind it.
func putAhead(t *testing.T, q *queue, r *environ.Request, early *fakeSender) (*slot, <-chan aheadOutcome) {
	t.Helper()
	s := mustAcquire(t, q)
	return s, putBehind(t, q, s, r, early)
}

// putBehind puts a request behind the one that has the slot, while no other is idle.
func putBehind(t *testing.T, q *queue, s *slot, r *environ.Request, early *fakeSender) <-chan aheadOutcome {
	t.Helper()
	future(s)
	q.began(s)
	done := acquireAhead(q, r, early)
	eventually(t, "a request ahead", func() bool { return isAhead(q, s) })
	return done
}

func (o aheadOutcome) check(t *testing.T, s *slot, sent bool, err error) {
	t.Helper()
	if o.slot != s || o.sent != sent || !errors.Is(o.err, err) {
		t.Errorf("slot %p, sent %v, %v; want slot %p, sent %v, %v", o.slot, o.sent, o.err, s, sent, err)
	}
}

// checkEmpty checks that nothing is left of what was ahead.
func checkEmpty(t *testing.T, q *queue) {
	t.Helper()
	q.mu.Lock()
	defer q.mu.Unlock()
	if len(q.ahead) != 0 || q.first != nil || q.last != nil || q.waiting != 0 {
		t.Errorf("left: ahead %d, waiting %d, first %p, last %p", len(q.ahead), q.waiting, q.first, q.last)
	}
}

func TestAheadGetsTheSlot(t *testing.T) {
	t.Parallel()
	for _, read := range []bool{true, false} {
		q, _ := aheadQueue(t, 1)
		s, done := putAhead(t, q, &environ.Request{}, &fakeSender{id: 2})
		if read && s.requests.next(0) != 2 {
			t.Fatal("the packet is not there")
		}
		q.release(s)
		await(t, "the slot", done).check(t, s, true, nil)
		if q.busy != 1 || s.busySince.Load() == 0 {
			t.Errorf("busy %d, since %d", q.busy, s.busySince.Load())
		}
		q.release(s)
		checkEmpty(t, q)
		await(t, "quiet", q.close())
	}
}

// TestAheadIsSentWhileTheSlotFallsIdle: the request has the slot before its
// sender has told.
func TestAheadIsSentWhileTheSlotFallsIdle(t *testing.T) {
	t.Parallel()
	for _, fails := range []bool{false, true} {
		q, _ := aheadQueue(t, 1)
		early := &fakeSender{id: 2, fails: fails, hold: make(chan struct{})}
		s := mustAcquire(t, q)
		future(s)
		q.began(s)
		done := acquireAhead(q, &environ.Request{}, early)
		eventually(t, "the sender", func() bool { return early.called.Load() == 1 })
		q.release(s)
		close(early.hold)
		await(t, "the slot", done).check(t, s, !fails, nil)
		q.release(s)
		checkEmpty(t, q)
	}
}

func TestAheadIsTakenBackForAnIdleSlot(t *testing.T) {
	t.Parallel()
	q, _ := aheadQueue(t, 2)
	other := mustAcquire(t, q)
	s, done := putAhead(t, q, &environ.Request{}, &fakeSender{id: 2, rebased: true})
	s.base.valid = true
	s.busySince.Store(monotonic())
	q.release(other)
	await(t, "the idle slot", done).check(t, other, false, nil)
	if s.requests.next(0) != 0 || s.base.valid {
		t.Errorf("the packet is still there, or the base valid: %v", s.base.valid)
	}
	q.release(other)
	q.release(s)
	checkEmpty(t, q)
}

// TestAheadIsTakenBackFromSlowSlots: and the requests keep their order.
func TestAheadIsTakenBackFromSlowSlots(t *testing.T) {
	t.Parallel()
	q, _ := aheadQueue(t, 3)
	slots := []*slot{mustAcquire(t, q), mustAcquire(t, q), mustAcquire(t, q)}
	var done []<-chan aheadOutcome
	for n, s := range slots {
		done = append(done, putBehind(t, q, s, &environ.Request{}, &fakeSender{id: uint32(n + 2)}))
	}
	late := acquiring(t, q, &environ.Request{})
	q.mu.Lock()
	for _, s := range slots {
		s.busySince.Store(monotonic() - int64(slowRequest))
	}
	q.mu.Unlock()
	eventually(t, "all in the queue", func() bool { return q.waitingNow() == 4 })
	for _, d := range done {
		q.release(slots[0])
		await(t, "a slot", d).check(t, slots[0], false, nil)
	}
	q.release(slots[0])
	if got := await(t, "a slot", late); got.err != nil {
		t.Error(got.err)
	}
	checkEmpty(t, q)
}

// TestTooLongToBeSentAhead: such a request is not bound to the slot.
func TestTooLongToBeSentAhead(t *testing.T) {
	t.Parallel()
	q, _ := aheadQueue(t, 2)
	busy, other := mustAcquire(t, q), mustAcquire(t, q)
	early := &fakeSender{id: 2, fails: true}
	future(busy)
	q.began(busy)
	done := acquireAhead(q, &environ.Request{}, early)
	eventually(t, "a request that waits", func() bool { return early.called.Load() == 1 && q.waitingNow() == 1 })
	q.began(other)
	q.release(other)
	await(t, "the other slot", done).check(t, other, false, nil)
	if n := early.called.Load(); n != 1 {
		t.Errorf("sent ahead %d times", n)
	}
	checkEmpty(t, q)
}

func TestAheadIsCancelled(t *testing.T) {
	t.Parallel()
	q, _ := aheadQueue(t, 1)
	unread := &environ.Request{}
	s, done := putAhead(t, q, unread, &fakeSender{id: 2})
	unread.Cancel(environ.ErrClientGone)
	await(t, "the unread request", done).check(t, nil, false, environ.ErrClientGone)
	if s.requests.next(0) != 0 {
		t.Error("the packet of a cancelled request is still there")
	}
	q.release(s)

	s.quick = true
	read := &environ.Request{}
	s, done = putAhead(t, q, read, &fakeSender{id: 3})
	s.requests.next(0)
	read.Cancel(environ.ErrClientGone)
	q.release(s)
	await(t, "the request that was read", done).check(t, s, true, nil)
	q.release(s)

	s.quick = true
	early := &fakeSender{id: 4, tell: make(chan struct{})}
	during := &environ.Request{}
	s = mustAcquire(t, q)
	future(s)
	q.began(s)
	done = acquireAhead(q, during, early)
	eventually(t, "the sender", func() bool { return early.called.Load() == 1 })
	during.Cancel(environ.ErrClientGone)
	close(early.tell)
	await(t, "the request that was just sent", done).check(t, nil, false, environ.ErrClientGone)
	q.release(s)
	checkEmpty(t, q)
}

func TestAheadWhenTheQueueCloses(t *testing.T) {
	t.Parallel()
	q, _ := aheadQueue(t, 1)
	s, done := putAhead(t, q, &environ.Request{}, &fakeSender{id: 2})
	quiet := q.close()
	s.busySince.Store(monotonic() - int64(slowRequest)) // the watch comes
	await(t, "the refusal", done).check(t, nil, false, errClosing)
	q.release(s)
	await(t, "quiet", quiet)

	q, _ = aheadQueue(t, 1)
	s, done = putAhead(t, q, &environ.Request{}, &fakeSender{id: 2})
	quiet = q.close()
	q.release(s)
	await(t, "the slot", done).check(t, s, true, nil)
	select {
	case <-quiet:
		t.Error("quiet while the request that was ahead has the slot")
	default:
	}
	q.release(s)
	await(t, "quiet", quiet)
}

// TestAheadOfALostSlot: what the worker has not read is served elsewhere, also
// if the request before lies unread too; what it has read is refused.
func TestAheadOfALostSlot(t *testing.T) {
	t.Parallel()
	const (
		nothing = iota // of the two is read
		first
		both
	)
	for name, lose := range map[string]func(*queue, *slot){
		"broken":   func(q *queue, s *slot) { q.breakOff(s) },
		"overdue":  func(q *queue, s *slot) { q.overdue(s, s.busySince.Load(), false) },
		"orphaned": func(q *queue, s *slot) { q.orphan(s.worker.slots); q.breakOff(s) },
	} {
		for read := nothing; read <= both; read++ {
			q, _ := aheadQueue(t, 1)
			s := mustAcquire(t, q)
			mustSend(t, s.requests, 1)
			done := putBehind(t, q, s, &environ.Request{}, &fakeSender{id: 2})
			for range read {
				s.requests.next(0)
			}
			lose(q, s)
			q.release(s)
			if read == both {
				if got := await(t, "the refusal", done); got.err != errBrokenOff || environ.StatusOf(got.err) != 502 {
					t.Errorf("%s: a request that was read: %+v", name, got)
				}
			} else {
				fresh := aheadSlots(t, q, 1)
				q.add(fresh)
				await(t, "another slot", done).check(t, fresh[0], false, nil)
				q.release(fresh[0])
			}
			checkEmpty(t, q)
			await(t, "quiet", q.close())
		}
	}
}

// TestAheadOfARetiredSlot: its request goes on, and so does one that the worker
// has read behind it.
func TestAheadOfARetiredSlot(t *testing.T) {
	t.Parallel()
	for _, read := range []bool{true, false} {
		q, slots := aheadQueue(t, 1)
		s, done := putAhead(t, q, &environ.Request{}, &fakeSender{id: 2})
		if read {
			s.requests.next(0)
		}
		q.retire(slots)
		if read {
			q.release(s)
			await(t, "the retired slot", done).check(t, s, true, nil)
			q.release(s)
		} else {
			fresh := aheadSlots(t, q, 1)
			q.add(fresh)
			await(t, "another slot", done).check(t, fresh[0], false, nil)
		}
		checkEmpty(t, q)
	}
}

// TestSlotIsLostWhileSending: the process ends, and the slot is released, before
// the sender has told. The slot is closed when that is settled.
func TestSlotIsLostWhileSending(t *testing.T) {
	t.Parallel()
	for _, early := range []*fakeSender{
		{id: 2, hold: make(chan struct{})}, {id: 2, tell: make(chan struct{})},
	} {
		q, slots := aheadQueue(t, 1)
		s := mustAcquire(t, q)
		future(s)
		q.began(s)
		done := acquireAhead(q, &environ.Request{}, early)
		eventually(t, "the sender", func() bool { return early.called.Load() == 1 })
		q.orphan(slots)
		q.release(s)
		for _, wait := range []chan struct{}{early.hold, early.tell} {
			if wait != nil {
				close(wait)
			}
		}
		fresh := aheadSlots(t, q, 1)
		q.add(fresh)
		await(t, "another slot", done).check(t, fresh[0], false, nil)
		if s.requests.mu.Lock(); !s.requests.closed {
			t.Error("the lost slot is not closed")
		}
		s.requests.mu.Unlock()
		q.release(fresh[0])
		checkEmpty(t, q)
		await(t, "quiet", q.close())
	}
}

// TestOverdueIsNotTheNext: a request that ended in the last moment does not end
// the one behind it.
func TestOverdueIsNotTheNext(t *testing.T) {
	t.Parallel()
	q, _ := aheadQueue(t, 1)
	s, done := putAhead(t, q, &environ.Request{}, &fakeSender{id: 2})
	since := s.busySince.Load()
	s.requests.next(0)
	q.release(s)
	await(t, "the slot", done).check(t, s, true, nil)
	if q.overdue(s, since, true) || s.broken || s.retired || s.timedOut.Load() {
		t.Error("the next request pays")
	}
	if !q.overdue(s, s.busySince.Load(), true) || !s.broken || !s.timedOut.Load() {
		t.Error("a request that is overdue goes on")
	}
	q.release(s)
}

// TestNotSentAhead: to slots that are slow, already have one, or are retired.
func TestNotSentAhead(t *testing.T) {
	t.Parallel()
	q, slots := aheadQueue(t, 3)
	long, slow, gone := mustAcquire(t, q), mustAcquire(t, q), mustAcquire(t, q)
	long.busySince.Store(monotonic() - int64(slowRequest))
	q.began(long)
	slow.quick = false
	q.began(slow)
	q.retire([]*slot{gone})
	q.began(gone)
	early := &fakeSender{id: 2}
	r := &environ.Request{}
	done := acquireAhead(q, r, early)
	eventually(t, "a request that waits", func() bool { return q.waitingNow() == 1 })
	if n := early.called.Load(); n != 0 {
		t.Errorf("sent ahead %d times", n)
	}
	r.Cancel(environ.ErrAborted)
	await(t, "the end", done).check(t, nil, false, environ.ErrAborted)
	for _, s := range slots {
		q.release(s)
	}
	checkEmpty(t, q)
}

// aheadApp notes the id of each request that begins. A request may sleep, or
// wait for a file.
const aheadApp = preamble + `
runs = os.open("runs", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)

def run(environ, start_response):
    number = environ["QUERY_STRING"]
    os.write(runs, number.encode() + b"\n")
    if "HTTP_X_SLEEP" in environ:
        time.sleep(float(environ["HTTP_X_SLEEP"]))
    body = number.encode()
    if "HTTP_X_READ" in environ:
        body += b" " + str(len(environ["wsgi.input"].read())).encode()
    start_response("200 OK", [("Content-Type", "text/plain")])
    if "HTTP_X_BLOCKS" in environ:
        return iter([body, b"x" * 50000, b"y" * 50000])
    return [body]

def until(environ, start_response):
    name = environ["QUERY_STRING"]
    open("began-" + name, "w").close()
    while not os.path.exists(name):
        time.sleep(0.002)
    return hello(environ, start_response)
`

func (p *testPool) has(name string) bool {
	_, err := os.Stat(filepath.Join(p.dir, name))
	return err == nil
}

// until begins a request that lasts until the function that is returned is called.
func (p *testPool) until(name string) (<-chan *environtest.Recorder, func()) {
	r := get("/until")
	r.Environ.Set("QUERY_STRING", name)
	done := p.later(r)
	eventually(p.t, "the application", func() bool { return p.has("began-" + name) })
	return done, func() {
		if err := os.WriteFile(filepath.Join(p.dir, name), nil, 0o600); err != nil {
			p.t.Error(err)
		}
	}
}

// TestNotHeldUpBehindASlowRequest: a request goes to the slot that falls idle,
// whichever slow one it was sent ahead behind.
func TestNotHeldUpBehindASlowRequest(t *testing.T) {
	t.Parallel()
	p := startPool(t, aheadApp, Config{Workers: 2})
	for n := range 6 {
		for range 4 {
			p.servesOn()
		}
		var ends [2]func()
		var done [2]<-chan *environtest.Recorder
		for i := range ends {
			done[i], ends[i] = p.until(fmt.Sprintf("slow-%d-%d", n, i))
		}
		behind := make([]<-chan *environtest.Recorder, 3)
		for i := range behind {
			behind[i] = p.later(get("/hello"))
		}
		eventually(t, "requests that wait", func() bool { return p.queue.waitingNow() == len(behind) })
		ends[n%2]()
		for _, each := range append(behind, done[n%2]) {
			if w := await(t, "an answer beside a slow request", each); w.Status != 200 {
				t.Errorf("status %d", w.Status)
			}
		}
		ends[1-n%2]()
		await(t, "the slow request", done[1-n%2])
	}
}

// TestManyCancelled: what nobody reads of a slot's stream does not fill it.
func TestManyCancelled(t *testing.T) {
	t.Parallel()
	p := startPool(t, aheadApp, Config{})
	pid := p.servesOn()
	for n := range 400 {
		id := strconv.Itoa(n)
		r := get("/run")
		r.Environ.Set("QUERY_STRING", id)
		r.Environ.Add("HTTP_X_SLEEP", "0.001")
		timer := time.AfterFunc(500*time.Microsecond, func() { r.Cancel(environ.ErrClientGone) })
		await(t, "request "+id, p.later(r))
		timer.Stop()
	}
	if now := p.servesOn(); now != pid {
		t.Errorf("worker %d was replaced by %d", pid, now)
	}
}

// TestAheadOfAWorkerThatEnds: the request behind a crash is served by another
// worker, once.
func TestAheadOfAWorkerThatEnds(t *testing.T) {
	t.Parallel()
	p := startPool(t, aheadApp, Config{Workers: 2, Timeout: 400 * time.Millisecond})
	pid := p.servesOn()
	first, endFirst := p.until("a")
	second, endSecond := p.until("b")
	r := get("/run")
	r.Environ.Set("QUERY_STRING", "1")
	behind := p.later(r)
	_ = unix.Kill(pid, unix.SIGKILL)
	if w := await(t, "the request behind", behind); w.Status != 200 || w.Body.String() != "1" {
		t.Errorf("the request behind: status %d, %q", w.Status, w.Body.String())
	}
	endFirst()
	endSecond()
	await(t, "the first", first)
	await(t, "the second", second)
	if runs := p.runs(); runs["1"] != 1 {
		t.Errorf("it ran %d times", runs["1"])
	}
}

// runs returns how often each request of aheadApp began.
func (p *testPool) runs() map[string]int {
	text, err := os.ReadFile(filepath.Join(p.dir, "runs"))
	if err != nil {
		p.t.Fatal(err)
	}
	runs := map[string]int{}
	for _, id := range strings.Fields(string(text)) {
		runs[id]++
	}
	return runs
}

// aheadRequest makes a request of some kind for aheadApp, and says what it
// answers.
func aheadRequest(chance *rand.Rand, id string) (r *environ.Request, body string) {
	r = get("/run")
	r.Environ.Set("QUERY_STRING", id)
	body = id
	switch chance.IntN(40) {
	case 0:
		r.Environ.Add("HTTP_X_SLEEP", "0.02")
	case 1, 2:
		r.Environ.Add("HTTP_X_SLEEP", "0.004")
	case 3:
		r.Environ.Add("HTTP_X_LONG", strings.Repeat("x", maxPacket))
	case 4, 5:
		size := chance.IntN(600 << 10)
		r.Environ.Set("REQUEST_METHOD", http.MethodPost)
		r.Environ.Add("HTTP_X_READ", "1")
		r.Body, r.ContentLength = strings.NewReader(strings.Repeat("b", size)), int64(size)
		body += " " + strconv.Itoa(size)
	case 6, 7:
		r.Environ.Add("HTTP_X_BLOCKS", "1")
		body += strings.Repeat("x", 50000) + strings.Repeat("y", 50000)
	case 8:
		for n := range 12 {
			r.Environ.Add(fmt.Sprint("HTTP_X_", id, "_", n), "other")
		}
	}
	return r, body
}

// soakUntil returns until when a slow test goes on (scripts/test --soak); now, if
// nobody asked for it.
func soakUntil(t *testing.T) time.Time {
	t.Helper()
	text := os.Getenv("WSGIGATE_SOAK")
	if text == "" {
		return time.Now()
	}
	d, err := time.ParseDuration(text)
	if err != nil {
		t.Fatalf("WSGIGATE_SOAK: %v", err)
	}
	return time.Now().Add(d)
}

// TestAheadUnderLoad: whatever happens, no request runs twice, each that got its
// answer ran once, and each that did not was told.
func TestAheadUnderLoad(t *testing.T) {
	t.Parallel()
	const clients, each = 24, 80
	end := soakUntil(t)
	var asked atomic.Int64
	p := startPool(t, aheadApp, Config{Workers: 3, Threads: 2, Limits: environ.Limits{ReadAhead: 100_000}})
	var ahead, failed atomic.Int32
	var served sync.Map // by id
	var pid atomic.Int64
	stop := make(chan struct{})
	var watcher, group sync.WaitGroup
	watcher.Add(1)
	go func() { // ends when stop is closed
		defer watcher.Done()
		for n := 1; ; n++ {
			select {
			case <-stop:
				return
			case <-time.After(time.Millisecond):
			}
			p.queue.mu.Lock()
			ahead.Add(int32(len(p.queue.ahead)))
			p.queue.mu.Unlock()
			if victim := int(pid.Load()); n%150 == 0 && slices.Contains(children(), strconv.Itoa(victim)) {
				_ = unix.Kill(victim, unix.SIGKILL)
			}
		}
	}()
	for client := range clients {
		group.Add(1)
		go func() {
			defer group.Done()
			chance := rand.New(rand.NewPCG(3, uint64(client)))
			for n := 0; n < each || time.Now().Before(end); n++ {
				asked.Add(1)
				id := fmt.Sprintf("%d-%d", client, n)
				r, body := aheadRequest(chance, id)
				cancelled := chance.IntN(15) == 0
				if cancelled {
					timer := time.AfterFunc(time.Duration(chance.IntN(3000))*time.Microsecond, func() { r.Cancel(environ.ErrClientGone) })
					defer timer.Stop()
				}
				w := p.serve(r)
				switch {
				case w.Status == 200 && w.AbortErr == nil:
					if w.Body.String() != body {
						t.Errorf("%s: %.100q, want %.100q", id, w.Body.String(), body)
					}
					pid.Store(int64(r.Worker))
					served.Store(id, true)
				case w.Status == 502 || w.Status == 503 || w.AbortErr != nil || cancelled:
					failed.Add(1)
				default:
					t.Errorf("%s: status %d, abort %v", id, w.Status, w.AbortErr)
				}
			}
		}()
	}
	group.Wait()
	close(stop)
	watcher.Wait()
	answered := p.checkRuns(&served)
	if int64(answered) < asked.Load()/2 {
		t.Errorf("only %d of %d were served", answered, asked.Load())
	}
	if ahead.Load() == 0 {
		t.Error("nothing was sent ahead")
	}
	t.Logf("served %d, failed %d, seen ahead %d", answered, failed.Load(), ahead.Load())
	checkEmpty(t, &p.queue)
}

// checkRuns checks that no request ran twice, and each that was served once. It
// returns how many were.
func (p *testPool) checkRuns(served *sync.Map) (n int) {
	p.t.Helper()
	runs := p.runs()
	for id, times := range runs {
		if times != 1 {
			p.t.Errorf("request %s ran %d times", id, times)
		}
	}
	served.Range(func(id, _ any) bool {
		if n++; runs[id.(string)] == 0 {
			p.t.Errorf("request %s was answered and did not run", id)
		}
		return true
	})
	return n
}
