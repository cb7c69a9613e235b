package pyrunner

import (
	"encoding/binary"
	"errors"
	"os"
	"sync"
	"unsafe"

	"golang.org/x/sys/unix"
)

// requestSocket carries the requests of a slot to its worker, each as one packet
// (SOCK_SEQPACKET). They have a socket of their own because a reader that waits on
// a unix stream is also woken whenever its peer takes what it wrote before: a
// worker would wake twice for each request.
//
// The gateway keeps the worker's end too, so that it can take back a request
// that the worker has not read.
type requestSocket struct {
	mu     sync.Mutex // held by every use of the descriptors, against close
	ours   int
	theirs int
	closed bool
	passed uint32 // the unread request that was dropped to take back the one behind it
}

// maxPacket is the size in bytes of a request that goes as a packet. A longer one
// goes on the slot's stream, announced by a packet that is a bare head.
const maxPacket = 128 << 10

// errAgain says that the packet does not fit behind those that wait.
var errAgain = errors.New("request socket is full")

// newRequestSocket returns the socket and the worker's end, for the child only.
func newRequestSocket() (*requestSocket, *os.File, error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, os.NewSyscallError("socketpair", err)
	}
	// Two packets have to fit, whatever net.core.wmem_default is.
	_ = unix.SetsockoptInt(fds[0], unix.SOL_SOCKET, unix.SO_SNDBUF, 2*maxPacket)
	q := &requestSocket{ours: fds[0]}
	q.theirs, err = unix.FcntlInt(uintptr(fds[1]), unix.F_DUPFD_CLOEXEC, 3)
	if err != nil {
		return nil, nil, errors.Join(os.NewSyscallError("fcntl", err), unix.Close(fds[0]), unix.Close(fds[1]))
	}
	return q, os.NewFile(uintptr(fds[1]), "requests of the worker"), nil
}

// send puts a REQUEST frame into the socket. It does not wait. It returns false
// if the frame is too long and has to follow on the stream.
func (q *requestSocket) send(frame []byte) (whole bool, err error) {
	packet := frame
	if len(frame) > maxPacket {
		packet = appendFrame(nil, frameRequest, 0, 0, nil)
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.closed {
		return false, os.ErrClosed
	}
	for {
		_, _, errno := unix.RawSyscall6(unix.SYS_SENDTO, uintptr(q.ours), uintptr(unsafe.Pointer(unsafe.SliceData(packet))), uintptr(len(packet)), unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL, 0, 0)
		switch errno {
		case 0:
			return len(packet) == len(frame), nil
		case unix.EINTR:
		case unix.EAGAIN:
			return false, errAgain
		default:
			return false, os.NewSyscallError("send", errno)
		}
	}
}

// takeBack takes an unread request, the last that was sent, out again. It returns
// false if the worker has it. If another one lies before it, that is dropped if
// it is over, and can be taken back afterwards; else takeBack leaves both and returns
// false.
func (q *requestSocket) takeBack(request uint32, over bool) bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	switch {
	case q.closed:
		return false
	case q.passed == request:
		q.passed = 0
		return true
	case !over && q.next(unix.MSG_PEEK) != request:
		return false
	}
	for {
		switch next := q.next(0); next {
		case request:
			return true
		case 0:
			return false
		default:
			q.passed = next
		}
	}
}

// next takes the next unread packet, or looks at it, and returns the id of its
// request; 0 if there is none.
func (q *requestSocket) next(flags int) uint32 {
	var head [headLen]byte // the rest of the packet is dropped
	n, _, err := unix.Recvfrom(q.theirs, head[:], flags|unix.MSG_DONTWAIT)
	if err != nil || n < headLen {
		return 0
	}
	return binary.LittleEndian.Uint32(head[8:])
}

// shut tells the worker that no more requests come.
func (q *requestSocket) shut() {
	q.mu.Lock()
	defer q.mu.Unlock()
	if !q.closed {
		_ = unix.Shutdown(q.ours, unix.SHUT_WR)
	}
}

func (q *requestSocket) close() {
	q.mu.Lock()
	defer q.mu.Unlock()
	if !q.closed {
		q.closed = true
		_ = unix.Close(q.ours)
		_ = unix.Close(q.theirs)
	}
}
