package environtest_test

import (
	"bytes"
	"net/http"
	"strings"
	"testing"
	"testing/iotest"

	"wsgigate/environ"
	"wsgigate/environ/environtest"
)

// fakeFront plays a transport: it turns a request into variables, prepares them,
// runs the reflect application and turns the record into a response.
func fakeFront(mount string, files bool) func(*environtest.Request) (*environtest.Response, error) {
	return func(q *environtest.Request) (*environtest.Response, error) {
		r := environtest.NewRequest()
		for _, kv := range environtest.FrontEnviron(q, mount) {
			r.Environ.Add(kv[0], kv[1])
		}
		if err := environ.Prepare(r, &environ.Rules{}); err != nil {
			return nil, err
		}
		r.Body = iotest.OneByteReader(bytes.NewReader(q.Body))
		if len(q.Body) > 100_000 {
			r.Body = bytes.NewReader(q.Body)
		}
		if files {
			var w environtest.FileRecorder
			environtest.App().ServeGateway(&w, r)
			return response(&w.Recorder)
		}
		var w environtest.Recorder
		environtest.App().ServeGateway(&w, r)
		return response(&w)
	}
}

func response(w *environtest.Recorder) (*environtest.Response, error) {
	if w.Misuse != nil {
		return nil, w.Misuse
	}
	if w.AbortErr != nil {
		return nil, w.AbortErr
	}
	resp := &environtest.Response{Status: w.Status, Reason: w.Reason, Header: http.Header{}, Body: w.Body.Bytes()}
	for _, f := range w.Fields {
		resp.Header.Add(f[0], f[1])
	}
	return resp, nil
}

func TestTable(t *testing.T) {
	t.Run("root", func(t *testing.T) { environtest.Run(t, environtest.Target{Do: fakeFront("", false)}) })
	t.Run("sub", func(t *testing.T) {
		environtest.Run(t, environtest.Target{Do: fakeFront("/sub", true), Mount: "/sub"})
	})
}

// breakages are what a bad transport would do; the table must see each.
var breakages = map[string]struct {
	in  func(vars *environ.Environ)
	out func(resp *environtest.Response)
}{
	"query lost":          {in: func(e *environ.Environ) { e.Set("QUERY_STRING", "") }},
	"mount lost":          {in: func(e *environ.Environ) { e.Set("SCRIPT_NAME", "") }},
	"path decoded twice":  {in: func(e *environ.Environ) { e.Set("PATH_INFO", strings.ReplaceAll(e.Text("PATH_INFO"), "%2", "/")) }},
	"path folded":         {in: func(e *environ.Environ) { e.Set("PATH_INFO", strings.ToLower(e.Text("PATH_INFO"))) }},
	"proxy passed":        {in: func(e *environ.Environ) { e.Set("HTTP_PROXY", "x") }},
	"length passed":       {in: func(e *environ.Environ) { e.Set("HTTP_CONTENT_LENGTH", "5") }},
	"length absent":       {in: func(e *environ.Environ) { e.Del("CONTENT_LENGTH") }},
	"name empty":          {in: func(e *environ.Environ) { e.Set("SERVER_NAME", "") }},
	"scheme wrong":        {in: func(e *environ.Environ) { e.Set("HTTPS", "on") }},
	"cookie lost":         {in: func(e *environ.Environ) { e.Del("HTTP_COOKIE") }},
	"status lost":         {out: func(resp *environtest.Response) { resp.Status = 200 }},
	"reason lost":         {out: func(resp *environtest.Response) { resp.Reason = "OK" }},
	"second cookie lost":  {out: func(resp *environtest.Response) { resp.Header.Set("Set-Cookie", resp.Header.Get("Set-Cookie")) }},
	"body cut":            {out: func(resp *environtest.Response) { resp.Body = resp.Body[:len(resp.Body)/2] }},
	"body on HEAD or 204": {out: func(resp *environtest.Response) { resp.Body = append(resp.Body, 'x') }},
}

func TestTableSeesBreakage(t *testing.T) {
	for name, b := range breakages {
		t.Run(name, func(t *testing.T) {
			if brokenCases(t, b.in, b.out) == 0 {
				t.Error("no case of the table noticed")
			}
		})
	}
}

// brokenCases counts the cases that fail behind a front that is broken so.
func brokenCases(t *testing.T, in func(*environ.Environ), out func(*environtest.Response)) (n int) {
	target := environtest.Target{Mount: "/sub"}
	for _, c := range environtest.Cases() {
		if strings.Contains(c.Name, "2 MiB") || strings.Contains(c.Name, "large") {
			continue // as other cases, only slower
		}
		r, err := environtest.Prepared(c.Request, target.Mount)
		if err != nil {
			t.Fatal(err)
		}
		if in != nil {
			in(&r.Environ)
		}
		var w environtest.Recorder
		environtest.App().ServeGateway(&w, r)
		resp, err := response(&w)
		if err != nil {
			t.Fatal(err)
		}
		if out != nil {
			out(resp)
		}
		if target.Check(&c, resp) != nil {
			n++
		}
	}
	return n
}

func TestParseCGI(t *testing.T) {
	resp, err := environtest.ParseCGI([]byte("Status: 404 Not Found\r\nX-A: 1\r\nX-A: 2\r\n\r\nbody\r\n\r\n"))
	if err != nil {
		t.Fatal(err)
	}
	if resp.Status != 404 || resp.Reason != "Not Found" || len(resp.Header["X-A"]) != 2 || string(resp.Body) != "body\r\n\r\n" {
		t.Errorf("got %+v", resp)
	}
	for _, bad := range []string{"", "Status: 200 OK\r\n", "X: y\r\n\r\n", "Status: x\r\n\r\n", "Status: 200 OK\r\nX\r\n\r\n", "Status: 200 OK\r\nX: a\nY: b\r\n\r\n"} {
		if _, err := environtest.ParseCGI([]byte(bad)); err == nil {
			t.Errorf("%q was accepted", bad)
		}
	}
}
