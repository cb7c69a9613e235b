package fcgi

import (
	"bytes"
	"context"
	"io"
	"math/rand/v2"
	"strings"
	"testing"

	"wsgigate/environ"
)

// golden has requests of every kind, all of which are answered by reflect.
var golden = map[string][]byte{
	"get":        ask{id: 1}.bytes(),
	"kept":       ask{id: 1, keep: true}.bytes(),
	"post":       ask{id: 7, body: "a=1&b=2", length: "auto"}.bytes(),
	"no length":  ask{id: 7, body: "chunked before"}.bytes(),
	"long pairs": ask{id: 65535, params: append([]string{"HTTP_X_LONG", strings.Repeat("x", 5000), strings.Repeat("N", 200), "v"}, realistic...)}.bytes(),
	"authorizer": ask{id: 2, role: wireAuthorizer}.bytes(),
	"filter":     ask{id: 3, role: wireFilter, body: "b", data: "some data", length: "auto", params: append([]string{"FCGI_DATA_LENGTH", "9"}, realistic...)}.bytes(),
	"padded":     padded(),
	"scattered":  scattered(),
}

// padded has records with padding of 0 and of 255 bytes.
func padded() []byte {
	a := ask{id: 1, body: "0123456789", length: "auto"}
	b := appendBegin(nil, 1, wireResponder, 0)
	pairs := a.pairs()
	b = append(appendRecord(b, typeParams, 1, len(pairs), 255), pairs...)
	b = append(b, make([]byte, 255)...)
	b = append(appendRecord(b, typeParams, 1, 0, 3), 1, 2, 3)
	b = append(appendRecord(b, typeStdin, 1, 10, 7), "01234567899999999"...)
	return append(appendRecord(b, typeStdin, 1, 0, 255), bytes.Repeat([]byte{1}, 255)...)
}

// scattered has one record for each byte of every stream, so that pairs straddle
// records in every way.
func scattered() []byte {
	a := ask{id: 1, body: "0123456789", length: "auto"}
	b := appendBegin(nil, 1, wireResponder, 0)
	for _, c := range a.pairs() {
		b = append(appendRecord(b, typeParams, 1, 1, 0), c)
	}
	b = append(b, end(typeParams, 1)...)
	for _, c := range []byte(a.body) {
		b = append(appendRecord(b, typeStdin, 1, 1, 0), c)
	}
	return append(b, end(typeStdin, 1)...)
}

// TestGoldenSplits replays each request whole, byte by byte and at random
// splits: the answer is the same (FAULTS 47).
func TestGoldenSplits(t *testing.T) {
	s := start(t, "unix", &Server{Handler: reflect(t)})
	for name, request := range golden {
		t.Run(name, func(t *testing.T) {
			whole := s.replay(t, request, len(request))
			if !whole.end || !whole.outEnd || !strings.HasPrefix(whole.out, "Status: 200 OK\r\n") {
				t.Fatalf("answer %+v", whole)
			}
			if got := s.replay(t, request, 1); *got != *whole {
				t.Errorf("byte by byte: %+v, whole: %+v", got, whole)
			}
			for range 5 {
				if got := s.replay(t, request, -1); *got != *whole {
					t.Errorf("random splits: %+v, whole: %+v", got, whole)
				}
			}
		})
	}
}

// replay sends request in pieces of n bytes, or random ones if n is negative.
func (s *site) replay(t *testing.T, request []byte, n int) *answer {
	p := s.dial(t)
	defer p.Close()
	id := uint16(request[2])<<8 | uint16(request[3])
	for rest := request; len(rest) > 0; {
		size := n
		if n < 0 {
			size = 1 + rand.IntN(len(rest))
		}
		size = min(size, len(rest))
		if _, err := p.Write(rest[:size]); err != nil {
			break // an Authorizer is answered before the rest is sent
		}
		rest = rest[size:]
	}
	return p.answer(id)
}

func TestReflected(t *testing.T) {
	s := start(t, "tcp", &Server{Handler: reflect(t)})
	tests := map[string]struct {
		request []byte
		want    []string
	}{
		"get":        {golden["get"], []string{"role=RESPONDER length=0 body=\"\"\n", "\nHTTP_COOKIE=sessionid=8a7b", "\nPATH_INFO=/blog/archive\n"}},
		"post":       {golden["post"], []string{"length=7 body=\"a=1&b=2\"\n", "\nCONTENT_LENGTH=7\n"}},
		"no length":  {golden["no length"], []string{"length=-1 body=\"chunked before\"\n"}},
		"authorizer": {golden["authorizer"], []string{"role=AUTHORIZER length=0 body=\"\"\n"}},
		"filter":     {golden["filter"], []string{"role=FILTER length=1 body=\"b\" data=\"some data\"\n"}},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			got := s.replay(t, test.request, len(test.request))
			for _, want := range test.want {
				if !strings.Contains(got.out, want) {
					t.Errorf("no %q in %s", want, got.out)
				}
			}
		})
	}
}

// TestForbiddenNames: S1 and S2 as far as a CGI-style transport can tell.
func TestForbiddenNames(t *testing.T) {
	s := start(t, "unix", &Server{Handler: reflect(t)})
	params := append([]string{
		"HTTP_PROXY", "http://evil.example", "HTTP_X_A", "first", "HTTP_X_A", "second",
		"HTTP_CONTENT_LENGTH", "99", "HTTP_CONTENT_TYPE", "x/y", "wsgi.url_scheme", "https",
	}, realistic...)
	p := s.dial(t)
	p.send(ask{id: 1, params: params}.bytes())
	got := p.answer(1).out
	for _, bad := range []string{"HTTP_PROXY", "HTTP_CONTENT", "wsgi."} {
		if strings.Contains(got, bad) {
			t.Errorf("%s reached the application: %s", bad, got)
		}
	}
	if !strings.Contains(got, "\nHTTP_X_A=first, second\n") {
		t.Errorf("a second spelling replaced the first: %s", got)
	}
}

// TestPathsAreBytes: S4, paths go through as they are.
func TestPathsAreBytes(t *testing.T) {
	s := start(t, "unix", &Server{Handler: reflect(t)})
	for _, path := range []string{"/a\x00b", "/a\nb", "/%2F/..//x", "/../../etc/passwd", "/\xef\xbd\x81\xef\xbc\x8f", "/\xff"} {
		p := s.dial(t)
		p.send(ask{id: 1, params: []string{"REQUEST_METHOD", "GET", "SCRIPT_NAME", "", "PATH_INFO", path}}.bytes())
		if got := p.answer(1).out; !strings.Contains(got, "\nPATH_INFO="+path+"\n") {
			t.Errorf("path %q: %q", path, got)
		}
	}
}

func TestKeepConn(t *testing.T) {
	for _, network := range []string{"unix", "tcp"} {
		t.Run(network, func(t *testing.T) {
			s := start(t, network, &Server{Handler: reflect(t)})
			p := s.dial(t)
			for i := range 5 {
				p.send(ask{id: 1, keep: i < 4, body: "x", length: "auto"}.bytes())
				if got := p.answer(1); !strings.Contains(got.out, "body=\"x\"") {
					t.Fatalf("request %d: %+v", i, got)
				}
			}
			p.mustClose()
		})
	}
}

// TestPipelined sends several requests at once, with the same id and with
// others, on a kept connection.
func TestPipelined(t *testing.T) {
	s := start(t, "unix", &Server{Handler: reflect(t)})
	p := s.dial(t)
	var all []byte
	for id := uint16(1); id <= 20; id++ {
		all = append(all, ask{id: id, keep: true, body: strings.Repeat("x", int(id)), length: "auto"}.bytes()...)
	}
	p.send(all)
	ids := make([]uint16, 20)
	for i := range ids {
		ids[i] = uint16(i + 1)
	}
	got, err := p.answers(ids...)
	if err != nil {
		t.Fatal(err)
	}
	for id, a := range got {
		if want := "body=\"" + strings.Repeat("x", int(id)) + "\"\n"; !strings.Contains(a.out, want) {
			t.Errorf("request %d: %+v", id, a)
		}
	}
}

// roundTrip makes one request with the package's own client.
func (s *site) roundTrip(t testing.TB, body io.Reader, length string) (out, errs string, err error) {
	var env environ.Environ
	for i := 0; i < len(realistic); i += 2 {
		env.Add(realistic[i], realistic[i+1])
	}
	if length != "" {
		env.Add("CONTENT_LENGTH", length)
	}
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	c := Client{Addr: s.addr}
	var stdout, stderr bytes.Buffer
	_, err = c.RoundTrip(ctx, &env, environ.Responder, body, &stdout, &stderr)
	return stdout.String(), stderr.String(), err
}
