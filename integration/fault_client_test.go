package integration

import (
	"bytes"
	"fmt"
	"io"
	"net"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"
)

// TestFaultClientGone: when the client goes away the application's iteration stops,
// its close() is called, and the worker takes the next request (row 37).
func TestFaultClientGone(t *testing.T) {
	t.Parallel()
	s := launch(t, "fault_app:app", "--workers", "1")
	pid := s.worker(t, "http")
	for i, transport := range transports {
		for j, target := range []string{"/endless", "/endless?pause=0.01&size=10"} { // fills every buffer, and none
			conn := s.connect(t, transport)
			if _, err := conn.Write(get(target).opening(transport)); err != nil {
				t.Fatal(err)
			}
			if transport == "fastcgi" {
				if _, err := conn.Write(record(nil, fcgiStdin, 1, nil)); err != nil {
					t.Fatal(err)
				}
			}
			if _, err := io.ReadFull(conn, make([]byte, 100)); err != nil {
				t.Fatal(err)
			}
			conn.Close()
			s.await(t, "close() over "+transport, startTime, func() bool {
				return strings.Count(s.text(t), fmt.Sprintf("closed by %d", pid)) == 2*i+j+1
			})
			if after := s.worker(t, transport); after != pid {
				t.Errorf("%s: worker %d was replaced by %d", transport, pid, after)
			}
		}
	}
	line := s.awaitLog(t, `request=\d+ pid=\d+ phase=answer .*uri=.*endless`)
	if regexp.MustCompile("ERROR").MatchString(line) {
		t.Errorf("a client that goes is no error: %s", line)
	}
}

// TestFaultAbort: FCGI_ABORT_REQUEST ends the request with one END_REQUEST; its
// id serves the next, which gets nothing of the first (row 38).
func TestFaultAbort(t *testing.T) {
	t.Parallel()
	s := launch(t, "fault_app:app", "--workers", "1")
	conn := s.connect(t, "fastcgi")
	begin := func(target string) []byte {
		raw := record(get(target).opening("fastcgi"), fcgiStdin, 1, nil)
		raw[10] = 1 // FCGI_KEEP_CONN, in the flags of BEGIN_REQUEST
		return raw
	}
	for range 20 {
		if _, err := conn.Write(begin("/endless")); err != nil {
			t.Fatal(err)
		}
		if _, _, content, err := readRecord(conn); err != nil || !bytes.HasPrefix(content, []byte("Status: 200")) {
			t.Fatalf("%q, %v", content, err)
		}
		if _, err := conn.Write(record(nil, fcgiAbort, 1, nil)); err != nil {
			t.Fatal(err)
		}
		if _, err := io.Copy(io.Discard, &fcgiFrom{conn: conn, id: 1}); err != nil {
			t.Fatalf("after the abort: %v", err)
		}
		if _, err := conn.Write(begin("/ok")); err != nil {
			t.Fatal(err)
		}
		a := get("/ok").receive("fastcgi", &fcgiFrom{conn: conn, id: 1})
		if a.err != nil || a.status != 200 || !bytes.HasPrefix(a.body, []byte(`{"pid"`)) {
			t.Fatalf("next request: status %d, %v, %q", a.status, a.err, a.body)
		}
	}
}

// TestFaultSlowPeers: clients that are slow with their header, their body or with
// reading hold no worker: the one there is answers others (rows 39 to 41).
func TestFaultSlowPeers(t *testing.T) {
	t.Parallel()
	const each = 20
	for _, transport := range transports {
		t.Run(transport, func(t *testing.T) {
			t.Parallel()
			s := launch(t, "fault_app:app", "--workers", "1", "--timeout", "10s")
			before := status(t, s.cmd.Process.Pid, "VmHWM")
			for range each {
				slow := post("/ok", make([]byte, 900<<10)) // below the bound of what is read ahead
				opening := slow.opening(transport)
				s.write(t, transport, opening[:len(opening)/2])
				if transport == "fastcgi" {
					opening = record(opening, fcgiStdin, 1, make([]byte, 60<<10))
				} else {
					opening = append(opening, make([]byte, 600<<10)...)
				}
				s.write(t, transport, opening)
			}
			for range each {
				raw := get("/blocks?900").opening(transport) // below that of what is buffered
				if transport == "fastcgi" {
					raw = record(raw, fcgiStdin, 1, nil)
				}
				conn := s.write(t, transport, raw)
				if _, err := io.ReadFull(conn, make([]byte, 10)); err != nil {
					t.Fatal(err)
				}
			}
			for range 2 * each {
				asked := time.Now()
				s.worker(t, transport)
				if took := time.Since(asked); took > 5*time.Second {
					t.Errorf("a fast client waits %v", took)
				}
			}
			if grown := status(t, s.cmd.Process.Pid, "VmHWM") - before; grown > each*4<<20 {
				t.Errorf("the gateway's peak memory grew by %d MiB for %d slow clients", grown>>20, 3*each)
			}
		})
	}
}

// write opens a connection that stays, and sends bytes.
func (s *server) write(t testing.TB, transport string, raw []byte) net.Conn {
	t.Helper()
	conn := s.connect(t, transport)
	if _, err := conn.Write(raw); err != nil {
		t.Fatal(err)
	}
	return conn
}

// TestFaultLengths: a body that is not what its length says, or over the limit, is
// refused and the application not called (rows 44 and 45).
func TestFaultLengths(t *testing.T) {
	t.Parallel()
	s := launch(t, "fault_app:app", "--workers", "1", "--max-body", "64KiB")
	for _, c := range []struct {
		name    string
		lengths []string
		body    string
		status  int
	}{
		{"signed", []string{"+5"}, "hello", 400},
		{"negative", []string{"-5"}, "hello", 400},
		{"hexadecimal", []string{"0x5"}, "hello", 400},
		{"with a space", []string{"5 5"}, "hello", 400},
		{"words", []string{"five"}, "hello", 400},
		{"twice", []string{"5", "6"}, "hello", 400},
		{"too large for a number", []string{strings.Repeat("9", 40)}, "hello", 413},
		{"0x7fffffff", []string{"2147483647"}, "hello", 413},
		{"0xffffffff", []string{"4294967295"}, "hello", 413},
		{"over the limit", []string{"65537"}, "hello", 413},
		{"body ends early", []string{"6"}, "hello", 400},
	} {
		for _, transport := range transports {
			t.Run(c.name+" "+transport, func(t *testing.T) {
				a := s.send(t, transport, withBody(transport, "/count", c.lengths, []byte(c.body)), true)
				refused := a.status == c.status || a.status == 400 && transport == "http"
				if !refused && (transport == "fastcgi" || a.status != 0) {
					t.Errorf("status %d, %v; want %d", a.status, a.err, c.status)
				}
			})
		}
	}
	if exists(filepath.Join(s.apps(), "called")) {
		t.Error("the application was called")
	}
	for _, transport := range transports {
		s.want(t, transport, post("/count", make([]byte, 64<<10)), 200)
	}
	// Empty is none, but SCGI demands digits.
	for transport, want := range map[string]int{"fastcgi": 200, "scgi": 400} {
		if a := s.send(t, transport, withBody(transport, "/ok", []string{""}, nil), false); a.status != want {
			t.Errorf("%s: an empty CONTENT_LENGTH: status %d, %v; want %d", transport, a.status, a.err, want)
		}
	}
}

// TestFaultHTTP: what could hide a second request is refused and ends the
// connection; so does a chunked body without an end (rows 44 and 46).
func TestFaultHTTP(t *testing.T) {
	t.Parallel()
	s := launch(t, "fault_app:app", "--workers", "1", "--max-body", "64KiB")
	const head = "POST /count HTTP/1.1\r\nHost: localhost\r\n"
	const hidden = "GET /count?hidden HTTP/1.1\r\nHost: localhost\r\n\r\n"
	for name, c := range map[string]struct {
		raw    string
		status int
	}{
		"both lengths":     {head + "Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n" + hidden, 400},
		"bare LF":          {"POST /count HTTP/1.1\nHost: localhost\nContent-Length: 0\n\n" + hidden, 400},
		"bad chunk":        {head + "Transfer-Encoding: chunked\r\n\r\nzz\r\nhello\r\n0\r\n\r\n" + hidden, 400},
		"signed chunk":     {head + "Transfer-Encoding: chunked\r\n\r\n+5\r\nhello\r\n0\r\n\r\n" + hidden, 400},
		"space and colon":  {head + "Content-Length : 5\r\n\r\nhello" + hidden, 400},
		"folded":           {head + "X-A: 1\r\n X-B: 2\r\n\r\n" + hidden, 400},
		"no host":          {"GET /count HTTP/1.1\r\n\r\n" + hidden, 400},
		"NUL":              {head + "X-A: \x00\r\n\r\n" + hidden, 400},
		"endless chunks":   {head + "Transfer-Encoding: chunked\r\n\r\n" + strings.Repeat("1000\r\n"+strings.Repeat("a", 4096)+"\r\n", 500), 413},
		"unknown encoding": {head + "Transfer-Encoding: gzip\r\n\r\n" + hidden, 501},
	} {
		t.Run(name, func(t *testing.T) {
			conn := s.connect(t, "http")
			go func() { _, _ = io.WriteString(conn, c.raw) }() // ends with the connection
			text, _ := io.ReadAll(conn)                        // a reset behind the answer is fine
			if n := bytes.Count(text, []byte("HTTP/1.1 ")); n != 1 || !bytes.HasPrefix(text, fmt.Appendf(nil, "HTTP/1.1 %d ", c.status)) {
				t.Errorf("%d answers, want one %d: %.300q", n, c.status, text)
			}
		})
	}
	if exists(filepath.Join(s.apps(), "called")) {
		t.Error("the application was called")
	}
	s.worker(t, "http")
}
