package pyrunner

import (
	"cmp"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"wsgigate/environ"
)

// exchange is one request in the pool: it waits for a slot, sends the request,
// and relays what the worker answers.
//
// As long as everything that the worker sent came in one read, the answer is
// written by the same goroutine, after the slot was given back. When it has to
// wait for more, a pump writes meanwhile (see pump).
type exchange struct {
	pool *Pool
	w    environ.ResponseWriter
	r    *environ.Request
	slot *slot
	id   uint32 // of the request in the frames

	began  int64 // monotonic()
	queued int64 // the same, when it began to wait for a slot
	own    bool  // the pool's own request: nobody counts it

	cpu time.Duration // of the worker when it got the request, if that is measured

	body   requestBody
	inline []byte      // what of it travels with the request
	data   requestBody // FCGI_DATA of a Filter

	header   environ.Header
	phase    phase
	refused  error // why the answer cannot be sent, though the worker may go on
	bodiless bool  // the response has no body, whatever the application yields
	length   int64 // Content-Length, or -1
	sent     int64 // bytes of the body received from the worker
	left     int   // bytes of the current DATA frame still to come
	last     bool  // and whether it is the last

	out    []byte // the frame that is sent, kept for its memory
	items  []item // received and not yet written or given to the pump
	pump   *pump
	onGone func(error) // cancelled, bound once
}

// phase is how far the answer has come.
type phase uint8

const (
	phaseBody   phase = iota // reading the body ahead
	phaseQueue               // waiting for a slot
	phaseApp                 // the application has it, no header yet
	phaseAnswer              // the header is there
	phaseClose               // the answer is complete, the application closes
)

func (p phase) String() string {
	return [...]string{"body", "queue", "app", "answer", "close"}[p]
}

// item is a part of a response body: bytes, or a part of a file.
type item struct {
	data  []byte
	file  *os.File
	off   int64
	count int64
}

var exchanges = sync.Pool{New: func() any {
	x := new(exchange)
	x.onGone = x.cancelled
	return x
}}

// ServeGateway answers the request with the application.
func (p *Pool) ServeGateway(w environ.ResponseWriter, r *environ.Request) {
	x := exchanges.Get().(*exchange)
	x.begin(p, w, r)
	defer x.end()
	p.stats.arrived()
	if err := x.body.readAhead(r, p.cfg.Limits.ReadAhead); err != nil {
		x.refuse(err)
		return
	}
	x.inline = x.body.takeInline()
	x.data.source, x.data.ended = r.Data, r.Data == nil
	if x.queued = x.began; r.ContentLength != 0 { // the body took its time
		x.queued = monotonic()
	}
	for since := (time.Time{}); ; since = time.Now().Add(-time.Duration(monotonic() - x.queued)) {
		x.phase = phaseQueue
		s, sent, err := p.queue.acquire(r, x, since)
		if err != nil {
			x.refuse(err)
			return
		}
		if x.run(s, sent) {
			return
		}
		p.stats.retried.Add(1)
	}
}

func (x *exchange) begin(p *Pool, w environ.ResponseWriter, r *environ.Request) {
	x.pool, x.w, x.r = p, w, r
	x.length = -1
	x.began = monotonic()
}

// end makes x ready for another request.
func (x *exchange) end() {
	x.body.reset()
	x.data.reset()
	x.header.Reset()
	clear(x.items)
	*x = exchange{
		body: x.body, data: x.data, header: x.header,
		out: keptMemory(x.out), items: x.items[:0], onGone: x.onGone,
	}
	exchanges.Put(x)
}

// maxKept is the capacity in bytes of a buffer that is worth keeping.
const maxKept = 64 << 10

func keptMemory(b []byte) []byte {
	if cap(b) > maxKept {
		return nil
	}
	return b[:0]
}

// refuse answers a request that no worker has answered anything to.
func (x *exchange) refuse(err error) {
	x.log(slog.LevelWarn, "request refused", err)
	if gone := x.r.Cancelled(); gone != nil {
		x.w.Abort(gone)
		x.count(&x.pool.stats.cancelled, 0)
		return
	}
	environ.Fail(x.w, x.r, err)
	how := &x.pool.stats.refused
	if errors.Is(err, errBrokenOff) {
		how = &x.pool.stats.failed // a worker had read it
	}
	x.count(how, environ.StatusOf(err))
}

// run gives the request to the slot, unless that has it already, and relays the
// answer. It returns false if the worker ended before it had read any of the
// request, which then needs another slot.
func (x *exchange) run(s *slot, sent bool) bool {
	x.slot = s
	x.r.Worker, x.r.App = s.worker.pid, x.pool.cfg.appName()
	if x.r.Measure {
		x.cpu = s.worker.cpu()
	}
	if !sent {
		x.encode(s)
	}
	x.setPhase(phaseApp)
	s.show(x)
	s.begin(x.id)
	x.r.OnCancel(x.onGone)
	var err error
	if sent {
		s.worker.queue.began(s)
	} else {
		err = s.sendAndReceive(x.out)
	}
	if err == nil {
		err = x.relay()
	}
	if errors.Is(err, errLost) && x.takeBack() {
		x.leave(fateBroken, err)
		return false
	}
	x.finish(err)
	return true
}

// takeBack takes the request out of the socket of a worker that was lost, and
// reports whether that had not read it.
func (x *exchange) takeBack() bool {
	s := x.slot
	return x.phase == phaseApp && s.requests != nil && len(x.out) <= maxPacket && s.requests.takeBack(x.id, true)
}

// setPhase says how far the answer has come.
func (x *exchange) setPhase(p phase) {
	x.phase = p
	x.slot.progress.phase.Store(uint32(p))
}

// encode makes the REQUEST frame for a slot. It tells whether the slot's base is
// now the environ of this request.
func (x *exchange) encode(s *slot) (rebased bool) {
	s.request++
	x.id = s.request
	x.out, rebased = x.appendRequest(x.out[:0], s)
	return rebased
}

var _ sender = (*exchange)(nil)

// sendAhead sends the request to a slot that still has another one. It may have
// to be sent again, to another slot.
func (x *exchange) sendAhead(s *slot) sentAhead {
	rebased := x.encode(s)
	ok := false
	if len(x.out) <= maxPacket {
		ok, _ = s.requests.send(x.out)
	}
	if !ok && rebased {
		s.base.valid = false
	}
	return sentAhead{ok, x.id, rebased}
}

// appendRequest appends the REQUEST frame.
func (x *exchange) appendRequest(dst []byte, s *slot) (out []byte, rebased bool) {
	var flags uint8
	if x.body.more() {
		flags |= flagMore
	}
	if x.r.Role == environ.Filter {
		flags |= flagFilter
	}
	start := len(dst)
	dst = beginFrame(dst, frameRequest, flags, x.id)
	at := len(dst)
	dst = append(dst, 0, 0, 0, 0)
	changed, changes, ok := s.base.appendChanges(dst, x.r)
	if ok {
		dst = changed
		dst[start+1] |= changes
	} else {
		dst = x.pool.appendEnviron(dst, x.r)
		s.base.keep(x.r)
	}
	binary.LittleEndian.PutUint32(dst[at:], uint32(len(dst)-at-4))
	return endFrame(append(dst, x.inline...), start), !ok
}

// relay handles frames until the slot's work, or the client's answer, is done.
// It returns nil if the response is complete; the slot may then still wait for END.
func (x *exchange) relay() error {
	s := x.slot
	for {
		if x.left > 0 {
			if x.takeData(); x.left > 0 {
				if err := x.more(0); err != nil {
					return err
				}
				continue
			}
			if x.last {
				x.setPhase(phaseClose)
				return nil
			}
		}
		head, payload, ok, err := s.peek()
		switch {
		case err != nil:
			return err
		case !ok || head.kind != frameData && len(payload) < head.payload:
			err = x.more(headLen + head.payload)
		case head.request != x.id:
			err = fmt.Errorf("%w: frame of request %d in request %d", errFrame, head.request, x.id)
		default:
			s.skip(headLen)
			err = x.frame(head, payload)
		}
		if err != nil || x.phase == phaseClose {
			return err
		}
	}
}

// errEnd says that the worker has ended the request and waits for the next.
type errEnd struct {
	flags   uint8
	message string
}

func (e *errEnd) Error() string { return e.message }

// frame handles one frame whose head is consumed; the payload of any but DATA is
// there whole.
func (x *exchange) frame(head frameHead, payload []byte) error {
	s := x.slot
	if head.kind == frameData {
		return x.beginData(head)
	}
	s.skip(head.payload)
	switch head.kind {
	case frameHeaders:
		return x.takeHeader(payload, head.flags&flagLast != 0)
	case frameFile:
		return x.takeFile(payload, head.flags&flagLast != 0)
	case frameRead:
		return x.answerRead(payload, head.flags&flagData)
	case frameErrors:
		x.w.WriteErrors(payload)
		s.worker.logs.text(slog.LevelError, string(payload), "request", x.r.ID, "stream", "wsgi.errors")
		return nil
	case frameWarn:
		x.warn(string(payload))
		return nil
	case frameImported:
		return x.pool.imported(payload)
	case frameEnd:
		return &errEnd{head.flags, string(payload)}
	}
	return fmt.Errorf("%w: frame 0x%02x within a request", errFrame, uint8(head.kind))
}

func (x *exchange) takeHeader(payload []byte, last bool) error {
	if x.phase != phaseApp {
		return fmt.Errorf("%w: HEADERS twice", errFrame)
	}
	if err := x.header.Parse(payload); err != nil {
		return fmt.Errorf("%w: %w", errFrame, err)
	}
	if x.header.Status() < 200 {
		x.refused = &appError{fmt.Errorf("status %d is no answer: the gateway itself sends what comes before one (RFC 9110, section 15.2)", x.header.Status())}
	}
	x.setPhase(phaseAnswer)
	x.bodiless = !x.header.BodyAllowed(x.r.Method())
	if n, ok := x.header.ContentLength(); ok {
		x.length = n
	}
	if last {
		x.setPhase(phaseClose)
	}
	return nil
}

// grow takes account of n more bytes of the body.
func (x *exchange) grow(n int64) error {
	if x.phase != phaseAnswer {
		return fmt.Errorf("%w: a body before HEADERS or after its end", errFrame)
	}
	x.sent += n
	x.slot.progress.out.Store(x.sent)
	if x.length >= 0 && x.sent > x.length && !x.bodiless {
		return fmt.Errorf("%w: %d bytes of body, Content-Length is %d", errFrame, x.sent, x.length)
	}
	return nil
}

func (x *exchange) beginData(head frameHead) error {
	if err := x.grow(int64(head.payload)); err != nil {
		return err
	}
	x.left, x.last = head.payload, head.flags&flagLast != 0
	if x.left == 0 && x.last {
		x.setPhase(phaseClose)
	}
	return nil
}

// takeData takes what was received of the current DATA frame.
func (x *exchange) takeData() {
	s := x.slot
	n := min(x.left, s.end-s.start)
	if n > 0 && !x.bodiless {
		x.items = append(x.items, item{data: s.in[s.start : s.start+n]})
	}
	s.skip(n)
	x.left -= n
}

func (x *exchange) takeFile(payload []byte, last bool) error {
	part, err := parseFile(payload)
	if err != nil {
		return err
	}
	f, err := x.slot.takeFile()
	if err != nil {
		return err
	}
	if err := x.grow(part.count); err != nil {
		return errors.Join(err, f.Close())
	}
	if x.bodiless {
		_ = f.Close()
	} else {
		x.items = append(x.items, item{file: f, off: part.offset, count: part.count})
	}
	if last {
		x.setPhase(phaseClose)
	}
	return nil
}

// answerRead sends the worker a piece of the body. While the client makes it
// wait, the request's time does not run: BodyTimeout bounds that.
func (x *exchange) answerRead(payload []byte, stream uint8) error {
	n, err := parseRead(payload)
	if err != nil {
		return err
	}
	body := &x.body
	if stream == flagData {
		body = &x.data
	}
	s := x.slot
	resume := s.pause()
	x.out = body.appendRead(x.out[:0], x.id, n, stream)
	resume()
	s.progress.in.Add(int64(len(x.out) - headLen))
	return s.sendBody(x.id, x.out)
}

// more receives at least one more byte, for a frame of that length. What was
// received of an answer is given to the pump first: the client gets it while
// the application works on the next.
func (x *exchange) more(frame int) error {
	s := x.slot
	if x.phase == phaseAnswer && x.refused == nil {
		if x.pump == nil {
			x.pump = startPump(x)
		}
		resume := s.pause()
		x.pump.put(x.takeBatch())
		resume()
	}
	s.reserve(frame)
	if x.left >= largeBlock {
		s.most = x.left + headLen
		defer func() { s.most = 0 }()
	}
	return s.receive()
}

// largeBlock is from how many bytes on the rest of a block is received with
// nothing but the next frame's head: it then goes to the client in one piece.
const largeBlock = 32 << 10

// smallBatch is up to how many bytes are copied for the pump; for more than that
// it gets the receive buffer itself, a fourth of which is full then at least. Against
// Limits.ResponseBuffer the bytes count and not the buffers: an answer that is shorter
// must free its worker.
const smallBatch = receiveBuffer / 4

// fileCost is what a file that waits for the client counts against
// Limits.ResponseBuffer: it takes no memory, but descriptors are few too.
const fileCost = 64 << 10

// takeBatch gives away what was received.
func (x *exchange) takeBatch() batch {
	b := batch{items: x.items}
	x.items = nil
	total, files := 0, 0
	for _, it := range b.items {
		total += len(it.data)
		if it.file != nil {
			files += fileCost
		}
	}
	if total > smallBatch {
		b.held, b.cost = x.slot.giveBuffer(), total+files
		return b
	}
	copied := make([]byte, 0, total)
	for i := range b.items {
		if data := b.items[i].data; data != nil {
			copied = append(copied, data...)
			b.items[i].data = copied[len(copied)-len(data):]
		}
	}
	b.cost = total + files
	return b
}

// finish ends the request: first in the slot, so that it can take the next,
// then for the client. err is what relay returned.
func (x *exchange) finish(err error) {
	if errors.Is(err, errLost) {
		x.slot.loseRequest()
	}
	fate, end := x.settle(err)
	end = cmp.Or(end, x.refused)
	var held []byte // what the items point into, once it is not the slot's
	if len(x.items) > 0 {
		held = x.slot.giveBuffer()
	}
	x.leave(fate, end)
	if x.pump != nil {
		x.pump.put(batch{items: x.items, held: held})
		x.items, held = nil, nil
		x.pump.close()
	}
	x.answer(end)
	putBuffer(held)
}

// leave ends what the request has to do with its slot.
func (x *exchange) leave(f fate, end error) {
	x.r.OnCancel(nil)
	if f == fateClosing {
		x.slot.showClosing()
	} else {
		x.slot.begin(0)
		x.slot.show(nil)
	}
	if x.r.Measure {
		x.measure()
	}
	x.giveBack(f, end)
}

// measure tells what the request has cost.
func (x *exchange) measure() {
	w := x.slot.worker
	x.r.CPU = max(0, w.cpu()-x.cpu) // a worker that is gone has none
	x.r.PeakMemory = w.peakRSS()
}

// fate is what becomes of a slot.
type fate uint8

const (
	fateIdle    fate = iota // it can take the next request
	fateClosing             // the answer is complete, END is still to come
	fateBroken              // its worker has to go
)

// settle decides what the end of relay means: for the client, nil if it gets a
// complete answer, else why not; and for the slot.
func (x *exchange) settle(err error) (fate, error) {
	end, ended := errors.AsType[*errEnd](err)
	switch {
	case err == nil:
		return x.closing(), x.short()
	case !ended:
		return fateBroken, err
	case end.flags&flagCancelled != 0:
		return fateIdle, &appError{cmp.Or(x.r.Cancelled(), environ.ErrClientGone)}
	case end.flags&flagFailed != 0:
		return fateIdle, &appError{cmp.Or(x.body.err, errors.New(end.message))}
	case x.phase == phaseApp:
		return fateBroken, fmt.Errorf("%w: END without HEADERS", errFrame)
	}
	x.phase = phaseClose
	return fateIdle, x.short()
}

// closing looks whether END came along with the last of the answer.
func (x *exchange) closing() fate {
	head, payload, ok, err := x.slot.peek()
	switch {
	case err != nil || ok && head.request != x.id:
		return fateBroken
	case ok && head.kind == frameEnd && len(payload) == head.payload:
		x.slot.skip(headLen + head.payload)
		if head.flags&flagFailed != 0 {
			x.log(slog.LevelError, "request failed after its answer", errors.New(string(payload)))
		}
		return fateIdle
	}
	return fateClosing
}

// giveBack returns the slot to the queue.
func (x *exchange) giveBack(f fate, end error) {
	s := x.slot
	if f == fateIdle && s.goesOn() {
		f, end = fateBroken, errBehindEnd
	}
	if f == fateBroken {
		s.dropDescriptors()
		x.pool.condemn(s, cmp.Or(end, errFrame))
	} else {
		if !s.worker.served.Load() { // its neighbours read it too: do not write it each time
			s.worker.served.Store(true)
			s.worker.gen.proven.Store(true)
		}
	}
	x.pool.wear(s.worker)
	if f == fateClosing {
		x.pool.background.Add(1)
		go x.pool.awaitEnd(s, x.id, x.r.ID)
		return
	}
	x.pool.queue.release(s)
}

// errBehindEnd says that a worker went on after END: the next request must not
// get what it sent.
var errBehindEnd = fmt.Errorf("%w: bytes behind END", errFrame)

// condemn reports a worker that has to go for what it did in a slot. Its slots are
// retired at once: the owner hears of it too late to keep a request that waits
// from getting this one.
func (p *Pool) condemn(s *slot, err error) {
	p.queue.breakOff(s)
	p.post(event{kind: eventDoom, worker: s.worker, err: err})
}

// awaitEnd holds a slot until its worker has closed the application's answer.
// The client has it already, so the log is all that hears of a fault.
func (p *Pool) awaitEnd(s *slot, id uint32, request uint64) {
	defer p.background.Done()
	defer p.queue.release(s)
	err := p.readToEnd(s, id, request)
	if err != nil {
		r, _ := s.about()
		p.log.Error("request failed after its answer", "request", request, "pid", s.worker.pid, "phase", phaseClose.String(),
			"method", r.Method, "uri", r.URI, "error", err)
	}
	if errors.Is(err, errLost) {
		s.loseRequest()
	}
	s.begin(0)
	s.show(nil)
	if err != nil {
		s.dropDescriptors()
		p.condemn(s, err)
	}
}

// readToEnd logs what the worker has to say until END.
func (p *Pool) readToEnd(s *slot, id uint32, request uint64) error {
	for {
		head, payload, err := s.whole()
		switch {
		case err != nil:
			return err
		case head.request != id:
			return fmt.Errorf("%w: frame of another request", errFrame)
		case head.kind == frameErrors:
			s.worker.logs.text(slog.LevelError, string(payload), "request", request, "stream", "wsgi.errors", "phase", phaseClose.String())
		case head.kind == frameWarn:
			p.log.Warn(string(payload), "request", request, "pid", s.worker.pid, "phase", phaseClose.String())
		case head.kind == frameImported:
			if err := p.imported(payload); err != nil {
				return err
			}
		case head.kind != frameEnd:
			return fmt.Errorf("%w: frame 0x%02x after the answer", errFrame, uint8(head.kind))
		default:
			if head.flags&flagFailed != 0 {
				p.log.Error("request failed after its answer", "request", request, "pid", s.worker.pid, "phase", phaseClose.String(), "error", string(payload))
			}
			if s.goesOn() {
				return errBehindEnd
			}
			return nil
		}
	}
}

// short returns an error if the body is shorter than its Content-Length: the
// client must not take it for the whole.
func (x *exchange) short() error {
	if x.length >= 0 && x.sent < x.length && !x.bodiless {
		return &appError{fmt.Errorf("body of %d bytes, Content-Length is %d", x.sent, x.length)}
	}
	return nil
}

// appError is a fault of the application that the worker survived.
type appError struct{ error }

func (e *appError) Unwrap() error { return e.error }

// warn logs a fault that changes nothing for the client.
func (x *exchange) warn(message string) { x.log(slog.LevelWarn, message, nil) }

// log writes the one line that a fault leaves.
func (x *exchange) log(level slog.Level, message string, err error) {
	args := []any{"request", x.r.ID, "pid", x.r.Worker, "phase", x.phase.String(),
		"method", x.r.Environ.Text("REQUEST_METHOD"), "uri", x.r.Environ.Text("REQUEST_URI")}
	if err != nil {
		args = append(args, "error", err)
	}
	x.pool.log.Log(context.Background(), level, message, args...)
}

// answer ends the response for the client: what is not written yet is written,
// and a fault is shown. The slot is gone by now.
func (x *exchange) answer(end error) {
	stats := &x.pool.stats
	switch gone := x.r.Cancelled(); {
	case end == nil:
		if err := x.writeRest(); err != nil {
			x.log(slog.LevelInfo, "answer not written", err)
			x.w.Abort(err)
			x.count(&stats.cancelled, 0)
			return
		}
		x.count(&stats.answered, x.header.Status())
	case gone != nil:
		dropItems(x.items)
		x.log(slog.LevelInfo, "request cancelled", gone)
		x.w.Abort(gone)
		x.count(&stats.cancelled, 0)
	case x.pump != nil || x.sent > 0 && !x.bodiless:
		x.log(slog.LevelError, "request failed, answer cut", end)
		if x.pump == nil && x.writeAll() == nil {
			_ = x.w.Flush()
		}
		x.w.Abort(end)
		x.count(&stats.failed, x.header.Status())
	default:
		dropItems(x.items)
		x.log(slog.LevelError, "request failed", end)
		err := statusFor(end)
		environ.Fail(x.w, x.r, err)
		x.count(&stats.failed, environ.StatusOf(err))
	}
}

// count takes account of the request's end.
func (x *exchange) count(how *atomic.Uint64, status int) {
	if !x.own {
		how.Add(1)
		x.pool.stats.ended(status, time.Duration(monotonic()-x.began))
	}
}

// writeRest writes a complete answer, as far as the pump did not, and returns
// the error that either met: the client's, or that of a file that cannot be read.
func (x *exchange) writeRest() error {
	if x.pump != nil {
		return cmp.Or(x.pump.err, x.r.Cancelled())
	}
	return x.writeAll()
}

// writeAll writes the header and what was received of the body.
func (x *exchange) writeAll() error {
	if err := x.w.WriteHeader(&x.header); err != nil {
		dropItems(x.items)
		return err
	}
	return writeItems(x.w, x.items)
}

// statusFor gives an error of the exchange its status.
func statusFor(err error) error {
	if _, ok := errors.AsType[*environ.Error](err); ok {
		return err
	}
	switch _, app := errors.AsType[*appError](err); {
	case app:
		return environ.Errorf(500, "%w", err)
	case errors.Is(err, errTimedOut):
		return environ.Errorf(504, "%w", err)
	default:
		return environ.Errorf(502, "%w", err)
	}
}

// writeItems writes parts of a body, closing its files.
func writeItems(w environ.ResponseWriter, items []item) error {
	var err error
	for _, it := range items {
		switch {
		case it.file == nil && err == nil:
			_, err = w.Write(it.data)
		case it.file != nil && err == nil:
			err = sendFile(w, it)
		}
		if it.file != nil {
			_ = it.file.Close()
		}
	}
	return err
}

func dropItems(items []item) {
	for _, it := range items {
		if it.file != nil {
			_ = it.file.Close()
		}
	}
}

// sendFile sends a part of a file, without copying it if the transport can.
func sendFile(w environ.ResponseWriter, it item) error {
	if direct, ok := w.(environ.FileSender); ok {
		_, err := direct.SendFile(it.file, it.off, it.count)
		return err
	}
	n, err := io.Copy(writerOnly{w}, io.NewSectionReader(it.file, it.off, it.count))
	if err == nil && n < it.count {
		err = io.ErrUnexpectedEOF
	}
	return err
}

// writerOnly hides everything but Write from io.Copy.
type writerOnly struct{ io.Writer }

// cancelled is called when the client is gone. It must not block, so the frame is
// sent by a goroutine of its own; one that comes late is dropped by the worker.
func (x *exchange) cancelled(err error) {
	s, id := x.slot, x.id
	go s.cancel(id, err)
}
