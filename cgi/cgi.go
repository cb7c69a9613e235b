// Package cgi answers the one request of a CGI process (RFC 3875): the twin of
// wsgiref's CGIHandler.
//
//	environment, stdin -> environ.Request -> Handler
//	stdout, stderr <- environ.ResponseWriter <- Handler
//
// The whole environment becomes the request's environ, as with CGIHandler: the
// web server made all of it, and deployments pass settings that way (SetEnv).
// Everything in it is data; the command line, where a web server puts an indexed
// query (CVE-2012-1823, CVE-2024-4577), is not looked at.
//
// A script whose name begins with "nph-" gives a whole HTTP response (section 5).
//
// When the client is gone the web server closes the pipe or sends SIGTERM; the
// first fails a write, the second is the context's end.
package cgi

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"runtime/debug"
	"strings"
	"syscall"
	"time"

	"wsgigate/environ"
)

// ErrNotCGI is returned when the environment is not that of a CGI request.
var ErrNotCGI = errors.New("cgi: REQUEST_METHOD is not in the environment: " +
	"this command is for a web server to run; to try the application, use \"wsgigate serve\" or \"wsgigate call\"")

// Serve answers the request that env (as os.Environ gives it) and stdin describe.
//
// It returns nil if a whole response was written, an error page included, and
// otherwise why not; the process should then exit with status 1, and must not
// write anything more to stdout.
func Serve(ctx context.Context, h environ.Handler, rules environ.Rules, env []string, stdin io.Reader, stdout, stderr io.Writer) error {
	rules.Limits = rules.Limits.WithDefaults()
	x := &exchange{stderr: stderr}
	x.setVariables(env)
	if len(x.req.Method()) == 0 {
		return ErrNotCGI
	}
	defer keepSIGPIPE()()
	defer context.AfterFunc(ctx, func() { x.req.Cancel(environ.ErrClientGone) })()
	form := (*environ.Header).AppendCGI
	if parsesNoHeader(&x.req.Environ) {
		form = appendNPH
	}
	x.Begin(stdout, &x.req, form)
	x.answer(h, &rules, stdin)
	if !x.Ended() {
		_ = x.Flush()
	}
	x.drain()
	return x.Err()
}

// drain reads what the application left of the body. Apache's mod_cgid 2.4.71 gives
// the script one socket for stdin and stdout and sends the whole body before it
// reads the answer; closed with bytes unread, such a socket takes the answer
// with it (ECONNRESET). How much that can be is the web server's limit.
func (x *exchange) drain() { _, _ = io.Copy(io.Discard, x.req.Body) }

// keepSIGPIPE makes a write to a stdout that nobody reads fail; Go programs
// otherwise end by the signal. It returns the function that undoes it.
func keepSIGPIPE() func() {
	c := make(chan os.Signal, 1)
	signal.Notify(c, syscall.SIGPIPE)
	return func() { signal.Stop(c) }
}

// answer runs the handler and makes sure that there is a response or an error.
func (x *exchange) answer(h environ.Handler, rules *environ.Rules, stdin io.Reader) {
	defer func() {
		if p := recover(); p != nil {
			fmt.Fprintf(x.stderr, "cgi: handler panicked: %v\n%s", p, debug.Stack())
			x.Replace(x, environ.Errorf(500, "cgi: handler panicked: %v", p))
		}
	}()
	if err := x.prepare(rules, stdin); err != nil {
		fmt.Fprintf(x.stderr, "cgi: request refused: %v\n", err)
		x.Replace(x, err)
		return
	}
	h.ServeGateway(x, &x.req)
	if !x.Begun() {
		x.Replace(x, environ.Errorf(500, "cgi: handler gave no response"))
	}
}

// setVariables takes the environment, byte for byte.
func (x *exchange) setVariables(env []string) {
	r := &x.req
	r.ID = environ.NextID()
	r.Start = time.Now()
	r.Transport = "cgi"
	r.RunOnce = true
	r.Body = environ.NoBody
	for _, kv := range env {
		if name, value, ok := strings.Cut(kv, "="); ok {
			r.Environ.Add(name, value)
		}
	}
}

// parsesNoHeader reports whether the script is an NPH script.
func parsesNoHeader(e *environ.Environ) bool {
	script := e.Get("SCRIPT_FILENAME")
	if len(script) == 0 {
		script = e.Get("SCRIPT_NAME")
	}
	return bytes.HasPrefix(script[bytes.LastIndexByte(script, '/')+1:], []byte("nph-"))
}

// prepare settles the environ and the body.
func (x *exchange) prepare(rules *environ.Rules, stdin io.Reader) error {
	r := &x.req
	if size := r.Environ.Size(); size > rules.Limits.MaxHeaders {
		return environ.Errorf(431, "environment of %d bytes, the limit is %d", size, rules.Limits.MaxHeaders)
	}
	if r.Environ.Len() > rules.Limits.MaxFields {
		return environ.Errorf(431, "environment of %d variables, the limit is %d", r.Environ.Len(), rules.Limits.MaxFields)
	}
	if err := environ.Prepare(r, rules); err != nil {
		return err
	}
	switch {
	case r.ContentLength > 0:
		r.Body = &body{stdin: stdin, left: r.ContentLength}
	case r.ContentLength < 0 && hasBody(r, stdin):
		r.Body = environ.BoundBody(stdin, rules.Limits.MaxBody)
	default:
		r.ContentLength = 0
	}
	return nil
}

// hasBody reports whether stdin is a body that ends with its end, although there
// is no CONTENT_LENGTH. RFC 3875, section 4.1.2, knows no such thing, but Apache's
// mod_cgid passes a chunked body on so. A method that rarely has a body must say
// that it has one, and a terminal never does: waiting for its end would hang.
func hasBody(r *environ.Request, stdin io.Reader) bool {
	if stdin == nil {
		return false
	}
	if f, ok := stdin.(*os.File); ok {
		if info, err := f.Stat(); err != nil || info.Mode()&os.ModeCharDevice != 0 {
			return false
		}
	}
	switch string(r.Method()) {
	case "GET", "HEAD", "OPTIONS", "TRACE", "DELETE":
		return len(r.Environ.Get("HTTP_TRANSFER_ENCODING")) > 0
	}
	return true
}

// body is a body of known length. It is never read past: a web server need not
// give an end of file there (RFC 3875, section 4.2).
type body struct {
	stdin io.Reader
	left  int64
}

func (b *body) Read(p []byte) (int, error) {
	if b.left == 0 {
		return 0, io.EOF
	}
	n, err := b.stdin.Read(p[:min(int64(len(p)), b.left)])
	b.left -= int64(n)
	switch {
	case b.left == 0:
		return n, io.EOF
	case err == nil:
		return n, nil
	case err == io.EOF:
		return n, environ.Errorf(400, "cgi: body ends %d bytes early: %w", b.left, io.ErrUnexpectedEOF)
	default:
		return n, environ.Errorf(400, "cgi: reading the body: %w", err)
	}
}
