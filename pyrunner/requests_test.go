package pyrunner

import (
	"bytes"
	"errors"
	"os"
	"sync"
	"testing"

	"golang.org/x/sys/unix"
)

func newRequests(t testing.TB) *requestSocket {
	t.Helper()
	q, theirs, err := newRequestSocket()
	if err != nil {
		t.Fatal(err)
	}
	_ = theirs.Close()
	t.Cleanup(q.close)
	return q
}

func requestFrame(id uint32, size int) []byte {
	return appendFrame(nil, frameRequest, 0, id, make([]byte, size))
}

func mustSend(t testing.TB, q *requestSocket, ids ...uint32) {
	t.Helper()
	for _, id := range ids {
		if whole, err := q.send(requestFrame(id, 100)); !whole || err != nil {
			t.Fatalf("request %d: whole %v, %v", id, whole, err)
		}
	}
}

func TestTakeBack(t *testing.T) {
	t.Parallel()
	for name, row := range map[string]struct {
		sent  []uint32
		read  int // by the worker
		take  uint32
		over  bool
		taken bool
		left  []uint32
	}{
		"nothing there":            {nil, 0, 1, false, false, nil},
		"nothing there, over":      {nil, 0, 1, true, false, nil},
		"alone":                    {[]uint32{7}, 0, 7, false, true, nil},
		"alone, over":              {[]uint32{7}, 0, 7, true, true, nil},
		"read":                     {[]uint32{7}, 1, 7, false, false, nil},
		"behind one that was read": {[]uint32{6, 7}, 1, 7, false, true, nil},
		"behind another":           {[]uint32{6, 7}, 0, 7, false, false, []uint32{6, 7}},
		"behind one that is over":  {[]uint32{6, 7}, 0, 7, true, true, nil},
		"read, over":               {[]uint32{6, 7}, 2, 7, true, false, nil},
	} {
		q := newRequests(t)
		mustSend(t, q, row.sent...)
		for range row.read {
			q.next(0)
		}
		if taken := q.takeBack(row.take, row.over); taken != row.taken {
			t.Errorf("%s: taken %v", name, taken)
		}
		for _, want := range append(row.left, 0) {
			if got := q.next(0); got != want {
				t.Errorf("%s: %d is left, want %d", name, got, want)
			}
		}
	}
}

// TestTakeBackOrRead: of the gateway and the worker exactly one gets a packet,
// also while another one is dropped before it.
func TestTakeBackOrRead(t *testing.T) {
	t.Parallel()
	q := newRequests(t)
	var taken, read int
	for n := uint32(1); n < 1200; n += 2 {
		mustSend(t, q, n, n+1)
		var group sync.WaitGroup
		group.Add(1)
		worker := map[uint32]bool{}
		go func() {
			defer group.Done()
			worker[q.next2(t)] = true
			worker[q.next2(t)] = true
		}()
		mine := q.takeBack(n+1, n%4 == 1)
		group.Wait()
		if mine == worker[n+1] {
			t.Fatalf("request %d: taken back %v, read by the worker %v", n+1, mine, worker[n+1])
		}
		if mine {
			taken++
		} else {
			read++
		}
		for q.next(0) != 0 { // the worker looked too early
		}
	}
	t.Logf("taken back %d, read %d", taken, read)
}

// next2 is next for the worker, without the lock that the gateway has.
func (q *requestSocket) next2(t testing.TB) uint32 {
	fds := []unix.PollFd{{Fd: int32(q.theirs), Events: unix.POLLIN}}
	if _, err := unix.Poll(fds, 1); err != nil && err != unix.EINTR {
		t.Error(err)
	}
	return q.next(0)
}

func TestSendPackets(t *testing.T) {
	t.Parallel()
	q := newRequests(t)
	longest := requestFrame(1, maxPacket-headLen)
	if whole, err := q.send(longest); !whole || err != nil {
		t.Fatalf("the longest packet: whole %v, %v", whole, err)
	}
	buf := make([]byte, maxPacket+1)
	if n, _, err := unix.Recvfrom(q.theirs, buf, unix.MSG_DONTWAIT); err != nil || !bytes.Equal(buf[:n], longest) {
		t.Errorf("the longest packet: %d bytes, %v", n, err)
	}
	if whole, err := q.send(requestFrame(2, maxPacket-headLen+1)); whole || err != nil {
		t.Errorf("a longer one: whole %v, %v", whole, err)
	}
	if n, _, err := unix.Recvfrom(q.theirs, buf, unix.MSG_DONTWAIT); err != nil || !bytes.Equal(buf[:n], appendFrame(nil, frameRequest, 0, 0, nil)) {
		t.Errorf("what announces it: %x, %v", buf[:max(n, 0)], err)
	}
	var err error
	sent := 0
	for ; err == nil; sent++ {
		_, err = q.send(longest)
	}
	if !errors.Is(err, errAgain) || sent < 2 {
		t.Errorf("packet %d: %v", sent, err)
	}
}

func TestRequestSocketAtItsEnd(t *testing.T) {
	t.Parallel()
	q := newRequests(t)
	mustSend(t, q, 1, 2)
	q.shut()
	if _, err := q.send(requestFrame(3, 0)); !errors.Is(err, unix.EPIPE) {
		t.Errorf("sent after shut: %v", err)
	}
	if q.takeBack(3, false) || !q.takeBack(2, true) || q.takeBack(2, true) {
		t.Error("what was sent before cannot be taken back, once")
	}
	q.close()
	q.close()
	q.shut()
	if _, err := q.send(requestFrame(4, 0)); !errors.Is(err, os.ErrClosed) {
		t.Errorf("sent after close: %v", err)
	}
	if q.takeBack(4, true) {
		t.Error("taken back after close")
	}
}
