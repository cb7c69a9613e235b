package pyrunner

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// state is what a worker is doing. Only the pool's owner goroutine changes it
// (Pool.manage).
type state uint8

const (
	// starting: the process runs, the application is not imported yet.
	starting state = iota
	// standby: READY, but its slots get no requests yet.
	standby
	// ready: its slots take requests.
	ready
	// draining: it gets no more requests, finishes what it has, and exits.
	draining
	// doomed: it misbehaved; it is terminated, then killed.
	doomed
	// exited: the process is gone and reaped.
	exited
)

func (s state) String() string {
	return [...]string{"starting", "standby", "ready", "draining", "doomed", "exited"}[s]
}

// transitions has the states that may follow each.
var transitions = map[state][]state{
	starting: {standby, doomed, exited},
	standby:  {ready, draining, doomed, exited},
	ready:    {draining, doomed, exited},
	draining: {doomed, exited},
	doomed:   {exited},
	exited:   {},
}

// worker is one Python process.
type worker struct {
	pid   int
	proc  process // nil until it is started
	slots []*slot
	queue *queue

	interpreter string // as HELLO names it
	gen         *generation
	forked      bool // from a template
	template    bool // it is one itself, and takes no requests

	state  state // owned by Pool.manage
	begun  time.Time
	served atomic.Bool // has answered a request: its exit is not a failed start
	told   atomic.Bool // to end, by a signal

	asked       atomic.Uint64 // how many requests it has had
	maxRequests uint64        // then it is replaced; 0: never
	maxAge      time.Duration
	maxMemory   int64        // bytes; 0: any
	weighed     atomic.Int64 // monotonic() when its memory was looked at
	worn        atomic.Bool  // to be replaced
	resting     atomic.Int64 // monotonic() when it began to rest until then; or tireless

	dump    *os.File
	streams []*os.File
	logs    *lineLog
	meter   meter
	gone    chan struct{} // closed when the process is reaped
	exit    exit          // valid after gone

	reporting  atomic.Int32 // requests that took too long and are being reported
	terminated sync.Once
	abandoned  chan struct{} // closed when nobody waits for the process any more

	evidence evidence
}

// dumpSignal asks a worker for the stacks of its threads. faulthandler answers
// it in C, so it works while Python code holds the interpreter's lock. It
// is a real-time signal, which applications do not use.
const dumpSignal = 34 + 6 // SIGRTMIN+6 in glibc's and musl's counting

// raiseSignal asks a worker for an exception in the threads whose request was
// cancelled (Config.RaiseOnTimeout).
const raiseSignal = dumpSignal + 1

// startError is why a worker did not become READY.
type startError struct {
	sentence  string // what is wrong and the mend
	traceback string // may be empty
}

func (e *startError) Error() string {
	if e.traceback == "" {
		return e.sentence
	}
	return e.sentence + "\n" + strings.TrimRight(e.traceback, "\n")
}

// spawn starts a worker process. It returns before the application is imported.
func (p *Pool) spawn(gen *generation) (*worker, error) {
	w := &worker{queue: &p.queue, gen: gen, gone: make(chan struct{}), abandoned: make(chan struct{}), begun: time.Now()}
	theirs, err := p.openDescriptors(w, p.cfg.Threads)
	defer closeAll(theirs)
	if err != nil {
		w.closeOurs()
		return nil, fmt.Errorf("start a worker: %w", err)
	}
	if p.cfg.Preload {
		proc, err := gen.fork(p, w, theirs)
		if err != nil {
			w.closeOurs()
			return nil, err
		}
		if proc != nil {
			p.watch(w, proc)
			return w, nil
		}
	}
	if err := p.execute(w, theirs); err != nil {
		return nil, fmt.Errorf("start a worker: %w", err)
	}
	return w, nil
}

func closeAll(files []*os.File) {
	for _, f := range files {
		_ = f.Close()
	}
}

// execute starts a worker's process by exec; if that fails, nothing is left of it.
func (p *Pool) execute(w *worker, theirs []*os.File) error {
	// theirs: stdout, stderr, then from descriptor 3 on the archive, the dump, and
	// two for each slot: its stream and its requests.
	cmd := exec.Command(p.cfg.Python, "/proc/self/fd/3", strconv.Itoa(firstSlotFD))
	cmd.Env = p.workerEnv
	cmd.Stdout, cmd.Stderr = theirs[0], theirs[1]
	cmd.ExtraFiles = append([]*os.File{p.archive}, theirs[2:]...)
	cmd.SysProcAttr = workerAttributes()
	if err := p.spawner.start(cmd); err != nil {
		w.closeOurs()
		return err
	}
	p.watch(w, execProcess{cmd})
	if err := p.cfg.limitProcess(w.pid); err != nil {
		p.discard(w)
		return err
	}
	return nil
}

// watch takes care of a process that has just been started: its log, and its end.
func (p *Pool) watch(w *worker, proc process) {
	w.proc, w.pid = proc, proc.pid()
	w.logs = p.logWorker(w)
	w.meter.begin(w.pid)
	w.evidence.group = p.oom.begin(w.pid, time.Now())
	go func() { // ends with the process
		w.exit = proc.wait()
		w.meter.close()
		close(w.gone)
		p.post(event{kind: eventExit, worker: w})
	}()
}

// firstSlotFD is the descriptor of slot 0 in the child: 3 is the archive, 4 the
// pipe for stacks.
const (
	dumpFD      = 4
	firstSlotFD = 5
)

// openDescriptors makes what connects the worker with the gateway and returns
// the child's ends: stdout, stderr, the dump, the slots.
func (p *Pool) openDescriptors(w *worker, slots int) (theirs []*os.File, err error) {
	for i := range 3 {
		r, wr, err := os.Pipe()
		if err != nil {
			return theirs, err
		}
		theirs = append(theirs, wr)
		if i == 2 {
			w.dump = r
		} else {
			w.streams = append(w.streams, r)
		}
	}
	for range slots {
		s, end, err := newSlot(w)
		if err != nil {
			return theirs, err
		}
		w.slots = append(w.slots, s)
		theirs = append(theirs, end)
		s.requests, end, err = newRequestSocket()
		if err != nil {
			return theirs, err
		}
		theirs = append(theirs, end)
	}
	return theirs, nil
}

// closeOurs closes the gateway's ends, but for the log streams of a process
// that runs: those end by themselves (see lineLog).
func (w *worker) closeOurs() {
	for _, s := range w.slots {
		s.close()
	}
	_ = w.dump.Close()
	if w.proc == nil {
		for _, f := range w.streams {
			_ = f.Close()
		}
	}
}

// handshake leads a new worker from HELLO to READY (PROTOCOL.md, "Start").
func (p *Pool) handshake(w *worker) error {
	s := w.slots[0]
	timer := time.AfterFunc(p.cfg.StartupTimeout, s.interrupt)
	defer timer.Stop()
	var err error
	if !w.forked {
		err = p.greet(w, s)
	}
	if errors.Is(err, errLost) {
		return &startError{sentence: fmt.Sprintf("%s does not run as a Python interpreter (%s): %s", p.cfg.Python, w.exitStatus(exitGrace), p.cfg.mendStart())}
	}
	if err == nil {
		err = p.loadApp(w, s)
	}
	if err == nil && !timer.Stop() {
		err = errTimedOut // the slot was interrupted just now
	}
	switch {
	case errors.Is(err, errTimedOut) && w.forked:
		return &startError{sentence: fmt.Sprintf("the forked worker was not ready within --startup-timeout %v", p.cfg.StartupTimeout), traceback: w.stacks()}
	case errors.Is(err, errLost) && w.forked:
		return &startError{sentence: p.endOf(w, "the forked worker", "before it was ready")}
	case errors.Is(err, errTimedOut):
		return &startError{sentence: fmt.Sprintf("the application was not imported within --startup-timeout %v", p.cfg.StartupTimeout), traceback: w.stacks()}
	case errors.Is(err, errLost):
		return &startError{sentence: p.endOf(w, "the worker", "while it imported the application")}
	}
	return err
}

// greet receives HELLO.
func (p *Pool) greet(w *worker, s *slot) error {
	head, payload, err := s.whole()
	if err != nil {
		return err
	}
	if head.kind != frameHello {
		return fmt.Errorf("%w: frame 0x%02x instead of HELLO", errFrame, head.kind)
	}
	greeting, err := parseHello(payload)
	if err != nil {
		return err
	}
	if greeting.version != protocolVersion {
		return fmt.Errorf("%w: version %d, this gateway speaks %d: install both from the same release", errFrame, greeting.version, protocolVersion)
	}
	w.interpreter = greeting.interpreter
	return nil
}

// loadApp sends INIT and waits until the application is imported. A forked worker
// has both behind it.
func (p *Pool) loadApp(w *worker, s *slot) error {
	if !w.forked {
		if err := s.send(appendFrame(nil, frameInit, 0, 0, p.initFor(w).appendTo(nil))); err != nil {
			return err
		}
	}
	head, payload, err := s.whole()
	for err == nil && head.kind == frameImported {
		if err = p.imported(payload); err == nil {
			head, payload, err = s.whole()
		}
	}
	if err != nil {
		return err
	}
	switch head.kind {
	case frameReady:
		what := "worker ready"
		if w.template {
			what = "template ready"
		}
		p.log.Info(what, "pid", w.pid, "app", p.cfg.appName(), "object", string(payload), "python", w.interpreter, "after", time.Since(w.begun).Round(time.Millisecond))
		return nil
	case frameFailed:
		sentence, traceback, _ := strings.Cut(string(payload), "\n")
		return &startError{sentence, traceback}
	}
	return fmt.Errorf("%w: frame 0x%02x instead of READY", errFrame, head.kind)
}

// imported passes on which files a worker has imported (IMPORTED).
func (p *Pool) imported(payload []byte) error {
	if p.cfg.Imported == nil {
		return fmt.Errorf("%w: IMPORTED, which nobody asked for", errFrame)
	}
	files, err := parseImported(payload)
	if err != nil {
		return err
	}
	p.cfg.Imported(files)
	return nil
}

func (p *Pool) initFor(w *worker) initConfig {
	c := initConfig{
		app:        p.cfg.App,
		chdir:      p.cfg.Chdir,
		pythonPath: p.cfg.PythonPath,
		debug:      p.cfg.Debug,
		dumpFD:     dumpFD,
		dumpSignal: dumpSignal,
		watch:      p.cfg.Imported != nil,
	}
	if p.cfg.RaiseOnTimeout {
		c.raiseSignal = raiseSignal
	}
	if w.template {
		c.slots, c.template = []int{firstSlotFD}, firstSlotFD+1
		return c
	}
	for i := range w.slots {
		c.slots = append(c.slots, firstSlotFD+2*i)
		c.requests = append(c.requests, firstSlotFD+2*i+1)
	}
	return c
}

// signal sends a signal to the process, unless it was reaped.
func (w *worker) signal(sig unix.Signal) error {
	select {
	case <-w.gone:
		return os.ErrProcessDone
	default:
		return w.proc.signal(sig)
	}
}

// kill ends the process and what it started in its own process group.
func (w *worker) kill() {
	w.told.Store(true)
	select {
	case <-w.gone:
	default:
		_ = unix.Kill(-w.pid, unix.SIGKILL)
	}
}

// exitStatus says how the process ended; it waits for that as long as patience.
func (w *worker) exitStatus(patience time.Duration) string {
	if !w.waitGone(patience) {
		select {
		case <-w.gone:
		default:
			return "still runs"
		}
	}
	return w.exit.String()
}
