package pyrunner

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
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
		return nil, t.giveUp()
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
		return nil, t.giveUp()
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

// reap lets the template reap a worker that has ended.
func (t *template) reap(pid int) {
	t.sending.Lock()
	defer t.sending.Unlock()
	// If it cannot be sent, the template is about to be lost, which ends the wait for REAPED too.
	_ = t.sendPacket(appendFrame(nil, frameReap, 0, 0, binary.LittleEndian.AppendUint32(nil, uint32(pid))), nil, killAfter)
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
		failed = unix.Sendmsg(int(fd), packet, rights, nil, unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL)
		return !errors.Is(failed, unix.EAGAIN) && !errors.Is(failed, unix.EINTR)
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
	t.self.told.Store(true)
	_ = t.commands.Close() // it reads the end, and exits
}

// run receives what the template says until it is gone.
func (t *template) run() {
	err := t.receive()
	asked := t.self.told.Load()
	if !asked || !t.self.waitGone(killAfter) {
		t.self.waitGone(exitGrace) // its exit says more than SIGKILL
		t.self.kill()
		if !t.self.waitGone(giveUpAfter) {
			t.pool.log.Error("template survives SIGKILL, giving it up", "pid", t.self.pid)
			close(t.self.abandoned)
		}
	}
	t.lost(asked, err)
	t.self.closeOurs()
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
	switch head.kind {
	case frameRefused:
		t.refused(head, string(payload))
		return nil
	case frameForked, frameExited:
		if len(payload) != 4 {
			return fmt.Errorf("%w: frame 0x%02x of %d bytes", errFrame, uint8(head.kind), len(payload))
		}
		pid := int(binary.LittleEndian.Uint32(payload))
		if head.kind == frameExited {
			t.find(pid).exited()
			return nil
		}
		return t.born(head.request, pid)
	case frameReaped:
		if len(payload) != 8 {
			return fmt.Errorf("%w: REAPED of %d bytes", errFrame, len(payload))
		}
		pid, status := binary.LittleEndian.Uint32(payload), binary.LittleEndian.Uint32(payload[4:])
		t.find(int(pid)).reaped(exit{status: syscall.WaitStatus(status)})
		return nil
	}
	return fmt.Errorf("%w: frame 0x%02x of a template", errFrame, uint8(head.kind))
}

// born takes account of a new process.
func (t *template) born(id uint32, pid int) error {
	// Else the process would get the signals that are meant for a worker.
	if parent, _ := strconv.Atoi(statOf(pid)[statParent]); pid > maxPID || parent != t.self.pid {
		return fmt.Errorf("%w: FORKED with the process %d, which is no child of its own", errFrame, pid)
	}
	f := &forked{template: t, number: pid, ended: make(chan struct{}), gone: make(chan struct{})}
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
	t.mu.Lock()
	defer t.mu.Unlock()
	if head.flags&flagAlways != 0 {
		err = fmt.Errorf("%w: %s", errNoFork, reason)
		if t.off == nil {
			t.off = err
			t.pool.log.Warn("--preload is off: workers start by exec", "reason", err, "template", t.self.pid)
		}
	}
	if asked := t.asked[head.request]; asked != nil {
		delete(t.asked, head.request)
		asked <- answer{err: err}
	}
	t.stopIfOff()
}

// find returns a worker that is not reaped, or one that never was.
func (t *template) find(pid int) *forked {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.workers[pid]
}

// lost takes account of the end of the template. Its workers die with it: the kernel
// kills them.
func (t *template) lost(asked bool, reason error) {
	status := t.self.exitStatus(0)
	t.mu.Lock()
	if t.off == nil {
		t.off = errNoTemplate
	}
	t.over = true
	_ = t.commands.Close()
	for id, asked := range t.asked {
		delete(t.asked, id)
		asked <- answer{err: fmt.Errorf("%w: %s", errNoTemplate, status)}
	}
	t.mu.Unlock()
	orphans := t.left()
	if asked {
		t.pool.log.Debug("template stopped", "pid", t.self.pid, "exit", status)
	} else {
		t.pool.log.Error("template ended unexpectedly, and its workers with it", "pid", t.self.pid, "exit", status, "workers", len(orphans), "error", reason)
	}
	for _, f := range orphans {
		f.orphaned(status)
	}
}

// giveUp is for a template that does not answer: it is stopped, or hangs in a hook of
// the application. Its workers may be well, so it is killed only after their end.
func (t *template) giveUp() error {
	err := fmt.Errorf("%w: it did not answer within --startup-timeout %v", errNoTemplate, t.pool.cfg.StartupTimeout)
	if t.fall(err) {
		t.pool.log.Error("template is given up", "pid", t.self.pid, "error", err)
		t.pool.background.Go(t.outlast)
	}
	return fmt.Errorf("fork a worker: %w", err)
}

// lookEvery is how often outlast looks.
const lookEvery = 100 * time.Millisecond

// outlast watches the workers of a template that does not, and kills it when they are
// gone.
func (t *template) outlast() {
	tick := time.NewTicker(lookEvery)
	defer tick.Stop()
	for {
		left := t.left()
		if len(left) == 0 {
			t.self.kill()
			return
		}
		for _, f := range left {
			if how, ended := endOf(f.number); ended {
				f.reaped(how)
			}
		}
		select {
		case <-tick.C:
		case <-t.self.gone:
			return
		}
	}
}

// Fields of /proc/PID/stat, counted from the third on (proc(5)).
const (
	statState  = 3 - 3
	statParent = 4 - 3
	statExit   = 52 - 3 // as of wait(2), 0 for those who may not trace the process
	statFields = 53 - 3
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

// left returns the workers that are not reaped.
func (t *template) left() []*forked {
	t.mu.Lock()
	defer t.mu.Unlock()
	return slices.Collect(maps.Values(t.workers))
}

// endOf looks whether a process that this one may not wait for has ended, and how.
func endOf(pid int) (how exit, ended bool) {
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

// forked is a worker's process that a template has forked.
type forked struct {
	template *template
	number   int

	mu    sync.Mutex    // held while a signal is sent
	ended chan struct{} // closed when the process has ended: its number stays its own until it is reaped
	gone  chan struct{} // closed when it is reaped
	how   exit          // valid after gone
}

var _ process = (*forked)(nil)

func (f *forked) pid() int { return f.number }

func (f *forked) signal(sig unix.Signal) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if isClosed(f.ended) {
		return os.ErrProcessDone
	}
	err := unix.Kill(f.number, sig)
	if errors.Is(err, unix.ESRCH) {
		return os.ErrProcessDone
	}
	return os.NewSyscallError("kill", err)
}

func (f *forked) wait() exit {
	<-f.ended
	if !isClosed(f.gone) {
		f.template.reap(f.number)
	}
	<-f.gone
	t := f.template
	t.mu.Lock()
	defer t.mu.Unlock()
	delete(t.workers, f.number)
	t.stopIfOff()
	return f.how
}

// exited says that the process has ended and is to be reaped.
func (f *forked) exited() {
	if f == nil {
		return
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if !isClosed(f.ended) {
		close(f.ended)
	}
}

// reaped says how the process ended.
func (f *forked) reaped(how exit) {
	f.exited()
	if f == nil {
		return
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if !isClosed(f.gone) {
		f.how = how
		close(f.gone)
	}
}

// orphaned waits for the end of a process whose template has ended as status says.
func (f *forked) orphaned(status string) {
	for end := time.Now().Add(giveUpAfter); time.Now().Before(end); time.Sleep(time.Millisecond) {
		if _, ended := endOf(f.number); ended {
			break
		}
	}
	f.reaped(exit{err: fmt.Errorf("killed with its template (%s)", status)})
}

func isClosed(c <-chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}
