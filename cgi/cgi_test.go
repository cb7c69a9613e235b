package cgi

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"regexp"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"wsgigate/environ"
)

// asChild in the environment makes the test binary a CGI process.
const asChild = "CGI_TEST_CHILD"

func TestMain(m *testing.M) {
	if os.Getenv(asChild) != "" {
		if err := Serve(context.Background(), environ.HandlerFunc(dump), environ.Rules{}, os.Environ(), os.Stdin, os.Stdout, os.Stderr); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	goleak.VerifyTestMain(m)
}

// child returns a command that is a CGI process with that environment.
func child(t *testing.T, env ...string) *exec.Cmd {
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	return &exec.Cmd{Path: self, Args: []string{self, "-d", "--help"}, Env: append(env, asChild+"=1")}
}

// The command line is not looked at: here are the flags of an indexed query.
func TestProcess(t *testing.T) {
	cmd := child(t, "REQUEST_METHOD=POST", "CONTENT_LENGTH=3", "QUERY_STRING=-d+--help")
	cmd.Stdin = strings.NewReader("abc")
	out, err := cmd.Output()
	if err != nil || !strings.HasPrefix(string(out), "Status: 200 ") || !strings.Contains(string(out), `body="abc"`) {
		t.Errorf("%v, %q", err, out)
	}
}

// A stdout that nobody reads is an error, not death by SIGPIPE.
func TestBrokenPipe(t *testing.T) {
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	_ = r.Close()
	defer w.Close()
	var errs strings.Builder
	cmd := child(t, "REQUEST_METHOD=GET")
	cmd.Stdout, cmd.Stderr = w, &errs
	err = cmd.Run()
	var exit *exec.ExitError
	if !errors.As(err, &exit) || exit.ExitCode() != 1 || !strings.Contains(errs.String(), "broken pipe") {
		t.Errorf("%v, %q", err, errs.String())
	}
}

// call serves one request and returns stdout and stderr.
func call(t *testing.T, h environ.HandlerFunc, stdin io.Reader, env ...string) (string, string, error) {
	t.Helper()
	var out, errs bytes.Buffer
	err := Serve(context.Background(), h, environ.Rules{}, env, stdin, &out, &errs)
	return out.String(), errs.String(), err
}

func respond(w environ.ResponseWriter, status int, body string) {
	var h environ.Header
	_ = h.SetStatus(status, "Fine")
	_ = h.Add("Content-Type", "text/plain")
	_ = w.WriteHeader(&h)
	_, _ = io.WriteString(w, body)
}

func dump(w environ.ResponseWriter, r *environ.Request) {
	body, err := io.ReadAll(r.Body)
	if err != nil {
		environ.Fail(w, r, err)
		return
	}
	var b strings.Builder
	for name, value := range r.Environ.All() {
		fmt.Fprintf(&b, "%s=%q\n", name, value)
	}
	fmt.Fprintf(&b, "length=%d once=%t transport=%s body=%q\n", r.ContentLength, r.RunOnce, r.Transport, body)
	respond(w, 200, b.String())
}

func TestEnvironmentBecomesEnviron(t *testing.T) {
	got, _, err := call(t, dump, strings.NewReader("abcdef"), "REQUEST_METHOD=POST", "CONTENT_LENGTH=3", "SCRIPT_NAME=/cgi-bin/app.cgi",
		"PATH_INFO=/caf\xe9/=\xff", "QUERY_STRING=-d+x", "HTTP_X=a=b", "HTTP_PROXY=evil", "PATH=/usr/bin", "SERVER_NAME=h", "SERVER_PORT=80",
		"SERVER_PROTOCOL=HTTP/1.1", "GATEWAY_INTERFACE=CGI/1.1", "no equals sign")
	want := "Status: 200 Fine\r\nContent-Type: text/plain\r\n\r\n" + `REQUEST_METHOD="POST"
CONTENT_LENGTH="3"
SCRIPT_NAME="/cgi-bin/app.cgi"
PATH_INFO="/caf\xe9/=\xff"
QUERY_STRING="-d+x"
HTTP_X="a=b"
PATH="/usr/bin"
SERVER_NAME="h"
SERVER_PORT="80"
SERVER_PROTOCOL="HTTP/1.1"
GATEWAY_INTERFACE="CGI/1.1"
length=3 once=true transport=cgi body="abc"
`
	if got != want || err != nil {
		t.Errorf("%v, got\n%s\nwant\n%s", err, got, want)
	}
}

func TestNotCGI(t *testing.T) {
	out, _, err := call(t, dump, nil, "PATH=/bin")
	if !errors.Is(err, ErrNotCGI) || out != "" {
		t.Errorf("%v, %q", err, out)
	}
}

func TestBody(t *testing.T) {
	chunked := "HTTP_TRANSFER_ENCODING=chunked"
	cases := []struct {
		name, stdin string
		env         []string
		want        string
	}{
		{"whole", "12345", []string{"REQUEST_METHOD=POST", "CONTENT_LENGTH=5"}, `length=5 once=true transport=cgi body="12345"`},
		{"surplus is not read", "123456", []string{"REQUEST_METHOD=POST", "CONTENT_LENGTH=5"}, `length=5 once=true transport=cgi body="12345"`},
		{"short", "1234", []string{"REQUEST_METHOD=POST", "CONTENT_LENGTH=5"}, "Status: 400 "},
		{"none", "1234", []string{"REQUEST_METHOD=POST", "CONTENT_LENGTH=0"}, `length=0 once=true transport=cgi body=""`},
		{"to its end", "1234", []string{"REQUEST_METHOD=POST", chunked}, `length=-1 once=true transport=cgi body="1234"`},
		{"empty length", "1234", []string{"REQUEST_METHOD=PUT", "CONTENT_LENGTH="}, `length=-1 once=true transport=cgi body="1234"`},
		{"GET", "1234", []string{"REQUEST_METHOD=GET"}, `length=0 once=true transport=cgi body=""`},
		{"chunked GET", "1234", []string{"REQUEST_METHOD=GET", chunked}, `length=-1 once=true transport=cgi body="1234"`},
		{"+5", "12345", []string{"REQUEST_METHOD=POST", "CONTENT_LENGTH=+5"}, "Status: 400 "},
		{"-5", "12345", []string{"REQUEST_METHOD=POST", "CONTENT_LENGTH=-5"}, "Status: 400 "},
		{"0x5", "12345", []string{"REQUEST_METHOD=POST", "CONTENT_LENGTH=0x5"}, "Status: 400 "},
		{"twice", "12345", []string{"REQUEST_METHOD=POST", "CONTENT_LENGTH=5", "CONTENT_LENGTH=5"}, "Status: 400 "},
		{"4294967295", "", []string{"REQUEST_METHOD=POST", "CONTENT_LENGTH=4294967295"}, "Status: 413 "},
	}
	for _, c := range cases {
		got, _, err := call(t, dump, strings.NewReader(c.stdin), c.env...)
		if !strings.Contains(got, c.want) || err != nil {
			t.Errorf("%s: %v, got\n%s\nwant %s", c.name, err, got, c.want)
		}
	}
}

// A pipe that stays open must not hang a request without a body, nor one whose
// body has ended.
func TestStdinThatDoesNotEnd(t *testing.T) {
	for _, env := range [][]string{{"REQUEST_METHOD=GET"}, {"REQUEST_METHOD=POST", "CONTENT_LENGTH=2"}} {
		r, w, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		_, _ = io.WriteString(w, "ab")
		_ = r.SetReadDeadline(time.Now().Add(5 * time.Second))
		got, _, err := call(t, dump, r, env...)
		if err != nil || !strings.HasPrefix(got, "Status: 200 ") {
			t.Errorf("%v: %v, %q", env, err, got)
		}
		_, _ = r.Close(), w.Close()
	}
}

func TestDeviceIsNoBody(t *testing.T) {
	f, err := os.Open("/dev/zero") // a character device without an end, as a terminal is
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if got, _, err := call(t, dump, f, "REQUEST_METHOD=POST"); err != nil || !strings.Contains(got, `body=""`) {
		t.Errorf("%v, %q", err, got)
	}
}

func TestLimits(t *testing.T) {
	rules := environ.Rules{Limits: environ.Limits{MaxHeaders: 100, MaxFields: 3, MaxBody: 4}}
	cases := []struct {
		want string
		env  []string
	}{
		{"Status: 431 ", []string{"REQUEST_METHOD=GET", "X=" + strings.Repeat("x", 100)}},
		{"Status: 431 ", []string{"REQUEST_METHOD=GET", "A=1", "B=2", "C=3"}},
		{"Status: 413 ", []string{"REQUEST_METHOD=POST", "CONTENT_LENGTH=5"}},
		{"Status: 413 ", []string{"REQUEST_METHOD=POST"}},
	}
	for _, c := range cases {
		var out, errs bytes.Buffer
		err := Serve(context.Background(), environ.HandlerFunc(dump), rules, c.env, strings.NewReader("12345"), &out, &errs)
		if err != nil || !strings.HasPrefix(out.String(), c.want) {
			t.Errorf("%v: %v, %q", c.env, err, out.String())
		}
	}
}

func TestNPH(t *testing.T) {
	h := func(w environ.ResponseWriter, r *environ.Request) { respond(w, 404, "gone") }
	got, _, err := call(t, h, nil, "REQUEST_METHOD=GET", "SCRIPT_NAME=/cgi-bin/nph-app", "SERVER_PROTOCOL=HTTP/1.1")
	want := regexp.MustCompile("^HTTP/1.1 404 Fine\r\nContent-Type: text/plain\r\nConnection: close\r\n" +
		"Date: [A-Z][a-z]{2}, \\d\\d [A-Z][a-z]{2} \\d{4} \\d\\d:\\d\\d:\\d\\d GMT\r\nServer: wsgigate\r\n\r\ngone$")
	if err != nil || !want.MatchString(got) {
		t.Errorf("%v, %q", err, got)
	}
	got, _, _ = call(t, h, nil, "REQUEST_METHOD=GET", "SCRIPT_NAME=/nph-dir/app")
	if !strings.HasPrefix(got, "Status: 404 Fine\r\n") {
		t.Errorf("%q", got)
	}
}

func TestHandlerFaults(t *testing.T) {
	boom := errors.New("boom")
	const page = "Status: 500 Internal Server Error\r\n"
	cases := []struct {
		name    string
		handler environ.HandlerFunc
		want    string
		err     error
	}{
		{"no response", func(environ.ResponseWriter, *environ.Request) {}, page, nil},
		{"panic", func(environ.ResponseWriter, *environ.Request) { panic("boom") }, page, nil},
		{"abort at once", func(w environ.ResponseWriter, r *environ.Request) { w.Abort(boom) }, page, nil},
		{"abort before flush", func(w environ.ResponseWriter, r *environ.Request) { respond(w, 200, "part"); w.Abort(boom) }, page, nil},
		{"status 103", func(w environ.ResponseWriter, r *environ.Request) { respond(w, 103, "part") }, page, nil},
		{"abort after flush", func(w environ.ResponseWriter, r *environ.Request) {
			respond(w, 200, "part")
			_ = w.Flush()
			_, _ = io.WriteString(w, "late")
			w.Abort(boom)
			_, _ = io.WriteString(w, "later")
		}, "Status: 200 Fine\r\nContent-Type: text/plain\r\n\r\npart", boom},
	}
	for _, c := range cases {
		got, _, err := call(t, c.handler, nil, "REQUEST_METHOD=GET")
		if !errors.Is(err, c.err) || !strings.HasPrefix(got, c.want) || c.err != nil && got != c.want {
			t.Errorf("%s: %v, %q", c.name, err, got)
		}
	}
}

func TestHeadHasNoBody(t *testing.T) {
	got, _, err := call(t, func(w environ.ResponseWriter, r *environ.Request) { respond(w, 200, "body") }, nil, "REQUEST_METHOD=HEAD")
	if err != nil || !strings.HasSuffix(got, "\r\n\r\n") {
		t.Errorf("%v, %q", err, got)
	}
}

func TestWriteErrors(t *testing.T) {
	_, errs, err := call(t, func(w environ.ResponseWriter, r *environ.Request) {
		w.WriteErrors([]byte("oh\n"))
		respond(w, 200, "")
	}, nil, "REQUEST_METHOD=GET")
	if err != nil || errs != "oh\n" {
		t.Errorf("%v, %q", err, errs)
	}
}

func TestSmallAnswerIsOneWrite(t *testing.T) {
	out := &countingWriter{w: io.Discard}
	err := Serve(context.Background(), environ.HandlerFunc(dump), environ.Rules{}, []string{"REQUEST_METHOD=GET"}, nil, out, io.Discard)
	if err != nil || out.n != 1 {
		t.Errorf("%v after %d writes", err, out.n)
	}
}

type countingWriter struct {
	w io.Writer
	n int
}

func (c *countingWriter) Write(p []byte) (int, error) {
	c.n++
	return c.w.Write(p)
}

func TestContextCancelsTheRequest(t *testing.T) {
	ctx, cancel := context.WithCancel(context.Background())
	h := environ.HandlerFunc(func(w environ.ResponseWriter, r *environ.Request) {
		gone := make(chan error, 1)
		r.OnCancel(func(err error) { gone <- err })
		cancel()
		select {
		case err := <-gone:
			w.Abort(err)
		case <-time.After(5 * time.Second):
			t.Error("not cancelled")
		}
	})
	if err := Serve(ctx, h, environ.Rules{}, []string{"REQUEST_METHOD=GET"}, nil, io.Discard, io.Discard); err != nil {
		t.Error(err)
	}
}

// The answer comes first, then what the handler left of the body is read.
func TestUnreadBodyIsDrained(t *testing.T) {
	stdin := strings.NewReader("0123456789 and what follows")
	out, _, err := call(t, func(w environ.ResponseWriter, r *environ.Request) {
		_, _ = r.Body.Read(make([]byte, 3))
		respond(w, 200, "done")
	}, stdin, "REQUEST_METHOD=POST", "CONTENT_LENGTH=10")
	if err != nil || !strings.HasSuffix(out, "done") {
		t.Errorf("%v, %q", err, out)
	}
	if left := stdin.Len(); left != len(" and what follows") {
		t.Errorf("%d bytes left of stdin, want what is behind the body", left)
	}
}
