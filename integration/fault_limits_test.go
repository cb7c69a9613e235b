package integration

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestFaultHugeHeaders: variables over the limit end with 431 or a closed
// connection, and take no memory (rows 42 and S5).
func TestFaultHugeHeaders(t *testing.T) {
	t.Parallel()
	s := launch(t, "fault_app:app", "--workers", "1")
	for _, transport := range transports {
		s.worker(t, transport)
	}
	before := status(t, s.cmd.Process.Pid, "VmHWM")
	long := strings.Repeat("v", 40<<10)
	for _, transport := range transports {
		m := get("/ok")
		m.fields = [][2]string{{"X-One", long}, {"X-Two", long}}
		a := s.send(t, transport, append(m.opening(transport), stdinEnd(transport)...), false)
		if a.status != 431 && (a.status != 0 || transport == "http") {
			t.Errorf("%s: 80 KiB of headers: status %d, %v", transport, a.status, a.err)
		}
		conn := s.write(t, transport, endless[transport].begin)
		again := bytes.Repeat(endless[transport].again, 1+largeBlock/len(endless[transport].again))
		began := time.Now()
		sent, err := io.CopyBuffer(writerOnly{conn}, &repeated{pattern: again}, make([]byte, largeBlock))
		if !errors.Is(err, unix.EPIPE) && !errors.Is(err, unix.ECONNRESET) {
			t.Errorf("%s: an endless header, after %d MiB and %v: %v", transport, sent>>20, time.Since(began), err)
		}
		t.Logf("%s: the gateway closed after %d KiB and %v", transport, sent>>10, time.Since(began))
	}
	for name, raw := range map[string]string{
		"fastcgi": string(record(nil, fcgiBegin, 1, []byte{0, 1, 0, 0, 0, 0, 0, 0})) + string(record(nil, fcgiParams, 1, []byte("\xff\xff\xff\xff\xff\xff\xff\xffNAME"))),
		"scgi":    "4294967295:CONTENT_LENGTH\x00",
	} {
		if a := s.send(t, name, []byte(raw), false); a.status != 431 && (a.status != 0 || a.err == nil) {
			t.Errorf("%s: a length of 0xffffffff: status %d, %v", name, a.status, a.err)
		}
	}
	if grown := status(t, s.cmd.Process.Pid, "VmHWM") - before; grown > mayGrow/2 {
		t.Errorf("the gateway's peak memory grew by %d MiB", grown>>20)
	}
	s.worker(t, "fastcgi")
}

// endless is how a header begins that goes on for ever, and how it goes on.
var endless = map[string]struct{ begin, again []byte }{
	"fastcgi": {
		record(nil, fcgiBegin, 1, []byte{0, 1, 0, 0, 0, 0, 0, 0}),
		record(nil, fcgiParams, 1, bytes.Repeat([]byte("\x06\x06HTTP_Xvalues"), 1000)),
	},
	"scgi": {[]byte("70000000:CONTENT_LENGTH\x000\x00SCGI\x001\x00"), []byte("HTTP_X\x00values\x00")},
	"http": {[]byte("GET /ok HTTP/1.1\r\n"), []byte("X-A: values\r\n")},
}

// stdinEnd ends the body of a FastCGI request.
func stdinEnd(transport string) []byte {
	if transport == "fastcgi" {
		return record(nil, fcgiStdin, 1, nil)
	}
	return nil
}

// TestFaultManyRequests: one FastCGI connection cannot open requests without bound
// (row 43).
func TestFaultManyRequests(t *testing.T) {
	t.Parallel()
	s := launch(t, "fault_app:app", "--workers", "1")
	s.worker(t, "fastcgi")
	before := status(t, s.cmd.Process.Pid, "VmHWM")
	conn := s.connect(t, "fastcgi")
	go func() { // ends with the connection
		params := record(nil, fcgiParams, 0, bytes.Repeat([]byte("\x06\x06HTTP_Xvalues"), 50))
		for id := 1; id <= 0xffff; id++ {
			raw := record(nil, fcgiBegin, uint16(id), []byte{0, 1, 1, 0, 0, 0, 0, 0})
			params[2], params[3] = byte(id>>8), byte(id)
			if _, err := conn.Write(append(raw, params...)); err != nil {
				return
			}
		}
	}()
	refused := 0
	for refused < 1000 {
		kind, _, content, err := readRecord(conn)
		if err != nil {
			break // a closed connection is an answer too
		}
		if kind == fcgiEnd && content[4] == 1 { // FCGI_CANT_MPX_CONN
			refused++
		}
	}
	conn.Close()
	t.Logf("%d requests refused", refused)
	if grown := status(t, s.cmd.Process.Pid, "VmHWM") - before; grown > mayGrow {
		t.Errorf("the gateway's peak memory grew by %d MiB", grown>>20)
	}
	s.worker(t, "fastcgi")
}

// TestFaultDescriptors: a gateway that runs out of descriptors waits, without
// spinning, and goes on when there are some again (row 50).
func TestFaultDescriptors(t *testing.T) {
	t.Parallel()
	for _, transport := range transports {
		t.Run(transport, func(t *testing.T) {
			t.Parallel()
			s := launch(t, "fault_app:app", "--workers", "1")
			pid := s.worker(t, transport)
			limit := uint64(s.descriptors(t) + 5)
			if err := unix.Prlimit(s.cmd.Process.Pid, unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: limit, Max: limit}, nil); err != nil {
				t.Fatal(err)
			}
			var crowd []net.Conn
			for range 40 {
				crowd = append(crowd, s.connect(t, transport))
			}
			s.awaitLog(t, "(?i)accept.*too many open files")
			used := s.cpuTime(t)
			time.Sleep(window) // a spinning gateway would use all of it
			if used = s.cpuTime(t) - used; used > window/4 {
				t.Errorf("%v of processor time in %v without descriptors", used, window)
			}
			if n := strings.Count(s.text(t), "too many open files"); n > 100 {
				t.Errorf("%d lines about it", n)
			}
			for _, conn := range crowd {
				conn.Close()
			}
			if after := s.worker(t, transport); after != pid {
				t.Errorf("worker %d was replaced by %d", pid, after)
			}
		})
	}
}

// cpuTime is the processor time of the gateway so far.
func (s *server) cpuTime(t *testing.T) time.Duration {
	own := cpuFields(t, fmt.Sprintf("/proc/%d/stat", s.cmd.Process.Pid), ") ")
	return time.Duration(own[11]+own[12]) * time.Second / userHz
}
