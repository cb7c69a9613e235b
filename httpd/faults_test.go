package httpd

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"wsgigate/environ"
)

// dial connects to addr for at most ten seconds.
func dial(t testing.TB, addr string) net.Conn {
	t.Helper()
	c, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	_ = c.SetDeadline(time.Now().Add(10 * time.Second))
	return c
}

// statuses reads responses until the connection ends and returns their status
// codes in order.
func statuses(in io.Reader) (codes []int, err error) {
	b := bufio.NewReader(in)
	for {
		resp, err := http.ReadResponse(b, nil)
		if err == io.ErrUnexpectedEOF || err == io.EOF {
			return codes, nil
		}
		if err != nil {
			return codes, err
		}
		if _, err := io.Copy(io.Discard, resp.Body); err != nil {
			return codes, err
		}
		codes = append(codes, resp.StatusCode)
	}
}

func TestViolationIs400AndClose(t *testing.T) {
	inputs := append(refusals[:len(refusals):len(refusals)], refusals[0])
	for _, c := range badChunks {
		c.input = chunkedHead + c.input
		inputs = append(inputs, c)
	}
	addr := start(t, &Server{Handler: dump(t)})
	for _, c := range inputs {
		t.Run(c.name, func(t *testing.T) {
			conn := dial(t, addr)
			// Two good requests before it, and one behind it that must not be answered.
			_, _ = io.WriteString(conn, accepted[0]+accepted[6]+c.input+accepted[0])
			codes, err := statuses(conn)
			if fmt.Sprint(codes) != "[200 200 400]" || err != nil {
				t.Errorf("%v, %v", codes, err)
			}
		})
	}
}

func TestOtherRefusals(t *testing.T) {
	s := &Server{Handler: dump(t)}
	s.Rules.Limits = environ.Limits{MaxBody: 100, MaxFields: 10, MaxHeaders: 1000}
	addr := start(t, s)
	cases := []struct {
		name, input string
		status      int
	}{
		{"transfer coding", "POST / HTTP/1.1\r\n" + host + "Transfer-Encoding: gzip\r\n\r\n", 501},
		{"two transfer codings", "POST / HTTP/1.1\r\n" + host + "Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n", 501},
		{"version", "GET / HTTP/3.0\r\n\r\n", 505},
		{"no Host", "GET / HTTP/1.1\r\n\r\n", 400},
		{"two Hosts", "GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", 400},
		{"bad escape", "GET /%zz HTTP/1.1\r\n" + host + "\r\n", 400},
		{"not HTTP", "\x16\x03\x01\x02\x00\x01\r\n\r\n", 400},
		{"CONNECT", "CONNECT a:80 HTTP/1.1\r\nHost: a:80\r\nConnection: close\r\n\r\n", 501},
		{"body too large", "POST / HTTP/1.1\r\n" + host + "Content-Length: 101\r\nConnection: close\r\n\r\n" + strings.Repeat("x", 101), 413},
		{"4294967295", "POST / HTTP/1.1\r\n" + host + "Content-Length: 4294967295\r\n\r\n", 413},
		{"chunked body too large", "POST / HTTP/1.1\r\nConnection: close\r\n" + strings.TrimPrefix(chunkedHead, "POST / HTTP/1.1\r\n") +
			"65\r\n" + strings.Repeat("x", 101) + "\r\n0\r\n\r\n", 413},
		{"too many fields", "GET / HTTP/1.1\r\n" + host + "Connection: close\r\n" + strings.Repeat("X: y\r\n", 10) + "\r\n", 431},
		{"head too large", "GET / HTTP/1.1\r\n" + host + "X: " + strings.Repeat("x", 20000) + "\r\n\r\n", 431},
		{"line without end", "GET /" + strings.Repeat("x", 20000), 431},
	}
	for _, c := range cases {
		conn := dial(t, addr)
		_, _ = io.WriteString(conn, c.input)
		codes, err := statuses(conn)
		if fmt.Sprint(codes) != fmt.Sprintf("[%d]", c.status) || err != nil {
			t.Errorf("%s: %v, %v, want %d", c.name, codes, err, c.status)
		}
	}
}

// TestRefusalsAreLogged: also those that net/http makes by itself, once each, on the first
// request of a connection and on a later one; an application's own 400 is none.
func TestRefusalsAreLogged(t *testing.T) {
	for _, c := range []struct{ input, reason string }{
		{"GET / HTTP/1.1\r\n\r\n", "missing required Host header"},
		{"GET / HTTP/1.1\r\nHost: a\"b\r\n\r\n", "malformed Host header"},
		{"G<b>T / HTTP/1.1\r\n" + host + "\r\n", "400 Bad Request"},
		{"GET / HTTP/3.0\r\n\r\n", "505"},
		{"POST / HTTP/1.1\r\n" + host + "Transfer-Encoding: gzip\r\n\r\n", "501"},
		{"GET / HTTP/1.1\r\n" + host + "X: " + strings.Repeat("x", 80<<10) + "\r\n\r\n", "431"},
		{"GET / HTTP/1.1\r\n" + host + "Expect: the unexpected\r\nConnection: close\r\n\r\n", "417"},
		{"GET / HTTP/1.1\n" + host + "\r\n", "bare"},
		{"GET /own HTTP/1.1\r\n" + host + "Connection: close\r\n\r\n", ""},
	} {
		for _, before := range []string{"", accepted[0] + accepted[0]} {
			var log syncBuffer
			s := &Server{Log: slog.New(slog.NewTextHandler(&log, nil)), Handler: environ.HandlerFunc(func(w environ.ResponseWriter, r *environ.Request) {
				status := 200
				if string(r.Environ.Get("PATH_INFO")) == "/own" {
					status = 400
				}
				respond(t, w, status, "")
			})}
			conn := dial(t, start(t, s))
			_, _ = io.WriteString(conn, before+c.input)
			if _, err := statuses(conn); err != nil {
				t.Errorf("%q: %v", c.input, err)
			}
			lines := strings.Count(log.String(), "request refused\" remote=127.0.0.1 reason=")
			if want := min(len(c.reason), 1); lines != want || !strings.Contains(log.String(), c.reason) {
				t.Errorf("%.80q is logged %d times, want %d with %q:\n%s", c.input, lines, want, c.reason, log.String())
			}
		}
	}
}

// syncBuffer is a log that may be read while it is written.
type syncBuffer struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

// Write appends.
func (b *syncBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.Write(p)
}

// String returns all of it.
func (b *syncBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.String()
}

func TestHoweverSplit(t *testing.T) {
	addr := start(t, &Server{Handler: environ.HandlerFunc(func(w environ.ResponseWriter, r *environ.Request) {
		body, err := io.ReadAll(r.Body)
		if err != nil {
			environ.Fail(w, r, err)
			return
		}
		respond(t, w, 200, fmt.Sprintf("%s %s %q", r.Method(), r.Environ.Text("HTTP_X"), body))
	})})
	request := accepted[0] + accepted[6] + accepted[3] + "POST / HTTP/1.1\r\n" + host + "Connection: close\r\nX: 1\r\nX: 2\r\nContent-Length: 3\r\n\r\nxyz"
	send := func(pieces ...string) string {
		c := dial(t, addr)
		for _, piece := range pieces {
			_, _ = io.WriteString(c, piece)
		}
		got, err := io.ReadAll(c)
		if err != nil {
			t.Fatal(err)
		}
		var text string
		for line := range strings.Lines(string(got)) {
			if !strings.HasPrefix(line, "Date: ") {
				text += line
			}
		}
		return text
	}
	want := send(request)
	if n := strings.Count(want, "HTTP/1.1 200 OK"); n != 4 || !strings.HasSuffix(want, `POST 1,2 "xyz"`) {
		t.Fatalf("%d responses: %q", n, want)
	}
	splits := [][]string{strings.Split(request, "")}
	for i := range len(request) {
		splits = append(splits, []string{request[:i], request[i:]})
	}
	for range 30 {
		i := rand.IntN(len(request))
		j := i + rand.IntN(len(request)-i)
		splits = append(splits, []string{request[:i], request[i:j], request[j:]})
	}
	for _, split := range splits {
		if got := send(split...); got != want {
			t.Fatalf("split %q: got %q", split, got)
		}
	}
}

func TestTruncatedBody(t *testing.T) {
	failed := make(chan error, 1)
	addr := start(t, &Server{Handler: environ.HandlerFunc(func(w environ.ResponseWriter, r *environ.Request) {
		_, err := io.ReadAll(r.Body)
		failed <- err
		environ.Fail(w, r, err)
	})})
	for _, input := range []string{"POST / HTTP/1.1\r\n" + host + "Content-Length: 9\r\n\r\nabc", chunkedHead + "3\r\nabc\r\n", chunkedHead + "9\r\nabc"} {
		c := dial(t, addr)
		_, _ = io.WriteString(c, input)
		_ = c.(*net.TCPConn).CloseWrite()
		codes, _ := statuses(c)
		if err := <-failed; !errors.Is(err, io.ErrUnexpectedEOF) || environ.StatusOf(err) != 400 || fmt.Sprint(codes) != "[400]" {
			t.Errorf("%q: %v, %v", input, err, codes)
		}
	}
}

func TestSlowClients(t *testing.T) {
	s := &Server{Handler: dump(t)}
	s.Rules.Limits.HeaderTimeout = 50 * time.Millisecond
	s.Rules.Limits.BodyTimeout = 50 * time.Millisecond
	s.Rules.Limits.IdleTimeout = 50 * time.Millisecond
	addr := start(t, s)
	cases := []struct{ name, input, want string }{
		{"nothing", "", "[]"},
		{"slow head", "GET / HTTP/1.1\r\nHos", "[408]"},
		{"slow second head", accepted[0] + "GET / HTTP/1.1\r\nHos", "[200 408]"},
		{"idle", accepted[0], "[200]"},
		{"slow body", "POST / HTTP/1.1\r\n" + host + "Content-Length: 9\r\n\r\nabc", "[408]"},
		{"slow chunk", chunkedHead + "9\r\nabc", "[408]"},
	}
	for _, c := range cases {
		conn := dial(t, addr)
		_, _ = io.WriteString(conn, c.input)
		if codes, err := statuses(conn); fmt.Sprint(codes) != c.want || err != nil {
			t.Errorf("%s: %v, %v", c.name, codes, err)
		}
	}
}

func TestSlowReaderIsCutOff(t *testing.T) {
	failed := make(chan error, 1)
	s := &Server{}
	s.Handler = environ.HandlerFunc(func(w environ.ResponseWriter, r *environ.Request) {
		var h environ.Header
		_ = h.SetStatus(200, "OK")
		_ = w.WriteHeader(&h)
		block := make([]byte, 1<<20)
		for {
			if _, err := w.Write(block); err != nil {
				failed <- err
				w.Abort(err)
				return
			}
		}
	})
	s.Rules.Limits.WriteTimeout = 50 * time.Millisecond
	c := dial(t, start(t, s))
	_, _ = io.WriteString(c, accepted[0])
	select {
	case err := <-failed:
		if !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("write error %v", err)
		}
	case <-time.After(5 * time.Second):
		t.Fatal("write does not end")
	}
}

// A client that reads slowly but steadily is no offender, even where one write
// takes longer than the timeout.
func TestSteadyReaderIsServed(t *testing.T) {
	const size = 24 << 20
	s := &Server{Handler: environ.HandlerFunc(func(w environ.ResponseWriter, r *environ.Request) {
		respond(t, w, 200, strings.Repeat("x", size))
	})}
	s.Rules.Limits.WriteTimeout = 600 * time.Millisecond
	c := dial(t, start(t, s))
	_, _ = io.WriteString(c, "GET / HTTP/1.1\r\n"+host+"Connection: close\r\n\r\n")
	n, tick := int64(0), time.NewTicker(50*time.Millisecond)
	defer tick.Stop()
	for range 20 {
		got, err := io.CopyN(io.Discard, c, 256<<10)
		if n += got; err != nil {
			t.Fatalf("%v after %d bytes", err, n)
		}
		<-tick.C
	}
	rest, err := io.Copy(io.Discard, c)
	if err != nil || n+rest < size {
		t.Errorf("%v after %d bytes", err, n+rest)
	}
}

func TestHandlerFaults(t *testing.T) {
	boom := errors.New("boom")
	stream := func(w environ.ResponseWriter) {
		var h environ.Header
		_ = h.SetStatus(200, "OK")
		_ = w.WriteHeader(&h)
		_, _ = io.WriteString(w, "part")
		_ = w.Flush()
	}
	cases := []struct {
		name    string
		handler environ.HandlerFunc
		want    string // of the answer's beginning
		cut     bool
	}{
		{"no response", func(environ.ResponseWriter, *environ.Request) {}, "HTTP/1.1 500 ", false},
		{"panic", func(environ.ResponseWriter, *environ.Request) { panic("boom") }, "HTTP/1.1 500 ", false},
		{"abort at once", func(w environ.ResponseWriter, r *environ.Request) { w.Abort(boom) }, "HTTP/1.1 500 ", false},
		{"abort after the header", func(w environ.ResponseWriter, r *environ.Request) {
			respond(t, w, 200, "")
			w.Abort(boom)
			if _, err := io.WriteString(w, "late"); err == nil {
				t.Error("write after Abort")
			}
		}, "HTTP/1.1 500 ", false},
		{"status 101", func(w environ.ResponseWriter, r *environ.Request) {
			var h environ.Header
			_ = h.SetStatus(101, "x")
			if w.WriteHeader(&h) == nil {
				t.Error("101 is accepted")
			}
		}, "HTTP/1.1 500 ", false},
		{"abort", func(w environ.ResponseWriter, r *environ.Request) { stream(w); w.Abort(boom) }, "", true},
		{"panic in the body", func(w environ.ResponseWriter, r *environ.Request) { stream(w); panic("boom") }, "", true},
		{"body too short", func(w environ.ResponseWriter, r *environ.Request) {
			var h environ.Header
			_ = h.SetStatus(200, "OK")
			_ = h.Add("Content-Length", "10")
			_ = w.WriteHeader(&h)
			_, _ = io.WriteString(w, "part")
		}, "", true},
	}
	for _, c := range cases {
		for _, version := range []string{"1.1", "1.0"} {
			conn := dial(t, start(t, &Server{Handler: c.handler}))
			_, _ = io.WriteString(conn, "GET / HTTP/"+version+"\r\n"+host+"Connection: close\r\n\r\n")
			resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
			var body []byte
			if err == nil {
				body, err = io.ReadAll(resp.Body)
			}
			switch {
			case c.cut && err == nil:
				t.Errorf("%s, HTTP/%s: the client cannot tell; got %q", c.name, version, body)
			case !c.cut && (err != nil || resp.StatusCode != 500 || strings.Contains(string(body), "late")):
				t.Errorf("%s, HTTP/%s: %v, %q", c.name, version, err, body)
			}
		}
	}
}

func TestClientGone(t *testing.T) {
	cancelled := make(chan error, 1)
	addr := start(t, &Server{Handler: environ.HandlerFunc(func(w environ.ResponseWriter, r *environ.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		done := make(chan error, 1)
		r.OnCancel(func(err error) { done <- err })
		var h environ.Header
		_ = h.SetStatus(200, "OK")
		_ = w.WriteHeader(&h)
		_ = w.Flush()
		select {
		case err := <-done:
			cancelled <- err
		case <-time.After(5 * time.Second):
			cancelled <- errors.New("not cancelled")
		}
	})})
	for _, input := range []string{accepted[0], accepted[3], accepted[6]} {
		c := dial(t, addr)
		_, _ = io.WriteString(c, input)
		_, _ = io.ReadFull(c, make([]byte, 10))
		_ = c.Close()
		if err := <-cancelled; err != environ.ErrClientGone {
			t.Errorf("%q: %v", input, err)
		}
	}
}

func TestExpectContinue(t *testing.T) {
	read := false
	addr := start(t, &Server{Handler: environ.HandlerFunc(func(w environ.ResponseWriter, r *environ.Request) {
		if !r.ExpectContinue {
			t.Error("ExpectContinue is false")
		}
		if read {
			_, _ = io.Copy(io.Discard, r.Body)
		}
		respond(t, w, 200, "ok")
	})})
	const request = "POST / HTTP/1.1\r\n" + host + "Expect: 100-continue\r\nContent-Length: 3\r\nConnection: close\r\n\r\n"
	if got := talk(t, addr, request); !strings.HasPrefix(got, "HTTP/1.1 200 ") {
		t.Errorf("body not read: %q", got)
	}
	read = true
	c := dial(t, addr)
	_, _ = io.WriteString(c, request)
	interim := make([]byte, len("HTTP/1.1 100 Continue\r\n\r\n"))
	if _, err := io.ReadFull(c, interim); err != nil || string(interim) != "HTTP/1.1 100 Continue\r\n\r\n" {
		t.Fatalf("%q, %v", interim, err)
	}
	_, _ = io.WriteString(c, "abc")
	if codes, err := statuses(c); fmt.Sprint(codes) != "[200]" {
		t.Errorf("%v, %v", codes, err)
	}
}

// The body can still be read when the response has begun, and a response can be
// whole although the body was not read.
func TestBodyAndResponseOverlap(t *testing.T) {
	addr := start(t, &Server{Handler: environ.HandlerFunc(func(w environ.ResponseWriter, r *environ.Request) {
		var h environ.Header
		_ = h.SetStatus(200, "OK")
		_ = w.WriteHeader(&h)
		_ = w.Flush()
		if n, err := io.Copy(struct{ io.Writer }{w}, r.Body); n != r.ContentLength || err != nil {
			t.Errorf("echoed %d of %d bytes, %v", n, r.ContentLength, err)
		}
	})})
	body := bytes.Repeat([]byte("0123456789abcdef"), 200_000)
	c := dial(t, addr)
	go func() {
		fmt.Fprintf(c, "POST / HTTP/1.1\r\n"+host+"Connection: close\r\nContent-Length: %d\r\n\r\n", len(body))
		_, _ = c.Write(body)
	}()
	resp, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := io.ReadAll(resp.Body); err != nil || !bytes.Equal(got, body) {
		t.Errorf("%d bytes came back, %v", len(got), err)
	}
}

func TestFlushPassesABlockAtOnce(t *testing.T) {
	leave := make(chan struct{})
	addr := start(t, &Server{Handler: environ.HandlerFunc(func(w environ.ResponseWriter, r *environ.Request) {
		var h environ.Header
		_ = h.SetStatus(200, "OK")
		_ = w.WriteHeader(&h)
		_, _ = io.WriteString(w, "one")
		_ = w.Flush()
		<-leave
		_, _ = io.WriteString(w, "two")
	})})
	c := dial(t, addr)
	_, _ = io.WriteString(c, accepted[0])
	resp, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err != nil {
		t.Fatal(err)
	}
	block := make([]byte, 3)
	if _, err := io.ReadFull(resp.Body, block); err != nil || string(block) != "one" {
		t.Errorf("%q, %v", block, err)
	}
	close(leave)
	if rest, err := io.ReadAll(resp.Body); err != nil || string(rest) != "two" {
		t.Errorf("%q, %v", rest, err)
	}
}

func TestSendFile(t *testing.T) {
	content := bytes.Repeat([]byte("0123456789abcdef"), 1<<18)
	name := filepath.Join(t.TempDir(), "f")
	if err := os.WriteFile(name, content, 0o600); err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(name)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for _, withLength := range []bool{true, false} {
		for _, n := range []int64{0, 1, 511, 512, 5000, 4<<20 - 3} {
			addr := start(t, &Server{Handler: environ.HandlerFunc(func(w environ.ResponseWriter, r *environ.Request) {
				var h environ.Header
				_ = h.SetStatus(200, "OK")
				if withLength {
					_ = h.Add("Content-Length", fmt.Sprint(n))
				}
				_ = w.WriteHeader(&h)
				if sent, err := w.(environ.FileSender).SendFile(f, 3, n); sent != n || err != nil {
					t.Errorf("sent %d of %d, %v", sent, n, err)
				}
			})})
			c := dial(t, addr)
			_, _ = io.WriteString(c, accepted[0])
			resp, err := http.ReadResponse(bufio.NewReader(c), nil)
			if err != nil {
				t.Fatal(err)
			}
			if got, err := io.ReadAll(resp.Body); err != nil || !bytes.Equal(got, content[3:3+n]) {
				t.Errorf("length %t, n=%d: got %d bytes, %v", withLength, n, len(got), err)
			}
		}
	}
	if pos, _ := f.Seek(0, io.SeekCurrent); pos != 0 {
		t.Errorf("the file's position moved to %d", pos)
	}
}

func TestResponseHeader(t *testing.T) {
	addr := start(t, &Server{Handler: environ.HandlerFunc(func(w environ.ResponseWriter, r *environ.Request) {
		var h environ.Header
		_ = h.SetStatus(299, "Own Reason")
		for _, f := range [][2]string{{"x-lower", "1"}, {"Set-Cookie", "a"}, {"Set-Cookie", "b"}, {"content-length", "2"}, {"date", "then"}, {"SERVER", "own"}} {
			if err := h.Add(f[0], f[1]); err != nil {
				t.Error(err)
			}
		}
		_ = w.WriteHeader(&h)
		_, _ = io.WriteString(w, "ok")
	})})
	got := talk(t, addr, "GET / HTTP/1.1\r\n"+host+"Connection: close\r\n\r\n")
	want := "HTTP/1.1 299 status code 299\r\nContent-Length: 2\r\nDate: then\r\nSERVER: own\r\nSet-Cookie: a\r\nSet-Cookie: b\r\nx-lower: 1\r\nConnection: close\r\n\r\nok"
	if got != want {
		t.Errorf("got %q", got)
	}
}

// Neither Content-Type nor Content-Length is invented where there is no body,
// and Server and Date are given.
func TestResponseWithoutBody(t *testing.T) {
	for status, method := range map[int]string{204: "GET", 304: "GET", 200: "HEAD"} {
		addr := start(t, &Server{Handler: environ.HandlerFunc(func(w environ.ResponseWriter, r *environ.Request) {
			var h environ.Header
			_ = h.SetStatus(status, "x")
			_ = w.WriteHeader(&h)
			if n, err := io.WriteString(w, "body"); n != 4 || err != nil {
				t.Errorf("%d, %v", n, err)
			}
		})})
		got := talk(t, addr, method+" / HTTP/1.1\r\n"+host+"Connection: close\r\n\r\n")
		if !strings.HasSuffix(got, "\r\n\r\n") || strings.Contains(got, "Content-") || strings.Contains(got, "Transfer-") ||
			!strings.Contains(got, "Server: wsgigate\r\n") || !strings.Contains(got, "Date: ") {
			t.Errorf("%d: %q", status, got)
		}
	}
}

func TestTargets(t *testing.T) {
	addr := start(t, &Server{Handler: dump(t)})
	cases := []struct{ request, want string }{
		{"OPTIONS * HTTP/1.1\r\nHost: a\r\n", "REQUEST_URI=\"*\"\n"},
		{"OPTIONS * HTTP/1.1\r\nHost: a\r\n", "PATH_INFO=\"/\"\n"},
		{"GET http://b:8/c?d HTTP/1.1\r\nHost: a\r\n", "PATH_INFO=\"/c\"\n"},
		{"GET http://b:8/c?d HTTP/1.1\r\nHost: a\r\n", "HTTP_HOST=\"b:8\"\n"},
		{"GET http://b:8/c?d HTTP/1.1\r\nHost: a\r\n", "RAW_URI=\"http://b:8/c?d\"\n"},
		{"GET / HTTP/1.1\r\nHost: [::1]\r\n", "SERVER_NAME=\"[::1]\"\n"},
		{"GET / HTTP/1.1\r\nHost: [::1]:7\r\n", "SERVER_PORT=\"7\"\n"},
		{"GET / HTTP/1.1\r\nHost: a\r\n", "SERVER_PORT=\"" + addr[strings.LastIndexByte(addr, ':')+1:] + "\"\n"},
		{"GET / HTTP/1.0\r\n", "SERVER_NAME=\"127.0.0.1\"\n"},
		{"GET / HTTP/1.1\r\nHost:\r\n", "SERVER_NAME=\"127.0.0.1\"\n"},
		{"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n", "length=-1 body=\"\"\n"},
	}
	for _, c := range cases {
		tail := "Connection: close\r\n\r\n"
		if strings.Contains(c.request, "chunked") {
			tail += "0\r\n\r\n"
		}
		if got := talk(t, addr, c.request+tail); !strings.Contains(got, c.want) || strings.Contains(got, "HTTP_TRANSFER_ENCODING") {
			t.Errorf("%q: no %q in\n%s", c.request, c.want, got)
		}
	}
}

func TestShutdownWaitsForTheResponse(t *testing.T) {
	entered, leave := make(chan struct{}), make(chan struct{})
	s := &Server{Handler: environ.HandlerFunc(func(w environ.ResponseWriter, r *environ.Request) {
		close(entered)
		<-leave
		respond(t, w, 200, "whole")
	})}
	c := dial(t, start(t, s))
	_, _ = io.WriteString(c, accepted[0])
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

// The answer arrives although the handler never reads the body, larger than any
// socket buffer, and the client sends all of it first. What follows the body is
// not taken for a request.
func TestUnreadBody(t *testing.T) {
	addr := start(t, &Server{Handler: environ.HandlerFunc(func(w environ.ResponseWriter, r *environ.Request) {
		respond(t, w, 200, "early")
	})})
	const size = 32 << 20
	for _, head := range []string{"Content-Length: " + fmt.Sprint(size), fmt.Sprintf("Transfer-Encoding: chunked\r\n\r\n%x", size)} {
		tail := "\r\n\r\n"
		if strings.HasPrefix(head, "Transfer") {
			head, tail = head+"\r\n", "\r\n0\r\n\r\n"
		} else {
			head, tail = head+"\r\n\r\n", ""
		}
		c := dial(t, addr)
		_, _ = io.WriteString(c, "POST / HTTP/1.1\r\n"+host+head)
		if _, err := io.WriteString(c, strings.Repeat("x", size)+tail+accepted[0]); err != nil {
			t.Fatal(err)
		}
		if codes, err := statuses(c); fmt.Sprint(codes) != "[200]" || err != nil {
			t.Errorf("%q: %v, %v", head, codes, err)
		}
	}
}

// A small body that the handler does not read, broken or not, is not the next head.
func TestNoRequestBehindAnUnreadBody(t *testing.T) {
	calls := make(chan struct{}, 10)
	addr := start(t, &Server{Handler: environ.HandlerFunc(func(w environ.ResponseWriter, r *environ.Request) {
		calls <- struct{}{}
		respond(t, w, 200, "ok")
	})})
	for _, body := range []string{"0\r\n\r\n", "3\r\nabc\r\n0\r\n\r\n", "0\r\nX: " + strings.Repeat("x", 5000) + "\r\n\r\n", "0\r\nX:" + accepted[0]} {
		c := dial(t, addr)
		_, _ = io.WriteString(c, chunkedHead+body+accepted[0])
		if codes, err := statuses(c); fmt.Sprint(codes) != "[200]" || err != nil {
			t.Errorf("%.30q: %v, %v", body, codes, err)
		}
		<-calls
		if len(calls) > 0 {
			t.Fatalf("%.30q: another request was found", body)
		}
	}
}

// A drain does not outlast Shutdown's context.
func TestShutdownEndsADrain(t *testing.T) {
	s := &Server{Handler: dump(t)}
	addr := start(t, s)
	c := dial(t, addr)
	_, _ = io.WriteString(c, refusals[0].input)
	if _, err := http.ReadResponse(bufio.NewReader(c), nil); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Millisecond)
	defer cancel()
	began := time.Now()
	_ = s.Shutdown(ctx)
	if took := time.Since(began); took > 3*time.Second {
		t.Errorf("Shutdown took %v", took)
	}
}

// A large answer to a client that is still sending a body that nobody reads.
func TestLargeAnswerBesideUnreadBody(t *testing.T) {
	const size = 8 << 20
	addr := start(t, &Server{Handler: environ.HandlerFunc(func(w environ.ResponseWriter, r *environ.Request) {
		respond(t, w, 200, strings.Repeat("y", size))
	})})
	c := dial(t, addr)
	sent := make(chan error, 1)
	go func() {
		fmt.Fprintf(c, "POST / HTTP/1.1\r\n"+host+"Content-Length: %d\r\n\r\n", size)
		_, err := io.WriteString(c, strings.Repeat("x", size))
		sent <- err
	}()
	if got, err := io.ReadAll(c); err != nil || len(got) < size {
		t.Errorf("%d bytes, %v", len(got), err)
	}
	if err := <-sent; err != nil {
		t.Errorf("sending: %v", err)
	}
}

// Bytes of a body's end that were read with the head keep the connection.
func TestKeepAlive(t *testing.T) {
	addr := start(t, &Server{Handler: dump(t)})
	c := dial(t, addr)
	in := bufio.NewReader(c)
	for _, request := range []string{accepted[0], accepted[3], accepted[6], accepted[4], accepted[0]} {
		_, _ = io.WriteString(c, request)
		resp, err := http.ReadResponse(in, nil)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := io.Copy(io.Discard, resp.Body); err != nil || resp.StatusCode != 200 || resp.Close {
			t.Fatalf("%q: %v, %d, close %t", request, err, resp.StatusCode, resp.Close)
		}
	}
}
