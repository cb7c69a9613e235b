package scgi

import (
	"fmt"
	"io"
	"os"
	"time"

	"wsgigate/environ"
)

var (
	_ environ.ResponseWriter = (*exchange)(nil)
	_ environ.FileSender     = (*exchange)(nil)
)

// SendFile appends a part of a file: a small one by a copy that leaves with the
// header, others by sendfile(2).
func (x *exchange) SendFile(f *os.File, off, n int64) (int64, error) {
	if err := x.Ready(); err != nil {
		return 0, err
	}
	if x.Bodyless() || n <= 0 {
		return n, nil
	}
	if room := x.Room(n); room != nil {
		got, err := f.ReadAt(room, off)
		x.Filled(got)
		if int64(got) == n {
			return n, nil
		}
		if err == io.EOF {
			err = io.ErrUnexpectedEOF
		}
		return int64(got), fmt.Errorf("scgi: reading the file: %w", err)
	}
	if err := x.Flush(); err != nil {
		return 0, err
	}
	sent, err := x.conn.SendFile(f, off, n)
	if err != nil {
		return sent, fmt.Errorf("scgi: sending the file: %w", err)
	}
	return sent, nil
}

// WriteErrors drops the text: SCGI has no way for it.
func (x *exchange) WriteErrors([]byte) {}

// Abort answers 500 if nothing was sent yet; else it resets the connection.
func (x *exchange) Abort(err error) {
	if !x.Ended() {
		x.fail(environ.Errorf(500, "scgi: %w", err))
	}
}

// fail answers with the error's page in place of what there is, if that is still
// possible, and else makes sure that the peer can tell that the response is cut.
func (x *exchange) fail(err error) {
	if !x.Replace(x, err) {
		_ = x.conn.Reset()
	}
}

// finish sends the rest and reads, within bounds, what the peer still sends.
func (x *exchange) finish() {
	if !x.Ended() && x.Flush() != nil {
		return
	}
	if x.bodyLeft <= 0 || x.conn.CloseWrite() != nil {
		return
	}
	x.conn.SetReadDeadline(time.Now().Add(drainTime))
	x.conn.SetReadTimeout(drainPause)
	_, _ = io.CopyN(io.Discard, x.conn, x.bodyLeft)
}
