package fcgi

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"sync"

	"wsgigate/environ"
	"wsgigate/environ/wire"
)

// Client asks a FastCGI application. One request at a time has the connection.
// Addr is required.
type Client struct {
	Addr wire.Addr

	// KeepConn keeps the connection for the next request (FCGI_KEEP_CONN).
	// Otherwise each has its own.
	KeepConn bool

	mu   sync.Mutex
	conn *wire.Conn // kept from the request before
}

// clientID is the id of every request: there is one at a time.
const clientID = 1

// errStatus has the errors for the ways of END_REQUEST to refuse (section 5.5).
var errStatus = map[protocolStatus]error{
	cantMultiplex: errors.New("fcgi: the application takes no more requests on this connection"),
	overloaded:    errors.New("fcgi: the application is overloaded"),
	unknownRole:   errors.New("fcgi: the application does not know the role"),
}

// RoundTrip makes one request: env and stdin go to the application, what it
// answers goes to stdout and stderr. stdin may be nil. It returns the
// application's status from END_REQUEST; an answer that ends without one is
// io.ErrUnexpectedEOF.
//
// stdin is read in a goroutine of its own, which ends at the latest when a Read of
// stdin returns after RoundTrip did.
func (c *Client) RoundTrip(ctx context.Context, env *environ.Environ, role environ.Role, stdin io.Reader, stdout, stderr io.Writer) (appStatus uint32, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	conn := c.conn
	if c.conn = nil; conn == nil {
		if conn, err = wire.Dial(ctx, c.Addr); err != nil {
			return 0, fmt.Errorf("fcgi: connect: %w", err)
		}
	}
	stop := context.AfterFunc(ctx, func() { _ = conn.Close() })
	x := exchange{conn: conn, stdout: stdout, stderr: stderr, sent: make(chan error, 1)}
	appStatus, whole, err := x.run(env, role, stdin, c.KeepConn)
	if !stop() && err != nil {
		err = fmt.Errorf("fcgi: %w", context.Cause(ctx))
	}
	if c.KeepConn && err == nil && whole {
		c.conn = conn
	} else {
		_ = conn.Close()
	}
	return appStatus, err
}

// Close closes the kept connection.
func (c *Client) Close() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.conn == nil {
		return nil
	}
	err := c.conn.Close()
	c.conn = nil
	return err
}

// exchange is one request on a connection.
type exchange struct {
	conn           *wire.Conn
	stdout, stderr io.Writer
	sent           chan error // how the sending of stdin went

	buf   []byte // in[start:] is not used yet
	start int
}

// run returns the application's status and whether all of stdin was sent, and nothing
// but the answer came, so that the connection can be used again.
func (x *exchange) run(env *environ.Environ, role environ.Role, stdin io.Reader, keep bool) (appStatus uint32, whole bool, err error) {
	head := appendOpening(env, role, keep)
	if stdin == nil {
		head = appendRecord(head, typeStdin, clientID, 0, 0)
	}
	if _, err := x.conn.Write(head); err != nil {
		return 0, false, fmt.Errorf("fcgi: %w", err)
	}
	if stdin == nil {
		x.sent <- nil
	} else {
		go func() { x.sent <- x.send(stdin) }()
	}
	appStatus, err = x.receive()
	select {
	case sendErr := <-x.sent:
		whole = sendErr == nil && x.start == len(x.buf) // more than the answer: the server is leaving
		if errors.Is(err, io.ErrUnexpectedEOF) && sendErr != nil {
			err = fmt.Errorf("%w (%w)", err, sendErr)
		}
	default:
	}
	return appStatus, whole, err
}

// appendOpening returns BEGIN_REQUEST and PARAMS.
func appendOpening(env *environ.Environ, role environ.Role, keep bool) []byte {
	flags := byte(0)
	if keep {
		flags = flagKeepConn
	}
	head := appendBegin(nil, clientID, uint16(role)+wireResponder, flags)
	var pairs []byte
	for name, value := range env.All() {
		pairs = appendPair(pairs, name, value)
	}
	head = appendStream(head, typeParams, clientID, pairs)
	return appendRecord(head, typeParams, clientID, 0, 0)
}

// send sends stdin to its end.
func (x *exchange) send(stdin io.Reader) error {
	block := make([]byte, headerLen+readBuffer)
	for {
		n, err := stdin.Read(block[headerLen:])
		if n > 0 {
			putRecord(block, typeStdin, clientID, n, 0)
			if _, err := x.conn.Write(block[:headerLen+n]); err != nil {
				return fmt.Errorf("fcgi: send body: %w", err)
			}
		}
		if err == io.EOF {
			_, err = x.conn.Write(appendRecord(nil, typeStdin, clientID, 0, 0))
			return err
		}
		if err != nil {
			_ = x.conn.Close() // the application must not take this for the end
			return fmt.Errorf("fcgi: read body: %w", err)
		}
	}
}

// receive copies the answer until END_REQUEST.
func (x *exchange) receive() (appStatus uint32, err error) {
	x.buf = make([]byte, 0, headerLen+maxContent+255)
	for {
		head, err := x.take(headerLen)
		if err != nil {
			return 0, err
		}
		rec, err := parseRecord(head)
		if err != nil {
			return 0, err
		}
		content, err := x.take(int(rec.content) + int(rec.padding))
		if err != nil {
			return 0, err
		}
		content = content[:rec.content]
		switch {
		case rec.id != clientID:
		case rec.kind == typeStdout:
			_, err = x.stdout.Write(content)
		case rec.kind == typeStderr:
			_, err = x.stderr.Write(content)
		case rec.kind == typeEndRequest:
			return parseEnd(content)
		}
		if err != nil {
			return 0, fmt.Errorf("fcgi: pass on the answer: %w", err)
		}
	}
}

func parseEnd(content []byte) (appStatus uint32, err error) {
	if len(content) != beginLen {
		return 0, errors.New("fcgi: END_REQUEST of a wrong size")
	}
	appStatus = binary.BigEndian.Uint32(content)
	if status := protocolStatus(content[4]); status != requestComplete {
		if err = errStatus[status]; err == nil {
			err = fmt.Errorf("fcgi: unknown protocol status %d", status)
		}
	}
	return appStatus, err
}

// take returns the next n bytes, which stay valid until the next call.
func (x *exchange) take(n int) ([]byte, error) {
	for len(x.buf)-x.start < n {
		if x.start > 0 {
			x.buf = x.buf[:copy(x.buf, x.buf[x.start:])]
			x.start = 0
		}
		got, err := x.conn.Read(x.buf[len(x.buf):cap(x.buf)])
		x.buf = x.buf[:len(x.buf)+got]
		if got == 0 {
			if errors.Is(err, io.EOF) {
				err = io.ErrUnexpectedEOF
			}
			return nil, fmt.Errorf("fcgi: answer: %w", err)
		}
	}
	p := x.buf[x.start : x.start+n]
	x.start += n
	return p, nil
}
