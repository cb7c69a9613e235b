package fcgi

import (
	"errors"
	"io"
	"os"
	"sync"
	"syscall"

	"wsgigate/environ"
)

// stream is a request's STDIN or DATA: the connection's reader writes it, the
// handler reads it. What waits is kept in memory up to a bound; past
// that, the writer waits or the rest goes to a file.
type stream struct {
	mu    sync.Mutex
	moved sync.Cond // bytes came or went, or the stream ended

	buf    []byte // buf[off:] waits in memory, before what is in spill
	off    int
	spill  spill
	total  int64 // bytes received
	err    error // io.EOF at the end, or why the stream broke
	closed bool  // nobody reads any more
	free   bool  // write must not wait any more
}

// maxKeptBuffer is the largest body buffer that is kept for the next request.
const maxKeptBuffer = 64 << 10

func (s *stream) reset() {
	buf := s.buf[:0]
	if cap(buf) > maxKeptBuffer {
		buf = nil
	}
	*s = stream{buf: buf}
	s.moved.L = &s.mu
}

// Read waits for the next bytes. Its error is io.EOF at the stream's explicit end.
func (s *stream) Read(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for {
		if n := copy(p, s.buf[s.off:]); n > 0 {
			s.off += n
			s.moved.Broadcast()
			return n, nil
		}
		if s.spill.left() > 0 {
			return s.spill.read(p)
		}
		if s.err != nil {
			return 0, s.err
		}
		s.moved.Wait()
	}
}

// write appends p. With more than bound bytes waiting it waits until some were
// read if block is true and release was not called; else it puts p into a file.
func (s *stream) write(p []byte, bound int, block bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for block && !s.free && s.waiting() >= int64(bound) && s.err == nil && !s.closed {
		s.moved.Wait()
	}
	s.total += int64(len(p))
	if s.err != nil || s.closed {
		return
	}
	if s.spill.left() > 0 || s.waiting() >= int64(bound) {
		if err := s.spill.write(p); err != nil {
			s.err = spillError(err)
		}
	} else {
		s.append(p)
	}
	s.moved.Broadcast()
}

// waiting is how many bytes nobody has read yet.
func (s *stream) waiting() int64 { return int64(len(s.buf)-s.off) + s.spill.left() }

// append adds p to the memory, first making use of what was read.
func (s *stream) append(p []byte) {
	if s.off > 0 && len(s.buf)+len(p) > cap(s.buf) {
		s.buf = s.buf[:copy(s.buf, s.buf[s.off:])]
		s.off = 0
	}
	s.buf = append(s.buf, p...)
}

// end gives the stream its end: io.EOF, or an error if it is broken. What waits
// can still be read.
func (s *stream) end(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.err == nil {
		s.err = err
	}
	s.moved.Broadcast()
}

// release keeps write from waiting from now on: the response is being sent, and
// a peer that does not read it before it has sent its body would wait for ever.
func (s *stream) release() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.free = true
	s.moved.Broadcast()
}

// close drops what waits and everything that comes.
func (s *stream) close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closed = true
	s.spill.close()
	s.moved.Broadcast()
}

// spill is the part of a stream that did not fit into memory: a file without a
// name, so that nothing is left behind whatever happens.
type spill struct {
	file       *os.File
	head, tail int64 // file[head:tail] waits
}

func (s *spill) left() int64 { return s.tail - s.head }

func (s *spill) write(p []byte) error {
	if s.file == nil {
		file, err := os.CreateTemp("", "wsgigate-body-") // 0600, O_EXCL
		if err != nil {
			return err
		}
		s.file = file
		if err := os.Remove(file.Name()); err != nil {
			return err
		}
	}
	n, err := s.file.WriteAt(p, s.tail)
	s.tail += int64(n)
	return err
}

func (s *spill) read(p []byte) (int, error) {
	n, err := s.file.ReadAt(p[:min(int64(len(p)), s.left())], s.head)
	s.head += int64(n)
	if err != nil {
		return n, spillError(err)
	}
	if s.left() == 0 {
		s.head, s.tail = 0, 0
		_ = s.file.Truncate(0) // only gives back room on the disk
	}
	return n, nil
}

func (s *spill) close() {
	if s.file != nil {
		_ = s.file.Close()
	}
	*s = spill{}
}

// spillError gives an error of the temporary file its status: 507 if there is no
// room for the body, 500 else.
func spillError(err error) error {
	status := 500
	if errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) || errors.Is(err, syscall.EFBIG) {
		status = 507
	}
	return environ.Errorf(status, "fcgi: spool of a request body: %w", err)
}

// errBodyCut is the end of a body whose connection was lost.
func errBodyCut(got int64) error {
	return environ.Errorf(400, "fcgi: body ends after %d bytes: %w", got, io.ErrUnexpectedEOF)
}
