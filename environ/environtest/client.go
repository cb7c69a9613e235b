package environtest

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"strings"
	"time"
)

// clientTimeout bounds one request of the table, a CGI process's start included.
const clientTimeout = 60 * time.Second

// chunkSize is not a divisor of anything, so that chunks end anywhere.
const chunkSize = 10007

// HTTP returns a Do that makes each request over a connection of its own. It
// sends the bytes of the request as they are given: no client library may
// clean a path or drop a field that the table wants to be sent.
func HTTP(network, addr string) func(*Request) (*Response, error) {
	return func(r *Request) (*Response, error) {
		conn, err := net.DialTimeout(network, addr, clientTimeout)
		if err != nil {
			return nil, fmt.Errorf("environtest: %w", err)
		}
		defer conn.Close()
		if err := conn.SetDeadline(time.Now().Add(clientTimeout)); err != nil {
			return nil, fmt.Errorf("environtest: %w", err)
		}
		sent := make(chan error, 1)
		go func() { // ends with its write, which the deadline bounds
			_, err := conn.Write(r.Bytes())
			sent <- err
		}()
		resp, err := readResponse(conn, r.Method)
		if err != nil {
			conn.Close()
			if sendErr := <-sent; sendErr != nil {
				return nil, fmt.Errorf("environtest: %w (sending: %w)", err, sendErr)
			}
			return nil, fmt.Errorf("environtest: %w", err)
		}
		return resp, nil // a server may answer before it has read all of the request
	}
}

// readResponse reads the final response; interim ones are skipped.
func readResponse(conn net.Conn, method string) (*Response, error) {
	in := bufio.NewReader(conn)
	for {
		resp, err := http.ReadResponse(in, &http.Request{Method: method})
		if err != nil {
			return nil, err
		}
		if resp.StatusCode/100 == 1 {
			continue
		}
		body, err := io.ReadAll(resp.Body)
		if err != nil {
			return nil, fmt.Errorf("status %d, after %d bytes of the body: %w", resp.StatusCode, len(body), err)
		}
		_, reason, _ := strings.Cut(resp.Status, " ")
		return &Response{Status: resp.StatusCode, Reason: reason, Header: resp.Header, Body: body}, nil
	}
}

// Bytes returns the request as it goes over an HTTP/1 connection. The
// connection is asked to close after it.
func (r *Request) Bytes() []byte {
	var b bytes.Buffer
	fmt.Fprintf(&b, "%s %s %s\r\n", r.Method, r.Target, r.Proto)
	field := func(name, value string) {
		if _, given := r.Get(name); !given {
			fmt.Fprintf(&b, "%s: %s\r\n", name, value)
		}
	}
	if !r.NoHost {
		field("Host", DefaultHost)
	}
	for _, f := range r.Header {
		fmt.Fprintf(&b, "%s: %s\r\n", f[0], f[1])
	}
	switch {
	case r.Chunked:
		field("Transfer-Encoding", "chunked")
	case r.hasBody():
		field("Content-Length", strconv.Itoa(len(r.Body)))
	}
	field("Connection", "close")
	b.WriteString("\r\n")
	if !r.Chunked {
		b.Write(r.Body)
		return b.Bytes()
	}
	for rest := r.Body; len(rest) > 0; {
		n := min(len(rest), chunkSize)
		fmt.Fprintf(&b, "%x\r\n%s\r\n", n, rest[:n])
		rest = rest[n:]
	}
	b.WriteString("0\r\n\r\n")
	return b.Bytes()
}
