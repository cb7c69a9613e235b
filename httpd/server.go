package httpd

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"time"

	"wsgigate/environ"
)

// Server serves HTTP/1.0 and HTTP/1.1. Its fields must not change once it serves.
type Server struct {
	// Handler answers the requests.
	Handler environ.Handler

	// Rules are the limits, and the variables that the deployment adds. A SCRIPT_NAME
	// among them is the mount.
	Rules environ.Rules

	// Log takes what goes wrong with connections; nil: slog.Default().
	Log *slog.Logger

	once   sync.Once
	http   http.Server
	rules  environ.Rules  // Rules with the defaults
	limits environ.Limits // of rules

	mu        sync.Mutex
	listeners []net.Listener
	conns     map[*guard]struct{} // open ones
	born      time.Time           // of init
	leaving   atomic.Bool         // Shutdown has begun: answers close their connection
	closing   atomic.Bool         // Shutdown cannot wait any longer
}

// init makes the net/http server, once the fields are known.
func (s *Server) init() {
	s.rules = s.Rules
	s.rules.Limits = s.Rules.Limits.WithDefaults()
	s.limits = s.rules.Limits
	s.conns, s.born = map[*guard]struct{}{}, time.Now()
	s.http = http.Server{
		Handler:                      http.HandlerFunc(s.serve),
		DisableGeneralOptionsHandler: true, // "OPTIONS *" is the application's
		ReadHeaderTimeout:            s.limits.HeaderTimeout,
		IdleTimeout:                  s.limits.IdleTimeout,
		MaxHeaderBytes:               s.limits.MaxHeaders,
		ErrorLog:                     slog.NewLogLogger(s.log().Handler(), slog.LevelWarn),
		ConnContext: func(ctx context.Context, c net.Conn) context.Context {
			return context.WithValue(ctx, guardKey{}, c)
		},
		ConnState: s.countConn,
	}
}

// countConn keeps account of open connections, and since when each is idle.
func (s *Server) countConn(c net.Conn, state http.ConnState) {
	g := c.(*guard)
	switch state {
	case http.StateNew:
		g.awaiting = true
		g.idleSince.Store(s.age())
		s.mu.Lock()
		s.conns[g] = struct{}{}
		s.mu.Unlock()
	case http.StateActive:
		g.idleSince.Store(0)
	case http.StateIdle:
		g.awaiting = true
		g.idleSince.Store(s.age())
	case http.StateClosed, http.StateHijacked:
		s.mu.Lock()
		delete(s.conns, g)
		s.mu.Unlock()
	}
}

// age is the server's, so that the wall clock does not matter.
func (s *Server) age() int64 { return int64(time.Since(s.born)) }

// guardKey is the context key of a connection's guard.
type guardKey struct{}

func (s *Server) log() *slog.Logger {
	if s.Log != nil {
		return s.Log
	}
	return slog.Default()
}

// Serve answers the connections that l accepts, TCP or Unix sockets, until
// Shutdown, and then returns net.ErrClosed. It may be called for several listeners
// at once; it closes l.
func (s *Server) Serve(l net.Listener) error {
	s.once.Do(s.init)
	s.mu.Lock()
	s.listeners = append(s.listeners, l)
	s.mu.Unlock()
	err := s.http.Serve(guardedListener{l, s})
	if errors.Is(err, http.ErrServerClosed) || s.leaving.Load() {
		return net.ErrClosed
	}
	return err
}

// Times of Shutdown.
const (
	// lastRequests is how long a connection must have been idle to be closed. One that
	// was used lately is about to be used again: it stays open for one more request,
	// whose answer says that it is the last. A client that is told so cannot lose a
	// request, as one can that meets a connection which is just being closed (RFC 9112,
	// section 9.6).
	lastRequests = 500 * time.Millisecond
	lookEvery    = 5 * time.Millisecond
)

// Shutdown closes the listeners, then the connections as they fall idle, and waits
// until every response is complete. When ctx ends first, it closes what is left and
// returns ctx's error.
func (s *Server) Shutdown(ctx context.Context) error {
	s.once.Do(s.init)
	s.leaving.Store(true)
	s.mu.Lock()
	for _, l := range s.listeners {
		_ = l.Close()
	}
	s.mu.Unlock()
	s.awaitLastRequests(ctx)
	err := s.http.Shutdown(ctx)
	if err != nil {
		s.closing.Store(true)
		err = errors.Join(err, s.http.Close())
	}
	return err
}

// awaitLastRequests closes connections that have been idle for long enough until none is
// open, or ctx ends.
func (s *Server) awaitLastRequests(ctx context.Context) {
	tick := time.NewTicker(lookEvery)
	defer tick.Stop()
	for s.closeIdle() > 0 {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
	}
}

// closeIdle closes those connections, and returns how many were open.
func (s *Server) closeIdle() (open int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := s.age()
	for g := range s.conns {
		if since := g.idleSince.Load(); since != 0 && now-since >= int64(lastRequests) {
			_ = g.Conn.Close() // net/http's reader sees it
		}
	}
	return len(s.conns)
}

// guardedListener puts a guard around every connection.
type guardedListener struct {
	net.Listener
	server *Server
}

func (l guardedListener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return newGuard(c, l.server), nil
}

// serve answers one request.
func (s *Server) serve(w http.ResponseWriter, hr *http.Request) {
	g := hr.Context().Value(guardKey{}).(*guard)
	g.awaiting = false
	x := exchanges.Get().(*exchange)
	x.begin(g, w, hr)
	s.answer(x)
	g.hold(nil)
	if x.cut {
		g.cut()
		panic(http.ErrAbortHandler) // net/http's way to close without an end
	}
	if x.bodyLeft.Load() {
		g.lingering.Store(true)
	}
	x.release()
}

// answer runs the Handler and makes sure that there is a response or an abort.
func (s *Server) answer(x *exchange) {
	defer func() {
		if p := recover(); p != nil {
			s.log().Error("httpd: handler panicked", "request", x.req.ID, "panic", p, "stack", string(debug.Stack()))
			x.fail(environ.Errorf(500, "httpd: handler panicked"))
		}
	}()
	if err := x.prepare(&s.rules); err != nil {
		s.log().Warn("httpd: request refused", "request", x.req.ID, "remote", x.guard.remoteAddr, "reason", err)
		x.fail(err)
		return
	}
	s.Handler.ServeGateway(x, &x.req)
	if x.status == 0 {
		x.fail(environ.Errorf(500, "httpd: handler gave no response"))
		return
	}
	x.commit()
}
