package pyrunner

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// slot is the gateway's end of one socket pair: the place for one request at a
// time in a worker. Whoever holds it, by queue.acquire, is the only reader.
type slot struct {
	worker *worker
	file   *os.File
	raw    syscall.RawConn

	held      bool         // guarded by queue.mu: gets no requests for now
	retired   bool         // guarded by queue.mu: gets no more requests
	leaving   bool         // guarded by queue.mu: retired, and its worker is to be told
	usedAt    int64        // guarded by queue.mu: monotonic() when it last fell idle
	orphaned  bool         // guarded by queue.mu: its process is gone
	broken    bool         // guarded by queue.mu: the rest of an answer may lie in it
	quick     bool         // guarded by queue.mu: the last request was short
	ahead     *waiter      // guarded by queue.mu: the request that was sent ahead
	busySince atomic.Int64 // monotonic(), 0 while idle
	paused    atomic.Bool  // the worker waits for the client, so its time does not run
	timedOut  atomic.Bool
	hungUp    atomic.Bool
	request   uint32 // number of the request in the frames

	requests *requestSocket // nil: requests go on the stream
	base     base

	watched  sync.Mutex    // held to look at another goroutine's exchange
	exchange *exchange     // the request that runs, nil: none; guarded by watched
	closing  RequestStatus // that which has its answer, while the application closes it; guarded by watched
	progress progress
	reported uint64 // the last request that became a slow one's incident; the owner's

	write     sync.Mutex // one frame at a time
	active    uint32     // the request that a CANCEL may be for, 0: none; guarded by write
	cancelled uint32     // one that there was a CANCEL for, until the next begins; guarded by write

	in         []byte // receive buffer
	start, end int    // in[start:end] was received and not yet parsed
	fds        []int  // descriptors received and not yet taken
	most       int    // how many bytes to receive at once, 0: what fits

	recv   receiver
	call   sendCall
	asking func(fd uintptr) bool // bound once: ask and receive without allocating
}

// progress is how far the request has come, for anybody to see.
type progress struct {
	phase   atomic.Uint32
	in, out atomic.Int64 // bytes of the bodies
}

// show lets others see the request that the slot has; nil ends that, and when it
// returns nobody looks at the exchange any more.
func (s *slot) show(x *exchange) {
	if x != nil {
		s.progress.in.Store(int64(len(x.inline)))
		s.progress.out.Store(0)
	}
	s.watched.Lock()
	s.exchange, s.closing = x, RequestStatus{}
	s.watched.Unlock()
}

// showClosing ends that too, but lets others still see what the request was.
func (s *slot) showClosing() {
	s.watched.Lock()
	s.closing, s.exchange = s.described(), nil
	s.watched.Unlock()
}

// about returns the request that the slot has now, if it has one.
func (s *slot) about() (RequestStatus, bool) {
	s.watched.Lock()
	defer s.watched.Unlock()
	since := s.busySince.Load()
	r := s.closing
	switch {
	case since == 0 || s.exchange == nil && r.ID == 0:
		return RequestStatus{}, false
	case s.exchange != nil:
		r = s.described()
	}
	r.For = time.Duration(monotonic() - since)
	return r, true
}

// described returns what the exchange's request is. The caller holds s.watched.
func (s *slot) described() RequestStatus {
	r := s.exchange.r
	return RequestStatus{
		ID:       r.ID,
		Method:   r.Environ.Text("REQUEST_METHOD"),
		URI:      r.Environ.Text("REQUEST_URI"),
		Remote:   r.Environ.Text("REMOTE_ADDR"),
		Phase:    phase(s.progress.phase.Load()).String(),
		BytesIn:  s.progress.in.Load(),
		BytesOut: s.progress.out.Load(),
	}
}

// idleFor returns for how long the slot has had no request; 0 while it has one.
// The caller holds queue.mu.
func (s *slot) idleFor() time.Duration {
	if s.busySince.Load() != 0 || s.ahead != nil {
		return 0
	}
	return time.Duration(monotonic() - s.usedAt)
}

// receiver is the memory of recvmsg(2).
type receiver struct {
	msg     unix.Msghdr
	iov     unix.Iovec
	control [64]byte // room for some descriptors; more are a violation
	try     func(fd uintptr) bool
	n       int
	err     error
}

// sendCall is the state of sendAndReceive.
type sendCall struct {
	frame   []byte
	sending bool // the frame was not tried yet
	whole   bool // it is out
	err     error
}

// receiveBuffer is the size of a slot's receive buffer: two of the kernel's
// default 64 KiB chunks, so that a large block comes in few calls.
const receiveBuffer = 128 << 10

// newSlot makes a socket pair. It returns the worker's end, for the child only.
func newSlot(w *worker) (s *slot, theirs *os.File, err error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, os.NewSyscallError("socketpair", err)
	}
	theirs = os.NewFile(uintptr(fds[1]), "slot of the worker")
	if err := unix.SetNonblock(fds[0], true); err != nil {
		return nil, nil, errors.Join(os.NewSyscallError("fcntl", err), unix.Close(fds[0]), theirs.Close())
	}
	s = &slot{worker: w, held: true, usedAt: monotonic(), file: os.NewFile(uintptr(fds[0]), "slot")}
	if s.raw, err = s.file.SyscallConn(); err != nil {
		return nil, nil, errors.Join(err, s.file.Close(), theirs.Close())
	}
	s.recv.try = func(fd uintptr) bool {
		s.recv.n, s.recv.err = s.recvmsg(fd)
		return s.recv.err != unix.EAGAIN
	}
	s.asking = s.ask
	return s, theirs, nil
}

// started is when this process began to count.
var started = time.Now()

// monotonic returns nanoseconds that no change of the wall clock affects; never 0.
func monotonic() int64 { return int64(time.Since(started)) + 1 }

// busyFor returns how long the slot's request has run.
func (s *slot) busyFor() time.Duration { return time.Duration(monotonic() - s.busySince.Load()) }

// sendAndReceive sends a request and waits for the first bytes of its answer. It
// prepares the wait before it sends, so that no read need fail first: the
// worker sends nothing while it is idle.
func (s *slot) sendAndReceive(frame []byte) error {
	if s.requests != nil {
		if whole, err := s.sendPacket(frame); whole || err != nil {
			return err
		}
	}
	if err := s.send(frame); err != nil {
		return err
	}
	return s.receive()
}

// sendPacket is sendAndReceive by the request socket. It returns false if the
// frame is too long for that and has to follow on the stream.
func (s *slot) sendPacket(frame []byte) (whole bool, err error) {
	s.room()
	c := &s.call
	*c = sendCall{frame: frame, sending: true}
	err = s.raw.Read(s.asking)
	c.frame = nil
	switch {
	case err != nil:
		return false, s.lost(err)
	case c.err != nil:
		return false, s.lost(c.err)
	case c.whole:
		return true, s.received()
	}
	return false, nil
}

// ask is the callback of sendAndReceive: first it sends, then it receives.
func (s *slot) ask(fd uintptr) bool {
	c := &s.call
	if !c.sending {
		return s.recv.try(fd)
	}
	c.sending = false
	if c.whole, c.err = s.requests.send(c.frame); c.whole {
		s.worker.queue.began(s)
	}
	// What happened before the wait was prepared wakes nobody any more, and the
	// socket takes a request even if the worker is gone: look whether it is.
	return !c.whole || s.hungUp.Load() && s.recv.try(fd)
}

// send writes one frame.
func (s *slot) send(frame []byte) error {
	s.write.Lock()
	defer s.write.Unlock()
	if err := s.writeAll(frame); err != nil {
		return s.lost(err)
	}
	return nil
}

func (s *slot) writeAll(p []byte) error {
	_, err := s.file.Write(p)
	return err
}

// errLost is in the chain of every error of a slot whose worker is gone.
var errLost = errors.New("worker lost")

// errTimedOut says that the request took longer than --timeout.
var errTimedOut = errors.New("request took longer than --timeout")

func (s *slot) lost(err error) error {
	if s.timedOut.Load() {
		return errTimedOut
	}
	if s.worker.told.Load() {
		return fmt.Errorf("%w: it was told to end before it had answered", errLost)
	}
	return fmt.Errorf("%w: %w", errLost, err)
}

// room makes space at the end of the receive buffer: everything received was
// parsed but for the beginning of a frame.
func (s *slot) room() {
	if s.in == nil {
		s.in = getBuffer()
	}
	if s.start == s.end {
		s.start, s.end = 0, 0
	}
}

// receive waits for more bytes.
func (s *slot) receive() error {
	s.room()
	if err := s.raw.Read(s.recv.try); err != nil {
		return s.lost(err)
	}
	return s.received()
}

// received takes account of what recvmsg did.
func (s *slot) received() error {
	switch {
	case s.recv.err != nil:
		return s.lost(os.NewSyscallError("recvmsg", s.recv.err))
	case s.recv.n == 0:
		return s.lost(io.ErrUnexpectedEOF)
	}
	s.end += s.recv.n
	return s.takeDescriptors()
}

// recvmsg receives bytes and descriptors into in[end:]. It is written with the
// bare system call because package unix allocates for it.
func (s *slot) recvmsg(fd uintptr) (int, error) {
	r := &s.recv
	space := s.in[s.end:]
	if s.most > 0 && s.most < len(space) {
		space = space[:s.most]
	}
	r.iov.Base = unsafe.SliceData(space)
	r.iov.SetLen(len(space))
	r.msg = unix.Msghdr{Iov: &r.iov, Iovlen: 1, Control: &r.control[0]}
	r.msg.SetControllen(len(r.control))
	for {
		n, _, errno := unix.RawSyscall(unix.SYS_RECVMSG, fd, uintptr(unsafe.Pointer(&r.msg)), unix.MSG_CMSG_CLOEXEC|unix.MSG_DONTWAIT)
		switch errno {
		case 0:
			return int(n), nil
		case unix.EINTR:
		default:
			return 0, errno
		}
	}
}

// maxDescriptors is how many received descriptors may wait for their FILE frame.
const maxDescriptors = 4

// takeDescriptors keeps the descriptors that came with the last bytes.
func (s *slot) takeDescriptors() error {
	r := &s.recv
	if r.msg.Controllen == 0 {
		return nil
	}
	messages, err := unix.ParseSocketControlMessage(r.control[:r.msg.Controllen])
	if err != nil {
		return fmt.Errorf("%w: control message: %w", errFrame, err)
	}
	for _, m := range messages {
		fds, err := unix.ParseUnixRights(&m)
		if err != nil {
			continue // credentials and the like, which nobody asked for
		}
		s.fds = append(s.fds, fds...)
	}
	if len(s.fds) > maxDescriptors || r.msg.Flags&unix.MSG_CTRUNC != 0 {
		return fmt.Errorf("%w: too many descriptors", errFrame)
	}
	return nil
}

// goesOn reports whether the worker sent something behind END that cannot be the
// answer to a request that was sent ahead.
func (s *slot) goesOn() bool {
	if s.start != s.end {
		return !s.worker.queue.followed(s)
	}
	s.dropDescriptors()
	return false
}

// dropDescriptors closes the descriptors that no FILE frame claimed.
func (s *slot) dropDescriptors() {
	for _, fd := range s.fds {
		_ = unix.Close(fd)
	}
	s.fds = s.fds[:0]
}

// peek returns the head of the next frame and as much of its payload as is
// there, or false if even the head is not complete. It does not consume it.
func (s *slot) peek() (frameHead, []byte, bool, error) {
	have := s.in[s.start:s.end]
	if len(have) < headLen {
		return frameHead{}, nil, false, nil
	}
	h, err := parseHead(have)
	if err != nil {
		return h, nil, false, err
	}
	return h, have[headLen:min(len(have), headLen+h.payload)], true, nil
}

// skip consumes n received bytes.
func (s *slot) skip(n int) { s.start += n }

// reserve makes room to receive the rest of a frame of that length, whose
// beginning is in[start:end], and for one byte at least.
func (s *slot) reserve(frame int) {
	s.room()
	if s.end < len(s.in) && s.start+frame <= len(s.in) {
		return
	}
	have := s.in[s.start:s.end]
	if max(frame, len(have)+1) > len(s.in) {
		bigger := make([]byte, max(frame, len(have)+1))
		copy(bigger, have)
		putBuffer(s.in)
		s.in = bigger
	} else {
		copy(s.in, have)
	}
	s.start, s.end = 0, len(have)
}

// giveBuffer gives the receive buffer away; what was not parsed yet moves to
// another one.
func (s *slot) giveBuffer() []byte {
	given, rest := s.in, s.in[s.start:s.end]
	s.in = getBuffer()
	if len(rest) > len(s.in) {
		s.in = make([]byte, len(rest))
	}
	s.start, s.end = 0, copy(s.in, rest)
	return given
}

// takeFile returns the descriptor that came with a FILE frame.
func (s *slot) takeFile() (*os.File, error) {
	if len(s.fds) == 0 {
		return nil, fmt.Errorf("%w: FILE without a descriptor", errFrame)
	}
	fd := s.fds[0]
	s.fds = append(s.fds[:0], s.fds[1:]...)
	return os.NewFile(uintptr(fd), "file of the application"), nil
}

// whole receives until the frame at the front is there whole, and returns it
// consumed. The payload is valid until the next receive.
func (s *slot) whole() (frameHead, []byte, error) {
	for {
		h, payload, ok, err := s.peek()
		switch {
		case err != nil:
			return h, nil, err
		case ok && len(payload) == h.payload:
			s.skip(headLen + h.payload)
			return h, payload, nil
		}
		s.reserve(headLen + h.payload)
		if err := s.receive(); err != nil {
			return h, nil, err
		}
	}
}

// begin makes request the one that a CANCEL may be for; 0 ends that.
func (s *slot) begin(request uint32) {
	s.write.Lock()
	s.active, s.cancelled = request, 0
	s.write.Unlock()
}

// sendBody answers a READ of the request, unless that was cancelled: a worker that
// has read the CANCEL reads no more, so that a long frame would never leave.
func (s *slot) sendBody(request uint32, frame []byte) error {
	s.write.Lock()
	defer s.write.Unlock()
	if s.active != request {
		return nil
	}
	if err := s.writeAll(frame); err != nil {
		return s.lost(err)
	}
	return nil
}

// cancel tells the worker that nobody waits for the request any more, unless the
// slot is done with it.
func (s *slot) cancel(request uint32, reason error) {
	s.write.Lock()
	defer s.write.Unlock()
	if s.active == request {
		s.active, s.cancelled = 0, request
		_ = s.writeAll(appendFrame(nil, frameCancel, 0, request, []byte(reason.Error())))
	}
}

// cancelNow is cancel for a worker that may not read: it does not wait. A request that
// was cancelled before gets the new reason too.
func (s *slot) cancelNow(reason error) {
	if !s.write.TryLock() {
		return
	}
	defer s.write.Unlock()
	request := cmp.Or(s.active, s.cancelled)
	if request == 0 {
		return
	}
	frame := appendFrame(nil, frameCancel, 0, request, []byte(reason.Error()))
	s.active, s.cancelled = 0, request
	_ = s.raw.Control(func(fd uintptr) { _ = unix.Send(int(fd), frame, unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL) })
}

// shut tells the worker that no more requests come. close ends the sockets.
func (s *slot) shut() {
	if s.requests != nil {
		s.requests.shut()
	}
	_ = s.raw.Control(func(fd uintptr) { _ = unix.Shutdown(int(fd), unix.SHUT_WR) })
}

// hangUp ends the connection for both sides, even if something that the worker
// left behind still holds its end. What was received can still be read.
func (s *slot) hangUp() {
	s.hungUp.Store(true)
	_ = s.raw.Control(func(fd uintptr) { _ = unix.Shutdown(int(fd), unix.SHUT_RDWR) })
}

func (s *slot) close() {
	if s.requests != nil {
		s.requests.close()
	}
	_ = s.file.Close()
}

// pause stops the request's time until the function it returns is called.
func (s *slot) pause() (resume func()) {
	from := monotonic()
	s.paused.Store(true)
	return func() {
		s.busySince.Add(monotonic() - from)
		s.paused.Store(false)
	}
}

// interrupt wakes the holder out of its wait for the worker.
func (s *slot) interrupt() {
	s.timedOut.Store(true)
	_ = s.file.SetDeadline(time.Unix(1, 0))
}

var buffers = sync.Pool{New: func() any { b := make([]byte, receiveBuffer); return &b }}

func getBuffer() []byte { return *buffers.Get().(*[]byte) }

func putBuffer(b []byte) {
	if cap(b) == receiveBuffer {
		b = b[:receiveBuffer]
		buffers.Put(&b)
	}
}
