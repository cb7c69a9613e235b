package integration

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"golang.org/x/sys/unix"
)

// spaceApp answers as the query says: "late" sleeps before it reads the body, "down" has
// a large answer.
const spaceApp = `
import json, time

def app(environ, start_response):
    query = environ["QUERY_STRING"]
    if query == "late":
        time.sleep(0.5)
    got, stream = 0, environ["wsgi.input"]
    while True:
        block = stream.read(65536)
        if not block:
            break
        got += len(block)
    body = json.dumps({"got": got}).encode()
    start_response("200 OK", [("Content-Type", "text/plain")])
    yield body
    if query == "down":
        for _ in range(128):
            yield b" " * 65536
`

// TestFaultNoSpace: a temporary folder that is full, or too small for a body, costs at
// most the requests that need it, and those get 507 or 503; nothing is left in it (row
// 49). Bodies of 8 MiB go both ways, several at once, over all transports; the log
// is on a full disk, too.
func TestFaultNoSpace(t *testing.T) {
	t.Parallel()
	const size = 8 << 20
	s := prepare(t)
	tmp := filepath.Join(s.dir, "tmp")
	mkdir(t, tmp)
	write(t, filepath.Join(s.apps(), "space_app.py"), spaceApp)
	command := []string{"unshare", "--mount"}
	if os.Geteuid() != 0 {
		command = append(command, "--user", "--map-root-user")
	}
	command = append(command, "sh", "-c", "mount -t tmpfs -o size=64k none "+tmp+" && TMPDIR="+tmp+" exec \"$@\"", "sh")
	s.start(t, command, binary(t), "--workers", "1", "--threads", "3", "--access-log", "/dev/full", "space_app:app",
		"--fastcgi", "unix:"+s.addrs["fastcgi"], "--scgi", s.addrs["scgi"], "--http", s.addrs["http"])
	s.awaitAnnounced(t)
	body := bytes.Repeat([]byte("b"), size)
	for _, query := range []string{"", "late", "down"} {
		var group sync.WaitGroup
		for range 2 {
			for _, transport := range transports {
				group.Go(func() {
					a := s.ask(transport, post("/?"+query, body))
					if a.status == 503 || a.status == 507 {
						return
					}
					var facts struct{ Got int }
					err := json.NewDecoder(bytes.NewReader(a.body)).Decode(&facts)
					if a.err != nil || a.status != 200 || err != nil || facts.Got != size {
						t.Errorf("%s ?%s: status %d, error %v, the application got %d: %v", transport, query, a.status, a.err, facts.Got, err)
					}
				})
			}
		}
		group.Wait()
	}
	s.wantSpoolError(t, body)
	// What the gateway sees of the folder, which is mounted for it alone.
	seen := fmt.Sprintf("/proc/%d/root%s", s.cmd.Process.Pid, tmp)
	var st unix.Statfs_t
	if err := unix.Statfs(seen, &st); err != nil || st.Blocks*uint64(st.Bsize) != 64<<10 {
		t.Fatalf("%s has %d blocks: %v", seen, st.Blocks, err)
	}
	s.await(t, "empty folder", stopTime, func() bool {
		err := unix.Statfs(seen, &st)
		return err == nil && entries(seen) == 0 && st.Bfree == st.Blocks
	})
	s.signal(t, sigterm)
	if code := s.awaitExit(t, stopTime); code != 0 {
		t.Errorf("exit status %d", code)
	}
	if entries(tmp) != 0 {
		t.Error("something was left behind")
	}
}

// wantSpoolError sends a large body that the application does not read yet, on a
// connection that another request shares: that one must not wait, so the body goes to
// a file, for which there is no room.
func (s *server) wantSpoolError(t *testing.T, body []byte) {
	t.Helper()
	conn := s.connect(t, "fastcgi")
	large, small := post("/?late", body), get("/")
	raw := append(openFastCGI(1, large.variables()), openFastCGI(2, small.variables())...)
	raw[10] = 1 // FCGI_KEEP_CONN, in the flags of BEGIN_REQUEST
	for rest := body; len(rest) > 0; {
		n := min(len(rest), 32<<10)
		raw = record(raw, fcgiStdin, 1, rest[:n])
		rest = rest[n:]
	}
	raw = record(record(raw, fcgiStdin, 1, nil), fcgiStdin, 2, nil)
	sent := make(chan struct{})
	go func() { // ends with the answers, or the connection
		defer close(sent)
		_, _ = conn.Write(raw)
	}()
	answers := map[uint16]*bytes.Buffer{1: {}, 2: {}}
	for ended := 0; ended < len(answers); {
		kind, id, content, err := readRecord(conn)
		if err != nil {
			t.Fatalf("%v after %q and %q", err, answers[1], answers[2])
		}
		switch kind {
		case fcgiStdout:
			answers[id].Write(content)
		case fcgiEnd:
			ended++
		}
	}
	<-sent
	if a := large.receive("fastcgi", answers[1]); a.err != nil || a.status != 507 {
		t.Errorf("a body without room: status %d, %v, %q, want 507", a.status, a.err, a.body)
	}
	if a := small.receive("fastcgi", answers[2]); a.err != nil || a.status != 200 {
		t.Errorf("beside it: status %d, %v, %q", a.status, a.err, a.body)
	}
}
