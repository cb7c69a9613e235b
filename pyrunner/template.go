package pyrunner

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// template is a process that has imported the application and forks workers from
// itself (PROTOCOL.md, "Template"). It takes no requests. If it dies, its workers do.
type template struct {
	pool     *Pool
	self     *worker  // its process; slot 0's stream carries the answers
	commands *os.File // SOCK_SEQPACKET

	sending sync.Mutex // a command at a time: one may be of several packets

	mu      sync.Mutex
	last    uint32                   // id of the last FORK
	asked   map[uint32]chan<- answer // those without an answer, each channel with room for it
	workers map[int]*forked          // those that are not reaped
	off     error                    // why it forks no more; nil: it does
	over    bool                     // nothing is sent any more

	killed  atomic.Bool // by terminate
	abandon sync.Once
}

// answer is that to a FORK.
type answer struct {
	proc *forked
	err  error
}

var (
	// errNoFork says that this application's templates cannot be forked: it runs
	// threads, of which a copy would have the locks alone.
	errNoFork = errors.New("the application cannot be forked")
	// errNoTemplate says that another template is needed to fork workers.
	errNoTemplate = errors.New("the template is gone")
)

// maxRights is how many descriptors one packet may carry: the kernel's SCM_MAX_FD.
const maxRights = 253

// startTemplate starts a template and leads it to READY; a failed one is gone on
// return. The error is as that of a worker's start.
func (p *Pool) startTemplate(gen *generation) (*template, error) {
	t, err := p.spawnTemplate(gen)
	if err != nil {
		return nil, err
	}
	stop := context.AfterFunc(gen.starts, t.self.kill) // nobody would use it
	defer stop()
	if err := p.handshake(t.self); err != nil {
		p.discard(t.self)
		_ = t.commands.Close()
		if gen.starts.Err() != nil {
			return nil, errStopped
		}
		return nil, err
	}
	p.background.Go(t.run)
	return t, nil
}

// spawnTemplate starts the process. It has what a worker with one slot has, and the
// socket for commands in the place of the slot's own for requests.
func (p *Pool) spawnTemplate(gen *generation) (*template, error) {
	w := &worker{queue: &p.queue, gen: gen, template: true, gone: make(chan struct{}), abandoned: make(chan struct{}), begun: time.Now()}
	t := &template{pool: p, self: w, asked: map[uint32]chan<- answer{}, workers: map[int]*forked{}}
	theirs, err := p.openDescriptors(w, 1)
	defer closeAll(theirs)
	if err != nil {
		w.closeOurs()
		return nil, fmt.Errorf("start a template: %w", err)
	}
	t.commands = w.slots[0].takeRequests()
	if err := p.execute(w, theirs); err != nil {
		_ = t.commands.Close()
		return nil, fmt.Errorf("start a template: %w", err)
	}
	return t, nil
}

// takeRequests makes a file of the slot's socket for requests, whose other end is the
// child's alone.
func (s *slot) takeRequests() *os.File {
	q := s.requests
	s.requests = nil
	_ = unix.Close(q.theirs)
	_ = unix.SetNonblock(q.ours, true)
	return os.NewFile(uintptr(q.ours), "commands of the template")
}

// fork has a worker forked that gets theirs: stdout, stderr, the dump, and two for
// each slot. The worker says READY on slot 0, or ends. The error is errNoFork or
// errNoTemplate if the template can fork no more.
func (t *template) fork(w *worker, theirs []*os.File) (process, error) {
	id, answered, err := t.ask()
	if err != nil {
		return nil, err
	}
	defer t.forget(id)
	w.begun = time.Now() // after the template's own start
	patience := t.pool.cfg.StartupTimeout
	err = t.sendFork(id, theirs, patience)
	switch {
	case errors.Is(err, os.ErrDeadlineExceeded):
		return nil, t.giveUp(patience)
	case err != nil:
		return nil, fmt.Errorf("fork a worker: %w", err)
	}
	timer := time.NewTimer(patience)
	defer timer.Stop()
	select {
	case a := <-answered:
		if a.err != nil {
			return nil, fmt.Errorf("fork a worker: %w", a.err)
		}
		w.forked, w.interpreter = true, t.self.interpreter
		return a.proc, nil
	case <-timer.C:
		return nil, t.giveUp(patience)
	case <-w.gen.starts.Done():
		return nil, errStopped
	}
}

// forks reports whether the template forks workers still.
func (t *template) forks() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.off == nil
}

// ask makes the id of a FORK and the channel for its answer.
func (t *template) ask() (uint32, <-chan answer, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.off != nil {
		return 0, nil, t.off
	}
	t.last++
	answered := make(chan answer, 1)
	t.asked[t.last] = answered
	return t.last, answered, nil
}

// forget ends the wait for an answer. A worker that comes all the same is ended.
func (t *template) forget(id uint32) {
	t.mu.Lock()
	defer t.mu.Unlock()
	delete(t.asked, id)
	t.stopIfOff()
}

// sendFork sends a FORK, in several packets if one cannot carry all descriptors.
func (t *template) sendFork(id uint32, files []*os.File, patience time.Duration) error {
	fds := make([]int, len(files))
	for i, f := range files {
		fds[i] = int(f.Fd()) // which also makes a pipe block, as programs expect
	}
	count := binary.LittleEndian.AppendUint32(nil, uint32(len(fds)))
	t.sending.Lock()
	defer t.sending.Unlock()
	for ; len(fds) > maxRights; fds = fds[maxRights:] {
		if err := t.sendPacket(appendFrame(nil, frameFork, flagMore, id, count), fds[:maxRights], patience); err != nil {
			return err
		}
	}
	return t.sendPacket(appendFrame(nil, frameFork, 0, id, count), fds, patience)
}

// reap has the template reap a worker that has ended.
func (t *template) reap(pid int) error {
	t.sending.Lock()
	defer t.sending.Unlock()
	return t.sendPacket(appendFrame(nil, frameReap, 0, 0, binary.LittleEndian.AppendUint32(nil, uint32(pid))), nil, reapWait)
}

func (t *template) sendPacket(packet []byte, fds []int, patience time.Duration) error {
	raw, err := t.commands.SyscallConn()
	if err != nil {
		return err
	}
	var rights []byte
	if len(fds) > 0 {
		rights = unix.UnixRights(fds...)
	}
	_ = t.commands.SetWriteDeadline(time.Now().Add(patience))
	var failed error
	err = raw.Write(func(fd uintptr) bool {
		for failed = unix.EINTR; errors.Is(failed, unix.EINTR); {
			failed = unix.Sendmsg(int(fd), packet, rights, nil, unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL)
		}
		return !errors.Is(failed, unix.EAGAIN)
	})
	switch {
	case err != nil:
		return err
	case errors.Is(failed, unix.EPIPE), errors.Is(failed, unix.ECONNRESET): // as run is about to see
		t.fall(errNoTemplate)
		return fmt.Errorf("%w: %w", errNoTemplate, failed)
	}
	return os.NewSyscallError("sendmsg", failed)
}

// close lets the template fork no more. It ends when its workers are gone.
func (t *template) close() {
	t.fall(errNoTemplate)
	t.mu.Lock()
	defer t.mu.Unlock()
	t.stopIfOff()
}

// fall says why the template forks no more. It returns false if that is known.
func (t *template) fall(why error) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.off != nil {
		return false
	}
	t.off = why
	return true
}

// stopIfOff ends the process if it neither forks any more nor has a worker. t.mu is held.
func (t *template) stopIfOff() {
	if t.off == nil || len(t.workers) > 0 || len(t.asked) > 0 || t.over {
		return
	}
	t.over = true
	_ = t.commands.Close() // it reads the end, and exits
	t.pool.background.Go(func() { t.terminate(killAfter) })
}

// terminate kills the process unless it ends by itself.
func (t *template) terminate(patience time.Duration) {
	if t.self.waitGone(patience) {
		return
	}
	t.killed.Store(true)
	t.self.kill()
	if !t.self.waitGone(giveUpAfter) {
		t.abandon.Do(func() {
			t.pool.log.Error("template survives SIGKILL, giving it up", "pid", t.self.pid)
			close(t.self.abandoned)
		})
	}
}

// giveUp is for a template that does not answer: it is stopped, or hangs in a hook of
// the application. Its workers may be well, so it is ended only after them.
func (t *template) giveUp(patience time.Duration) error {
	err := fmt.Errorf("%w: it did not answer within %v", errNoTemplate, patience)
	if t.fall(err) {
		t.pool.log.Error("template is given up", "pid", t.self.pid, "error", err)
	}
	return fmt.Errorf("fork a worker: %w", err)
}

// run receives what the template says until it is gone.
func (t *template) run() {
	err := t.receive()
	t.terminate(killAfter) // its own end says more than SIGKILL
	t.lost(err)
	t.self.closeOurs()
}

// lost takes account of the end of the template. Its workers die with it: the kernel
// kills them.
func (t *template) lost(reason error) {
	status := t.self.exitStatus(0)
	t.fall(fmt.Errorf("%w: %s", errNoTemplate, status))
	t.mu.Lock()
	defer t.mu.Unlock()
	for id, asked := range t.asked {
		delete(t.asked, id)
		asked <- answer{err: t.off}
	}
	if t.over && (t.killed.Load() || status == exit{}.String()) {
		t.pool.log.Debug("template stopped", "pid", t.self.pid, "exit", status)
	} else {
		t.pool.log.Error("template ended unexpectedly, and its workers with it", "pid", t.self.pid, "exit", status, "error", reason)
	}
	if !t.over {
		t.over = true
		_ = t.commands.Close()
	}
}

// receive handles what the template says until it ends or breaks the protocol.
func (t *template) receive() error {
	for {
		head, payload, err := t.self.slots[0].whole()
		if err != nil {
			return err
		}
		if err := t.handle(head, payload); err != nil {
			return err
		}
	}
}

func (t *template) handle(head frameHead, payload []byte) error {
	switch {
	case head.kind == frameRefused:
		t.refused(head, string(payload))
		return nil
	case head.kind == frameForked && len(payload) == 4:
		return t.born(head.request, int(binary.LittleEndian.Uint32(payload)))
	case head.kind == frameReaped && len(payload) == 8:
		t.reaped(int(binary.LittleEndian.Uint32(payload)), syscall.WaitStatus(binary.LittleEndian.Uint32(payload[4:])))
		return nil
	}
	return fmt.Errorf("%w: frame 0x%02x of %d bytes from a template", errFrame, uint8(head.kind), len(payload))
}

// born takes account of a new process.
func (t *template) born(id uint32, pid int) error {
	// Else the process would get the signals that are meant for a worker.
	if parent, _ := strconv.Atoi(statOf(pid)[statParent]); pid > maxPID || parent != t.self.pid {
		return fmt.Errorf("%w: FORKED with the process %d, which is no child of its own", errFrame, pid)
	}
	f := &forked{template: t, number: pid, reaped: make(chan exit, 1)}
	f.openWatch()
	t.mu.Lock()
	defer t.mu.Unlock()
	t.workers[pid] = f
	if asked := t.asked[id]; asked != nil {
		delete(t.asked, id)
		asked <- answer{proc: f}
		return nil
	}
	// Nobody waits for it any more.
	_ = unix.Kill(-pid, unix.SIGKILL)
	t.pool.background.Go(func() { f.wait() })
	return nil
}

// refused passes the template's refusal on. With ALWAYS it is its last.
func (t *template) refused(head frameHead, reason string) {
	err := errors.New(reason)
	if head.flags&flagAlways != 0 {
		err = fmt.Errorf("%w: %s", errNoFork, reason)
		if t.fall(err) {
			t.pool.log.Warn("--preload is off: workers start by exec", "reason", err, "template", t.self.pid)
		}
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if asked := t.asked[head.request]; asked != nil {
		delete(t.asked, head.request)
		asked <- answer{err: err}
	}
	t.stopIfOff()
}

// reaped passes on how a worker ended.
func (t *template) reaped(pid int, status syscall.WaitStatus) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if f := t.workers[pid]; f != nil {
		select {
		case f.reaped <- exit{status: status}:
		default: // it was told before
		}
	}
}

// Fields of /proc/PID/stat, counted from the third on, which is 0 (proc(5)).
const (
	statState  = 0
	statParent = 1
	statExit   = 49 // as of wait(2), 0 for those who may not trace the process
	statFields = 50
)

// maxPID is the kernel's PID_MAX_LIMIT.
const maxPID = 1 << 22

// statOf returns the fields of /proc/PID/stat, all empty if the process is gone.
func statOf(pid int) []string {
	fields := make([]string, statFields)
	if text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid)); err == nil {
		copy(fields, strings.Fields(string(text[bytes.LastIndexByte(text, ')')+1:])))
	}
	return fields
}

// zombie looks whether a process that this one may not wait for has ended, and how.
func zombie(pid int) (how exit, ended bool) {
	stat := statOf(pid)
	switch stat[statState] {
	case "":
		return exit{err: errors.New("gone")}, true
	case "Z", "X":
		status, err := strconv.ParseUint(stat[statExit], 10, 32)
		return exit{status: syscall.WaitStatus(status), err: err}, true
	}
	return exit{}, false
}

// Times of a worker's end.
const (
	// reapWait is how long a template may take to reap a worker and tell how it ended.
	reapWait = time.Second
	// lookEvery is how often a process is looked at where the kernel tells nobody of its end.
	lookEvery = 100 * time.Millisecond
)

// forked is a worker's process that a template has forked.
type forked struct {
	template *template
	number   int
	watch    *os.File  // its pidfd; nil: there is none (before Linux 5.3)
	reaped   chan exit // with room for one

	mu    sync.Mutex // held while a signal is sent
	ended bool       // its number may be another's soon
}

var _ process = (*forked)(nil)

func (f *forked) pid() int { return f.number }

func (f *forked) signal(sig unix.Signal) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.ended {
		return os.ErrProcessDone
	}
	err := unix.Kill(f.number, sig)
	if errors.Is(err, unix.ESRCH) {
		return os.ErrProcessDone
	}
	return os.NewSyscallError("kill", err)
}

// wait does not need the template to be well.
func (f *forked) wait() exit {
	f.awaitEnd()
	f.mu.Lock()
	f.ended = true
	f.mu.Unlock()
	how := f.reap()
	t := f.template
	t.mu.Lock()
	defer t.mu.Unlock()
	delete(t.workers, f.number)
	t.stopIfOff()
	return how
}

// openWatch prepares awaitEnd, while the number is the process's own for certain.
func (f *forked) openWatch() {
	fd, err := unix.PidfdOpen(f.number, 0)
	if err != nil {
		return
	}
	_ = unix.SetNonblock(fd, true)
	f.watch = os.NewFile(uintptr(fd), "pidfd")
}

// awaitEnd waits until the process has ended.
func (f *forked) awaitEnd() {
	if f.watch != nil {
		defer f.watch.Close()
		raw, err := f.watch.SyscallConn()
		if err == nil && raw.Read(readable) == nil {
			return
		}
	}
	for _, ended := zombie(f.number); !ended; _, ended = zombie(f.number) {
		time.Sleep(lookEvery)
	}
}

// readable reports whether a descriptor can be read: a pidfd when its process has ended.
func readable(fd uintptr) bool {
	n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 0)
	return n > 0 && err == nil
}

// reap has the template reap the process, and returns how it ended.
func (f *forked) reap() exit {
	t := f.template
	how, _ := zombie(f.number) // if the template does not tell
	_ = t.reap(f.number)
	timer := time.NewTimer(reapWait)
	defer timer.Stop()
	select {
	case how := <-f.reaped:
		return how
	case <-t.self.gone:
		return exit{err: fmt.Errorf("killed with its template (%s)", t.self.exit)}
	case <-timer.C:
		return how
	}
}
