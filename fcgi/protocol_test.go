package fcgi

import (
	"bytes"
	"encoding/binary"
	"io"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"wsgigate/environ"
)

// TestProtocolErrors has what ends a connection at once.
func TestProtocolErrors(t *testing.T) {
	s := start(t, "unix", &Server{Handler: reflect(t)})
	version2 := ask{id: 1}.bytes()
	version2[0] = 2
	shortBegin := append(appendRecord(nil, typeBeginRequest, 1, 7, 0), make([]byte, 7)...)
	values := appendPair(nil, mpxsName, "")
	tests := map[string][]byte{
		"version 2":           version2,
		"version 0":           make([]byte, headerLen),
		"HTTP":                []byte("GET / HTTP/1.1\r\nHost: x\r\n\r\n"),
		"short BEGIN":         shortBegin,
		"empty BEGIN":         end(typeBeginRequest, 1),
		"huge BEGIN":          appendRecord(nil, typeBeginRequest, 1, maxContent, 0),
		"huge GET_VALUES":     appendRecord(nil, typeGetValues, 0, maxContent, 0),
		"cut GET_VALUES":      append(appendRecord(nil, typeGetValues, 0, len(values)-1, 0), values[:len(values)-1]...),
		"GET_VALUES overflow": append(appendRecord(nil, typeGetValues, 0, 8, 0), 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff),
		"BEGIN of an open id": append(appendBegin(nil, 1, wireResponder, 1), appendBegin(nil, 1, wireResponder, 1)...),
	}
	for name, bytes := range tests {
		t.Run(name, func(t *testing.T) {
			p := s.dial(t)
			p.send(bytes)
			p.mustClose()
		})
	}
	if !strings.Contains(s.log.String(), "version 2") {
		t.Errorf("nothing in the log: %s", s.log)
	}
}

// TestIgnored has what must not disturb a request.
func TestIgnored(t *testing.T) {
	s := start(t, "unix", &Server{Handler: reflect(t)})
	for name, noise := range map[string][]byte{
		"PARAMS of an unknown id": appendStream(nil, typeParams, 9, []byte("rubbish")),
		"STDIN of an unknown id":  append(appendStream(nil, typeStdin, 9, []byte("rubbish")), end(typeStdin, 9)...),
		"ABORT of an unknown id":  end(typeAbortRequest, 9),
		"unknown type with an id": appendStream(nil, 200, 9, []byte("rubbish")),
		"STDOUT from the peer":    appendStream(nil, typeStdout, 1, []byte("rubbish")),
		"DATA for a Responder":    appendStream(nil, typeData, 1, []byte("rubbish")),
	} {
		t.Run(name, func(t *testing.T) {
			a := ask{id: 1, keep: true, body: "x", length: "auto"}
			p := s.dial(t)
			p.send(slices.Concat(noise, a.opening(), noise, a.bytes()[len(a.opening()):], noise))
			if got := p.answer(1); !strings.Contains(got.out, `body="x"`) {
				t.Errorf("%+v", got)
			}
			p.send(a.bytes())
			p.answer(1)
		})
	}
}

func TestGetValues(t *testing.T) {
	s := start(t, "unix", &Server{Handler: reflect(t), MaxConns: 12, MaxReqs: 34})
	ask1 := func(names ...string) (pairs []byte) {
		for _, name := range names {
			pairs = appendPair(pairs, name, "")
		}
		return append(appendRecord(nil, typeGetValues, 0, len(pairs), 0), pairs...)
	}
	values := func(kv ...string) (pairs []byte) {
		for i := 0; i < len(kv); i += 2 {
			pairs = appendPair(pairs, kv[i], kv[i+1])
		}
		return pairs
	}
	p := s.dial(t)
	tests := []struct{ request, want []byte }{
		{ask1(), nil},
		{ask1("FCGI_UNKNOWN"), nil},
		{ask1(mpxsName), values(mpxsName, "1")},
		{ask1(maxReqsName, "x", mpxsName, maxConnsName), values(maxReqsName, "34", mpxsName, "1", maxConnsName, "12")},
		{ask1(mpxsName, mpxsName, mpxsName), values(mpxsName, "1")},
	}
	for _, test := range tests {
		p.send(test.request)
		f, err := p.next()
		if err != nil || f.kind != typeGetValuesResult || f.id != 0 || !bytes.Equal(f.body, test.want) {
			t.Errorf("%q: got %+v %v, want %q", test.request, f, err, test.want)
		}
	}
	// In the middle of a request, too.
	a := ask{id: 1}
	p.send(a.opening())
	p.send(ask1(mpxsName))
	if f, err := p.next(); err != nil || f.kind != typeGetValuesResult {
		t.Errorf("got %+v %v", f, err)
	}
	p.send(end(typeStdin, 1))
	p.answer(1)
}

// TestTrueValues: without configured values the answer is what the limit on
// descriptors allows.
func TestTrueValues(t *testing.T) {
	s := &Server{}
	s.once.Do(s.init)
	got, err := s.appendValues(nil, appendPair(nil, maxConnsName, ""))
	if err != nil {
		t.Fatal(err)
	}
	_, size, head := pairLengths(got[headerLen:])
	n, err := strconv.Atoi(string(got[headerLen+head+len(maxConnsName):][:size]))
	if err != nil || n < 16 {
		t.Errorf("FCGI_MAX_CONNS in %q: %v", got, err)
	}
}

func TestUnknownType(t *testing.T) {
	s := start(t, "unix", &Server{Handler: reflect(t)})
	p := s.dial(t)
	for _, kind := range []recordType{0, typeBeginRequest, typeStdin, 12, 255} {
		p.send(appendStream(nil, kind, 0, []byte("something")))
		f, err := p.next()
		if err != nil || f.kind != typeUnknownType || f.id != 0 || len(f.body) != 8 || f.body[0] != byte(kind) {
			t.Errorf("type %d: %+v %v", kind, f, err)
		}
	}
	p.send(ask{id: 1}.bytes())
	p.answer(1)
}

func TestUnknownRole(t *testing.T) {
	s := start(t, "unix", &Server{Handler: reflect(t)})
	for _, keep := range []bool{true, false} {
		p := s.dial(t)
		p.send(ask{id: 5, role: 4, keep: keep}.bytes())
		f, err := p.next()
		if err != nil || f.kind != typeEndRequest || f.id != 5 || protocolStatus(f.body[4]) != unknownRole {
			t.Fatalf("%+v %v", f, err)
		}
		if !keep {
			p.mustClose()
			continue
		}
		p.send(ask{id: 5}.bytes())
		p.answer(5)
	}
}

// TestFilterData: DATA must be what FCGI_DATA_LENGTH says.
func TestFilterData(t *testing.T) {
	s := start(t, "unix", &Server{Handler: reflect(t)})
	for _, test := range []struct{ length, want string }{
		{"4", "200"}, {"3", "400"}, {"5", "400"}, {"", "400"}, {"+4", "400"}, {"0x4", "400"}, {"99999999999", "413"}, {"18446744073709551616", "400"},
	} {
		p := s.dial(t)
		p.send(ask{id: 1, role: wireFilter, data: "1234", params: append([]string{"FCGI_DATA_LENGTH", test.length}, realistic...)}.bytes())
		if got := p.answer(1); !strings.HasPrefix(got.out, "Status: "+test.want) {
			t.Errorf("FCGI_DATA_LENGTH %q: %.40q", test.length, got.out)
		}
	}
}

// TestSplitHeaderBlock has a response header that one record cannot hold.
func TestSplitHeaderBlock(t *testing.T) {
	long := strings.Repeat("x", 100<<10)
	s := start(t, "unix", &Server{Handler: environ.HandlerFunc(func(w environ.ResponseWriter, _ *environ.Request) {
		_ = w.WriteHeader(header(t, "X-Long", long))
		_, _ = io.WriteString(w, "body")
	})})
	p := s.dial(t)
	p.send(ask{id: 1}.bytes())
	if got := p.answer(1); got.out != "Status: 200 OK\r\nX-Long: "+long+"\r\n\r\nbody" {
		t.Errorf("%d bytes", len(got.out))
	}
}

// TestPadding: every record of an answer is aligned.
func TestPadding(t *testing.T) {
	s := start(t, "unix", &Server{Handler: page(t)})
	p := s.dial(t)
	p.send(ask{id: 1}.bytes())
	for {
		f, err := p.next()
		if err != nil {
			t.Fatal(err)
		}
		if n := int(f.content) + int(f.padding); n%8 != 0 || f.padding > 7 {
			t.Errorf("record %+v is not aligned", f.record)
		}
		if f.kind == typeEndRequest {
			break
		}
	}
}

func TestWebServerAddrs(t *testing.T) {
	for _, test := range []struct {
		value string
		ok    bool
	}{
		{"127.0.0.1", true}, {"192.0.2.1, 127.0.0.1", true}, {"192.0.2.1", false}, {"::1", false}, {"", true},
	} {
		addrs, err := ParseWebServerAddrs(test.value)
		if err != nil {
			t.Fatal(err)
		}
		s := start(t, "tcp", &Server{Handler: page(t), WebServerAddrs: addrs})
		if got := s.serves(t); got != test.ok {
			t.Errorf("%q: served %v", test.value, got)
		}
	}
	if _, err := ParseWebServerAddrs("127.0.0.1,example.org"); err == nil {
		t.Error("a name is no address")
	}
}

// TestAllow: S11, a peer outside of the allowed addresses is refused.
func TestAllow(t *testing.T) {
	s := start(t, "tcp", &Server{Handler: page(t), Allow: []netip.Prefix{netip.MustParsePrefix("192.0.2.0/24")}})
	if s.serves(t) {
		t.Error("a peer outside of Allow was served")
	}
}

// serves reports whether the server answers a request; a refusal can show in
// any call.
func (s *site) serves(t *testing.T) bool {
	network, address := s.network()
	c, err := net.Dial(network, address)
	if err != nil {
		return false
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(patience))
	_, _ = c.Write(ask{id: 1}.bytes())
	p := &peer{Conn: c, t: t}
	_, err = p.answers(1)
	return err == nil
}

func TestPairLengths(t *testing.T) {
	tests := []struct {
		in                string
		name, value, head int
	}{
		{"", 0, 0, 0}, {"\x01", 0, 0, 0}, {"\x01\x02", 1, 2, 2}, {"\x7f\x00", 127, 0, 2},
		{"\x80\x00\x00\x80\x03", 128, 3, 5}, {"\x03\x80\x00\x01\x00", 3, 256, 5},
		{"\xff\xff\xff\xff\xff\xff\xff\xff", maxLength, maxLength, 8},
		{"\x80\x00\x00", 0, 0, 0}, {"\x80\x00\x00\x01", 0, 0, 0}, {"\x01\x80\x00\x00", 0, 0, 0},
	}
	for _, test := range tests {
		name, value, head := pairLengths([]byte(test.in))
		if name != test.name || value != test.value || head != test.head {
			t.Errorf("%q: %d %d %d", test.in, name, value, head)
		}
	}
}

// FuzzPairs: what appendPair writes, in records of any size, params reads.
func FuzzPairs(f *testing.F) {
	f.Add("NAME", "value", 3)
	f.Add("", "", 1)
	f.Add(strings.Repeat("n", 127), strings.Repeat("v", 128), 8)
	f.Add(strings.Repeat("n", 70000), "", 65535)
	limits := environ.Limits{MaxHeaders: 1 << 20}.WithDefaults()
	f.Fuzz(func(t *testing.T, name, value string, piece int) {
		b := appendPair(appendPair(nil, name, value), value, name)
		piece = max(1, piece)
		var p params
		var e environ.Environ
		for rest := b; len(rest) > 0; {
			n := min(piece, len(rest))
			if err := p.feed(&e, &limits, rest[:n]); err != nil {
				if len(name)+len(value) > limits.MaxHeaders/2 {
					return
				}
				t.Fatal(err)
			}
			rest = rest[n:]
		}
		if err := p.end(); err != nil || e.Len() != 2 {
			t.Fatalf("%d pairs, %v", e.Len(), err)
		}
		gotName, gotValue := e.At(0)
		backName, backValue := e.At(1)
		if string(gotName) != name || string(gotValue) != value || string(backName) != value || string(backValue) != name {
			t.Fatalf("%q=%q, %q=%q", gotName, gotValue, backName, backValue)
		}
	})
}

// FuzzRecord: a header that is written is read back.
func FuzzRecord(f *testing.F) {
	f.Add(byte(1), uint16(1), uint16(8), byte(0))
	f.Add(byte(255), uint16(65535), uint16(65535), byte(255))
	f.Fuzz(func(t *testing.T, kind byte, id, content uint16, padding byte) {
		want := record{recordType(kind), id, content, padding}
		b := appendRecord(nil, want.kind, id, int(content), padding)
		over := make([]byte, headerLen)
		putRecord(over, want.kind, id, int(content), padding)
		got, err := parseRecord(b)
		if err != nil || got != want || !bytes.Equal(b, over) {
			t.Fatalf("%+v became %+v, %v", want, got, err)
		}
	})
}

// FuzzParams: no input makes params take more memory than its limits.
func FuzzParams(f *testing.F) {
	f.Add([]byte{0xff, 0xff, 0xff, 0xff, 0, 1}, 2)
	f.Add([]byte{1, 1, 'a', 'b', 1}, 1)
	f.Add(binary.BigEndian.AppendUint32([]byte{5}, 0x80000010), 3)
	limits := environ.Limits{MaxHeaders: 512, MaxFields: 8}.WithDefaults()
	f.Fuzz(func(t *testing.T, b []byte, piece int) {
		piece = min(max(1, piece), 256)
		var p params
		var e environ.Environ
		for len(b) > 0 {
			n := min(piece, len(b))
			err := p.feed(&e, &limits, b[:n])
			if e.Size() > limits.MaxHeaders || e.Len() > limits.MaxFields || len(p.partial) > limits.MaxHeaders+8+piece {
				t.Fatalf("%d pairs of %d bytes, %d partial", e.Len(), e.Size(), len(p.partial))
			}
			if err != nil {
				if status := environ.StatusOf(err); status != 431 {
					t.Fatalf("status %d", status)
				}
				return
			}
			b = b[n:]
		}
	})
}
