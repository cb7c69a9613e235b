package httpd

import (
	"errors"
	"io"
	"net"
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

// filePart is n bytes of f from offset off. Unlike *os.File it has a position of
// its own: the descriptor's may be shared with a worker process.
type filePart struct {
	f      *os.File
	off, n int64
}

// Read is the way for responses that cannot be sent by sendfile (chunked).
func (p *filePart) Read(b []byte) (int, error) {
	if p.n == 0 {
		return 0, io.EOF
	}
	n, err := p.f.ReadAt(b[:min(int64(len(b)), p.n)], p.off)
	p.advance(int64(n))
	if n > 0 || err == nil {
		return n, nil
	}
	if err == io.EOF {
		err = io.ErrUnexpectedEOF // the file is shorter than it was said to be
	}
	return 0, err
}

func (p *filePart) advance(n int64) {
	p.off += n
	p.n -= n
}

// ReadFrom is what net/http calls for a body of known length once the header is
// out. A filePart goes by sendfile(2).
func (g *guard) ReadFrom(src io.Reader) (int64, error) {
	part, ok := src.(*filePart)
	if !ok {
		return io.Copy(struct{ io.Writer }{g}, src)
	}
	total, err := g.sendPart(part)
	if err != nil || part.n == 0 {
		return total, err
	}
	n, err := io.Copy(struct{ io.Writer }{g}, part)
	return total + n, err
}

// maxSendfile bounds one sendfile(2), so that the write deadline is renewed
// while a large file goes to a slow client.
const maxSendfile = 1 << 20

// sendPart sends as much of part as sendfile(2) can: all of it, or nothing if the
// file's or the socket's kind does not support it.
func (g *guard) sendPart(part *filePart) (int64, error) {
	var total int64
	src, err := part.f.SyscallConn()
	if err != nil {
		return 0, err
	}
	conn, ok := g.Conn.(syscall.Conn)
	if !ok {
		return 0, nil
	}
	dst, err := conn.SyscallConn()
	if err != nil {
		return 0, err
	}
	for part.n > 0 {
		g.renewWrite()
		n, err := sendfileOnce(dst, src, part)
		total += n
		part.advance(n)
		switch {
		case errors.Is(err, unix.EINVAL), errors.Is(err, unix.ENOSYS), errors.Is(err, unix.EOPNOTSUPP):
			return total, nil
		case err != nil:
			return total, &net.OpError{Op: "sendfile", Net: "tcp", Err: err}
		case n == 0:
			return total, io.ErrUnexpectedEOF
		}
	}
	return total, nil
}

// sendfileOnce makes one sendfile(2), waiting until the socket takes bytes.
func sendfileOnce(dst, src syscall.RawConn, part *filePart) (sent int64, err error) {
	ctlErr := src.Control(func(in uintptr) {
		writeErr := dst.Write(func(out uintptr) bool {
			var n int
			for n, err = 0, unix.EINTR; err == unix.EINTR; {
				off := part.off
				n, err = unix.Sendfile(int(out), int(in), &off, int(min(part.n, maxSendfile)))
			}
			sent = int64(max(n, 0))
			return err != unix.EAGAIN
		})
		if writeErr != nil {
			err = writeErr
		}
	})
	if ctlErr != nil {
		err = ctlErr
	}
	return sent, err
}
