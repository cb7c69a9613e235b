package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"

	"github.com/urfave/cli/v2"

	"wsgigate/environ"
)

func callCommand() *cli.Command {
	flags := append(serveFlags(running),
		&cli.StringFlag{Name: "data", Aliases: []string{"d"}, Usage: "`DATA` is the body, and the method is POST unless given; @FILE reads a file, @- stdin"},
		&cli.StringSliceFlag{Name: "header", Aliases: []string{"H"}, Usage: "`'Name: value'`, repeatable"})
	return &cli.Command{
		Name:      "call",
		Usage:     "make one request, print status, headers and body",
		ArgsUsage: "APP [METHOD] PATH",
		Flags:     flags,
		Action:    call,
	}
}

func call(c *cli.Context) error {
	app, method, target, err := callArguments(c)
	if err != nil {
		return err
	}
	cfg, err := load(c, running, app, 1)
	if err != nil {
		return configError(err)
	}
	r, err := callRequest(c, method, target)
	if err != nil {
		return statusError{err, exitUsage}
	}
	rules := cfg.rules()
	if err := environ.Prepare(r, &rules); err != nil {
		return statusError{err, exitUsage}
	}
	return answerOnce(cfg, func(ctx context.Context, h environ.Handler) error {
		defer context.AfterFunc(ctx, func() { r.Cancel(errSignal) })()
		w := &printer{out: c.App.Writer, errs: os.Stderr}
		h.ServeGateway(w, r)
		return w.end()
	})
}

// callArguments takes APP [METHOD] PATH; a lone path means the demo application.
func callArguments(c *cli.Context) (app, method, target string, err error) {
	args := c.Args().Slice()
	method = "GET"
	if c.IsSet("data") {
		method = "POST"
	}
	switch len(args) {
	case 1:
		if strings.HasPrefix(args[0], "/") && !exists(strings.SplitN(args[0], ":", 2)[0]) {
			return "", method, args[0], nil
		}
		return args[0], method, "/", nil
	case 2:
		return args[0], method, args[1], nil
	case 3:
		return args[0], args[1], args[2], nil
	}
	return "", "", "", usage("call needs APP [METHOD] PATH, for example: wsgigate call mysite:application /")
}

// callRequest makes the request that the command line describes.
func callRequest(c *cli.Context, method, target string) (*environ.Request, error) {
	r, err := localRequest("call", method, target)
	if err != nil {
		return nil, err
	}
	body, err := callBody(c)
	if err != nil {
		return nil, err
	}
	r.RunOnce = true
	e := &r.Environ
	if c.IsSet("data") {
		e.Set("CONTENT_LENGTH", strconv.Itoa(len(body)))
		e.Set("CONTENT_TYPE", "application/x-www-form-urlencoded")
		r.Body = strings.NewReader(body)
	}
	for _, line := range c.StringSlice("header") {
		name, value, ok := strings.Cut(line, ":")
		if name = strings.TrimSpace(name); !ok || name == "" {
			return nil, fmt.Errorf("-H %q: write 'Name: value'", line)
		}
		key := strings.ToUpper(strings.ReplaceAll(name, "-", "_"))
		if key != "CONTENT_TYPE" {
			key = "HTTP_" + key
		}
		e.Set(key, strings.TrimSpace(value))
	}
	return r, nil
}

func callBody(c *cli.Context) (string, error) {
	data := c.String("data")
	file, fromFile := strings.CutPrefix(data, "@")
	if !fromFile {
		return data, nil
	}
	read := func() ([]byte, error) { return os.ReadFile(file) }
	if file == "-" {
		read = func() ([]byte, error) { return io.ReadAll(os.Stdin) }
	}
	body, err := read()
	if err != nil {
		return "", fmt.Errorf("-d %s: %w", data, err)
	}
	return string(body), nil
}

// printer writes a response as a person wants to see it.
type printer struct {
	out, errs io.Writer
	status    int
	aborted   error
	err       error
}

var _ environ.ResponseWriter = (*printer)(nil)

func (p *printer) WriteHeader(h *environ.Header) error {
	p.status = h.Status()
	var b strings.Builder
	fmt.Fprintf(&b, "%d %s\n", h.Status(), h.Reason())
	for name, value := range h.All() {
		fmt.Fprintf(&b, "%s: %s\n", name, value)
	}
	_, p.err = io.WriteString(p.out, b.String()+"\n")
	return p.err
}

func (p *printer) Write(b []byte) (int, error) {
	n, err := p.out.Write(b)
	p.err = errors.Join(p.err, err)
	return n, err
}

func (p *printer) Flush() error         { return p.err }
func (p *printer) WriteErrors(b []byte) { _, _ = p.errs.Write(environ.AppendVisible(nil, b)) }
func (p *printer) Abort(err error)      { p.aborted = err }

// end returns what makes the command fail: an application that did.
func (p *printer) end() error {
	switch {
	case p.aborted != nil:
		return fmt.Errorf("the response is cut short: %w", p.aborted)
	case p.status >= 500:
		return fmt.Errorf("the application failed: status %d", p.status)
	}
	return p.err
}
