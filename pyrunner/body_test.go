package pyrunner

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/google/go-cmp/cmp"

	"wsgigate/environ"
	"wsgigate/environ/environtest"
)

// digest returns the SHA-256 of all parts, as hexdigest() gives it.
func digest(parts ...[]byte) string {
	h := sha256.New()
	for _, part := range parts {
		h.Write(part)
	}
	return hex.EncodeToString(h.Sum(nil))
}

func diffJSON(got []byte, want map[string]string) string {
	var decoded map[string]string
	if err := json.Unmarshal(got, &decoded); err != nil {
		return err.Error()
	}
	return cmp.Diff(want, decoded)
}

const bodyApp = preamble + `
import hashlib
def answer(start_response, data):
    start_response("200 OK", [])
    return [("%d %s" % (len(data), hashlib.sha256(data).hexdigest())).encode()]
def whole(environ, start_response):
    return answer(start_response, environ["wsgi.input"].read())
def pieces(environ, start_response):
    read, data = environ["wsgi.input"].read, []
    while True:
        data.append(read(1000))
        if not data[-1]:
            break
    assert read() == read(5) == b""
    return answer(start_response, b"".join(data))
def lines(environ, start_response):
    return answer(start_response, b"".join(environ["wsgi.input"]))
`

// TestBodies: every length around the limits, however it is known and read.
func TestBodies(t *testing.T) {
	t.Parallel()
	p := startPool(t, bodyApp, Config{})
	pattern := bytes.Repeat([]byte("0123456789abcde\n"), 200_000)
	for _, n := range []int{0, 1, maxInline - 1, maxInline, maxInline + 1, maxRead, maxRead + maxInline + 1, 1 << 20, 1<<20 + 1, 3_000_000} {
		body := pattern[:n]
		want := fmt.Sprintf("%d %s", n, digest(body))
		for name, length := range map[string]int64{"known": int64(n), "unknown": -1} {
			paths := []string{"/whole", "/pieces", "/lines"}
			if n > maxRead {
				paths = paths[:1]
			}
			for _, path := range paths {
				w := p.serve(post(path, bytes.NewReader(body), length))
				if w.Status != 200 || w.Body.String() != want {
					t.Errorf("%d bytes, length %s, %s: status %d, %q", n, name, path, w.Status, w.Body.String())
				}
			}
		}
	}
}

// TestBodyReaders: readers that return little, or their end late.
func TestBodyReaders(t *testing.T) {
	t.Parallel()
	p := startPool(t, bodyApp, Config{Limits: environ.Limits{ReadAhead: 3000}})
	body := bytes.Repeat([]byte("body"), 2000)
	for name, wrap := range map[string]func(io.Reader) io.Reader{
		"one byte": iotest.OneByteReader, "half": iotest.HalfReader, "end with data": iotest.DataErrReader,
	} {
		w := p.serve(post("/whole", wrap(bytes.NewReader(body)), -1))
		if want := "8000 " + digest(body); w.Status != 200 || w.Body.String() != want {
			t.Errorf("%s: status %d, %q", name, w.Status, w.Body.String())
		}
	}
}

const fileApp = preamble + `
import io, tempfile
class Counted(io.BufferedReader):
    def close(self):
        if not self.closed:
            notes.append("closed")
        super().close()
def opened(position=0):
    f = Counted(open("data", "rb", buffering=0))
    f.seek(position)
    return f
def send(environ, start_response, f, *headers):
    start_response("200 OK", list(headers))
    return environ["wsgi.file_wrapper"](f, 1000)
def plain(environ, start_response):
    return send(environ, start_response, opened())
def position(environ, start_response):
    return send(environ, start_response, opened(100))
def limited(environ, start_response):
    return send(environ, start_response, opened(100), ("Content-Length", "50"))
def too_short(environ, start_response):
    return send(environ, start_response, opened(), ("Content-Length", "5000000"))
def empty(environ, start_response):
    return send(environ, start_response, open("/dev/null", "rb"))
def memory(environ, start_response):
    return send(environ, start_response, io.BytesIO(b"memory"))
def at_end(environ, start_response):
    return send(environ, start_response, opened(1000000))
def temporary(environ, start_response):
    f = tempfile.TemporaryFile()
    f.write(b"written, not flushed")
    f.seek(9)
    return send(environ, start_response, f)
def read_first(environ, start_response):
    f = opened()
    f.read(10)
    return send(environ, start_response, f)
def iterates(environ, start_response):
    start_response("200 OK", [])
    yield b"first "
    for block in environ["wsgi.file_wrapper"](opened(999990)):
        yield block
def open_files(environ, start_response):
    start_response("200 OK", [])
    n = sum(os.path.realpath("/proc/self/fd/" + fd).endswith("data") for fd in os.listdir("/proc/self/fd"))
    return [str(n).encode()]
`

// TestFiles: wsgi.file_wrapper, with a transport that can send files and with
// one that cannot.
func TestFiles(t *testing.T) {
	t.Parallel()
	p := startPool(t, fileApp, Config{})
	data := bytes.Repeat([]byte("0123456789"), 100_000)
	if err := os.WriteFile(filepath.Join(p.dir, "data"), data, 0o600); err != nil {
		t.Fatal(err)
	}
	for path, row := range map[string]struct {
		want   []byte
		length int64
		files  int
		notes  string
		abort  bool
	}{
		"/plain":      {want: data, length: 1_000_000, files: 1, notes: "closed"},
		"/position":   {want: data[100:], length: 999_900, files: 1, notes: "closed"},
		"/limited":    {want: data[100:150], length: 50, files: 1, notes: "closed"},
		"/too-short":  {want: data, length: 5_000_000, files: 1, notes: "closed", abort: true},
		"/empty":      {length: -1},
		"/memory":     {want: []byte("memory"), length: -1},
		"/at-end":     {length: 0, notes: "closed"},
		"/temporary":  {want: []byte("not flushed"), length: 11, files: 1},
		"/read-first": {want: data[10:], length: 999_990, files: 1, notes: "closed"},
		"/iterates":   {want: []byte("first 0123456789"), length: -1, notes: "closed"},
	} {
		for _, direct := range []bool{true, false} {
			p.forget()
			recorder, sender := &environtest.Recorder{}, &environtest.FileRecorder{}
			if direct {
				p.ServeGateway(sender, get(path))
				recorder = &sender.Recorder
			} else {
				p.ServeGateway(recorder, get(path))
			}
			if recorder.Status != 200 || !bytes.Equal(recorder.Body.Bytes(), row.want) || (recorder.AbortErr != nil) != row.abort {
				t.Errorf("%s: status %d, %d bytes, abort %v", path, recorder.Status, recorder.Body.Len(), recorder.AbortErr)
			}
			if recorder.Length != row.length || recorder.Misuse != nil {
				t.Errorf("%s: Content-Length %d, misuse %v", path, recorder.Length, recorder.Misuse)
			}
			if direct && sender.Files != row.files {
				t.Errorf("%s: %d files were sent", path, sender.Files)
			}
			if notes := p.text("/noted"); notes != row.notes {
				t.Errorf("%s: notes %q", path, notes)
			}
		}
	}
	if n := p.text("/open-files"); n != "0" {
		t.Errorf("%s files are still open in the worker", n)
	}
	for _, open := range openDescriptors() {
		if strings.Contains(open, p.dir) {
			t.Errorf("still open in the gateway: %s", open)
		}
	}
}

// forget empties the application's notes.
func (p *testPool) forget() {
	p.t.Helper()
	if got := p.text("/forget"); got != "hello" {
		p.t.Errorf("forget: %q", got)
	}
}

// TestFileShrinks: the file loses its end between the worker's answer and the
// gateway's read. The client must be able to tell.
func TestFileShrinks(t *testing.T) {
	t.Parallel()
	p := startPool(t, fileApp+`
def shrinks(environ, start_response):
    start_response("200 OK", [("Content-Length", "1000")])
    os.truncate("data", 1000)
    f = open("data", "rb")
    return environ["wsgi.file_wrapper"](f)
`, Config{})
	if err := os.WriteFile(filepath.Join(p.dir, "data"), make([]byte, 2000), 0o600); err != nil {
		t.Fatal(err)
	}
	r, w := get("/shrinks"), &shrinking{path: filepath.Join(p.dir, "data")}
	p.ServeGateway(w, r)
	if w.AbortErr == nil || w.Body.Len() != 400 || w.Length != 1000 {
		t.Errorf("abort %v, %d of %d bytes", w.AbortErr, w.Body.Len(), w.Length)
	}
	p.log.fault(t, r, atClose)
	p.servesOn()
}

// shrinking cuts a file before it is read.
type shrinking struct {
	environtest.Recorder
	path string
}

func (s *shrinking) WriteHeader(h *environ.Header) error {
	if err := os.Truncate(s.path, 400); err != nil {
		return err
	}
	return s.Recorder.WriteHeader(h)
}
