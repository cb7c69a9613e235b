package environ

import (
	"fmt"
	"io"
	"os"
	"strconv"
	"sync"
	"time"
)

// Format is the form of an access log line.
type Format uint8

// The formats.
const (
	Text     Format = iota // time=... id=... method=... in a fixed order
	JSON                   // one object per line, the same names
	Combined               // Apache's combined format, for the tools that read it
)

// ParseFormat returns the format of that name: "text", "json" or "combined".
func ParseFormat(name string) (Format, error) {
	switch name {
	case "text":
		return Text, nil
	case "json":
		return JSON, nil
	case "combined":
		return Combined, nil
	}
	return Text, fmt.Errorf("environ: log format %q is not text, json or combined", name)
}

// AccessLog returns a Handler that writes one line to out for every request that
// next has answered, each with one Write. Combined is Apache's; the other formats
// have what it has and what php-fpm's access.format offers:
//
//	time        when the request ended, RFC 3339
//	start       when it began
//	id          its number in this process, as in the other log
//	transport   fastcgi, scgi, http or cgi
//	remote user method uri protocol
//	            REMOTE_ADDR, REMOTE_USER and the request line
//	script      SCRIPT_FILENAME if the web server names one, else SCRIPT_NAME
//	path query  PATH_INFO and QUERY_STRING
//	length      bytes of the request's body, if they are known
//	status      of the response
//	bytes       of the response's body
//	duration    seconds from start to time
//	app         the application
//	gateway     process id of the gateway
//	worker      process id of the worker, 0: none has seen the request
//	cpu         percent of one processor that the worker took (Request.CPU) in duration
//	memory      bytes, Request.PeakMemory
//	referer agent
//	aborted     whether the client could not get all of the response
//
// Where there is no value, text has "-", and JSON an empty string or null.
//
// Whatever a client sent, a line holds only printable ASCII: it can neither end
// early nor drive a terminal.
//
// A request waits for the write. One that fails is not reported: that, and never to
// block, is out's business (AppendLost helps), because a log must not stop the site.
func AccessLog(next Handler, out io.Writer, format Format) Handler {
	return &accessLog{next: next, out: out, format: format}
}

type accessLog struct {
	next   Handler
	format Format
	mu     sync.Mutex // lines stay whole, whatever out is
	out    io.Writer
}

// ServeGateway answers by next, then logs.
func (l *accessLog) ServeGateway(w ResponseWriter, r *Request) {
	began := time.Now()
	if r.Start.IsZero() {
		r.Start = began
	}
	r.Measure = r.Measure || l.format != Combined
	lw := logWriters.Get().(*logWriter)
	lw.ResponseWriter = w
	defer l.finish(lw, r) // after a panic too
	if files, ok := w.(FileSender); ok {
		lw.withFiles = fileLogWriter{lw, files}
		l.next.ServeGateway(&lw.withFiles, r)
		return
	}
	l.next.ServeGateway(lw, r)
}

func (l *accessLog) finish(lw *logWriter, r *Request) {
	if lw.status == 0 {
		lw.status = 500 // what a transport sends then (see Handler)
	}
	lw.line = l.format.appendLine(lw.line[:0], &logEntry{r, lw, time.Now()})
	l.mu.Lock()
	_, _ = l.out.Write(lw.line)
	l.mu.Unlock()
	*lw = logWriter{line: lw.line}
	logWriters.Put(lw)
}

// logWriter notes what passes to the transport. Its line is kept for reuse.
type logWriter struct {
	ResponseWriter
	status    int
	sent      int64
	aborted   bool
	withFiles fileLogWriter
	line      []byte
}

var logWriters = sync.Pool{New: func() any { return new(logWriter) }}

// WriteHeader notes the first status: that is the one the client sees.
func (w *logWriter) WriteHeader(h *Header) error {
	if w.status == 0 {
		w.status = h.Status()
	}
	return w.ResponseWriter.WriteHeader(h)
}

// Write counts the bytes.
func (w *logWriter) Write(p []byte) (int, error) {
	n, err := w.ResponseWriter.Write(p)
	w.sent += int64(n)
	return n, err
}

// Abort is noted.
func (w *logWriter) Abort(err error) {
	w.aborted = true
	w.ResponseWriter.Abort(err)
}

// fileLogWriter is a logWriter over a transport that can send files.
type fileLogWriter struct {
	*logWriter
	files FileSender
}

var _ FileSender = (*fileLogWriter)(nil)

// SendFile counts the bytes.
func (w *fileLogWriter) SendFile(f *os.File, off, n int64) (int64, error) {
	sent, err := w.files.SendFile(f, off, n)
	w.sent += sent
	return sent, err
}

// logEntry is what a line is made of.
type logEntry struct {
	*Request
	*logWriter
	end time.Time
}

func (f Format) appendLine(dst []byte, e *logEntry) []byte {
	switch f {
	case JSON:
		return e.appendJSON(dst)
	case Combined:
		return e.appendCombined(dst)
	default:
		return e.appendText(dst)
	}
}

// logTime is RFC 3339 with milliseconds.
const logTime = "2006-01-02T15:04:05.000Z07:00"

var gatewayPID = int64(os.Getpid())

// AppendLost appends a line that says how many lines are missing before it, and since
// when: its own time, lost, since. Combined has no form for that and gets none.
func (f Format) AppendLost(dst []byte, lines int, since time.Time) []byte {
	switch f {
	case JSON:
		dst = time.Now().AppendFormat(append(dst, `{"time":"`...), logTime)
		dst = strconv.AppendInt(append(dst, `","lost":`...), int64(lines), 10)
		dst = since.AppendFormat(append(dst, `,"since":"`...), logTime)
		return append(dst, "\"}\n"...)
	case Text:
		dst = time.Now().AppendFormat(append(dst, "time="...), logTime)
		dst = strconv.AppendInt(append(dst, " lost="...), int64(lines), 10)
		dst = since.AppendFormat(append(dst, " since="...), logTime)
		return append(dst, '\n')
	}
	return dst
}

// appendText appends a line of name=value pairs. An empty value is "-"; a space
// is escaped, so that no value can pose as the next pair.
func (e *logEntry) appendText(dst []byte) []byte {
	env := &e.Environ
	dst = e.end.AppendFormat(append(dst, "time="...), logTime)
	dst = e.Start.AppendFormat(append(dst, " start="...), logTime)
	dst = strconv.AppendUint(append(dst, " id="...), e.ID, 10)
	dst = appendField(append(dst, " transport="...), e.Transport)
	dst = appendField(append(dst, " remote="...), env.Get("REMOTE_ADDR"))
	dst = appendField(append(dst, " user="...), env.Get("REMOTE_USER"))
	dst = appendField(append(dst, " method="...), e.Method())
	dst = e.appendTarget(append(dst, " uri="...), appendField)
	dst = appendField(append(dst, " protocol="...), env.Get("SERVER_PROTOCOL"))
	dst = appendField(append(dst, " script="...), e.script())
	dst = appendField(append(dst, " path="...), env.Get("PATH_INFO"))
	dst = appendField(append(dst, " query="...), env.Get("QUERY_STRING"))
	dst = e.appendLength(append(dst, " length="...), "-")
	dst = strconv.AppendInt(append(dst, " status="...), int64(e.status), 10)
	dst = strconv.AppendInt(append(dst, " bytes="...), e.sent, 10)
	dst = e.appendDuration(append(dst, " duration="...))
	dst = appendField(append(dst, " app="...), e.App)
	dst = strconv.AppendInt(append(dst, " gateway="...), gatewayPID, 10)
	dst = strconv.AppendInt(append(dst, " worker="...), int64(e.Worker), 10)
	dst = e.appendShare(append(dst, " cpu="...), "-")
	dst = e.appendMemory(append(dst, " memory="...), "-")
	dst = appendField(append(dst, " referer="...), env.Get("HTTP_REFERER"))
	dst = appendField(append(dst, " agent="...), env.Get("HTTP_USER_AGENT"))
	dst = strconv.AppendBool(append(dst, " aborted="...), e.aborted)
	return append(dst, '\n')
}

// appendJSON appends an object with the same names as appendText's. Strings hold
// bytes as the code points U+0000 to U+00FF.
func (e *logEntry) appendJSON(dst []byte) []byte {
	env := &e.Environ
	dst = e.end.AppendFormat(append(dst, `{"time":"`...), logTime)
	dst = e.Start.AppendFormat(append(dst, `","start":"`...), logTime)
	dst = strconv.AppendUint(append(dst, `","id":`...), e.ID, 10)
	dst = appendJSONText(append(dst, `,"transport":"`...), e.Transport)
	dst = appendJSONText(append(dst, `","remote":"`...), env.Get("REMOTE_ADDR"))
	dst = appendJSONText(append(dst, `","user":"`...), env.Get("REMOTE_USER"))
	dst = appendJSONText(append(dst, `","method":"`...), e.Method())
	dst = e.appendTarget(append(dst, `","uri":"`...), appendJSONText)
	dst = appendJSONText(append(dst, `","protocol":"`...), env.Get("SERVER_PROTOCOL"))
	dst = appendJSONText(append(dst, `","script":"`...), e.script())
	dst = appendJSONText(append(dst, `","path":"`...), env.Get("PATH_INFO"))
	dst = appendJSONText(append(dst, `","query":"`...), env.Get("QUERY_STRING"))
	dst = e.appendLength(append(dst, `","length":`...), "null")
	dst = strconv.AppendInt(append(dst, `,"status":`...), int64(e.status), 10)
	dst = strconv.AppendInt(append(dst, `,"bytes":`...), e.sent, 10)
	dst = e.appendDuration(append(dst, `,"duration":`...))
	dst = appendJSONText(append(dst, `,"app":"`...), e.App)
	dst = strconv.AppendInt(append(dst, `","gateway":`...), gatewayPID, 10)
	dst = strconv.AppendInt(append(dst, `,"worker":`...), int64(e.Worker), 10)
	dst = e.appendShare(append(dst, `,"cpu":`...), "null")
	dst = e.appendMemory(append(dst, `,"memory":`...), "null")
	dst = appendJSONText(append(dst, `,"referer":"`...), env.Get("HTTP_REFERER"))
	dst = appendJSONText(append(dst, `","agent":"`...), env.Get("HTTP_USER_AGENT"))
	dst = strconv.AppendBool(append(dst, `","aborted":`...), e.aborted)
	return append(dst, "}\n"...)
}

// script returns the file that the web server says it runs, or the mount point.
func (e *logEntry) script() []byte {
	if file := e.Environ.Get("SCRIPT_FILENAME"); len(file) > 0 {
		return file
	}
	return e.Environ.Get("SCRIPT_NAME")
}

// appendLength appends the length of the request's body.
func (e *logEntry) appendLength(dst []byte, none string) []byte {
	if e.ContentLength < 0 {
		return append(dst, none...)
	}
	return strconv.AppendInt(dst, e.ContentLength, 10)
}

// appendMemory appends PeakMemory.
func (e *logEntry) appendMemory(dst []byte, none string) []byte {
	if e.PeakMemory <= 0 {
		return append(dst, none...)
	}
	return strconv.AppendInt(dst, e.PeakMemory, 10)
}

// appendShare appends CPU in percent of the duration, with two decimals.
func (e *logEntry) appendShare(dst []byte, none string) []byte {
	took := e.end.Sub(e.Start)
	if e.PeakMemory <= 0 || took <= 0 {
		return append(dst, none...)
	}
	return strconv.AppendFloat(dst, 100*max(e.CPU, 0).Seconds()/took.Seconds(), 'f', 2, 64)
}

// appendCombined appends a line of Apache's combined format (mod_log_config):
// %h %l %u %t "%r" %>s %b "%{Referer}i" "%{User-agent}i".
func (e *logEntry) appendCombined(dst []byte) []byte {
	dst = appendField(dst, e.Environ.Get("REMOTE_ADDR"))
	dst = append(dst, " - "...)
	dst = appendField(dst, e.Environ.Get("REMOTE_USER"))
	dst = e.Start.AppendFormat(append(dst, ' '), "[02/Jan/2006:15:04:05 -0700]")
	dst = appendField(append(dst, ` "`...), e.Method())
	dst = e.appendTarget(append(dst, ' '), appendField)
	dst = appendField(append(dst, ' '), e.Environ.Get("SERVER_PROTOCOL"))
	dst = strconv.AppendInt(append(dst, `" `...), int64(e.status), 10)
	if dst = append(dst, ' '); e.sent > 0 {
		dst = strconv.AppendInt(dst, e.sent, 10)
	} else {
		dst = append(dst, '-')
	}
	dst = appendQuotedField(append(dst, ' '), e.Environ.Get("HTTP_REFERER"))
	dst = appendQuotedField(append(dst, ' '), e.Environ.Get("HTTP_USER_AGENT"))
	return append(dst, '\n')
}

// appendTarget appends REQUEST_URI, or what it must have been, in that form.
func (e *logEntry) appendTarget(dst []byte, form func(dst, value []byte) []byte) []byte {
	if uri := e.Environ.Get("REQUEST_URI"); len(uri) > 0 {
		return form(dst, uri)
	}
	return form(dst, appendRequestTarget(nil, &e.Environ))
}

// appendDuration appends seconds with six decimals.
func (e *logEntry) appendDuration(dst []byte) []byte {
	us := max(e.end.Sub(e.Start), 0).Microseconds()
	dst = strconv.AppendInt(dst, us/1e6, 10)
	point := len(dst)
	dst = strconv.AppendInt(dst, 1e6+us%1e6, 10) // seven digits, the first gives way to the point
	dst[point] = '.'
	return dst
}

// appendField appends a value that a space would end.
func appendField[T string | []byte](dst []byte, value T) []byte {
	if len(value) == 0 {
		return append(dst, '-')
	}
	for i := range len(value) {
		if c := value[i]; c == ' ' {
			dst = append(dst, `\x20`...)
		} else {
			dst = appendLogByte(dst, c)
		}
	}
	return dst
}

func appendQuotedField(dst, value []byte) []byte {
	if len(value) == 0 {
		return append(dst, `"-"`...)
	}
	dst = append(dst, '"')
	for _, c := range value {
		dst = appendLogByte(dst, c)
	}
	return append(dst, '"')
}

const lowerHex = "0123456789abcdef"

// appendLogByte escapes as Apache does (since 2.0.46, CVE-2003-0020): a backslash
// before a quote or a backslash, \xhh for what is not printable ASCII.
func appendLogByte(dst []byte, c byte) []byte {
	switch {
	case c == '"' || c == '\\':
		return append(dst, '\\', c)
	case c < ' ' || c >= 0x7f:
		return append(dst, '\\', 'x', lowerHex[c>>4], lowerHex[c&15])
	}
	return append(dst, c)
}

func appendJSONText[T string | []byte](dst []byte, value T) []byte {
	for i := range len(value) {
		switch c := value[i]; {
		case c == '"' || c == '\\':
			dst = append(dst, '\\', c)
		case c < ' ' || c >= 0x7f:
			dst = append(dst, '\\', 'u', '0', '0', lowerHex[c>>4], lowerHex[c&15])
		default:
			dst = append(dst, c)
		}
	}
	return dst
}
