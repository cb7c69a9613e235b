package main

import (
	"fmt"
	"net/url"
	"strings"

	"wsgigate/environ"
)

// localRequest makes the request without a body that an HTTP client on this machine
// would have sent (wsgiref.util.setup_testing_defaults).
func localRequest(transport, method, target string) (*environ.Request, error) {
	if !strings.HasPrefix(target, "/") {
		return nil, fmt.Errorf("the path %q must begin with a slash", target)
	}
	path, query, _ := strings.Cut(target, "?")
	decoded, err := url.PathUnescape(path)
	if err != nil {
		return nil, fmt.Errorf("the path %q: %w", target, err)
	}
	r := &environ.Request{Transport: transport, ID: environ.NextID(), Body: environ.NoBody}
	e := &r.Environ
	e.Add("REQUEST_METHOD", method)
	e.Add("SCRIPT_NAME", "")
	e.Add("PATH_INFO", decoded)
	e.Add("QUERY_STRING", query)
	e.Add("REQUEST_URI", target)
	e.Add("SERVER_PROTOCOL", "HTTP/1.1")
	e.Add("SERVER_NAME", "localhost")
	e.Add("SERVER_PORT", "80")
	e.Add("REMOTE_ADDR", "127.0.0.1")
	e.Add("CONTENT_LENGTH", "0")
	e.Add("HTTP_HOST", "localhost")
	return r, nil
}

// probeRequest makes the request of --probe, with what --env says of every request.
func (c *config) probeRequest() (*environ.Request, error) {
	if strings.ContainsFunc(c.probe, func(r rune) bool { return r <= ' ' || r == 0x7f }) {
		return nil, fmt.Errorf("the path %q has a character that no request can have: write %%20 for a space", c.probe)
	}
	r, err := localRequest("probe", "GET", c.probe)
	if err != nil {
		return nil, err
	}
	rules := c.rules()
	return r, environ.Prepare(r, &rules)
}

// prober returns what makes the request of --probe for each reload, nil if there
// is none to make.
func (c *config) prober() func() *environ.Request {
	if c.probe == "" {
		return nil
	}
	return func() *environ.Request {
		r, err := c.probeRequest()
		if err != nil {
			panic("the request of --probe was well when it was checked: " + err.Error())
		}
		return r
	}
}
