package integration

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/textproto"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"
)

// visit is what a client of the soak does once.
type visit struct {
	id     int
	kind   string
	query  string        // for manage_app, besides the id
	up     int           // bytes of a request body
	down   int           // bytes of the answer that are wanted; 0: the page with the id
	pause  time.Duration // between two pieces that are sent or received; 0: as fast as it goes
	piece  int           // of how many bytes
	leaves phase         // where the client goes away
}

// phase is a point of a visit.
type phase int

const (
	never    phase = iota
	inHead         // before the header is sent whole
	inBody         // in the middle of the request's body
	inAnswer       // in the middle of the answer
)

// visitor is a client by one way in. It keeps its connection where HTTP lets it.
type visitor struct {
	m    *managed
	way  string
	conn net.Conn
	in   *bufio.Reader
	last string // kinds of the visits on conn before
}

// errLeft is the outcome of a visit whose client went away as planned.
var errLeft = errors.New("the client left")

func (v visit) message() message {
	m := get(fmt.Sprintf("/run?id=%d%s", v.id, v.query))
	if v.up > 0 {
		m.method, m.length = "POST", int64(v.up)
	}
	return m
}

// transport is the protocol of a way in, as the client speaks it.
func transport(way string) string {
	if way == viaSCGI || way == viaFCGI {
		return way
	}
	return viaHTTP
}

// make makes the visit.
func (c *visitor) make(v visit) outcome {
	began := time.Now()
	o := outcome{way: c.way, began: began}
	o.status, o.body, o.err = c.exchange(v)
	if o.err != nil {
		o.err = fmt.Errorf("%w (behind%s)", o.err, c.last)
	}
	c.last += fmt.Sprintf(" %d:%s", v.id, v.kind)
	if o.err != nil || o.status != 200 || v.pause > 0 {
		// After a pause the gateway may have taken the connection for idle for a while:
		// it has written the answer long ago.
		c.hangUp()
	}
	o.took = time.Since(began)
	return o
}

func (c *visitor) hangUp() {
	if c.conn != nil {
		c.conn.Close()
	}
	c.conn = nil
}

func (c *visitor) connect() error {
	if c.conn != nil {
		return nil
	}
	addr := c.m.ports[c.way]
	if addr == "" {
		addr = c.m.addrs[c.way]
	}
	conn, err := net.Dial(c.m.network(c.way), addr)
	if err != nil {
		return err
	}
	c.conn, c.in, c.last = conn, bufio.NewReaderSize(conn, 16<<10), " nothing"
	return nil
}

func (c *visitor) exchange(v visit) (status int, body string, err error) {
	if err := c.connect(); err != nil {
		return 0, "", err
	}
	_ = c.conn.SetDeadline(time.Now().Add(clientTime))
	if v.leaves == inHead || v.leaves == inBody {
		_ = c.send(v)
		return 0, "", errLeft
	}
	sent := make(chan struct{})
	go func() { // ends at the latest when the connection is closed
		defer close(sent)
		_ = c.send(v) // what came of it is for the answer to say
	}()
	status, body, keep, err := c.receive(v)
	if err != nil || !keep {
		c.conn.Close()
	}
	<-sent
	if err != nil || !keep {
		c.conn = nil
	}
	return status, body, err
}

// send sends the request, or the part of it that comes before the client leaves.
func (c *visitor) send(v visit) error {
	t := transport(c.way)
	head := v.message().opening(t)
	head = bytes.Replace(head, []byte("Connection: close\r\n"), nil, 1)
	if v.leaves == inHead {
		head = head[:len(head)/2]
	}
	if _, err := c.conn.Write(head); err != nil || v.leaves == inHead {
		return err
	}
	rest := v.up
	if v.leaves == inBody {
		rest /= 2
	}
	for rest > 0 {
		n := min(rest, v.piece)
		piece := bytes.Repeat([]byte{'u'}, n)
		if t == viaFCGI {
			piece = record(nil, fcgiStdin, 1, piece)
		}
		if _, err := c.conn.Write(piece); err != nil {
			return err
		}
		rest -= n
		time.Sleep(v.pause)
	}
	if t == viaFCGI && v.leaves != inBody {
		_, err := c.conn.Write(record(nil, fcgiStdin, 1, nil))
		return err
	}
	return nil
}

// receive reads the answer and looks whether it is the one that was asked for.
func (c *visitor) receive(v visit) (status int, text string, keep bool, err error) {
	var header textproto.MIMEHeader
	var body io.Reader
	switch transport(c.way) {
	case viaHTTP:
		resp, err := http.ReadResponse(c.in, nil)
		if err != nil {
			return 0, "", false, fmt.Errorf("no answer: %w", err)
		}
		defer resp.Body.Close()
		status, header, body, keep = resp.StatusCode, textproto.MIMEHeader(resp.Header), resp.Body, !resp.Close
	default:
		in := c.in
		if c.way == viaFCGI {
			in = bufio.NewReader(&stdout{in: c.in})
		}
		if header, err = textproto.NewReader(in).ReadMIMEHeader(); err != nil {
			return 0, "", false, fmt.Errorf("no answer: %w", err)
		}
		if status, err = statusOf(header); err != nil {
			return 0, "", false, err
		}
		body = in
	}
	got, text, err := v.read(body)
	if err != nil {
		return status, text, false, err
	}
	if size, err := strconv.Atoi(header.Get("Content-Length")); err == nil && size != got {
		return status, text, false, fmt.Errorf("%d bytes of body, Content-Length is %d: %w", got, size, io.ErrUnexpectedEOF)
	}
	if status == 200 {
		err = v.check(header, got, text)
	}
	return status, text, keep, err
}

// bodyKept is how much of an answer is kept to look at.
const bodyKept = 512

// read reads a body and returns its length and its beginning.
func (v visit) read(body io.Reader) (got int, text string, err error) {
	var kept []byte
	buffer := make([]byte, v.piece)
	for {
		n, err := body.Read(buffer)
		got += n
		kept = append(kept, buffer[:min(n, bodyKept-len(kept))]...)
		if v.leaves == inAnswer && got >= v.down/4 {
			return got, string(kept), errLeft
		}
		if err == io.EOF {
			return got, string(kept), nil
		}
		if err != nil {
			return got, string(kept), err
		}
		time.Sleep(v.pause)
	}
}

// check compares a whole answer with what was asked for.
func (v visit) check(header textproto.MIMEHeader, got int, text string) error {
	switch read := header.Get("X-Got"); {
	case v.down > 0 && got != v.down:
		return fmt.Errorf("%d bytes came, %d were asked for", got, v.down)
	case read != "" && read != strconv.Itoa(v.up):
		return fmt.Errorf("the application read %s bytes of %d", read, v.up)
	case v.down == 0:
		var facts struct{ ID int }
		if err := json.Unmarshal([]byte(text), &facts); err != nil || facts.ID != v.id {
			return fmt.Errorf("the answer is another's: %q", text)
		}
	}
	return nil
}

// stdout is the STDOUT stream of the one FastCGI request on a connection. Only
// END_REQUEST ends it well.
type stdout struct {
	in   *bufio.Reader
	left int // of the current record
	skip int // behind that
}

func (s *stdout) Read(p []byte) (int, error) {
	for s.left == 0 {
		if _, err := s.in.Discard(s.skip); err != nil {
			return 0, io.ErrUnexpectedEOF
		}
		var head [8]byte
		if _, err := io.ReadFull(s.in, head[:]); err != nil {
			return 0, fmt.Errorf("no END_REQUEST: %w", errors.Join(err, io.ErrUnexpectedEOF))
		}
		length, padding := int(head[4])<<8|int(head[5]), int(head[6])
		switch head[1] {
		case fcgiEnd:
			return 0, io.EOF
		case fcgiStdout:
			s.left, s.skip = length, padding
		default:
			s.skip = length + padding
		}
	}
	n, err := s.in.Read(p[:min(len(p), s.left)])
	s.left -= n
	if err == io.EOF {
		err = io.ErrUnexpectedEOF
	}
	return n, err
}

// stoppedLine is what a gateway logs at its end.
var stoppedLine = regexp.MustCompile(`(?m) stopped gateway=(\d+) requests=(\d+) answered=(\d+) failed=(\d+) refused=(\d+) cancelled=(\d+)$`)

// tallies returns what each gateway counted, the present one and those that it
// followed.
func (m *managed) tallies(t testing.TB) map[int]tally {
	t.Helper()
	r := m.look(t).Requests
	all := map[int]tally{m.gateways(t)[0]: {int(r.Total), int(r.Answered), int(r.Failed), int(r.Refused), int(r.Cancelled)}}
	for _, line := range stoppedLine.FindAllStringSubmatch(m.text(t), -1) {
		var n [6]int
		for i := range n {
			n[i], _ = strconv.Atoi(line[i+1])
		}
		all[n[0]] = tally{n[1], n[2], n[3], n[4], n[5]}
	}
	return all
}

// tally is how many requests a gateway counted.
type tally struct{ total, answered, failed, refused, cancelled int }

// logOf returns the lines of the gateway's log about a request.
func (m *managed) logOf(t testing.TB, id int) string {
	t.Helper()
	about := regexp.MustCompile(fmt.Sprintf(`(?m)^.*[?&]id=%d[&"].*$`, id))
	return strings.Join(about.FindAllString(m.text(t), -1), "\n")
}

// crashLoops are the pauses of a pool whose workers ended before they had answered
// anything. Requests may be refused meanwhile.
type crashLoops [][2]time.Time

var crashLoopLine = regexp.MustCompile(`(?m)^(\S+) ERROR crash loop: .* pause=(\S+)$`)

func (m *managed) crashLoops(t testing.TB) (loops crashLoops) {
	t.Helper()
	for _, line := range crashLoopLine.FindAllStringSubmatch(m.text(t), -1) {
		from, err := time.Parse(time.RFC3339, line[1])
		pause, pauseErr := time.ParseDuration(line[2])
		if err != nil || pauseErr != nil {
			t.Fatalf("%q: %v, %v", line[0], err, pauseErr)
		}
		loops = append(loops, [2]time.Time{from, from.Add(pause)})
	}
	return loops
}

// during reports whether a request ended within one of them; a log line may come
// late by a moment.
func (l crashLoops) during(o outcome) bool {
	const slack = 100 * time.Millisecond
	ended := o.began.Add(o.took)
	for _, loop := range l {
		if ended.After(loop[0].Add(-slack)) && o.began.Before(loop[1].Add(slack)) {
			return true
		}
	}
	return false
}
