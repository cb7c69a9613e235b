// Package fcgi speaks FastCGI 1.0, as a server and as a client.
//
//	web server -> records -> environ.Request -> Handler
//	web server <- records <- environ.ResponseWriter
//
// All three roles are served, requests may share a connection, and each has its own
// flow control. FCGI_OVERLOADED is never sent: web servers make an empty
// page or a 502 of it, so an overload is a response with status 503.
//
// Specification: https://fastcgi-archives.github.io/FastCGI_Specification.html
package fcgi

import (
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"wsgigate/environ"
	"wsgigate/environ/wire"
)

// Server answers FastCGI requests. Handler is required. The fields must not
// change once Serve was called.
type Server struct {
	Handler environ.Handler
	Rules   environ.Rules

	// Log gets refused requests, panics and protocol errors; nil means slog.Default.
	Log *slog.Logger

	// Allow has the peers that a TCP listener accepts; nil means loopback only.
	Allow []netip.Prefix

	// WebServerAddrs are the only addresses that may connect over TCP, if there are
	// any (section 3.2, FCGI_WEB_SERVER_ADDRS). They then stand for Allow, too,
	// if that is nil.
	WebServerAddrs []netip.Addr

	// MaxConns and MaxReqs are what FCGI_GET_VALUES answers for FCGI_MAX_CONNS and
	// FCGI_MAX_REQS. 0 means what the limit on open descriptors allows.
	MaxConns, MaxReqs int

	once  sync.Once
	wire  wire.Server
	rules environ.Rules
}

// ParseWebServerAddrs reads the value of FCGI_WEB_SERVER_ADDRS: IP addresses
// separated by commas (section 3.2). An empty value gives none.
func ParseWebServerAddrs(value string) ([]netip.Addr, error) {
	if strings.TrimSpace(value) == "" {
		return nil, nil
	}
	var addrs []netip.Addr
	for field := range strings.SplitSeq(value, ",") {
		addr, err := netip.ParseAddr(strings.TrimSpace(field))
		if err != nil {
			return nil, fmt.Errorf("fcgi: FCGI_WEB_SERVER_ADDRS: %w", err)
		}
		addrs = append(addrs, addr.Unmap())
	}
	return addrs, nil
}

// Serve answers the requests of l's connections until Shutdown, when it returns
// net.ErrClosed, or until l fails.
func (s *Server) Serve(l *wire.Listener) error {
	s.once.Do(s.init)
	return s.wire.Serve(l, s.serveConn)
}

// Shutdown stops accepting, closes connections that have been idle for half a second,
// and waits for the requests that run. When ctx ends first, it closes their connections and returns ctx's error.
func (s *Server) Shutdown(ctx context.Context) error {
	s.once.Do(s.init)
	return s.wire.Shutdown(ctx)
}

func (s *Server) init() {
	s.rules = s.Rules
	s.rules.Limits = s.Rules.Limits.WithDefaults()
	if s.Log == nil {
		s.Log = slog.Default()
	}
	s.wire.Log = s.Log
	s.wire.Allow = s.allow()
	s.wire.LastRequests = lastRequests
}

// lastRequests is how long a kept connection must have been idle to be closed by
// Shutdown. One that was used lately is about to be used again: it stays for
// another request, whose end tells that it was the last (see response.finish).
const lastRequests = 500 * time.Millisecond

// allow is the peers that the accept loop lets in.
func (s *Server) allow() []netip.Prefix {
	if s.WebServerAddrs == nil {
		return s.Allow
	}
	allow := []netip.Prefix{}
	for _, addr := range s.WebServerAddrs {
		if s.Allow == nil || contains(s.Allow, addr) {
			allow = append(allow, netip.PrefixFrom(addr, addr.BitLen()))
		}
	}
	return allow
}

func contains(prefixes []netip.Prefix, addr netip.Addr) bool {
	for _, p := range prefixes {
		if p.Contains(addr) {
			return true
		}
	}
	return false
}

// The names that GET_VALUES may ask for (section 4.1).
const (
	maxConnsName = "FCGI_MAX_CONNS"
	maxReqsName  = "FCGI_MAX_REQS"
	mpxsName     = "FCGI_MPXS_CONNS"
)

// appendValues appends the answer to GET_VALUES with that content: each known
// name once, however often it is asked for.
func (s *Server) appendValues(dst, asked []byte) ([]byte, error) {
	start := len(dst)
	dst = appendRecord(dst, typeGetValuesResult, 0, 0, 0)
	var known = [...]struct {
		name  string
		value int
	}{{maxConnsName, s.maxConns()}, {maxReqsName, s.maxReqs()}, {mpxsName, 1}}
	for len(asked) > 0 {
		name, value, head := pairLengths(asked)
		if head == 0 || len(asked)-head < name || len(asked)-head-name < value {
			return dst[:start], errBadValues
		}
		for i := range known {
			if known[i].name != "" && string(asked[head:head+name]) == known[i].name {
				dst = appendPair(dst, known[i].name, strconv.Itoa(known[i].value))
				known[i].name = ""
			}
		}
		asked = asked[head+name+value:]
	}
	n := len(dst) - start - headerLen
	pad := padTo8(n)
	putRecord(dst[start:], typeGetValuesResult, 0, n, pad)
	return append(dst, zeros[:pad]...), nil
}

func (s *Server) maxConns() int {
	if s.MaxConns > 0 {
		return s.MaxConns
	}
	var limit unix.Rlimit
	if unix.Getrlimit(unix.RLIMIT_NOFILE, &limit) != nil || limit.Cur > 1<<20 {
		return 1 << 20
	}
	return int(limit.Cur)
}

func (s *Server) maxReqs() int {
	if s.MaxReqs > 0 {
		return s.MaxReqs
	}
	return s.maxConns() * s.rules.Limits.MaxRequestsPerConn
}
