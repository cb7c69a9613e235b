package pyrunner

import (
	"encoding/binary"
	"io"
	"net"
	"os"
	"os/exec"
	"testing"
	"time"
)

// fakeWorker puts a worker into a pool whose process only sleeps; the test
// speaks for it over the connection that is returned. An unkillable one is not
// reaped before the test's end, so that it seems to survive SIGKILL.
func fakeWorker(t testing.TB, p *Pool, unkillable bool) (*worker, *net.UnixConn) {
	t.Helper()
	w := &worker{queue: &p.queue, gen: p.gen, gone: make(chan struct{}), abandoned: make(chan struct{}), begun: time.Now()}
	s, peer := fakeSlot(t, w)
	w.slots = []*slot{s}
	dump, theirs, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	w.dump = dump
	cmd := exec.Command("sleep", "60")
	cmd.SysProcAttr = workerAttributes()
	if err := p.spawner.start(cmd); err != nil {
		t.Fatal(err)
	}
	_ = theirs.Close()
	w.proc = execProcess{cmd}
	w.pid = w.proc.pid()
	w.logs = p.logWorker(w)
	reaped, release := make(chan struct{}), make(chan struct{})
	if !unkillable {
		close(release)
	}
	go func() {
		defer close(reaped)
		<-release
		w.exit = w.proc.wait()
		close(w.gone)
		p.post(event{kind: eventExit, worker: w})
	}()
	t.Cleanup(func() {
		if unkillable {
			close(release)
		}
		_ = cmd.Process.Kill()
		<-reaped
	})
	adopted := make(chan struct{})
	p.post(event{kind: eventAdopt, worker: w, done: adopted})
	<-adopted
	p.post(event{kind: eventStarted})
	return w, peer
}

// fakeSlot returns a slot of w and the worker's end of it.
func fakeSlot(t testing.TB, w *worker) (*slot, *net.UnixConn) {
	t.Helper()
	s, theirs, err := newSlot(w)
	if err != nil {
		t.Fatal(err)
	}
	defer theirs.Close()
	conn, err := net.FileConn(theirs)
	if err != nil {
		t.Fatal(err)
	}
	return s, conn.(*net.UnixConn)
}

// awaitRequest reads a REQUEST frame and returns its head.
func awaitRequest(t testing.TB, peer *net.UnixConn) frameHead {
	t.Helper()
	head, _, err := readFrame(peer)
	if err != nil {
		t.Fatal(err)
	}
	if head.kind != frameRequest {
		t.Fatalf("frame 0x%02x instead of REQUEST", head.kind)
	}
	return head
}

// readFrame reads a frame of either side.
func readFrame(from io.Reader) (frameHead, []byte, error) {
	var b [headLen]byte
	if _, err := io.ReadFull(from, b[:]); err != nil {
		return frameHead{}, nil, err
	}
	head := frameHead{kind: frameType(b[0]), flags: b[1], request: binary.LittleEndian.Uint32(b[8:])}
	head.payload = int(binary.LittleEndian.Uint32(b[4:])) - 4
	payload := make([]byte, head.payload)
	_, err := io.ReadFull(from, payload)
	return head, payload, err
}
