package pyrunner

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Kinds of incidents.
const (
	kindSlow        = "slow"
	kindTimeout     = "timeout"
	kindCrash       = "crash"
	kindOutOfMemory = "out of memory"
)

// Bounds of what an incident keeps.
const (
	maxIncidents   = 32
	maxIncidentURI = 2 << 10 // bytes
)

// incidents are the last ones of a pool. The zero value has none.
type incidents struct {
	mu   sync.Mutex
	made uint64
	last [maxIncidents]Incident // that with number n is at n % maxIncidents
}

// add files an incident and returns its number, from 1.
func (l *incidents) add(i Incident) uint64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.made++
	l.last[l.made%maxIncidents] = i
	return l.made
}

// list returns those that are kept, newest first.
func (l *incidents) list() []Incident {
	l.mu.Lock()
	defer l.mu.Unlock()
	list := make([]Incident, min(l.made, maxIncidents))
	for n := range list {
		list[n] = l.last[(l.made-uint64(n))%maxIncidents]
	}
	return list
}

// evidence is what is kept of a worker for its incidents.
type evidence struct {
	group string // of its memory, see oomWatch

	mu   sync.Mutex
	lost []lostRequest // requests that it had when it broke

	reader  dumpReader
	dumping sync.Mutex // one dump at a time
	began   int64      // monotonic() when the last one began
	dump    string     // what it gave
}

// lostRequest is what a request was.
type lostRequest struct {
	RequestStatus
	began time.Time
}

// loseRequest notes what the slot's request was, before the slot is done with it:
// the end of the process is seen later.
func (s *slot) loseRequest() {
	r, ok := s.about()
	if !ok {
		return
	}
	e := &s.worker.evidence
	e.mu.Lock()
	defer e.mu.Unlock()
	e.lost = append(e.lost, lostRequest{r, r.began()})
}

// requests returns what the worker has, or had when it broke.
func (w *worker) requests() []RequestStatus {
	var all []RequestStatus
	add := func(r RequestStatus) {
		if !slices.ContainsFunc(all, func(other RequestStatus) bool { return other.ID == r.ID }) {
			r.URI = bounded(r.URI, maxIncidentURI)
			all = append(all, r)
		}
	}
	for _, s := range w.slots {
		if r, ok := s.about(); ok {
			add(r)
		}
	}
	// After the slots: what such a request was is noted before it leaves its slot.
	w.evidence.mu.Lock()
	defer w.evidence.mu.Unlock()
	for _, r := range w.evidence.lost {
		add(r.RequestStatus)
	}
	return all
}

// began returns when a request began that is described as it is now.
func (r *RequestStatus) began() time.Time { return time.Now().Add(-r.For) }

// firstBegan returns when the first of the requests began that the worker has, or had
// when it broke; the zero time if there is none.
func (w *worker) firstBegan() (first time.Time) {
	older := func(t time.Time) {
		if first.IsZero() || t.Before(first) {
			first = t
		}
	}
	for _, s := range w.slots {
		if r, ok := s.about(); ok {
			older(r.began())
		}
	}
	w.evidence.mu.Lock()
	defer w.evidence.mu.Unlock()
	for _, r := range w.evidence.lost {
		older(r.began)
	}
	return first
}

// reportSlow files a request that takes long. It waits for the stacks.
func (p *Pool) reportSlow(w *worker, r RequestStatus) {
	p.reportRequest(w, r, kindSlow, "slow request", slog.LevelWarn)
}

// reportTimeout files a request that took too long. When it returns it has the stacks,
// so that the process may be ended.
func (p *Pool) reportTimeout(w *worker, r RequestStatus) {
	p.reportRequest(w, r, kindTimeout, "request took longer than --timeout", slog.LevelError)
}

func (p *Pool) reportRequest(w *worker, r RequestStatus, kind, message string, level slog.Level) {
	i := Incident{Time: time.Now(), Kind: kind, PID: w.pid}
	began := r.began()
	i.setRequests(r, w.requests())
	i.Stacks = w.stacks()
	i.Stderr = w.logs.recent(began)
	p.file(w, i, message, level)
}

// reportExit files the end of a process, which is reaped, that nobody asked for. It
// returns at once with the kind: out of memory, or crash.
func (p *Pool) reportExit(w *worker) (kind string) {
	i := Incident{Time: time.Now(), Kind: kindCrash, PID: w.pid, Ended: w.exit.String()}
	message := "worker crashed"
	if why, ok := p.outOfMemory(w); ok {
		i.Kind, i.Ended, message = kindOutOfMemory, i.Ended+", "+why, "worker ran out of memory"
	}
	if had := w.requests(); len(had) > 0 {
		i.setRequests(had[0], had)
	}
	began := w.firstBegan()
	p.background.Go(func() {
		select { // for its last words; something that it left behind may hold its streams
		case <-w.logs.drained:
		case <-time.After(logLinger):
		}
		i.Stacks, i.Stderr = w.lastWords(began)
		p.file(w, i, message, slog.LevelError)
	})
	return i.Kind
}

// fatalSignals are those that faulthandler catches, to write the stacks before they end
// the process; Py_FatalError raises SIGABRT.
var fatalSignals = []syscall.Signal{unix.SIGSEGV, unix.SIGABRT, unix.SIGBUS, unix.SIGFPE, unix.SIGILL}

// lastWords returns what a process that is reaped said last: the stacks, if it has
// written them because it crashed, and the last lines before.
func (w *worker) lastWords(began time.Time) (stacks string, lines []string) {
	if w.exit.err == nil && w.exit.status.Signaled() && slices.Contains(fatalSignals, w.exit.status.Signal()) {
		if fatal, before, ok := w.logs.lastWords(began); ok {
			return presented(fatal), before
		}
	}
	return "", w.logs.recent(began)
}

// setRequests sets the request that an incident is about and those beside it.
func (i *Incident) setRequests(r RequestStatus, all []RequestStatus) {
	r.URI = bounded(r.URI, maxIncidentURI)
	i.Request = &r
	for _, other := range all {
		if other.ID != r.ID {
			i.Others = append(i.Others, other)
		}
	}
}

// file keeps an incident and logs it: a record, then each line of the stacks and of
// what the worker said last, all with the incident's number.
func (p *Pool) file(w *worker, i Incident, message string, level slog.Level) {
	number := p.incidents.add(i)
	log := p.log.With("incident", number, "pid", i.PID)
	log.Log(context.Background(), level, message, i.attributes()...)
	for line := range strings.Lines(i.Stacks) {
		if line = strings.TrimRight(line, "\n"); line != "" {
			log.Log(context.Background(), level, bounded(line, maxLogLine), "stream", "stacks")
		}
	}
	for _, line := range i.Stderr {
		log.Log(context.Background(), level, line, "stream", "last words")
	}
}

// attributes returns what the log says of an incident.
func (i *Incident) attributes() []any {
	args := []any{"kind", i.Kind}
	if i.Ended != "" {
		args = append(args, "exit", i.Ended)
	}
	if r := i.Request; r != nil {
		args = append(args, "request", r.ID, "phase", r.Phase, "method", r.Method, "uri", r.URI, "remote", r.Remote,
			"in", r.BytesIn, "out", r.BytesOut, "for", r.For.Round(time.Millisecond))
	}
	if len(i.Others) > 0 {
		var ids []string
		for _, other := range i.Others {
			ids = append(ids, strconv.FormatUint(other.ID, 10))
		}
		args = append(args, "others", strings.Join(ids, ","))
	}
	return args
}

// Waiting for the stacks of a worker: the first bytes may take this long, a pause
// of that length behind a line ends them, and so does the time for all.
const (
	dumpWait   = 500 * time.Millisecond
	dumpPause  = 60 * time.Millisecond
	dumpPauses = 5 // so many, of a process that could run
	dumpTime   = 2 * time.Second
	dumpMax    = 64 << 10 // bytes of stacks that are kept: half of the beginning, half of the end
)

// stacks asks a worker for the stacks of all its threads. If none come, it says why.
// Of those who ask at the same time, all who did before a dump began get that one.
func (w *worker) stacks() string {
	asked := monotonic()
	e := &w.evidence
	e.dumping.Lock()
	defer e.dumping.Unlock()
	if e.began > asked {
		return e.dump
	}
	e.began = monotonic()
	e.dump = w.askForStacks()
	return e.dump
}

func (w *worker) askForStacks() string {
	c := conditionOf(w.pid)
	if c.stopped() || !c.catches(dumpSignal) {
		return c.String() // the signal would wait, or kill it
	}
	w.readDump(time.Millisecond) // of a dump that came too late
	if w.signal(dumpSignal) != nil {
		return ""
	}
	text := w.readDump(dumpWait)
	if text == "" {
		return conditionOf(w.pid).String()
	}
	return presented(text)
}

// What faulthandler writes (Python's Doc/library/faulthandler.rst and Python/traceback.c).
const (
	stackHead   = "(most recent call first" // in the line above each stack; PyPy goes on behind it
	moreThreads = "...\n"                   // the line behind the last of the threads that it shows, if there are more
	tooMany     = "[faulthandler shows 100 threads at most, the newest: the process has more, which are not here]\n"
)

// presented returns stacks as an incident has them.
func presented(text string) string {
	text = withoutRunner(text)
	if at := strings.Index(text, "\n"+moreThreads); at >= 0 {
		at += len("\n" + moreThreads)
		text = text[:at] + tooMany + text[at:]
	}
	return text
}

// runnerFrames mark the lines of a stack that are the runner's own, or what runs it: app_main.py is PyPy's.
var runnerFrames = []string{`File "/proc/self/fd/3/`, `File "<frozen runpy>"`, `File "<builtin>/app_main.py"`, `/runpy.py", line `, `/threading.py", line `}

// withoutRunner leaves out the end of each stack that is the runner's: it is the same
// for every request. A stack that has nothing else stays whole.
func withoutRunner(text string) string {
	var kept, stack []string
	flush := func() {
		end := len(stack)
		for end > 1 && slices.ContainsFunc(runnerFrames, func(mark string) bool { return strings.Contains(stack[end-1], mark) }) {
			end--
		}
		if end <= 1 {
			end = len(stack)
		}
		kept, stack = append(kept, stack[:end]...), stack[:0]
	}
	for line := range strings.Lines(text) {
		if !strings.HasPrefix(line, "  ") { // the head of another thread's
			flush()
		}
		stack = append(stack, line)
	}
	flush()
	return strings.Join(kept, "")
}

// dumpReader reads what a worker writes of its stacks.
type dumpReader struct {
	pipe syscall.RawConn
	came chan struct{} // something has come

	mu   sync.Mutex
	text excerpt // what came since it was taken
	buf  [8 << 10]byte
}

// open is called before the others.
func (d *dumpReader) open(pipe *os.File) (err error) {
	d.came = make(chan struct{}, 1)
	d.pipe, err = pipe.SyscallConn()
	return err
}

// run reads until the pipe is closed, whether somebody waits for stacks or not: a full
// pipe would hold the worker in its signal handler.
func (d *dumpReader) run() {
	for n := 1; n > 0; {
		err := d.pipe.Read(func(fd uintptr) (done bool) {
			n, done = d.read(fd)
			return done
		})
		if err != nil {
			return
		}
	}
}

// read takes what there is; done is false if that is nothing, and n is 0 at the end.
func (d *dumpReader) read(fd uintptr) (n int, done bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	n, err := unix.Read(int(fd), d.buf[:])
	if errors.Is(err, unix.EAGAIN) || errors.Is(err, unix.EINTR) {
		return 1, errors.Is(err, unix.EINTR)
	}
	if n <= 0 {
		return 0, true
	}
	d.text.add(d.buf[:n])
	select {
	case d.came <- struct{}{}:
	default:
	}
	return n, true
}

// pausing reports whether nothing has come that nobody has waited for yet, and what came
// are whole lines: in the middle of one, faulthandler is not done.
func (d *dumpReader) pausing() bool {
	_ = d.pipe.Control(func(fd uintptr) { d.read(fd) }) // run may not have been given the time
	d.mu.Lock()
	defer d.mu.Unlock()
	return len(d.came) == 0 && !d.text.open
}

// take returns what came, and begins anew.
func (d *dumpReader) take() string {
	d.mu.Lock()
	defer d.mu.Unlock()
	text := d.text.String()
	d.text = excerpt{}
	return text
}

// readDump waits for what the worker writes, and takes it. The pause of a process that
// could go on is no end yet: others may have the processor.
func (w *worker) readDump(wait time.Duration) string {
	d := &w.evidence.reader
	if d.pipe == nil {
		return ""
	}
	pauses := dumpPauses - 1 // if nothing comes there is one
	for end := time.Now().Add(wait + dumpTime); time.Now().Before(end); {
		select {
		case <-d.came:
			wait, pauses = min(wait, dumpPause), 0
			continue
		case <-time.After(wait):
		}
		if !d.pausing() {
			continue
		}
		if pauses++; pauses >= dumpPauses || !conditionOf(w.pid).runnable() {
			break
		}
	}
	return d.take()
}

// excerpt keeps the beginning and the end of stacks, whatever their length: faulthandler
// writes those of the newest thread first, and the main thread's last. The zero value is
// empty.
type excerpt struct {
	head, tail  []byte // tail grows to twice what is kept of it
	size, lines int    // of all
	open        bool   // the last line goes on
}

const excerptHalf = dumpMax / 2

func (e *excerpt) add(text []byte) {
	if len(text) > 0 {
		e.open = text[len(text)-1] != '\n'
	}
	e.size += len(text)
	e.lines += bytes.Count(text, []byte{'\n'})
	n := min(len(text), excerptHalf-len(e.head))
	e.head = append(e.head, text[:n]...)
	e.tail = append(e.tail, text[n:]...)
	if len(e.tail) > 2*excerptHalf {
		e.tail = append(e.tail[:0], e.tail[len(e.tail)-excerptHalf:]...)
	}
}

// String returns the text; from the middle of a long one, lines are left out, and a
// line says so.
func (e *excerpt) String() string {
	head, tail := string(e.head), string(e.tail[max(0, len(e.tail)-excerptHalf):])
	if len(head)+len(tail) == e.size {
		return head + tail
	}
	head = head[:strings.LastIndexByte(head, '\n')+1]
	_, tail, _ = strings.Cut(tail, "\n")
	lines := e.lines - strings.Count(head, "\n") - strings.Count(tail, "\n")
	return fmt.Sprintf("%s[%d lines are left out here, %d bytes]\n%s", head, lines, e.size-len(head)-len(tail), tail)
}

// condition is what the kernel says of a process (proc(5)).
type condition struct {
	state  string // as "S (sleeping)"
	caught uint64 // signals that it has handlers for
	where  string // the kernel's function that it sleeps in, if that may be known
}

func conditionOf(pid int) condition {
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return condition{state: "gone"}
	}
	c := condition{state: string(fieldOf(status, "State:"))}
	c.caught, _ = strconv.ParseUint(string(fieldOf(status, "SigCgt:")), 16, 64)
	where, _ := os.ReadFile(fmt.Sprintf("/proc/%d/wchan", pid))
	if where = bytes.TrimSpace(where); len(where) > 0 && string(where) != "0" {
		c.where = string(where)
	}
	return c
}

func (c condition) stopped() bool {
	return strings.HasPrefix(c.state, "T") || strings.HasPrefix(c.state, "t")
}

func (c condition) runnable() bool { return strings.HasPrefix(c.state, "R") }

func (c condition) catches(number int) bool { return c.caught>>(number-1)&1 == 1 }

// String says why there are no stacks.
func (c condition) String() string {
	text := "no Python stacks: the process is in state " + c.state
	if c.where != "" {
		text += ", in the kernel's " + c.where
	}
	if !c.stopped() && c.state != "gone" && !c.catches(dumpSignal) {
		text += ", and has no faulthandler"
	}
	return text
}
