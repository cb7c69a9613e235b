// Package environ is the vocabulary of wsgigate: the request that every
// transport makes of the bytes on its wire, the response that it sends back,
// and the rules that hold for both whatever the gateway is.
//
//	web server -> transport -> Request -> Handler ... -> pyrunner.Pool
//	web server <- transport <- ResponseWriter <------------ the worker
//
// Transports ([wsgigate/fcgi], [wsgigate/scgi], [wsgigate/cgi], [wsgigate/httpd])
// and the worker pool import this package and never each other.
//
// Sources: RFC 3875 (CGI), PEP 3333 (WSGI), RFC 9110 (HTTP semantics).
package environ

import (
	"io"
	"os"
	"sync"
	"sync/atomic"
	"time"
)

// Handler answers requests. Access log, limits and the worker pool are Handlers,
// so they compose.
//
// A Handler returns when the response is complete. If it has not called
// WriteHeader by then, the transport sends a 500. If it called Abort, the
// transport makes sure that the client can tell that the response is cut short.
type Handler interface {
	ServeGateway(w ResponseWriter, r *Request)
}

// HandlerFunc is a function that is a Handler.
type HandlerFunc func(w ResponseWriter, r *Request)

// ServeGateway calls f.
func (f HandlerFunc) ServeGateway(w ResponseWriter, r *Request) { f(w, r) }

// ResponseWriter takes the response of one request. It belongs to the Handler
// until that returns, and to one goroutine at a time; only WriteErrors may be
// called beside the others.
type ResponseWriter interface {
	// WriteHeader begins the response; it may be called once. The transport does
	// not keep h. Nothing need reach the client before Flush.
	WriteHeader(h *Header) error

	// Write appends to the body. It may keep the bytes back until Flush or the
	// Handler's return, never for longer. An error means that the client is gone.
	Write(p []byte) (int, error)

	// Flush sends what was written so far.
	Flush() error

	// WriteErrors passes text of wsgi.errors to the web server's error log where
	// the protocol can (FastCGI STDERR, CGI stderr), and drops it elsewhere.
	WriteErrors(p []byte)

	// Abort ends a response that cannot be completed. After it the client must be
	// able to tell: never a clean end. If nothing was sent yet, the transport may
	// send a 500 instead. err says why, for the log of the caller.
	Abort(err error)
}

// FileSender is a ResponseWriter that can send a part of a file without copying
// it through the gateway (sendfile).
type FileSender interface {
	// SendFile appends n bytes of f, from offset off, to the body. It does not move
	// the file's own position. It returns the number of bytes sent.
	SendFile(f *os.File, off, n int64) (int64, error)
}

// Role is what a FastCGI web server wants of the application (FastCGI 1.0,
// section 6). Every other transport only knows Responder.
type Role uint8

// The roles.
const (
	Responder Role = iota
	Authorizer
	Filter
)

// String returns the role's name as FCGI_ROLE carries it (RFC 3875 has no such
// variable; the FastCGI developer's kit set it).
func (r Role) String() string {
	switch r {
	case Authorizer:
		return "AUTHORIZER"
	case Filter:
		return "FILTER"
	default:
		return "RESPONDER"
	}
}

// Request is one request, whatever gateway it came by.
type Request struct {
	// Environ holds the CGI variables. After Prepare it obeys PEP 3333.
	Environ Environ

	// Body is wsgi.input: it ends with io.EOF at its explicit end and with any
	// other error if it was cut short. It is never nil after Prepare.
	Body io.Reader

	// ContentLength is the length of Body in bytes, or -1 if only its end is known
	// (chunked, FastCGI without CONTENT_LENGTH).
	ContentLength int64

	// ExpectContinue is true if the client waits for "100 Continue", which the first
	// read of Body sends: such a body is not read before the application asks.
	ExpectContinue bool

	// RunOnce is true for the one request of a CGI process.
	RunOnce bool

	// Role is the FastCGI role, and Data the second input stream of a Filter.
	Role Role
	Data io.Reader

	// Transport names the adapter ("fastcgi", "scgi", "http", "cgi") for the log.
	Transport string

	// ID counts the requests of this process, from 1. See NextID.
	ID uint64

	// Start is when the request began.
	Start time.Time

	// Worker is the process id of the worker that has the request, 0 before. App is the
	// application that it runs, as the configuration names it.
	Worker int
	App    string

	// Measure asks for CPU and PeakMemory, which cost system calls.
	Measure bool

	// CPU is the processor time that the worker's process took while it had the request,
	// user and system: with threads, for the requests beside this one too. PeakMemory
	// is the most resident memory in bytes that the process has had since its start; 0
	// means that nothing was measured.
	CPU        time.Duration
	PeakMemory int64

	cancel canceller
}

// Method returns REQUEST_METHOD.
func (r *Request) Method() []byte { return r.Environ.Get("REQUEST_METHOD") }

// IsHead reports whether the method is HEAD.
func (r *Request) IsHead() bool { return string(r.Method()) == "HEAD" }

// Reset makes r ready for another request and keeps its memory.
func (r *Request) Reset() {
	r.Environ.Reset()
	env := r.Environ
	*r = Request{Environ: env}
}

var lastID atomic.Uint64

// NextID returns the next request id of this process.
func NextID() uint64 { return lastID.Add(1) }

// canceller carries one event, "the client is gone", from the transport to
// whoever has the request, without a goroutine or a channel for each request.
type canceller struct {
	mu   sync.Mutex
	err  error
	hook func(error)
}

// Cancel says that nobody waits for the response any more. Transports call it
// when the client is gone or aborts. Only the first call counts.
func (r *Request) Cancel(err error) {
	c := &r.cancel
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err != nil {
		return
	}
	c.err = err
	if c.hook != nil {
		c.hook(err)
	}
}

// Cancelled returns the error given to Cancel, or nil.
func (r *Request) Cancelled() error {
	r.cancel.mu.Lock()
	defer r.cancel.mu.Unlock()
	return r.cancel.err
}

// OnCancel has hook called, once, when the request is cancelled; at once if it
// was already. A later call replaces the hook; nil removes it, and when that
// returns the hook neither runs nor will. The hook must not block, nor call
// the three methods about cancelling.
func (r *Request) OnCancel(hook func(error)) {
	c := &r.cancel
	c.mu.Lock()
	defer c.mu.Unlock()
	c.hook = hook
	if c.err != nil && hook != nil {
		hook(c.err)
	}
}

// NoBody is the Body of a request without one.
var NoBody io.Reader = noBody{}

type noBody struct{}

func (noBody) Read([]byte) (int, error) { return 0, io.EOF }
