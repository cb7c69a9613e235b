package pyrunner

import (
	"bytes"
	"encoding/binary"
	"io"
	"log/slog"
	"net"
	"os"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"wsgigate/environ"
	"wsgigate/environ/environtest"
)

// hostile is a pool of one slot without a process or an owner: the test speaks
// for the worker, and reads from events what the owner would be told.
type hostile struct {
	*Pool
	slot *slot
	peer *net.UnixConn
}

func newHostile(t testing.TB, log *slog.Logger) *hostile {
	t.Helper()
	cfg := Config{Log: log}.withDefaults()
	h := &hostile{Pool: &Pool{
		cfg: cfg, log: cfg.Log, wsgiKeys: fixedKeys(false, false),
		queue:  queue{limit: cfg.Queue, timeout: cfg.QueueTimeout},
		events: make(chan event, 64), managed: make(chan struct{}),
	}}
	w := &worker{queue: &h.queue, gen: &generation{}, pid: 4242, logs: newLineLog(cfg.Log, &h.background)}
	h.slot, h.peer = fakeSlot(t, w)
	w.slots = []*slot{h.slot}
	h.queue.add(w.slots)
	return h
}

// close ends both sides and waits for what still holds the slot.
func (h *hostile) close() {
	_ = h.peer.Close()
	h.slot.worker.logs.end()
	h.background.Wait()
	h.slot.close()
}

// doomed returns why the worker was reported, or nil.
func (h *hostile) doomed() error {
	select {
	case e := <-h.events:
		return e.err
	default:
		return nil
	}
}

// answer has the fake worker wait for the request and send bytes, with files.
// Then it takes what comes, so that nobody is blocked, and says no more.
func (h *hostile) answer(data []byte, files ...*os.File) (done chan struct{}) {
	done = make(chan struct{})
	go func() {
		defer close(done)
		if _, _, err := readFrame(h.peer); err != nil {
			return
		}
		var rights []byte
		if len(files) > 0 {
			var fds []int
			for _, f := range files {
				fds = append(fds, int(f.Fd()))
			}
			rights = unix.UnixRights(fds...)
		}
		drained := make(chan struct{})
		go func() {
			defer close(drained)
			_, _ = io.Copy(io.Discard, h.peer)
		}()
		if n, _, err := h.peer.WriteMsgUnix(data, rights, nil); err == nil && n < len(data) {
			_, _ = h.peer.Write(data[n:])
		}
		_ = h.peer.CloseWrite()
		<-drained
	}()
	return done
}

// frames joins frames of request 1.
type frames []byte

func (f frames) add(kind frameType, flags uint8, payload string) frames {
	return slices.Clip(appendFrame(slices.Clip(f), kind, flags, 1, []byte(payload)))
}

func ok() frames { return frames(nil).add(frameHeaders, 0, "200 OK\n") }

func u32(n uint32) string { return string(binary.LittleEndian.AppendUint32(nil, n)) }

func u64s(values ...uint64) string {
	var b []byte
	for _, v := range values {
		b = binary.LittleEndian.AppendUint64(b, v)
	}
	return string(b)
}

// TestHostileWorker: row 56, every kind of frame. The client gets a 502, or can
// tell; the worker is reported; there is one line in the log.
func TestHostileWorker(t *testing.T) {
	t.Parallel()
	for name, row := range map[string]struct {
		send  []byte
		abort bool // after a part of the body: else 502
		log   string
	}{
		"nothing":              {nil, false, "EOF"},
		"half a head":          {[]byte{0x84, 0, 0}, false, "EOF"},
		"garbage":              {[]byte("HTTP/1.1 200 OK\r\n\r\n"), false, "unknown frame type"},
		"zeros":                {make([]byte, 4096), false, "unknown frame type"},
		"huge":                 {[]byte{0x85, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, 1, 0, 0, 0}, false, "bytes"},
		"huge HEADERS":         {[]byte{0x84, 0, 0, 0, 0, 0, 0x10, 0, 1, 0, 0, 0}, false, "bytes"},
		"HEADERS cut":          {ok()[:14], false, "EOF"},
		"HELLO":                {frames(nil).add(frameHello, 0, "\x01\x00\x00\x00\x00\x00x"), false, "within a request"},
		"READY":                {frames(nil).add(frameReady, 0, ""), false, "within a request"},
		"FAILED":               {frames(nil).add(frameFailed, 0, "x"), false, "within a request"},
		"READY in a body":      {ok().add(frameData, 0, "part").add(frameReady, 0, ""), true, "within a request"},
		"request 0":            {appendFrame(nil, frameHeaders, 0, 0, []byte("200 OK\n")), false, "frame of request 0"},
		"another request":      {appendFrame(nil, frameHeaders, 0, 2, []byte("200 OK\n")), false, "frame of request 2"},
		"another's END":        {appendFrame(ok().add(frameData, 0, "part"), frameEnd, 0, 9, nil), true, "frame of request 9"},
		"HEADERS twice":        {append(ok(), ok()...), false, "HEADERS twice"},
		"HEADERS in a body":    {append(ok().add(frameData, 0, "part"), ok()...), true, "HEADERS twice"},
		"HEADERS empty":        {frames(nil).add(frameHeaders, 0, ""), false, "no status line"},
		"HEADERS with CR":      {frames(nil).add(frameHeaders, 0, "200 OK\nX: a\rb\n"), false, "control character"},
		"HEADERS with NUL":     {frames(nil).add(frameHeaders, 0, "200 OK\nX: a\x00b\n"), false, "control character"},
		"HEADERS hop-by-hop":   {frames(nil).add(frameHeaders, 0, "200 OK\nConnection: close\n"), false, "hop-by-hop"},
		"HEADERS unfinished":   {frames(nil).add(frameHeaders, 0, "200 OK\nX: a"), false, "unfinished"},
		"HEADERS two lengths":  {frames(nil).add(frameHeaders, 0, "200 OK\nContent-Length: 1\nContent-Length: 1\n"), false, "twice"},
		"HEADERS bad length":   {frames(nil).add(frameHeaders, 0, "200 OK\nContent-Length: -1\n"), false, "Content-Length"},
		"status 99":            {frames(nil).add(frameHeaders, 0, "099 OK\n"), false, "status 99"},
		"DATA first":           {frames(nil).add(frameData, 0, "body"), false, "before HEADERS"},
		"DATA past the length": {frames(nil).add(frameHeaders, 0, "200 OK\nContent-Length: 4\n").add(frameData, 0, "part").add(frameData, 0, "x"), true, "Content-Length is 4"},
		"DATA cut":             {ok().add(frameData, 0, "part more")[:12+7+12+4], true, "EOF"},
		"FILE first":           {frames(nil).add(frameFile, 0, u64s(0, 1)), false, "FILE without a descriptor"},
		"FILE without one":     {ok().add(frameFile, 0, u64s(0, 1)), false, "FILE without a descriptor"},
		"FILE overflow":        {ok().add(frameFile, 0, u64s(1<<62, 1<<62)), false, "FILE with offset"},
		"FILE short":           {ok().add(frameFile, 0, "x"), false, "FILE of 1 bytes"},
		"READ of nothing":      {frames(nil).add(frameRead, 0, u32(0)), false, "READ for 0 bytes"},
		"READ of too much":     {frames(nil).add(frameRead, 0, u32(1<<31)), false, "READ for"},
		"READ short":           {frames(nil).add(frameRead, 0, "x"), false, "READ of 1 bytes"},
		"READ, flag":           {frames(nil).add(frameRead, 2, u32(1)), false, "flags"},
		"END first":            {frames(nil).add(frameEnd, 0, ""), false, "END without HEADERS"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			book := &logBook{}
			h := newHostile(t, book.logger())
			done := h.answer(row.send)
			r, w := get("/x"), &environtest.Recorder{}
			h.ServeGateway(w, r)
			switch {
			case w.Misuse != nil:
				t.Error(w.Misuse)
			case row.abort && (w.Status != 200 || w.AbortErr == nil || w.Body.String() != "part"):
				t.Errorf("status %d, abort %v, %q; want a cut answer", w.Status, w.AbortErr, w.Body.String())
			case !row.abort && w.Status != 502 && w.AbortErr == nil:
				t.Errorf("status %d, abort %v", w.Status, w.AbortErr)
			}
			if err := h.doomed(); err == nil || !strings.Contains(err.Error(), row.log) {
				t.Errorf("worker reported for %v", err)
			}
			if h.slot.retired != true {
				t.Error("the slot could be used again")
			}
			phase := atApp
			if len(row.send) > 19 && bytes.HasPrefix(row.send, ok()) || strings.Contains(name, "past the length") {
				phase = atAnswer
			}
			if line := book.fault(t, r, phase); !strings.Contains(line.str("error"), row.log) {
				t.Errorf("log line %v", line)
			}
			h.close()
			<-done
		})
	}
}

// TestHostileAfterTheAnswer: the client has its answer, the worker has to go.
func TestHostileAfterTheAnswer(t *testing.T) {
	t.Parallel()
	whole := ok().add(frameData, flagLast, "whole")
	for name, send := range map[string][]byte{
		"nothing":           whole,
		"DATA":              whole.add(frameData, 0, "more"),
		"FILE":              whole.add(frameFile, 0, u64s(0, 1)),
		"READ":              whole.add(frameRead, 0, u32(1)),
		"HEADERS":           append(whole, ok()...),
		"HELLO":             whole.add(frameHello, 0, ""),
		"garbage":           append(whole, "garbage, garbage"...),
		"another's END":     appendFrame(whole, frameEnd, 0, 2, nil),
		"a cut END":         append(whole, frames(nil).add(frameEnd, 0, "xyz")[:13]...),
		"more behind END":   append(whole.add(frameEnd, 0, ""), "garbage, garbage"...),
		"an answer too far": append(whole.add(frameEnd, 0, ""), appendFrame(nil, frameHeaders, 0, 2, []byte("200 OK\n"))...),
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			h := newHostile(t, (&logBook{}).logger())
			done := h.answer(bytes.Clone(send))
			r, w := get("/x"), &environtest.Recorder{}
			h.ServeGateway(w, r)
			if w.Status != 200 || w.Body.String() != "whole" || w.AbortErr != nil || w.Misuse != nil {
				t.Errorf("status %d, %q, abort %v, misuse %v", w.Status, w.Body.String(), w.AbortErr, w.Misuse)
			}
			h.background.Wait()
			if h.doomed() == nil {
				t.Error("the worker was not reported")
			}
			h.close()
			<-done
		})
	}
}

// TestHostileDescriptors: descriptors that no FILE frame claims are closed, and
// more than a few are a violation.
func TestHostileDescriptors(t *testing.T) {
	t.Parallel()
	for name, row := range map[string]struct {
		files  int
		send   []byte
		status int
		doomed bool
	}{
		"unclaimed": {1, ok().add(frameData, flagLast, "x").add(frameEnd, 0, ""), 200, false},
		"too many":  {maxDescriptors + 1, ok().add(frameData, flagLast, "x").add(frameEnd, 0, ""), 502, true},
		"truncated": {60, ok().add(frameData, flagLast, "x").add(frameEnd, 0, ""), 502, true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			h := newHostile(t, (&logBook{}).logger())
			var read []*os.File
			var send []*os.File
			for range row.files {
				r, w, err := os.Pipe()
				if err != nil {
					t.Fatal(err)
				}
				defer r.Close()
				read, send = append(read, r), append(send, w)
			}
			done := h.answer(row.send, send...)
			w := &environtest.Recorder{}
			h.ServeGateway(w, get("/x"))
			h.background.Wait()
			if w.Status != row.status || (h.doomed() != nil) != row.doomed {
				t.Errorf("status %d", w.Status)
			}
			h.close()
			<-done
			for _, f := range send {
				_ = f.Close()
			}
			for _, r := range read { // at its end once nobody holds the other end
				_ = r.SetReadDeadline(time.Now().Add(patience))
				if _, err := r.Read(make([]byte, 1)); err != io.EOF {
					t.Errorf("a descriptor is still open: %v", err)
				}
			}
		})
	}
}

// TestHostileFiles: a worker that sends one file after the other to a client that
// does not read is stopped before the gateway has no descriptors left.
func TestHostileFiles(t *testing.T) {
	t.Parallel()
	h := newHostile(t, (&logBook{}).logger())
	file, err := os.Open(os.Args[0])
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	sent := make(chan int)
	const most = 400
	go func() {
		n := 0
		defer func() { sent <- n }()
		if _, _, err := readFrame(h.peer); err != nil {
			return
		}
		_, _ = h.peer.Write(ok())
		rights := unix.UnixRights(int(file.Fd()))
		for ; n < most; n++ {
			_ = h.peer.SetWriteDeadline(time.Now().Add(time.Second))
			if _, _, err := h.peer.WriteMsgUnix(frames(nil).add(frameFile, 0, u64s(0, 1)), rights, nil); err != nil {
				break
			}
		}
		_ = h.peer.Close()
	}()
	open := make(chan int, 1)
	free := make(chan struct{})
	w := &environtest.Recorder{}
	w.OnWrite = func() {
		select {
		case <-free:
		default:
			<-free
		}
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		h.ServeGateway(w, get("/x"))
	}()
	n := await(t, "the worker", sent)
	open <- n
	close(free)
	await(t, "the answer", done)
	if w.AbortErr == nil {
		t.Error("the answer was not cut")
	}
	// What the kernel holds for an unread socket is bounded by its buffer; the
	// rest of what was sent was open in the gateway.
	if n := <-open; n == most {
		t.Errorf("the gateway took %d files at once", n)
	}
	h.close()
}

// TestWorkerGoneBeforeTheRequest: the worker's end was seen and taken account of
// just before the request is sent, which its socket takes all the same. As it lies
// there unread, it waits for another worker.
func TestWorkerGoneBeforeTheRequest(t *testing.T) {
	t.Parallel()
	h := newHostile(t, (&logBook{}).logger())
	requests, theirs, err := newRequestSocket()
	if err != nil {
		t.Fatal(err)
	}
	_ = theirs.Close()
	h.slot.requests = requests
	_ = h.peer.Close()
	h.slot.hangUp()
	<-time.After(100 * time.Millisecond) // so that no event of it is left
	w, done := &environtest.Recorder{}, make(chan struct{})
	go func() {
		defer close(done)
		h.ServeGateway(w, get("/x"))
	}()
	eventually(t, "the request's return to the queue", func() bool { return h.queue.waitingNow() == 1 })
	if h.doomed() == nil || h.stats.retried.Load() != 1 {
		t.Error("the worker was not reported, or the request not counted")
	}
	h.queue.close()
	await(t, "the answer", done)
	if w.Status != 503 {
		t.Errorf("status %d, abort %v", w.Status, w.AbortErr)
	}
	h.close()
}

// TestHostileApplication: an application that writes to its own protocol socket
// costs itself the worker.
func TestHostileApplication(t *testing.T) {
	t.Parallel()
	p := startPool(t, preamble+`
def garbage(environ, start_response):
    os.write(5, b"garbage, and more of it")
    return hello(environ, start_response)
def late_garbage(environ, start_response):
    start_response("200 OK", [])
    yield b"part"
    os.write(5, b"garbage, and more of it")
    yield b"rest"
`, Config{})
	for path, abort := range map[string]bool{"/garbage": false, "/late-garbage": true} {
		worker := p.servesOn()
		r := get(path)
		w := p.serve(r)
		phase := atApp
		if abort {
			phase = atAnswer
		}
		if abort && (w.Status != 200 || w.AbortErr == nil) || !abort && w.Status != 502 {
			t.Errorf("%s: status %d, abort %v", path, w.Status, w.AbortErr)
		}
		if line := p.log.fault(t, r, phase); !strings.Contains(line.str("error"), errFrame.Error()) {
			t.Errorf("log line %v", line)
		}
		if now := p.servesOn(); now == worker {
			t.Error("the worker was not replaced")
		}
		eventually(t, "the worker's end", func() bool { return gone(worker) })
	}
}

// TestPartialWrites: row 52. The slot takes a few KiB at a time.
func TestPartialWrites(t *testing.T) {
	t.Parallel()
	p := startPool(t, preamble+`
import hashlib
def digests(environ, start_response):
    body = environ["wsgi.input"].read()
    whole = environ["HTTP_X_LONG"].encode("latin-1") + body
    start_response("200 OK", [])
    yield hashlib.sha256(whole).hexdigest().encode()
    yield b" " * 1000000
`, Config{})
	p.queue.mu.Lock()
	for _, s := range p.queue.idle {
		if err := s.raw.Control(func(fd uintptr) { _ = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_SNDBUF, 1) }); err != nil {
			t.Error(err)
		}
	}
	p.queue.mu.Unlock()
	long, body := strings.Repeat("\xe9y", 30000), bytes.Repeat([]byte("body"), 300000)
	r := post("/digests", bytes.NewReader(body), int64(len(body)))
	r.Environ.Add("HTTP_X_LONG", long)
	w := p.serve(r)
	if got, want := strings.TrimSpace(w.Body.String()), digest([]byte(long), body); got != want || w.Body.Len() != 1000064 {
		t.Errorf("status %d, digest %.64s of %d bytes, want %s", w.Status, got, w.Body.Len(), want)
	}
	p.servesOn()
}

// FuzzWorkerFrames: whatever a worker answers, the client gets an answer that is
// complete, or an error, or can tell; a worker that did not end the request
// properly is reported; nothing hangs and little memory is taken.
func FuzzWorkerFrames(f *testing.F) {
	for _, golden := range goldenFrames(f) {
		data, err := os.ReadFile("testdata/golden/" + golden.File)
		if err != nil {
			f.Fatal(err)
		}
		copy(data[8:12], []byte{1, 0, 0, 0})
		f.Add(data, uint8(0))
		f.Add([]byte(append(ok(), data...)), uint8(1))
		f.Add([]byte(append(ok().add(frameData, 0, "part"), data...)), uint8(0))
		f.Add([]byte(append(ok().add(frameData, flagLast, "all"), data...)), uint8(0))
	}
	f.Add([]byte(ok().add(frameFile, 0, u64s(3, 5)).add(frameFile, flagLast, u64s(0, 7)).add(frameEnd, 0, "")), uint8(2))
	f.Add([]byte(frames(nil).add(frameRead, 0, u32(70000)).add(frameRead, 0, u32(1)).add(frameHeaders, flagLast, "204 No\n").add(frameEnd, 0, "")), uint8(0))
	f.Add([]byte(frames(nil).add(frameHeaders, 0, "200 OK\nContent-Length: 9\n").add(frameData, 0, "123").add(frameEnd, 1, "x")), uint8(9))
	file, err := os.Open("testdata/golden/golden.json")
	if err != nil {
		f.Fatal(err)
	}
	f.Cleanup(func() { _ = file.Close() })
	log := slog.New(slog.DiscardHandler)
	f.Fuzz(func(t *testing.T, data []byte, files uint8) {
		h := newHostile(t, log)
		if len(data) == 0 {
			files = 0 // a descriptor travels with a byte
		}
		send := make([]*os.File, files%8)
		for i := range send {
			send[i] = file
		}
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		worker := h.answer(data, send...)
		r, w := post("/", strings.NewReader(strings.Repeat("body", 5000)), 20000), &environtest.Recorder{}
		served := make(chan struct{})
		go func() {
			defer close(served)
			h.ServeGateway(w, r)
			h.background.Wait()
		}()
		await(t, "the answer", served)
		runtime.ReadMemStats(&after)
		checkAnswer(t, w, h)
		if took := after.TotalAlloc - before.TotalAlloc; took > 6<<20+20*uint64(len(data)) {
			t.Errorf("%d bytes allocated for %d", took, len(data))
		}
		h.close()
		<-worker
	})
}

// checkAnswer checks what must hold for the answer whatever the worker sent.
func checkAnswer(t *testing.T, w *environtest.Recorder, h *hostile) {
	doomed := h.doomed()
	switch {
	case w.Misuse != nil:
		t.Error(w.Misuse)
	case w.Status == 0 && w.AbortErr == nil:
		t.Error("no answer at all")
	case w.AbortErr == nil && w.Length >= 0 && w.Status != 204 && w.Status != 304 && int64(w.Body.Len()) != w.Length:
		t.Errorf("a body of %d bytes passes for %d", w.Body.Len(), w.Length)
	case w.Status == 502 && doomed == nil && strings.HasPrefix(w.Body.String(), "wsgigate:"):
		t.Error("502, but the worker was not reported")
	case doomed == nil && h.queue.busyNow() != 0:
		t.Error("the slot is lost")
	case (doomed != nil) != h.slot.retired:
		t.Errorf("retired %v, reported %v", h.slot.retired, doomed)
	}
}

// post returns a POST request; a negative length says that only its end is known.
func post(path string, body io.Reader, length int64) *environ.Request {
	r := get(path)
	r.Environ.Set("REQUEST_METHOD", "POST")
	r.Body, r.ContentLength = body, length
	return r
}
