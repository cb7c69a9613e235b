package httpd

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"wsgigate/environ"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// start serves h on loopback and returns the address.
func start(t testing.TB, s *Server) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	return startOn(t, s, l)
}

func startOn(t testing.TB, s *Server, l net.Listener) string {
	t.Helper()
	if s.Log == nil {
		s.Log = slog.New(slog.DiscardHandler)
	}
	done := make(chan error, 1)
	go func() { done <- s.Serve(l) }()
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		_ = s.Shutdown(ctx)
		if err := <-done; err != net.ErrClosed {
			t.Errorf("Serve returned %v", err)
		}
	})
	return l.Addr().String()
}

// respond sends a response with a Content-Length.
func respond(t testing.TB, w environ.ResponseWriter, status int, body string) {
	var h environ.Header
	_ = h.SetStatus(status, "Fine")
	_ = h.Add("Content-Type", "text/plain")
	_ = h.Add("Content-Length", fmt.Sprint(len(body)))
	if err := w.WriteHeader(&h); err != nil {
		t.Error(err)
	}
	_, _ = io.WriteString(w, body)
}

// dump answers with the environ and the body, a line for each variable.
func dump(t testing.TB) environ.Handler {
	return environ.HandlerFunc(func(w environ.ResponseWriter, r *environ.Request) {
		body, err := io.ReadAll(r.Body)
		if err != nil {
			environ.Fail(w, r, err)
			return
		}
		var b strings.Builder
		for name, value := range r.Environ.All() {
			fmt.Fprintf(&b, "%s=%q\n", name, value)
		}
		fmt.Fprintf(&b, "length=%d body=%q\n", r.ContentLength, body)
		respond(t, w, 200, b.String())
	})
}

// talk sends raw bytes, reads until the server closes, and returns what came.
func talk(t testing.TB, addr string, request string) string {
	t.Helper()
	c, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(10 * time.Second))
	if _, err := io.WriteString(c, request); err != nil {
		t.Fatal(err)
	}
	got, err := io.ReadAll(c)
	if err != nil {
		t.Fatalf("%v after %q", err, got)
	}
	return string(got)
}

func TestEnviron(t *testing.T) {
	s := &Server{Handler: dump(t)}
	s.Rules.Extra = [][2]string{{"deployer.key", "x"}}
	addr := start(t, s)
	got := talk(t, addr, "POST /a%2Fb%20%C3%A9%00//..?q=%41&r HTTP/1.1\r\nHost: example.org:81\r\nConnection: close\r\n"+
		"X-B: 1\r\nx-b: 2\r\nCookie: a=1\r\nCookie: b=2\r\nProxy: evil\r\nX_B: evil\r\nX.B: evil\r\nContent_Length: 9\r\n"+
		"Script_Name: /evil\r\nContent-Type: text/x\r\nContent-Length: 3\r\n\r\nabc")
	_, body, _ := strings.Cut(got, "\r\n\r\n")
	_, port, _ := net.SplitHostPort(addr)
	client := ""
	var lines []string
	for line := range strings.Lines(body) {
		if strings.HasPrefix(line, "REMOTE_PORT=") {
			client = line
			continue
		}
		lines = append(lines, line)
	}
	want := `GATEWAY_INTERFACE="CGI/1.1"
SERVER_SOFTWARE="wsgigate"
SERVER_PROTOCOL="HTTP/1.1"
REQUEST_METHOD="POST"
REQUEST_URI="/a%2Fb%20%C3%A9%00//..?q=%41&r"
RAW_URI="/a%2Fb%20%C3%A9%00//..?q=%41&r"
SCRIPT_NAME=""
PATH_INFO="/a/b é\x00//.."
QUERY_STRING="q=%41&r"
REMOTE_ADDR="127.0.0.1"
SERVER_ADDR="127.0.0.1"
SERVER_PORT="81"
HTTP_HOST="example.org:81"
HTTP_CONNECTION="close"
CONTENT_LENGTH="3"
CONTENT_TYPE="text/x"
HTTP_COOKIE="a=1; b=2"
HTTP_X_B="1,2"
deployer.key="x"
SERVER_NAME="example.org"
length=3 body="abc"
`
	if got := strings.Join(lines, ""); got != want {
		t.Errorf("got\n%swant\n%s", got, want)
	}
	if client == "" || strings.Contains(client, port) {
		t.Errorf("REMOTE_PORT line %q", client)
	}
}

func TestUnixSocket(t *testing.T) {
	l, err := net.Listen("unix", filepath.Join(t.TempDir(), "s"))
	if err != nil {
		t.Fatal(err)
	}
	addr := startOn(t, &Server{Handler: dump(t)}, l)
	c, err := net.Dial("unix", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	fmt.Fprint(c, "GET / HTTP/1.0\r\n\r\n")
	resp, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err != nil {
		t.Fatal(err)
	}
	body, _ := io.ReadAll(resp.Body)
	for _, want := range []string{"REMOTE_ADDR=\"\"\n", "SERVER_NAME=\"localhost\"\n", "SERVER_PORT=\"80\"\n", "SERVER_PROTOCOL=\"HTTP/1.0\"\n"} {
		if !strings.Contains(string(body), want) {
			t.Errorf("no %s in\n%s", want, body)
		}
	}
}
