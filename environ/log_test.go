package environ_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"wsgigate/environ"
	"wsgigate/environ/environtest"
)

var formats = map[string]environ.Format{"text": environ.Text, "json": environ.JSON, "combined": environ.Combined}

// logged returns the line for a request that handler answers.
func logged(t *testing.T, format environ.Format, handler environ.HandlerFunc, vars ...string) string {
	t.Helper()
	var out bytes.Buffer
	r := environtest.NewRequest(vars...)
	r.ID, r.Worker, r.App, r.ContentLength = 12, 4711, "site:app", 7
	r.Start = time.Now().Add(-1500 * time.Millisecond)
	environ.AccessLog(handler, &out, format).ServeGateway(new(environtest.Recorder), r)
	return out.String()
}

// sends answers 201 with those bytes.
func sends(body string) environ.HandlerFunc {
	return func(w environ.ResponseWriter, _ *environ.Request) {
		var h environ.Header
		_ = h.SetStatus(201, "Created")
		_ = w.WriteHeader(&h)
		_, _ = w.Write([]byte(body))
	}
}

var usualVars = []string{
	"REMOTE_ADDR=192.0.2.7", "REMOTE_USER=ada", "REQUEST_METHOD=GET", "REQUEST_URI=/a%20b?c=d",
	"SCRIPT_NAME=/sub", "PATH_INFO=/a b", "QUERY_STRING=c=d",
	"SERVER_PROTOCOL=HTTP/1.1", "HTTP_REFERER=http://r.test/", `HTTP_USER_AGENT=agent "x" y`,
}

func TestLogText(t *testing.T) {
	const moment = `\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}(Z|[+-]\d\d:\d\d)`
	want := regexp.MustCompile(`^time=` + moment + ` start=` + moment + ` id=12 transport=fastcgi ` +
		`remote=192\.0\.2\.7 user=ada method=GET uri=/a%20b\?c=d protocol=HTTP/1\.1 script=/sub path=/a\\x20b query=c=d ` +
		`length=7 status=201 bytes=5 duration=[1-9]\d*\.\d{6} app=site:app gateway=\d+ worker=4711 cpu=- memory=- ` +
		`referer=http://r\.test/ agent=agent\\x20\\"x\\"\\x20y aborted=false` + "\n$")
	if line := logged(t, environ.Text, sends("12345"), usualVars...); !want.MatchString(line) {
		t.Errorf("got %q", line)
	}
}

func TestLogCombined(t *testing.T) {
	want := regexp.MustCompile(`^192\.0\.2\.7 - ada \[\d\d/[A-Z][a-z]{2}/\d{4}:\d\d:\d\d:\d\d [+-]\d{4}\] ` +
		`"GET /a%20b\?c=d HTTP/1\.1" 201 5 "http://r\.test/" "agent \\"x\\" y"` + "\n$")
	if line := logged(t, environ.Combined, sends("12345"), usualVars...); !want.MatchString(line) {
		t.Errorf("got %q", line)
	}
	want = regexp.MustCompile(`^- - - \[[^]]+\] "GET / -" 201 - "-" "-"` + "\n$")
	if line := logged(t, environ.Combined, sends(""), "REQUEST_METHOD=GET", "PATH_INFO=/"); !want.MatchString(line) {
		t.Errorf("got %q", line)
	}
}

func TestLogJSON(t *testing.T) {
	line := logged(t, environ.JSON, sends("12345"), usualVars...)
	var got map[string]any
	if err := json.Unmarshal([]byte(line), &got); err != nil {
		t.Fatalf("%v in %q", err, line)
	}
	for name, want := range map[string]any{
		"id": 12.0, "transport": "fastcgi", "remote": "192.0.2.7", "user": "ada", "method": "GET", "uri": "/a%20b?c=d",
		"protocol": "HTTP/1.1", "status": 201.0, "bytes": 5.0, "worker": 4711.0, "aborted": false,
		"script": "/sub", "path": "/a b", "query": "c=d", "length": 7.0, "app": "site:app", "gateway": float64(os.Getpid()),
		"cpu": nil, "memory": nil, "referer": "http://r.test/", "agent": `agent "x" y`,
	} {
		if value, there := got[name]; value != want || !there {
			t.Errorf("%s = %v, want %v", name, value, want)
		}
	}
	if d, _ := got["duration"].(float64); d < 1.5 || d > 60 {
		t.Errorf("duration = %v, want 1.5 s and a little", got["duration"])
	}
	end, err := time.Parse(time.RFC3339, got["time"].(string))
	start, err2 := time.Parse(time.RFC3339, got["start"].(string))
	if took := end.Sub(start); err != nil || err2 != nil || took < 1500*time.Millisecond || took > time.Minute {
		t.Errorf("from %v to %v, %v, %v", start, end, err, err2)
	}
}

// TestLogMeasures: what a worker used is asked for and shown, but not in Apache's
// format, which has no place for it.
func TestLogMeasures(t *testing.T) {
	var measure bool
	pool := environ.HandlerFunc(func(w environ.ResponseWriter, r *environ.Request) {
		if measure = r.Measure; measure {
			r.CPU, r.PeakMemory = 1500*time.Millisecond, 12345678
		}
		sends("12345")(w, r)
	})
	text := logged(t, environ.Text, pool, usualVars...)
	m := regexp.MustCompile(` cpu=(\d+\.\d\d) memory=12345678 `).FindStringSubmatch(text)
	if m == nil {
		t.Fatalf("got %q", text)
	}
	if share, err := strconv.ParseFloat(m[1], 64); err != nil || share > 100 || share < 2 { // of 1.5 s and a little
		t.Errorf("cpu=%s: %v", m[1], err)
	}
	var got struct{ CPU, Memory, Length *float64 }
	line := logged(t, environ.JSON, pool, usualVars...)
	if err := json.Unmarshal([]byte(line), &got); err != nil || got.CPU == nil || *got.CPU > 100 || *got.CPU < 2 || *got.Memory != 12345678 {
		t.Errorf("%v in %q", err, line)
	}
	if logged(t, environ.Combined, pool, usualVars...); measure {
		t.Error("measured for the combined format")
	}
}

// TestLogWithoutLength: a body of which only the end is known.
func TestLogWithoutLength(t *testing.T) {
	chunked := environ.HandlerFunc(func(w environ.ResponseWriter, r *environ.Request) { r.ContentLength = -1 })
	if line := logged(t, environ.Text, chunked); !strings.Contains(line, " length=- ") {
		t.Errorf("got %q", line)
	}
	if line := logged(t, environ.JSON, chunked); !strings.Contains(line, `,"length":null,`) {
		t.Errorf("got %q", line)
	}
}

// TestLogPrefersTheFile: the script is the file where the web server names one.
func TestLogPrefersTheFile(t *testing.T) {
	if line := logged(t, environ.Text, sends(""), "SCRIPT_NAME=/x", "SCRIPT_FILENAME=/srv/x y"); !strings.Contains(line, ` script=/srv/x\x20y `) {
		t.Errorf("got %q", line)
	}
}

// TestLogLinesAreClean: every byte in every field of every format (S6).
func TestLogLinesAreClean(t *testing.T) {
	var every []byte
	for i := range 256 {
		every = append(every, byte(i))
	}
	vars := []string{"PATH_INFO=/"}
	for _, name := range []string{"REMOTE_ADDR", "REMOTE_USER", "REQUEST_METHOD", "REQUEST_URI", "SERVER_PROTOCOL", "HTTP_REFERER", "HTTP_USER_AGENT", "SCRIPT_FILENAME", "QUERY_STRING"} {
		vars = append(vars, name+"="+string(every))
	}
	for name, format := range formats {
		line := logged(t, format, sends(""), vars...)
		if strings.Count(line, "\n") != 1 || !strings.HasSuffix(line, "\n") {
			t.Errorf("%s: not one line: %q", name, line)
		}
		if i := strings.IndexFunc(line[:len(line)-1], func(c rune) bool { return c < ' ' || c > '~' }); i >= 0 {
			t.Errorf("%s: byte %q at %d", name, line[i], i)
		}
		if format == environ.JSON {
			var got struct{ URI string }
			if err := json.Unmarshal([]byte(line), &got); err != nil || len([]rune(got.URI)) != 256 {
				t.Errorf("json: %v, %d code points", err, len([]rune(got.URI)))
			}
		}
	}
}

// TestLogFieldsCannotBeForged: a value with spaces is still one field.
func TestLogFieldsCannotBeForged(t *testing.T) {
	line := logged(t, environ.Text, sends(""), "REQUEST_METHOD=GET", "REQUEST_URI=/x status=500 bytes=9", "REMOTE_USER=a b")
	if n := len(strings.Fields(line)); n != 24 {
		t.Errorf("%d fields in %q", n, line)
	}
}

func TestLogWithoutRequestURI(t *testing.T) {
	line := logged(t, environ.Text, sends(""), "REQUEST_METHOD=GET", "SCRIPT_NAME=/app", "PATH_INFO=/a b", "QUERY_STRING=q=1")
	if !strings.Contains(line, " uri=/app/a%20b?q=1 ") {
		t.Errorf("got %q", line)
	}
}

func TestLogOfFailures(t *testing.T) {
	aborts := func(w environ.ResponseWriter, r *environ.Request) {
		sends("12")(w, r)
		w.Abort(errors.New("gone"))
	}
	if line := logged(t, environ.Text, aborts); !strings.Contains(line, "status=201 bytes=2 ") || !strings.Contains(line, "aborted=true") {
		t.Errorf("abort: %q", line)
	}
	silent := func(environ.ResponseWriter, *environ.Request) {}
	if line := logged(t, environ.Text, silent); !strings.Contains(line, " status=500 bytes=0 ") {
		t.Errorf("no answer: %q", line)
	}
	twice := func(w environ.ResponseWriter, r *environ.Request) {
		sends("")(w, r)
		environ.Fail(w, r, errors.New("late"))
	}
	if line := logged(t, environ.Text, twice); !strings.Contains(line, " status=201 ") {
		t.Errorf("second header: %q", line)
	}
}

func TestLogAfterPanic(t *testing.T) {
	var out bytes.Buffer
	panics := environ.HandlerFunc(func(environ.ResponseWriter, *environ.Request) { panic("bug") })
	func() {
		defer func() {
			if recover() != "bug" {
				t.Error("the panic was swallowed")
			}
		}()
		environ.AccessLog(panics, &out, environ.Text).ServeGateway(new(environtest.Recorder), environtest.NewRequest())
	}()
	if !strings.Contains(out.String(), " status=500 ") {
		t.Errorf("got %q", out.String())
	}
}

func TestLogPassesFiles(t *testing.T) {
	path := filepath.Join(t.TempDir(), "f")
	if err := os.WriteFile(path, []byte("0123456789"), 0o600); err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	handler := environ.HandlerFunc(func(w environ.ResponseWriter, r *environ.Request) {
		sends("ab")(w, r)
		if n, err := w.(environ.FileSender).SendFile(f, 2, 5); n != 5 || err != nil {
			t.Errorf("SendFile: %d, %v", n, err)
		}
	})
	var out bytes.Buffer
	var w environtest.FileRecorder
	environ.AccessLog(handler, &out, environ.Text).ServeGateway(&w, environtest.NewRequest())
	if w.Body.String() != "ab23456" || w.Files != 1 || !strings.Contains(out.String(), " bytes=7 ") {
		t.Errorf("body %q, %d files, %q", w.Body.String(), w.Files, out.String())
	}
	noFiles := environ.HandlerFunc(func(w environ.ResponseWriter, _ *environ.Request) {
		if _, ok := w.(environ.FileSender); ok {
			t.Error("a FileSender over a writer that is none")
		}
	})
	environ.AccessLog(noFiles, io.Discard, environ.Text).ServeGateway(new(environtest.Recorder), environtest.NewRequest())
}

func TestLogPassesTheRest(t *testing.T) {
	var w environtest.Recorder
	handler := environ.HandlerFunc(func(w environ.ResponseWriter, r *environ.Request) {
		sends("x")(w, r)
		w.WriteErrors([]byte("trouble"))
		_ = w.Flush()
	})
	environ.AccessLog(handler, io.Discard, environ.JSON).ServeGateway(&w, environtest.NewRequest())
	if w.Errors() != "trouble" || w.Flushes != 1 {
		t.Errorf("errors %q, %d flushes", w.Errors(), w.Flushes)
	}
}

// oneCall is a writer whose every Write must be one whole line. It is not safe for
// concurrent use, so that the race detector sees two at once.
type oneCall struct {
	t     *testing.T
	lines map[string]int
}

func (o *oneCall) Write(p []byte) (int, error) {
	if strings.Count(string(p), "\n") != 1 || p[len(p)-1] != '\n' {
		o.t.Errorf("not a whole line: %q", p)
	}
	_, rest, _ := strings.Cut(string(p), " uri=")
	uri, _, _ := strings.Cut(rest, " ")
	o.lines[uri]++
	return len(p), nil
}

func TestLogLinesAreWhole(t *testing.T) {
	out := &oneCall{t, map[string]int{}}
	h := environ.AccessLog(sends("x"), out, environ.Text)
	var wg sync.WaitGroup
	for g := range 8 {
		wg.Go(func() {
			for i := range 200 {
				uri := "/" + strconv.Itoa(g*1000+i)
				h.ServeGateway(new(environtest.Recorder), environtest.NewRequest("REQUEST_URI="+uri))
			}
		})
	}
	wg.Wait()
	if len(out.lines) != 8*200 {
		t.Errorf("%d different lines, want %d", len(out.lines), 8*200)
	}
}

func TestParseFormat(t *testing.T) {
	for name, want := range formats {
		if got, err := environ.ParseFormat(name); got != want || err != nil {
			t.Errorf("%s: %v, %v", name, got, err)
		}
	}
	for _, bad := range []string{"", "Text", "apache"} {
		if _, err := environ.ParseFormat(bad); err == nil {
			t.Errorf("%q was accepted", bad)
		}
	}
}

// discard is a ResponseWriter that costs nothing.
type discard struct{}

func (discard) WriteHeader(*environ.Header) error { return nil }
func (discard) Write(p []byte) (int, error)       { return len(p), nil }
func (discard) Flush() error                      { return nil }
func (discard) WriteErrors([]byte)                {}
func (discard) Abort(error)                       {}

func BenchmarkAccessLog(b *testing.B) {
	for name, format := range formats {
		b.Run(name, func(b *testing.B) {
			r := environtest.NewRequest(usualVars...)
			quiet := environ.HandlerFunc(func(environ.ResponseWriter, *environ.Request) {})
			h := environ.AccessLog(quiet, io.Discard, format)
			b.ReportAllocs()
			for b.Loop() {
				h.ServeGateway(discard{}, r)
			}
		})
	}
}

// TestLogLost: the line about missing lines has the log's own form, if there is one.
func TestLogLost(t *testing.T) {
	const moment = `\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}(Z|[+-]\d\d:\d\d)`
	since := time.Now().Add(-time.Minute)
	if line := environ.Text.AppendLost([]byte("x\n"), 12, since); !regexp.MustCompile("^x\ntime=" + moment + " lost=12 since=" + moment + "\n$").Match(line) {
		t.Errorf("got %q", line)
	}
	if line := environ.Combined.AppendLost([]byte("x\n"), 12, since); string(line) != "x\n" {
		t.Errorf("got %q", line)
	}
	var got struct {
		Time, Since time.Time
		Lost        int
	}
	line := environ.JSON.AppendLost(nil, 12, since)
	if err := json.Unmarshal(line, &got); err != nil || got.Lost != 12 || got.Time.Sub(got.Since).Round(time.Second) != time.Minute || !bytes.HasSuffix(line, []byte("}\n")) {
		t.Errorf("%v in %q", err, line)
	}
}
