// Package pyrunner runs a WSGI application in a pool of long-lived Python
// processes. The [Pool] is an [environ.Handler]: it gives each request to one idle
// slot of one worker and relays the answer.
//
//	Request -> read ahead -> queue -> slot -> (PROTOCOL.md) -> worker -> app
//	ResponseWriter <- exchange, or pump for a slow client <- slot <- worker <- app
//
// The Python half is in the folder python and travels inside the binary.
//
// Sources: PEP 3333. Not supported: an application that needs a terminal on its
// stdin, and systems without Linux's memfd_create(2).
package pyrunner

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"sync"
	"time"

	"github.com/hashicorp/go-multierror"

	"wsgigate/environ"
)

// Config says what to run and how. The zero value of a field means its default.
type Config struct {
	App        string   // an application form (see the README); empty: the demo application
	Python     string   // interpreter, a path or a name; default "python3"
	Workers    int      // processes, at most; default 1
	MinWorkers int      // processes, at least; 0: Workers; negative: none, they start on demand
	Threads    int      // threads, and so requests at once, in each; default 1
	Chdir      string   // working directory of the workers; empty: the gateway's
	PythonPath []string // folders put first on sys.path
	Env        []string // "K=V" added to the workers' environment (see workerEnv)
	Debug      bool     // tracebacks in the browser, wsgiref.validate around the application

	Timeout         time.Duration // a request may take this long, then 504; default 60 s, negative: for ever
	QueueTimeout    time.Duration // a request may wait this long for a slot, then 503; default 30 s
	Queue           int           // so many may wait, then 503; default 1024, negative: none
	GracefulTimeout time.Duration // for the requests of a worker that has to go; default 30 s
	StartupTimeout  time.Duration // for importing the application; default 60 s

	IdleTimeout time.Duration // a worker over MinWorkers that was idle for so long is stopped; default 60 s

	// A worker that has reached one of these is replaced between requests, one at a
	// time. The first two are lowered by up to a tenth for each worker, at random, so
	// that they do not all reach them together. 0 means never.
	MaxRequests int
	MaxAge      time.Duration
	MaxMemory   int64 // bytes of resident memory

	Slow           time.Duration // a request that takes so long is an incident; 0: none is
	RaiseOnTimeout bool          // raise an exception in the thread that hangs, before SIGTERM

	Preload       bool                    // import the application once and fork workers from that process
	ReloadRolling bool                    // a reload replaces one worker after the other: less memory, more time
	Probe         func() *environ.Request // asked of the first worker of a reload, which fails unless the status is 200 to 399; nil: nothing is asked
	Imported      func(files []string)    // is told of the files that the application has imported; nil: nobody asks for them

	LimitMemory int64         // RLIMIT_AS of a worker in bytes; 0: the gateway's
	LimitFiles  int           // RLIMIT_NOFILE
	LimitCPU    time.Duration // RLIMIT_CPU, whole seconds
	NoNewPrivs  bool          // workers cannot gain privileges by executing files (prctl(2), PR_SET_NO_NEW_PRIVS)

	Limits environ.Limits
	Log    *slog.Logger // default slog.Default()
}

func (c Config) withDefaults() Config {
	c.Python = cmp.Or(c.Python, "python3")
	c.Workers = cmp.Or(c.Workers, 1)
	c.MinWorkers = min(max(cmp.Or(c.MinWorkers, c.Workers), 0), c.Workers)
	c.IdleTimeout = cmp.Or(c.IdleTimeout, 60*time.Second)
	c.Threads = cmp.Or(c.Threads, 1)
	c.Timeout = cmp.Or(c.Timeout, 60*time.Second)
	c.QueueTimeout = cmp.Or(c.QueueTimeout, 30*time.Second)
	c.Queue = cmp.Or(c.Queue, 1024)
	c.Queue = max(c.Queue, 0)
	c.GracefulTimeout = cmp.Or(c.GracefulTimeout, 30*time.Second)
	c.StartupTimeout = cmp.Or(c.StartupTimeout, 60*time.Second)
	c.Limits = c.Limits.WithDefaults()
	if c.Log == nil {
		c.Log = slog.Default()
	}
	return c
}

func (c Config) appName() string {
	if c.App == "" {
		return "the demo application"
	}
	return c.App
}

// Pool is a set of workers that run one application.
type Pool struct {
	cfg       Config
	log       *slog.Logger
	queue     queue
	stats     stats
	incidents incidents
	wsgiKeys  []byte // marshalled, the same for every request
	workerEnv []string
	archive   *os.File
	spawner   *spawner

	events     chan event
	managed    chan struct{} // closed when manage has returned
	background sync.WaitGroup

	oom        oomWatch
	stopStarts context.CancelFunc // ends every launch
	starts     context.Context

	startMu sync.Mutex
	closed  bool // no Start may begin any more
	ended   sync.Once

	owned // by manage
}

// owned is the state of the workers. Only the goroutine of manage touches it.
type owned struct {
	started   time.Time
	workers   map[*worker]struct{} // READY, and not gone yet
	gen       *generation          // the one that later workers belong to
	retired   []*generation        // that still have workers
	launches  int                  // that have not come to their end
	sizer     sizer
	backoff   backoff
	reloading *reload
	asked     []chan<- error // for another reload, after this one
	refused   bool           // the last reload has failed
	last      *ReloadState
	recycling *recycling
	counts    EventCounts
	rate      rate
	stopping  bool
	stopBy    time.Time
}

var _ environ.Handler = (*Pool)(nil)

// New makes a pool without workers; Start starts them.
func New(cfg Config) (*Pool, error) {
	cfg = cfg.withDefaults()
	archive, err := openArchive()
	if err != nil {
		return nil, fmt.Errorf("pyrunner: %w", err)
	}
	p := &Pool{
		cfg:       cfg,
		log:       cfg.Log,
		queue:     queue{limit: cfg.Queue, timeout: cfg.QueueTimeout},
		wsgiKeys:  fixedKeys(cfg.Threads > 1, cfg.Workers > 1),
		workerEnv: workerEnv(os.Environ(), cfg.Env),
		archive:   archive,
		spawner:   newSpawner(),
		events:    make(chan event, 64),
		managed:   make(chan struct{}),
	}
	p.starts, p.stopStarts = context.WithCancel(context.Background())
	p.owned = owned{
		started: time.Now(),
		workers: map[*worker]struct{}{},
		gen:     newGeneration(p.starts, 1),
		sizer:   sizer{target: cfg.MinWorkers},
	}
	if cfg.MinWorkers < cfg.Workers {
		p.queue.short = make(chan struct{}, 1)
	}
	go p.manage()
	if cfg.NoNewPrivs {
		if err := p.spawner.forbidPrivileges(); err != nil {
			p.stopUnused()
			return nil, fmt.Errorf("pyrunner: --no-new-privs: %w", err)
		}
	}
	return p, nil
}

// stopUnused ends a pool that never started a worker.
func (p *Pool) stopUnused() {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	_ = p.Shutdown(ctx)
}

// Start starts the workers, MinWorkers of them, and returns when each has imported
// the application. The first is alone: an application that cannot be imported is
// reported once. After an error the pool must be Shutdown.
func (p *Pool) Start() error {
	if !p.beginStart() {
		return fmt.Errorf("pyrunner: %w", errStopped)
	}
	defer p.background.Done()
	gen, n := p.gen, p.cfg.MinWorkers // the owner does not touch them before eventStarted
	if n > 0 {
		if err := p.startOne(gen); err != nil {
			return fmt.Errorf("pyrunner: %w", err)
		}
	}
	var group multierror.Group
	for range n - 1 {
		group.Go(func() error { return p.startOne(gen) })
	}
	if err := group.Wait().ErrorOrNil(); err != nil {
		return fmt.Errorf("pyrunner: %w", err)
	}
	p.post(event{kind: eventStarted})
	return nil
}

// beginStart makes Shutdown wait for a Start, unless it was first.
func (p *Pool) beginStart() bool {
	p.startMu.Lock()
	defer p.startMu.Unlock()
	if !p.closed {
		p.background.Add(1)
	}
	return !p.closed
}

func (p *Pool) startOne(gen *generation) error {
	w, err := p.launch(gen)
	if err != nil {
		return err
	}
	adopted := make(chan struct{})
	p.post(event{kind: eventAdopt, worker: w, done: adopted})
	select {
	case <-adopted:
		return nil
	case <-p.managed:
		p.discard(w)
		return errStopped
	}
}

// errStopped is what Start and Reload return if Shutdown came first.
var errStopped = errors.New("the pool was stopped while a worker started")

// launch starts a worker and leads it to READY; a failed one is gone on return.
func (p *Pool) launch(gen *generation) (*worker, error) {
	w, err := p.spawn(gen)
	if err != nil {
		return nil, err
	}
	stop := context.AfterFunc(gen.starts, w.kill) // nobody would adopt it
	defer stop()
	if err := p.handshake(w); err != nil {
		p.discard(w)
		if gen.starts.Err() != nil {
			return nil, errStopped
		}
		return nil, err
	}
	return w, nil
}

// discard ends a worker that was not adopted.
func (p *Pool) discard(w *worker) {
	w.kill()
	<-w.gone
	w.closeOurs()
}

// Reload replaces the workers by others that import the application anew, and
// returns when the new ones serve. The old ones finish what they have. If the
// first of the new workers fails, the old ones go on, and the error says why.
//
// While a reload runs, all further calls wait for one more reload after it. The
// end of ctx ends the wait and not the reload.
func (p *Pool) Reload(ctx context.Context) error {
	reply := make(chan error, 1)
	p.post(event{kind: eventReload, reply: reply})
	select {
	case err := <-reply:
		return err
	case <-p.managed:
		return fmt.Errorf("pyrunner: %w", errStopped)
	case <-ctx.Done():
		return fmt.Errorf("pyrunner: reload goes on: %w", ctx.Err())
	}
}

// Status tells what the pool is and does.
func (p *Pool) Status() Status {
	got := make(chan Status, 1)
	p.post(event{kind: eventStatus, status: got})
	select {
	case s := <-got:
		return s
	case <-p.managed:
		return p.report(time.Now()) // nobody owns the state any more
	}
}

// Shutdown lets the running requests end, stops the workers and returns when all
// are gone. At the end of ctx it ends them with SIGTERM, then SIGKILL.
func (p *Pool) Shutdown(ctx context.Context) error {
	var errs *multierror.Error
	select {
	case <-p.queue.close():
	case <-ctx.Done():
		errs = multierror.Append(errs, fmt.Errorf("pyrunner: requests still running: %w", ctx.Err()))
	}
	by, ok := ctx.Deadline()
	if ctx.Err() != nil {
		by = time.Now() // cancelled before its deadline: at once
	} else if !ok {
		by = time.Now().Add(p.cfg.GracefulTimeout)
	}
	p.post(event{kind: eventStop, by: by})
	<-p.managed
	p.startMu.Lock()
	p.closed = true
	p.startMu.Unlock()
	p.background.Wait()
	p.ended.Do(func() {
		p.spawner.stop()
		if err := p.archive.Close(); err != nil {
			errs = multierror.Append(errs, err)
		}
	})
	return errs.ErrorOrNil()
}
