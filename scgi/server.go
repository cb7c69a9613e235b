package scgi

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net/netip"
	"os"
	"runtime/debug"
	"sync"
	"time"

	"wsgigate/environ"
	"wsgigate/environ/wire"
)

// Server serves SCGI. Its fields must not change once it serves.
type Server struct {
	// Handler answers the requests.
	Handler environ.Handler

	// Rules are the limits, and the variables that the deployment adds.
	Rules environ.Rules

	// Log takes what goes wrong with connections; nil: slog.Default().
	Log *slog.Logger

	// Allow has the peers that a TCP listener accepts; nil: loopback only.
	Allow []netip.Prefix

	once  sync.Once
	wire  wire.Server
	rules environ.Rules // Rules with the defaults
}

func (s *Server) init() {
	s.rules = s.Rules
	s.rules.Limits = s.Rules.Limits.WithDefaults()
	s.wire.Allow, s.wire.Log = s.Allow, s.Log
}

func (s *Server) log() *slog.Logger {
	if s.Log != nil {
		return s.Log
	}
	return slog.Default()
}

// Serve answers the connections that l accepts until Shutdown, and then returns
// net.ErrClosed. It may be called for several listeners at once.
func (s *Server) Serve(l *wire.Listener) error {
	s.once.Do(s.init)
	return s.wire.Serve(l, s.serve)
}

// Shutdown closes the listeners and waits until every response is complete. When
// ctx ends first, it closes what is left and returns ctx's error.
func (s *Server) Shutdown(ctx context.Context) error {
	s.once.Do(s.init)
	return s.wire.Shutdown(ctx)
}

// A connection with unread input is drained before it is closed, or the reset
// would destroy the answer on its way: mod_proxy_scgi reads the answer only when
// it has sent all of the body. The bounds are those of nginx's lingering_close.
const (
	drainTime  = 30 * time.Second
	drainPause = 5 * time.Second
)

// serve answers the one request of a connection.
func (s *Server) serve(c *wire.Conn) {
	x := exchanges.Get().(*exchange)
	x.begin(c, &s.rules.Limits)
	if err := x.readHead(); err != nil {
		if !s.refuseHead(x, err) {
			x.release()
			return
		}
	} else {
		s.answer(x)
	}
	x.finish()
	x.release()
}

// refuseHead answers a head that cannot be read, and reports whether there is
// anybody to be answered.
func (s *Server) refuseHead(x *exchange, err error) bool {
	var status *environ.Error
	switch {
	case errors.Is(err, io.EOF): // a probe, or a web server that thought better of it
		return false
	case errors.Is(err, os.ErrDeadlineExceeded):
		err = environ.Errorf(408, "scgi: no whole head in time: %w", err)
	case !errors.As(err, &status):
		s.log().Warn("scgi: connection ended in the head of a request", "peer", x.peer(), "error", err)
		return false
	}
	x.bodyLeft = x.limits.MaxBody // whatever follows
	s.refuse(x, err)
	return true
}

// refuse answers a request that no Handler sees.
func (s *Server) refuse(x *exchange, err error) {
	s.log().Warn("scgi: request refused", "request", x.req.ID, "peer", x.peer(), "reason", err)
	x.fail(err)
}

// answer runs the Handler and makes sure that there is a response or an abort.
func (s *Server) answer(x *exchange) {
	defer func() {
		if p := recover(); p != nil {
			s.log().Error("scgi: handler panicked", "request", x.req.ID, "panic", p, "stack", string(debug.Stack()))
			x.fail(environ.Errorf(500, "scgi: handler panicked"))
		}
	}()
	if err := x.prepare(&s.rules); err != nil {
		s.refuse(x, err)
		return
	}
	s.Handler.ServeGateway(x, &x.req)
	if !x.Begun() {
		x.fail(environ.Errorf(500, "scgi: handler gave no response"))
	}
}
