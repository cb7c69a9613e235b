package integration

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"sync"
	"testing"
)

const (
	largeSize  = 1 << 30   // bytes of a large body; also the default of --max-body
	largeBlock = 64 << 10  // bytes of a block of /download
	mayGrow    = 32 << 20  // bytes that a process's peak memory may grow by
	patternLen = 1<<16 - 1 // bytes after which an upload repeats itself: no power of two
)

// TestLargeBodies: a body of 1 GiB goes through in either direction, and past an
// application that does not read it, in little memory.
func TestLargeBodies(t *testing.T) {
	s := launch(t, "accept_app:app", "--workers", "1")
	for _, transport := range transports {
		s.want(t, transport, post("/digest", []byte("warm")), 200)
		s.want(t, transport, get("/download?blocks=1"), 200)
	}
	for _, transport := range transports {
		t.Run(transport, func(t *testing.T) {
			t.Run("upload", func(t *testing.T) { s.inLittleMemory(t, transport, upload) })
			t.Run("download", func(t *testing.T) { s.inLittleMemory(t, transport, largeDownload) })
			t.Run("upload unread", func(t *testing.T) { s.inLittleMemory(t, transport, uploadUnread) })
		})
	}
}

// inLittleMemory runs a transfer and compares the peak memory of the gateway and
// its worker before and after it.
func (s *server) inLittleMemory(t *testing.T, transport string, transfer func(*testing.T, *server, string)) {
	pids := append(s.workers(t), s.cmd.Process.Pid)
	if len(pids) != 2 {
		t.Fatalf("processes %v, want one worker and the gateway", pids)
	}
	before := map[int]int64{}
	for _, pid := range pids {
		before[pid] = status(t, pid, "VmHWM")
	}
	transfer(t, s, transport)
	for i, pid := range pids {
		grown := status(t, pid, "VmHWM") - before[pid]
		name := [...]string{"worker", "gateway"}[i]
		t.Logf("%s: peak of %d KiB, grown by %d KiB", name, status(t, pid, "VmHWM")>>10, grown>>10)
		if grown > mayGrow {
			t.Errorf("%s: peak memory grown by %d MiB", name, grown>>20)
		}
	}
}

// upload sends a large body, whose digest the application answers.
func upload(t *testing.T, s *server, transport string) {
	m := message{target: "/digest", body: largeBody(), length: largeSize}
	got := decode[map[string]any](t, s.want(t, transport, m, 200).body)
	if got["length"] != float64(largeSize) || got["sha256"] != largeDigest() {
		t.Errorf("the application got %v, want %s", got, largeDigest())
	}
}

// uploadUnread sends a large body that the application does not read: it gets an
// answer, and the gateway reads no more than it must.
func uploadUnread(t *testing.T, s *server, transport string) {
	m := message{target: "/unread", body: largeBody(), length: largeSize}
	got := decode[map[string]any](t, s.want(t, transport, m, 200).body)
	if got["unread"] != true {
		t.Errorf("answer %v", got)
	}
	s.want(t, transport, get("/pid"), 200)
}

func largeDownload(t *testing.T, s *server, transport string) {
	var check blockChecker
	m := get(fmt.Sprintf("/download?blocks=%d", largeSize/largeBlock))
	m.into = &check
	s.want(t, transport, m, 200)
	if check.size != largeSize {
		t.Errorf("%d bytes, want %d", check.size, int64(largeSize))
	}
}

// largeBody is largeSize bytes that repeat a pattern.
func largeBody() io.Reader { return io.LimitReader(&repeated{pattern: pattern()}, largeSize) }

func pattern() []byte {
	p := make([]byte, patternLen)
	for i := range p {
		p[i] = byte(i * i >> 3)
	}
	return p
}

// largeDigest is the digest of largeBody.
var largeDigest = sync.OnceValue(func() string {
	sha := sha256.New()
	if _, err := io.Copy(sha, largeBody()); err != nil {
		return err.Error()
	}
	return hex.EncodeToString(sha.Sum(nil))
})

// repeated reads the pattern again and again.
type repeated struct {
	pattern []byte
	at      int
}

func (r *repeated) Read(p []byte) (int, error) {
	n := copy(p, r.pattern[r.at:])
	r.at = (r.at + n) % len(r.pattern)
	return n, nil
}

// blockChecker takes the body of /download and checks that no block is missing,
// moved or damaged.
type blockChecker struct {
	size int64
	want [largeBlock]byte
}

func (c *blockChecker) Write(p []byte) (int, error) {
	for rest := p; len(rest) > 0; {
		at := int(c.size % largeBlock)
		if at == 0 {
			copy(c.want[:], bytes.Repeat([]byte{'.'}, largeBlock))
			copy(c.want[:], fmt.Sprintf("%08d", c.size/largeBlock))
		}
		n := min(len(rest), largeBlock-at)
		if !bytes.Equal(rest[:n], c.want[at:at+n]) {
			return 0, fmt.Errorf("block %d is not what the application sent", c.size/largeBlock)
		}
		c.size += int64(n)
		rest = rest[n:]
	}
	return len(p), nil
}
