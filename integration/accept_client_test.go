package integration

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/textproto"
	"net/url"
	"strconv"
	"strings"
	"testing"
	"time"

	"wsgigate/environ"
	"wsgigate/environ/wire"
	"wsgigate/fcgi"
)

// message is a request that can be sent over every transport.
type message struct {
	method string // default GET, with a body POST
	target string
	fields [][2]string // header fields
	body   io.Reader
	length int64     // of body
	into   io.Writer // takes the answer's body, if not nil
}

// answer is what came back.
type answer struct {
	status int
	header textproto.MIMEHeader
	body   []byte // unless the message said where to put it
	err    error  // the answer was cut, or there was none
}

func get(target string) message { return message{target: target} }

func post(target string, body []byte) message {
	return message{target: target, body: bytes.NewReader(body), length: int64(len(body))}
}

func (m message) verb() string {
	switch {
	case m.method != "":
		return m.method
	case m.body != nil:
		return "POST"
	}
	return "GET"
}

// variables are what a front server makes of the request.
func (m message) variables() [][2]string {
	path, query, _ := strings.Cut(m.target, "?")
	decoded, err := url.PathUnescape(path)
	if err != nil {
		decoded = path
	}
	list := [][2]string{
		{"CONTENT_LENGTH", strconv.FormatInt(m.length, 10)},
		{"GATEWAY_INTERFACE", "CGI/1.1"}, {"SERVER_SOFTWARE", "front"}, {"SERVER_PROTOCOL", "HTTP/1.1"},
		{"REQUEST_METHOD", m.verb()}, {"REQUEST_URI", m.target},
		{"SCRIPT_NAME", ""}, {"PATH_INFO", decoded}, {"QUERY_STRING", query},
		{"SERVER_NAME", "localhost"}, {"SERVER_PORT", "8080"}, {"SERVER_ADDR", "127.0.0.1"},
		{"REMOTE_ADDR", "127.0.0.1"}, {"REMOTE_PORT", "54321"}, {"HTTP_HOST", "localhost:8080"},
	}
	for _, field := range m.fields {
		name := strings.ToUpper(strings.ReplaceAll(field[0], "-", "_"))
		if name != "CONTENT_TYPE" {
			name = "HTTP_" + name
		}
		list = append(list, [2]string{name, field[1]})
	}
	return list
}

// opening returns the bytes that begin the request on a connection; the body, and
// for FastCGI its end, is not among them.
func (m message) opening(transport string) []byte {
	switch transport {
	case "fastcgi":
		return openFastCGI(1, m.variables())
	case "scgi":
		list := m.variables()
		list = append(list[:1:1], append([][2]string{{"SCGI", "1"}}, list[1:]...)...)
		return netstring(list)
	}
	var b bytes.Buffer
	fmt.Fprintf(&b, "%s %s HTTP/1.1\r\nHost: localhost:8080\r\nConnection: close\r\n", m.verb(), m.target)
	for _, field := range m.fields {
		fmt.Fprintf(&b, "%s: %s\r\n", field[0], field[1])
	}
	if m.body != nil || m.length > 0 {
		fmt.Fprintf(&b, "Content-Length: %d\r\n", m.length)
	}
	b.WriteString("\r\n")
	return b.Bytes()
}

// netstring is an SCGI head.
func netstring(list [][2]string) []byte {
	var pairs bytes.Buffer
	for _, pair := range list {
		fmt.Fprintf(&pairs, "%s\x00%s\x00", pair[0], pair[1])
	}
	return fmt.Appendf(nil, "%d:%s,", pairs.Len(), pairs.Bytes())
}

// Record types of FastCGI that these tests write themselves.
const (
	fcgiBegin  = 1
	fcgiParams = 4
	fcgiStdin  = 5
)

// openFastCGI is BEGIN_REQUEST and all of PARAMS.
func openFastCGI(id uint16, list [][2]string) []byte {
	out := record(nil, fcgiBegin, id, []byte{0, 1, 0, 0, 0, 0, 0, 0})
	var pairs []byte
	for _, pair := range list {
		pairs = appendLength(appendLength(pairs, len(pair[0])), len(pair[1]))
		pairs = append(append(pairs, pair[0]...), pair[1]...)
	}
	for len(pairs) > 0 {
		n := min(len(pairs), 0xffff)
		out = record(out, fcgiParams, id, pairs[:n])
		pairs = pairs[n:]
	}
	return record(out, fcgiParams, id, nil)
}

func record(dst []byte, kind byte, id uint16, content []byte) []byte {
	dst = append(dst, 1, kind, byte(id>>8), byte(id), byte(len(content)>>8), byte(len(content)), 0, 0)
	return append(dst, content...)
}

func appendLength(dst []byte, n int) []byte {
	if n < 128 {
		return append(dst, byte(n))
	}
	return append(dst, byte(n>>24)|0x80, byte(n>>16), byte(n>>8), byte(n))
}

// ask makes a request on a connection of its own.
func (s *server) ask(transport string, m message) answer {
	if transport == "fastcgi" {
		return s.askFastCGI(m)
	}
	conn, err := net.Dial("tcp", s.addrs[transport])
	if err != nil {
		return answer{err: err}
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(clientTime))
	sent := make(chan struct{})
	go func() { // ends at the latest when the connection is closed
		defer close(sent)
		if _, err := conn.Write(m.opening(transport)); err == nil && m.body != nil {
			_, _ = io.CopyBuffer(writerOnly{conn}, readerOnly{m.body}, make([]byte, 64<<10))
		}
	}()
	a := m.receive(transport, conn)
	conn.Close()
	<-sent
	return a
}

// writerOnly and readerOnly hide the shortcuts of io.Copy, which would take a
// buffer of their own choice.
type (
	writerOnly struct{ io.Writer }
	readerOnly struct{ io.Reader }
)

func (s *server) askFastCGI(m message) answer {
	addr, err := wire.ParseAddr("unix:" + s.addrs["fastcgi"])
	if err != nil {
		return answer{err: err}
	}
	var env environ.Environ
	for _, pair := range m.variables() {
		env.Add(pair[0], pair[1])
	}
	ctx, cancel := context.WithTimeout(context.Background(), clientTime)
	defer cancel()
	client := fcgi.Client{Addr: addr}
	out, in := io.Pipe()
	go func() { // ends with the request, which ctx bounds
		_, err := client.RoundTrip(ctx, &env, environ.Responder, m.body, in, io.Discard)
		in.CloseWithError(err)
	}()
	a := m.receive("fastcgi", out)
	out.CloseWithError(errors.New("enough"))
	return a
}

// receive reads an answer to its end.
func (m message) receive(transport string, from io.Reader) (a answer) {
	in := bufio.NewReaderSize(from, 64<<10)
	var body io.Reader = in
	if transport == "http" {
		resp, err := http.ReadResponse(in, &http.Request{Method: m.verb()})
		if err != nil {
			return answer{err: err}
		}
		defer resp.Body.Close()
		a.status, a.header, body = resp.StatusCode, textproto.MIMEHeader(resp.Header), resp.Body
	} else if a.header, a.err = textproto.NewReader(in).ReadMIMEHeader(); a.err != nil {
		return a
	} else if a.status, a.err = statusOf(a.header); a.err != nil {
		return a
	}
	var kept bytes.Buffer
	into := m.into
	if into == nil {
		into = &kept
	}
	_, a.err = io.CopyBuffer(writerOnly{into}, readerOnly{body}, make([]byte, 64<<10))
	a.body = kept.Bytes()
	if text := a.header.Get("Content-Length"); a.err == nil && m.into == nil && text != "" && m.verb() != "HEAD" {
		if n, _ := strconv.Atoi(text); n != len(a.body) {
			a.err = fmt.Errorf("%d bytes of body, Content-Length is %d: %w", len(a.body), n, io.ErrUnexpectedEOF)
		}
	}
	return a
}

// statusOf reads the Status field of a CGI-style answer.
func statusOf(header textproto.MIMEHeader) (int, error) {
	number, _, _ := strings.Cut(header.Get("Status"), " ")
	n, err := strconv.Atoi(number)
	if err != nil {
		return 0, fmt.Errorf("status of the answer: %w", err)
	}
	return n, nil
}

// want makes a request that must be answered with that status, and returns the
// answer.
func (s *server) want(t testing.TB, transport string, m message, status int) answer {
	t.Helper()
	a := s.ask(transport, m)
	if a.err != nil || a.status != status {
		t.Fatalf("%s %s %.100s: status %d, error %v, body %.300q; want status %d",
			transport, m.verb(), m.target, a.status, a.err, a.body, status)
	}
	return a
}
