package environtest

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"

	"wsgigate/environ"
)

// Seen is what the reflect application answers: what it saw of one request.
// Its strings hold Latin-1 code points, as WSGI's do; [Seen.Var] gives bytes.
type Seen struct {
	Environ map[string]string `json:"environ"` // every value that is a str
	WSGI    struct {
		Version    []int  `json:"version"`
		URLScheme  string `json:"url_scheme"`
		RunOnce    bool   `json:"run_once"`
		Terminated bool   `json:"input_terminated"`
	} `json:"wsgi"`
	Body struct {
		Length int64  `json:"length"`
		SHA256 string `json:"sha256"`
		Error  string `json:"error"` // why wsgi.input failed
	} `json:"body"`
	Faults []string `json:"faults"` // duties of PEP 3333 that only the application can see
}

// Var returns the bytes of a variable and whether it is there.
func (s *Seen) Var(name string) (string, bool) {
	text, ok := s.Environ[name]
	var b strings.Builder
	for _, c := range text {
		b.WriteByte(byte(c)) // decodeSeen made sure that it fits
	}
	return b.String(), ok
}

// decodeSeen reads the reflect application's answer.
func decodeSeen(body []byte) (*Seen, error) {
	var seen Seen
	if err := json.Unmarshal(body, &seen); err != nil {
		return nil, fmt.Errorf("environtest: %w in %.200q", err, body)
	}
	for name, value := range seen.Environ {
		if i := strings.IndexFunc(value, func(c rune) bool { return c > 0xff }); i >= 0 {
			return nil, fmt.Errorf("environtest: %s has a code point above U+00FF: %+q", name, value)
		}
	}
	return &seen, nil
}

// The bodies of the reflect application's fixed pages, the same in both twins.
const (
	pageText    = "one page of text\n"
	streamText  = "0\n1\n2\n3\n4\n"
	writeText   = "one\ntwo\nthree\n"
	unreadText  = "body not read\n"
	secretText  = "details that a client must not see"
	bigBlocks   = 32
	fileLines   = 40000
	blockRepeat = 8192
)

// bigBlock returns the i-th block of /big: 64 KiB that tell their place.
func bigBlock(i int) []byte { return bytes.Repeat(fmt.Appendf(nil, "%08d", i), blockRepeat) }

func bigBody() []byte {
	var body []byte
	for i := range bigBlocks {
		body = append(body, bigBlock(i)...)
	}
	return body
}

func fileBody() []byte {
	var body []byte
	for i := range fileLines {
		body = fmt.Appendf(body, "%07d\n", i)
	}
	return body
}

// App returns the reflect application as a Handler. A few paths have an answer of
// their own (see pages); every other one answers a [Seen] as JSON.
func App() environ.Handler {
	return environ.HandlerFunc(func(w environ.ResponseWriter, r *environ.Request) {
		a := &answer{w: w, r: r}
		path := r.Environ.Text("PATH_INFO")
		if code, ok := strings.CutPrefix(path, "/status/"); ok {
			a.status(code)
		} else if page, ok := pages[path]; ok {
			page(a)
		} else {
			a.reflect()
		}
		if a.err != nil {
			w.Abort(a.err)
		}
	})
}

// answer is one response of the reflect application.
type answer struct {
	w   environ.ResponseWriter
	r   *environ.Request
	err error
}

var pages = map[string]func(a *answer){
	"/page":           func(a *answer) { a.whole("200 OK", pageText) },
	"/empty":          func(a *answer) { a.whole("200 OK", "") },
	"/reason":         func(a *answer) { a.whole("200 Very Fine", pageText) },
	"/nobody/204":     func(a *answer) { a.begin("204 No Content", "X-Kind: none") },
	"/nobody/304":     func(a *answer) { a.begin("304 Not Modified", `ETag: "abc"`) },
	"/redirect":       func(a *answer) { a.whole("302 Found", pageText, "Location: /elsewhere?x=1") },
	"/headers/dup":    func(a *answer) { a.whole("200 OK", pageText, "Set-Cookie: a=1", "Set-Cookie: b=2; Path=/") },
	"/headers/latin1": func(a *answer) { a.whole("200 OK", pageText, "X-Latin: caf\xe9") },
	"/headers/many":   func(a *answer) { a.whole("200 OK", pageText, manyFields()...) },
	"/stream":         (*answer).stream,
	"/write":          func(a *answer) { a.blocks("one\n", "two\n", "three\n") },
	"/big":            func(a *answer) { a.big(true) },
	"/bigstream":      func(a *answer) { a.big(false) },
	"/file":           (*answer).file,
	"/unread":         func(a *answer) { a.whole("200 OK", unreadText) },
	"/partial":        (*answer).partial,
	"/errors":         (*answer).errors,
	"/fail":           func(a *answer) { environ.Fail(a.w, a.r, errors.New(secretText)) },
}

// manyFields are header fields for /headers/many, small enough together for
// the 4 KiB in which nginx takes a response's header by default.
func manyFields() []string {
	var fields []string
	for i := range 30 {
		fields = append(fields, fmt.Sprintf("X-Field-%d: value %d", i, i))
	}
	return fields
}

// begin sends a header: fields are "Name: value".
func (a *answer) begin(status string, fields ...string) {
	block := status + "\n"
	for _, f := range fields {
		block += f + "\n"
	}
	var h environ.Header
	if a.err = h.Parse([]byte(block)); a.err == nil {
		a.err = a.w.WriteHeader(&h)
	}
}

// write sends a part of the body, none to HEAD, as the worker pool does.
func (a *answer) write(p []byte) {
	if a.err == nil && !a.r.IsHead() {
		_, a.err = a.w.Write(p)
	}
}

func (a *answer) whole(status, body string, fields ...string) {
	a.begin(status, append(fields, "Content-Type: text/plain", "Content-Length: "+strconv.Itoa(len(body)))...)
	if body != "" {
		a.write([]byte(body))
	}
}

func (a *answer) blocks(blocks ...string) {
	a.begin("200 OK", "Content-Type: text/plain")
	for _, b := range blocks {
		a.write([]byte(b))
		if a.err == nil {
			a.err = a.w.Flush()
		}
	}
}

func (a *answer) stream() { a.blocks("0\n", "1\n", "2\n", "3\n", "4\n") }

func (a *answer) status(code string) {
	switch code {
	case "401":
		a.whole("401 As Asked", "status 401\n", `WWW-Authenticate: Basic realm="test"`)
	default:
		a.whole(code+" As Asked", "status "+code+"\n")
	}
}

func (a *answer) big(withLength bool) {
	fields := []string{"Content-Type: application/octet-stream"}
	if withLength {
		fields = append(fields, "Content-Length: "+strconv.Itoa(bigBlocks*blockRepeat*8))
	}
	a.begin("200 OK", fields...)
	for i := range bigBlocks {
		a.write(bigBlock(i))
	}
}

// file sends a file as the worker pool does: by SendFile where there is one.
func (a *answer) file() {
	f, err := os.CreateTemp("", "environtest")
	if err != nil {
		a.err = err
		return
	}
	defer f.Close()
	defer os.Remove(f.Name())
	body := fileBody()
	if _, a.err = f.Write(body); a.err != nil {
		return
	}
	a.begin("200 OK", "Content-Type: application/octet-stream", "Content-Length: "+strconv.Itoa(len(body)))
	if a.err != nil || a.r.IsHead() {
		return
	}
	if sender, ok := a.w.(environ.FileSender); ok {
		_, a.err = sender.SendFile(f, 0, int64(len(body)))
		return
	}
	a.write(body)
}

// partial reads 10 bytes of the body and leaves the rest.
func (a *answer) partial() {
	p := make([]byte, 10)
	n, err := io.ReadFull(a.r.Body, p)
	if err != nil && !errors.Is(err, io.ErrUnexpectedEOF) && !errors.Is(err, io.EOF) {
		a.err = err
		return
	}
	a.whole("200 OK", string(p[:n]))
}

func (a *answer) errors() {
	a.w.WriteErrors([]byte("a line for wsgi.errors\n"))
	a.whole("200 OK", pageText)
}

func (a *answer) reflect() {
	seen := Seen{Environ: map[string]string{}, Faults: []string{}}
	for name, value := range a.r.Environ.All() {
		if _, twice := seen.Environ[string(name)]; twice {
			seen.Faults = append(seen.Faults, string(name)+" occurs twice")
		}
		seen.Environ[string(name)] = latin1(value)
	}
	seen.WSGI.Version = []int{1, 0}
	seen.WSGI.URLScheme = environ.Scheme(&a.r.Environ)
	seen.WSGI.RunOnce = a.r.RunOnce
	digest := sha256.New()
	n, err := io.Copy(digest, a.r.Body)
	if err != nil {
		seen.Body.Error = err.Error()
	}
	seen.Body.Length, seen.Body.SHA256 = n, hex.EncodeToString(digest.Sum(nil))
	body, err := json.Marshal(&seen)
	if err != nil {
		a.err = err
		return
	}
	a.begin("200 OK", "Content-Type: application/json", "Content-Length: "+strconv.Itoa(len(body)))
	a.write(body)
}

// latin1 returns the string whose code points are those bytes.
func latin1(b []byte) string {
	runes := make([]rune, len(b))
	for i, c := range b {
		runes[i] = rune(c)
	}
	return string(runes)
}
