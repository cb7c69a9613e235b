package fcgi

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"wsgigate/environ"
	"wsgigate/environ/wire"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// patience is how long a test waits for what must happen.
const patience = 10 * time.Second

// logBuffer is a log that a test can look at while the server writes it.
type logBuffer struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (b *logBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.Write(p)
}

func (b *logBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.String()
}

// site is a running server.
type site struct {
	*Server
	addr wire.Addr
	log  *logBuffer
}

// start serves on a unix socket, or on loopback TCP if network is "tcp".
func start(t testing.TB, network string, s *Server) *site {
	t.Helper()
	log := new(logBuffer)
	s.Log = slog.New(slog.NewTextHandler(log, nil))
	text := "127.0.0.1:0"
	if network == "unix" {
		text = "unix:" + filepath.Join(t.TempDir(), "s")
	}
	addr, err := wire.ParseAddr(text)
	if err != nil {
		t.Fatal(err)
	}
	l, err := wire.Listen(addr)
	if err != nil {
		t.Fatal(err)
	}
	if network == "tcp" {
		if addr, err = wire.ParseAddr(l.Addr().String()); err != nil {
			t.Fatal(err)
		}
	}
	served := make(chan error, 1)
	go func() { served <- s.Serve(l) }()
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		if err := s.Shutdown(ctx); err != nil {
			t.Errorf("shutdown: %v", err)
		}
		if err := <-served; !errors.Is(err, net.ErrClosed) {
			t.Errorf("Serve returned %v", err)
		}
	})
	return &site{s, addr, log}
}

func (s *site) network() (network, address string) {
	if s.addr.Path != "" {
		return "unix", s.addr.Path
	}
	return "tcp", s.addr.String()
}

// dial connects as a web server does. The connection is closed with the test.
func (s *site) dial(t testing.TB) *peer {
	t.Helper()
	network, address := s.network()
	c, err := net.Dial(network, address)
	if err != nil {
		t.Fatal(err)
	}
	_ = c.SetDeadline(time.Now().Add(patience))
	p := &peer{Conn: c, t: t}
	t.Cleanup(func() { _ = c.Close() })
	return p
}

// beginShutdown returns when the server shuts down, and the result to come.
func (s *site) beginShutdown(t testing.TB) <-chan error {
	t.Helper()
	down := make(chan error, 1)
	go func() {
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		down <- s.Shutdown(ctx)
	}()
	network, address := s.network()
	eventually(t, "end of the listener", func() bool {
		conn, err := net.Dial(network, address)
		if err == nil {
			_ = conn.Close()
		}
		return err != nil
	})
	return down
}

// peer is the web server's end of a connection.
type peer struct {
	net.Conn
	t testing.TB
}

func (p *peer) send(b []byte) {
	p.t.Helper()
	if _, err := p.Write(b); err != nil {
		p.t.Fatal(err)
	}
}

// frame is a whole record.
type frame struct {
	record
	body []byte
}

// next reads a record; io.EOF is a clean end between records.
func (p *peer) next() (frame, error) {
	var head [headerLen]byte
	if _, err := io.ReadFull(p, head[:]); err != nil {
		return frame{}, err
	}
	rec, err := parseRecord(head[:])
	if err != nil {
		return frame{}, err
	}
	body := make([]byte, int(rec.content)+int(rec.padding))
	if _, err := io.ReadFull(p, body); err != nil {
		return frame{}, io.ErrUnexpectedEOF
	}
	return frame{rec, body[:rec.content]}, nil
}

// answer is what one request got.
type answer struct {
	out, errs string
	outEnd    bool // an empty STDOUT record
	end       bool // END_REQUEST
	status    protocolStatus
	app       uint32
}

// answers reads until every id in ids has its end or the connection its own.
func (p *peer) answers(ids ...uint16) (map[uint16]*answer, error) {
	got := map[uint16]*answer{}
	for _, id := range ids {
		got[id] = new(answer)
	}
	for open := len(ids); open > 0; {
		f, err := p.next()
		if err != nil {
			return got, err
		}
		a := got[f.id]
		if a == nil || a.end {
			return got, fmt.Errorf("record %+v for a request that is not open", f.record)
		}
		switch f.kind {
		case typeStdout:
			a.out += string(f.body)
			a.outEnd = a.outEnd || len(f.body) == 0
		case typeStderr:
			a.errs += string(f.body)
		case typeEndRequest:
			a.end, a.app, a.status = true, uint32(f.body[3]), protocolStatus(f.body[4])
			open--
		default:
			return got, fmt.Errorf("record %+v", f.record)
		}
	}
	return got, nil
}

// answer reads the answer to one request that must have its end.
func (p *peer) answer(id uint16) *answer {
	p.t.Helper()
	got, err := p.answers(id)
	if err != nil {
		p.t.Fatalf("answer %d: %v (so far %+v)", id, err, got[id])
	}
	return got[id]
}

// closed waits for the end of the connection and reports what came before.
func (p *peer) closed() ([]byte, error) {
	rest, err := io.ReadAll(p)
	return rest, err
}

// mustSay fails the test unless these bytes come next.
func (p *peer) mustSay(want []byte) {
	p.t.Helper()
	got := make([]byte, len(want))
	if _, err := io.ReadFull(p, got); err != nil || !bytes.Equal(got, want) {
		p.t.Fatalf("%q, %v; want %q", got, err, want)
	}
}

// mustClose fails the test unless the connection ends now, with nothing before.
func (p *peer) mustClose() {
	p.t.Helper()
	rest, err := p.closed()
	var timeout net.Error
	if errors.As(err, &timeout) && timeout.Timeout() {
		p.t.Fatal("connection is still open")
	}
	if len(rest) > 0 {
		p.t.Fatalf("connection goes on with %q", rest)
	}
}

// ask describes a request for its bytes.
type ask struct {
	id     uint16
	role   uint16
	keep   bool
	params []string // name, value, ...
	body   string
	data   string
	length string // CONTENT_LENGTH; "auto" is the body's
}

// realistic has 25 variables as nginx sends them.
var realistic = []string{
	"QUERY_STRING", "page=2&sort=date", "REQUEST_METHOD", "GET", "CONTENT_TYPE", "",
	"SCRIPT_NAME", "/blog/archive", "REQUEST_URI", "/blog/archive?page=2&sort=date",
	"DOCUMENT_URI", "/blog/archive", "DOCUMENT_ROOT", "/var/www/html", "SERVER_PROTOCOL", "HTTP/1.1",
	"REQUEST_SCHEME", "http", "GATEWAY_INTERFACE", "CGI/1.1", "SERVER_SOFTWARE", "nginx/1.22.1",
	"REMOTE_ADDR", "192.0.2.7", "REMOTE_PORT", "51234", "SERVER_ADDR", "192.0.2.1", "SERVER_PORT", "80",
	"SERVER_NAME", "www.example.org", "REDIRECT_STATUS", "200", "HTTP_HOST", "www.example.org",
	"HTTP_USER_AGENT", "Mozilla/5.0 (X11; Linux x86_64; rv:128.0) Gecko/20100101 Firefox/128.0",
	"HTTP_ACCEPT", "text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,image/webp,*/*;q=0.8",
	"HTTP_ACCEPT_LANGUAGE", "en-GB,en;q=0.5", "HTTP_ACCEPT_ENCODING", "gzip, deflate",
	"HTTP_CONNECTION", "keep-alive", "HTTP_COOKIE", "sessionid=8a7b6c5d4e3f2a1b; csrftoken=0123456789abcdef0123456789abcdef",
	"HTTP_UPGRADE_INSECURE_REQUESTS", "1",
}

func (a ask) pairs() []byte {
	var pairs []byte
	params := a.params
	if params == nil {
		params = realistic
	}
	for i := 0; i < len(params); i += 2 {
		pairs = appendPair(pairs, params[i], params[i+1])
	}
	switch a.length {
	case "":
	case "auto":
		pairs = appendPair(pairs, "CONTENT_LENGTH", fmt.Sprint(len(a.body)))
	default:
		pairs = appendPair(pairs, "CONTENT_LENGTH", a.length)
	}
	return pairs
}

func (a ask) opening() []byte {
	flags := byte(0)
	if a.keep {
		flags = flagKeepConn
	}
	role := a.role
	if role == 0 {
		role = wireResponder
	}
	b := appendBegin(nil, a.id, role, flags)
	b = appendStream(b, typeParams, a.id, a.pairs())
	return appendRecord(b, typeParams, a.id, 0, 0)
}

func (a ask) bytes() []byte {
	b := a.opening()
	if a.role != wireAuthorizer {
		b = appendStream(b, typeStdin, a.id, []byte(a.body))
		b = appendRecord(b, typeStdin, a.id, 0, 0)
	}
	if a.role == wireFilter {
		b = appendStream(b, typeData, a.id, []byte(a.data))
		b = appendRecord(b, typeData, a.id, 0, 0)
	}
	return b
}

func end(kind recordType, id uint16) []byte { return appendRecord(nil, kind, id, 0, 0) }

func header(t testing.TB, fields ...string) *environ.Header {
	h := new(environ.Header)
	if err := h.SetStatus(200, "OK"); err != nil {
		t.Error(err)
	}
	for i := 0; i < len(fields); i += 2 {
		if err := h.Add(fields[i], fields[i+1]); err != nil {
			t.Error(err)
		}
	}
	return h
}

// reflect answers with what it was asked: the environ but for its order, body
// and data.
func reflect(t testing.TB) environ.HandlerFunc {
	return func(w environ.ResponseWriter, r *environ.Request) {
		body, err := io.ReadAll(r.Body)
		if err != nil {
			w.Abort(err)
			return
		}
		var b strings.Builder
		fmt.Fprintf(&b, "role=%s length=%d body=%q", r.Role, r.ContentLength, body)
		if r.Role == environ.Filter {
			data, err := io.ReadAll(r.Data)
			if err != nil {
				w.Abort(err)
				return
			}
			fmt.Fprintf(&b, " data=%q", data)
		}
		b.WriteByte('\n')
		for name, value := range r.Environ.All() {
			fmt.Fprintf(&b, "%s=%s\n", name, value)
		}
		_ = w.WriteHeader(header(t, "Content-Type", "text/plain"))
		_, _ = io.WriteString(w, b.String())
	}
}

// eventually polls until ok.
func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(patience); !ok(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("not within %v: %s", patience, what)
		}
	}
}
