package integration

import (
	"bytes"
	"errors"
	"io"
	"net"
	"testing"
)

const (
	fcgiEnd    = 3
	fcgiAbort  = 2
	fcgiStdout = 6
)

// fcgiFrom turns the records that come from a connection into the answer of
// one request.
type fcgiFrom struct {
	conn io.Reader
	id   uint16
	left []byte
	err  error // io.EOF after END_REQUEST
}

func (f *fcgiFrom) Read(p []byte) (int, error) {
	for len(f.left) == 0 && f.err == nil {
		kind, id, content, err := readRecord(f.conn)
		switch {
		case errors.Is(err, io.EOF):
			f.err = io.ErrUnexpectedEOF
		case err != nil:
			f.err = err
		case id != f.id:
		case kind == fcgiStdout:
			f.left = content
		case kind == fcgiEnd:
			f.err = io.EOF
		}
	}
	if len(f.left) == 0 {
		return 0, f.err
	}
	n := copy(p, f.left)
	f.left = f.left[n:]
	return n, nil
}

func readRecord(from io.Reader) (kind byte, id uint16, content []byte, err error) {
	var head [8]byte
	if _, err = io.ReadFull(from, head[:]); err != nil {
		return 0, 0, nil, err
	}
	n := int(head[4])<<8 | int(head[5])
	content = make([]byte, n+int(head[6]))
	_, err = io.ReadFull(from, content)
	return head[1], uint16(head[2])<<8 | uint16(head[3]), content[:n], err
}

// send writes bytes of its own choice to a listener and reads the answer. If
// half, it then sends no more, so that the gateway sees the end.
func (s *server) send(t testing.TB, transport string, raw []byte, half bool) answer {
	t.Helper()
	conn := s.connect(t, transport)
	defer conn.Close()
	sent := make(chan struct{})
	go func() { // ends with its write, which closing the connection ends
		defer close(sent)
		_, err := conn.Write(raw)
		if closer, ok := conn.(interface{ CloseWrite() error }); ok && err == nil && half {
			_ = closer.CloseWrite()
		}
	}()
	a := message{method: "POST"}.receive(transport, answerOf(transport, conn))
	conn.Close()
	<-sent
	return a
}

// answerOf is the bytes of the answer on a connection.
func answerOf(transport string, conn net.Conn) io.Reader {
	if transport == "fastcgi" {
		return &fcgiFrom{conn: conn, id: 1}
	}
	return conn
}

// withBody is a request whose CONTENT_LENGTH, one for each of lengths, and bytes
// need not agree.
func withBody(transport, target string, lengths []string, body []byte) []byte {
	m := message{method: "POST", target: target}
	if transport == "http" {
		head := bytes.TrimSuffix(m.opening("http"), []byte("\r\n"))
		for _, n := range lengths {
			head = append(head, "Content-Length: "+n+"\r\n"...)
		}
		return append(append(head, "\r\n"...), body...)
	}
	var list [][2]string
	for _, n := range lengths {
		list = append(list, [2]string{"CONTENT_LENGTH", n})
	}
	list = append(list, m.variables()[1:]...)
	if transport == "scgi" {
		return append(netstring(append(list, [2]string{"SCGI", "1"})), body...)
	}
	raw := record(openFastCGI(1, list), fcgiStdin, 1, body)
	if len(body) > 0 {
		raw = record(raw, fcgiStdin, 1, nil)
	}
	return raw
}
