package scgi

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"wsgigate/environ"
	"wsgigate/environ/cgiout"
	"wsgigate/environ/wire"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// start serves s on loopback TCP or, with a path, on a unix socket.
func start(t testing.TB, s *Server, path string) net.Addr {
	t.Helper()
	where := "127.0.0.1:0"
	if path != "" {
		where = "unix:" + path
	}
	addr, err := wire.ParseAddr(where)
	if err != nil {
		t.Fatal(err)
	}
	l, err := wire.Listen(addr)
	if err != nil {
		t.Fatal(err)
	}
	if s.Log == nil {
		s.Log = slog.New(slog.DiscardHandler)
	}
	done := make(chan error, 1)
	go func() { done <- s.Serve(l) }()
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		_ = s.Shutdown(ctx)
		if err := <-done; !errors.Is(err, net.ErrClosed) {
			t.Errorf("Serve returned %v", err)
		}
	})
	return l.Addr()
}

func dial(t testing.TB, addr net.Addr) net.Conn {
	t.Helper()
	c, err := net.Dial(addr.Network(), addr.String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	_ = c.SetDeadline(time.Now().Add(10 * time.Second))
	return c
}

// exchangeRaw sends the pieces and returns the answer.
func exchangeRaw(t testing.TB, addr net.Addr, pieces ...string) string {
	t.Helper()
	c := dial(t, addr)
	for _, piece := range pieces {
		if _, err := io.WriteString(c, piece); err != nil {
			t.Fatal(err)
		}
	}
	got, err := io.ReadAll(c)
	if err != nil {
		t.Fatalf("%v after %q", err, got)
	}
	return string(got)
}

// netstring makes a head of names and values.
func netstring(pairs ...string) string {
	body := strings.Join(pairs, "\x00") + "\x00"
	return fmt.Sprintf("%d:%s,", len(body), body)
}

// post is a head for a body of n bytes and further variables.
func post(n int, more ...string) string {
	return netstring(append([]string{"CONTENT_LENGTH", fmt.Sprint(n), "SCGI", "1", "REQUEST_METHOD", "POST",
		"SCRIPT_NAME", "", "PATH_INFO", "/p"}, more...)...)
}

func respond(w environ.ResponseWriter, status int, body string) {
	var h environ.Header
	_ = h.SetStatus(status, "Fine")
	_ = h.Add("Content-Type", "text/plain")
	_ = w.WriteHeader(&h)
	_, _ = io.WriteString(w, body)
}

// dump answers with the environ and the body.
var dump = environ.HandlerFunc(func(w environ.ResponseWriter, r *environ.Request) {
	body, err := io.ReadAll(r.Body)
	if err != nil {
		environ.Fail(w, r, err)
		return
	}
	var b strings.Builder
	for name, value := range r.Environ.All() {
		fmt.Fprintf(&b, "%s=%q\n", name, value)
	}
	fmt.Fprintf(&b, "length=%d body=%q\n", r.ContentLength, body)
	respond(w, 200, b.String())
})

// golden is a request as the specification's example has it, and its answer.
var golden = post(27, "REQUEST_URI", "/deepthought", "HTTP_X", "1", "HTTP_COOKIE", "a=1", "HTTP_X", "2", "HTTP_COOKIE", "b=2", "HTTP_PROXY", "evil") +
	"What is the answer to life?"

const goldenAnswer = "Status: 200 Fine\r\nContent-Type: text/plain\r\n\r\n" + `CONTENT_LENGTH="27"
SCGI="1"
REQUEST_METHOD="POST"
SCRIPT_NAME=""
PATH_INFO="/p"
REQUEST_URI="/deepthought"
HTTP_X="1, 2"
HTTP_COOKIE="a=1; b=2"
QUERY_STRING=""
SERVER_PROTOCOL="HTTP/1.0"
SERVER_NAME="localhost"
SERVER_PORT="80"
length=27 body="What is the answer to life?"
`

func TestGoldenHoweverSplit(t *testing.T) {
	for _, path := range []string{"", filepath.Join(t.TempDir(), "s")} {
		addr := start(t, &Server{Handler: dump}, path)
		splits := [][]string{{golden}, strings.Split(golden, "")}
		for range 50 {
			a, b := rand.IntN(len(golden)), rand.IntN(len(golden))
			a, b = min(a, b), max(a, b)
			splits = append(splits, []string{golden[:a], golden[a:b], golden[b:]})
		}
		for i := range len(golden) {
			splits = append(splits, []string{golden[:i], golden[i:]})
		}
		for _, split := range splits {
			if got := exchangeRaw(t, addr, split...); got != goldenAnswer {
				t.Fatalf("split %q: got\n%s\nwant\n%s", split, got, goldenAnswer)
			}
		}
	}
}

func TestTruncatedEndsCleanly(t *testing.T) {
	called := make(chan struct{}, 1)
	addr := start(t, &Server{Handler: environ.HandlerFunc(func(w environ.ResponseWriter, r *environ.Request) {
		called <- struct{}{}
	})}, "")
	head := strings.Index(golden, "What")
	for i := range head {
		c := dial(t, addr)
		_, _ = io.WriteString(c, golden[:i])
		_ = c.(*net.TCPConn).CloseWrite()
		if got, err := io.ReadAll(c); err != nil || len(got) > 0 {
			t.Fatalf("after %d bytes: %q, %v", i, got, err)
		}
	}
	if len(called) > 0 {
		t.Error("handler was called")
	}
}

func TestRefused(t *testing.T) {
	long := strings.Repeat("x", 3000)
	many := []string{"CONTENT_LENGTH", "0", "SCGI", "1"}
	for i := range 20 {
		many = append(many, fmt.Sprint("V", i), "")
	}
	cases := []struct {
		name, request string
		status        int
	}{
		{"sign", "+70:", 400},
		{"negative", "-1:", 400},
		{"leading zero", "070:CONTENT_LENGTH", 400},
		{"zero", "0:,", 400},
		{"no digits", ":CONTENT_LENGTH", 400},
		{"hexadecimal", "0x40:", 400},
		{"space", "70 :", 400},
		{"not SCGI at all", "GET / HTTP/1.0\r\n\r\n", 400},
		{"over the limit", "9999:", 431},
		{"2147483647", "2147483647:", 431},
		{"4294967295", "4294967295:", 431},
		{"a number that overflows", "18446744073709551617:", 431},
		{"digits without end", strings.Repeat("1", 50), 431},
		{"too many variables", netstring(many...), 431},
		{"variables too large", netstring("CONTENT_LENGTH", "0", "SCGI", "1", "A", long), 431},
		{"no comma", strings.Replace(post(0), ",", "x", 1), 400},
		{"CONTENT_LENGTH not first", netstring("SCGI", "1", "CONTENT_LENGTH", "0", "REQUEST_METHOD", "GET"), 400},
		{"CONTENT_LENGTH missing", netstring("SCGI", "1", "REQUEST_METHOD", "GET"), 400},
		{"CONTENT_LENGTH empty", netstring("CONTENT_LENGTH", "", "SCGI", "1", "REQUEST_METHOD", "GET"), 400},
		{"CONTENT_LENGTH +5", netstring("CONTENT_LENGTH", "+5", "SCGI", "1", "REQUEST_METHOD", "GET") + "12345", 400},
		{"CONTENT_LENGTH -5", netstring("CONTENT_LENGTH", "-5", "SCGI", "1", "REQUEST_METHOD", "GET"), 400},
		{"CONTENT_LENGTH 0x5", netstring("CONTENT_LENGTH", "0x5", "SCGI", "1", "REQUEST_METHOD", "GET") + "12345", 400},
		{"CONTENT_LENGTH twice", post(5, "CONTENT_LENGTH", "5") + "12345", 400},
		{"CONTENT_LENGTH too large", post(101), 413},
		{"CONTENT_LENGTH overflows", netstring("CONTENT_LENGTH", "18446744073709551621", "SCGI", "1", "REQUEST_METHOD", "GET"), 413},
		{"body longer", post(5) + "123456", 400},
		{"SCGI missing", netstring("CONTENT_LENGTH", "0", "REQUEST_METHOD", "GET"), 400},
		{"SCGI 2", netstring("CONTENT_LENGTH", "0", "SCGI", "2", "REQUEST_METHOD", "GET"), 400},
		{"SCGI twice", post(0, "SCGI", "1"), 400},
		{"SCRIPT_NAME twice", post(0, "SCRIPT_NAME", "/x"), 400},
		{"REQUEST_METHOD missing", netstring("CONTENT_LENGTH", "0", "SCGI", "1"), 400},
		{"name empty", netstring("CONTENT_LENGTH", "0", "", "1", "SCGI", "1"), 400},
		{"value missing", "17:CONTENT_LENGTH\x000\x00A,", 400},
		{"value without end", "19:CONTENT_LENGTH\x000\x00A\x00b,", 400},
	}
	s := &Server{Handler: environ.HandlerFunc(func(w environ.ResponseWriter, r *environ.Request) {
		t.Error("handler was called")
	})}
	s.Rules.Limits = environ.Limits{MaxHeaders: 2000, MaxFields: 20, MaxBody: 100}
	addr := start(t, s, "")
	for _, c := range cases {
		got := exchangeRaw(t, addr, c.request)
		if want := fmt.Sprintf("Status: %d ", c.status); !strings.HasPrefix(got, want) {
			t.Errorf("%s: got %.60q, want %q", c.name, got, want)
		}
	}
}

func TestShortBody(t *testing.T) {
	failed := make(chan error, 1)
	addr := start(t, &Server{Handler: environ.HandlerFunc(func(w environ.ResponseWriter, r *environ.Request) {
		_, err := io.ReadAll(r.Body)
		failed <- err
		environ.Fail(w, r, err)
	})}, "")
	c := dial(t, addr)
	_, _ = io.WriteString(c, post(10)+"12345")
	_ = c.(*net.TCPConn).CloseWrite()
	got, _ := io.ReadAll(c)
	if err := <-failed; !errors.Is(err, io.ErrUnexpectedEOF) || environ.StatusOf(err) != 400 {
		t.Errorf("read error %v", err)
	}
	if !strings.HasPrefix(string(got), "Status: 400 ") {
		t.Errorf("answer %q", got)
	}
}

func TestSlowHeadAndBody(t *testing.T) {
	s := &Server{Handler: dump}
	s.Rules.Limits.HeaderTimeout = 50 * time.Millisecond
	s.Rules.Limits.BodyTimeout = 50 * time.Millisecond
	addr := start(t, s, "")
	for _, part := range []string{golden[:1], golden[:60], golden[:len(golden)-5]} {
		if got := exchangeRaw(t, addr, part); !strings.HasPrefix(got, "Status: 408 ") {
			t.Errorf("after %d bytes: %q", len(part), got)
		}
	}
}

func TestSlowReaderIsCutOff(t *testing.T) {
	failed := make(chan error, 1)
	s := &Server{Handler: environ.HandlerFunc(func(w environ.ResponseWriter, r *environ.Request) {
		respond(w, 200, "")
		block := make([]byte, 1<<20)
		for {
			if _, err := w.Write(block); err != nil {
				failed <- err
				return
			}
		}
	})}
	s.Rules.Limits.WriteTimeout = 50 * time.Millisecond
	c := dial(t, start(t, s, ""))
	_, _ = io.WriteString(c, post(0))
	select {
	case err := <-failed:
		if !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("write error %v", err)
		}
	case <-time.After(5 * time.Second):
		t.Fatal("write does not end")
	}
}

// The answer arrives although the body, larger than any socket buffer, is never
// read by the handler: here the client sends all of it first, as mod_proxy_scgi does.
func TestUnreadBody(t *testing.T) {
	addr := start(t, &Server{Handler: environ.HandlerFunc(func(w environ.ResponseWriter, r *environ.Request) {
		respond(w, 200, "early")
	})}, "")
	const size = 32 << 20
	got := exchangeRaw(t, addr, post(size), strings.Repeat("x", size))
	if !strings.HasSuffix(got, "\r\n\r\nearly") {
		t.Errorf("got %q", got)
	}
	refused := netstring("CONTENT_LENGTH", "", "SCGI", "1", "REQUEST_METHOD", "POST")
	if got := exchangeRaw(t, addr, refused, strings.Repeat("x", size)); !strings.HasPrefix(got, "Status: 400 ") {
		t.Errorf("got %q", got)
	}
}

func TestHandlerFaults(t *testing.T) {
	boom := errors.New("boom")
	cases := []struct {
		name    string
		handler environ.HandlerFunc
		want    string
		cut     bool
	}{
		{"no response", func(environ.ResponseWriter, *environ.Request) {}, "Status: 500 Internal", false},
		{"panic", func(environ.ResponseWriter, *environ.Request) { panic("boom") }, "Status: 500 Internal", false},
		{"abort at once", func(w environ.ResponseWriter, r *environ.Request) { w.Abort(boom) }, "Status: 500 Internal", false},
		{"abort before flush", func(w environ.ResponseWriter, r *environ.Request) {
			respond(w, 200, "part")
			w.Abort(boom)
			if _, err := w.Write([]byte("late")); err == nil {
				t.Error("write after abort")
			}
		}, "Status: 500 Internal", false},
		{"abort after flush", func(w environ.ResponseWriter, r *environ.Request) {
			respond(w, 200, "part")
			_ = w.Flush()
			w.Abort(boom)
		}, "Status: 200 Fine", true},
		{"panic after flush", func(w environ.ResponseWriter, r *environ.Request) {
			respond(w, 200, "part")
			_ = w.Flush()
			panic("boom")
		}, "Status: 200 Fine", true},
		{"status 101", func(w environ.ResponseWriter, r *environ.Request) { respond(w, 101, "") }, "Status: 500 Internal", false},
		{"204 with a body", func(w environ.ResponseWriter, r *environ.Request) { respond(w, 204, "body") },
			"Status: 204 Fine\r\nContent-Type: text/plain\r\n\r\n", false},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			conn := dial(t, start(t, &Server{Handler: c.handler}, ""))
			_, _ = io.WriteString(conn, post(0))
			got, err := io.ReadAll(conn)
			if !c.cut && !strings.HasPrefix(string(got), c.want) || strings.Contains(string(got), "late") ||
				c.name == "204 with a body" && string(got) != c.want {
				t.Errorf("got %q", got)
			}
			if c.cut != (err != nil) {
				t.Errorf("error %v", err)
			}
		})
	}
}

func TestClientGone(t *testing.T) {
	for _, withBody := range []bool{false, true} {
		cancelled := make(chan error, 1)
		addr := start(t, &Server{Handler: environ.HandlerFunc(func(w environ.ResponseWriter, r *environ.Request) {
			_, _ = io.Copy(io.Discard, r.Body)
			done := make(chan error, 1)
			r.OnCancel(func(err error) { done <- err })
			respond(w, 200, "begun")
			_ = w.Flush()
			select {
			case err := <-done:
				cancelled <- err
			case <-time.After(5 * time.Second):
				cancelled <- errors.New("not cancelled")
			}
		})}, "")
		c := dial(t, addr)
		if withBody {
			_, _ = io.WriteString(c, post(1<<20))
			_, _ = io.WriteString(c, strings.Repeat("x", 1<<20))
		} else {
			_, _ = io.WriteString(c, post(0))
		}
		_, _ = io.ReadFull(c, make([]byte, 10))
		_ = c.Close()
		if err := <-cancelled; err != environ.ErrClientGone {
			t.Errorf("body %t: %v", withBody, err)
		}
	}
}

// A handler that runs longer than watchAfter has a reader beside it, which must be
// gone before the request is used again.
func TestWatchedRequestIsReused(t *testing.T) {
	addr := start(t, &Server{Handler: environ.HandlerFunc(func(w environ.ResponseWriter, r *environ.Request) {
		<-time.After(watchAfter * 3)
		if err := r.Cancelled(); err != nil {
			t.Error(err)
		}
		respond(w, 200, "ok")
	})}, "")
	for range 5 {
		if got := exchangeRaw(t, addr, post(0)); !strings.HasSuffix(got, "ok") {
			t.Fatalf("got %q", got)
		}
	}
}

func TestSendFile(t *testing.T) {
	content := bytes.Repeat([]byte("0123456789abcdef"), 1<<16)
	name := filepath.Join(t.TempDir(), "f")
	if err := os.WriteFile(name, content, 0o600); err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(name)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for _, n := range []int64{0, 1, 5000, cgiout.KeepBack, 1<<20 - 3} {
		addr := start(t, &Server{Handler: environ.HandlerFunc(func(w environ.ResponseWriter, r *environ.Request) {
			respond(w, 200, "<")
			if sent, err := w.(environ.FileSender).SendFile(f, 3, n); sent != n || err != nil {
				t.Errorf("sent %d of %d, %v", sent, n, err)
			}
			_, _ = io.WriteString(w, ">")
		})}, "")
		_, body, _ := strings.Cut(exchangeRaw(t, addr, post(0)), "\r\n\r\n")
		if want := "<" + string(content[3:3+n]) + ">"; body != want {
			t.Errorf("n=%d: got %d bytes, want %d", n, len(body), len(want))
		}
	}
	if pos, _ := f.Seek(0, io.SeekCurrent); pos != 0 {
		t.Errorf("the file's position moved to %d", pos)
	}
}

func TestSendFileTooShort(t *testing.T) {
	f, err := os.CreateTemp(t.TempDir(), "f")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	_, _ = f.WriteString("short")
	for _, n := range []int64{6, 1 << 20} {
		addr := start(t, &Server{Handler: environ.HandlerFunc(func(w environ.ResponseWriter, r *environ.Request) {
			respond(w, 200, "")
			sent, err := w.(environ.FileSender).SendFile(f, 0, n)
			if sent != 5 || !errors.Is(err, io.ErrUnexpectedEOF) {
				t.Errorf("sent %d, %v", sent, err)
			}
		})}, "")
		exchangeRaw(t, addr, post(0))
	}
}

func TestLargeBodyBothWays(t *testing.T) {
	addr := start(t, &Server{Handler: environ.HandlerFunc(func(w environ.ResponseWriter, r *environ.Request) {
		respond(w, 200, "")
		if n, err := io.Copy(struct{ io.Writer }{w}, r.Body); n != r.ContentLength || err != nil {
			t.Errorf("copied %d, %v", n, err)
		}
	})}, "")
	body := make([]byte, 3<<20)
	for i := range body {
		body[i] = byte(i * 7)
	}
	c := dial(t, addr)
	go func() {
		_, _ = io.WriteString(c, post(len(body)))
		_, _ = c.Write(body)
	}()
	got, err := io.ReadAll(c)
	_, got, _ = bytes.Cut(got, []byte("\r\n\r\n"))
	if err != nil || !bytes.Equal(got, body) {
		t.Errorf("%d bytes came back, %v", len(got), err)
	}
}

func TestPeersOutsideAllowAreRefused(t *testing.T) {
	addr := start(t, &Server{Handler: dump, Allow: []netip.Prefix{netip.MustParsePrefix("192.0.2.0/24")}}, "")
	c, err := net.Dial("tcp", addr.String())
	if err != nil {
		return // the reset was faster
	}
	defer c.Close()
	_, _ = io.WriteString(c, golden)
	if got, _ := io.ReadAll(c); len(got) > 0 {
		t.Errorf("got %q", got)
	}
}

func TestShutdownWaitsForTheResponse(t *testing.T) {
	entered, leave := make(chan struct{}), make(chan struct{})
	s := &Server{Handler: environ.HandlerFunc(func(w environ.ResponseWriter, r *environ.Request) {
		close(entered)
		<-leave
		respond(w, 200, "whole")
	})}
	c := dial(t, start(t, s, ""))
	_, _ = io.WriteString(c, post(0))
	<-entered
	down := make(chan error, 1)
	go func() { down <- s.Shutdown(context.Background()) }()
	close(leave)
	if got, err := io.ReadAll(c); err != nil || !strings.HasSuffix(string(got), "whole") {
		t.Errorf("%q, %v", got, err)
	}
	if err := <-down; err != nil {
		t.Error(err)
	}
}

// A connection that never said anything does not hold a shutdown up, and one that
// was silent for long is answered all the same.
func TestSilentConnections(t *testing.T) {
	s := &Server{Handler: dump}
	addr := start(t, s, "")
	silent, late := dial(t, addr), dial(t, addr)
	time.Sleep(freshWait + 100*time.Millisecond)
	_, _ = io.WriteString(late, golden)
	if got, err := io.ReadAll(late); err != nil || !strings.HasPrefix(string(got), "Status: 200 ") {
		t.Errorf("late: %q, %v", got, err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	if err := s.Shutdown(ctx); err != nil {
		t.Error(err)
	}
	if got, _ := io.ReadAll(silent); len(got) > 0 {
		t.Errorf("silent: %q", got)
	}
}

// A large answer to a peer that is still sending a body that nobody reads.
func TestLargeAnswerBesideUnreadBody(t *testing.T) {
	const size = 8 << 20
	addr := start(t, &Server{Handler: environ.HandlerFunc(func(w environ.ResponseWriter, r *environ.Request) {
		respond(w, 200, strings.Repeat("y", size))
	})}, "")
	c := dial(t, addr)
	sent := make(chan error, 1)
	go func() {
		_, _ = io.WriteString(c, post(size))
		_, err := io.WriteString(c, strings.Repeat("x", size))
		sent <- err
	}()
	got, err := io.ReadAll(c)
	if err != nil || len(got) < size {
		t.Errorf("%d bytes, %v", len(got), err)
	}
	if err := <-sent; err != nil {
		t.Errorf("sending: %v", err)
	}
}

// A peer that has closed is an error of the write, and the server lives.
func TestWriteToAClosedPeer(t *testing.T) {
	gone, failed := make(chan struct{}), make(chan error, 1)
	addr := start(t, &Server{Handler: environ.HandlerFunc(func(w environ.ResponseWriter, r *environ.Request) {
		if len(r.Environ.Get("HTTP_WAIT")) == 0 {
			respond(w, 200, "alive")
			return
		}
		<-gone
		respond(w, 200, "")
		for {
			if _, err := w.Write(make([]byte, cgiout.KeepBack+1)); err != nil {
				_, again := w.Write(nil)
				failed <- errors.Join(err, again)
				return
			}
		}
	})}, "")
	c := dial(t, addr)
	_, _ = io.WriteString(c, post(0, "HTTP_WAIT", "1"))
	_ = c.Close()
	close(gone)
	if err := <-failed; !errors.Is(err, unix.EPIPE) && !errors.Is(err, unix.ECONNRESET) || !errors.Is(err, cgiout.ErrEnded) {
		t.Errorf("%v", err)
	}
	if got := exchangeRaw(t, addr, post(0)); !strings.HasSuffix(got, "alive") {
		t.Errorf("%q", got)
	}
}
