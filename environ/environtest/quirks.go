package environtest

import (
	"maps"
	"path"
	"strings"
)

// Quirks is a set of differences that a front server makes and no gateway behind
// it can mend. Each is seen with the versions of Debian 12 unless it says otherwise.
type Quirks uint

const (
	// EncodedSlash404: Apache refuses %2F in a path (AllowEncodedSlashes Off).
	EncodedSlash404 Quirks = 1 << iota

	// PathNormalised: nginx, lighttpd and Apache merge slashes and resolve ".." in
	// SCRIPT_NAME and PATH_INFO.
	PathNormalised

	// NulRefused: a path with %00 is refused by every front server, and cannot be in
	// the environment of a CGI process.
	NulRefused

	// ControlRefused: a path or query with an encoded control character (%0A) is
	// refused: lighttpd (url-ctrls-reject).
	ControlRefused

	// NoCustomReason: lighttpd sends its own reason phrases, and so does net/http.
	NoCustomReason

	// AuthorizationDropped: Apache without "CGIPassAuth On"; HAProxy without pass-header.
	AuthorizationDropped

	// HostPortDropped: nginx with a parameter file that has HTTP_HOST $host.
	HostPortDropped

	// ChunkedIs411: a chunked request body is refused: Apache's mod_proxy_scgi and
	// mod_proxy_uwsgi, lighttpd with stream-request-body.
	ChunkedIs411

	// UnderscoreDropped: header names with an underscore or a dot are dropped: nginx,
	// Apache, and wsgigate's own HTTP listener.
	UnderscoreDropped

	// CookieComma: repeated Cookie fields are joined with a comma: Apache. Only HTTP/2
	// clients may repeat them (RFC 9113, section 8.2.3), and Apache joins those well.
	CookieComma

	// HTTP10Upgraded: the application sees HTTP/1.1 whatever the client speaks.
	HTTP10Upgraded

	// EmptyMountRedirects: a request for the mount point without a slash is
	// redirected to the one with it before the gateway sees it.
	EmptyMountRedirects

	// Fronts that have much in common.
	NginxQuirks    = PathNormalised | NulRefused | UnderscoreDropped
	LighttpdQuirks = PathNormalised | NulRefused | ControlRefused | NoCustomReason
	ApacheQuirks   = EncodedSlash404 | PathNormalised | NulRefused | UnderscoreDropped | CookieComma
)

// quirk changes what a case expects.
type quirk struct {
	flag   Quirks
	change func(c *Case)
}

var quirks = []quirk{
	{EncodedSlash404, func(c *Case) {
		if strings.Contains(strings.ToUpper(c.rawPath()), "%2F") {
			c.refuse()
		}
	}},
	{PathNormalised, func(c *Case) {
		if raw := c.rawPath(); c.Reflect && (strings.Contains(raw, "//") || strings.Contains(raw, "..")) {
			c.Seen["PATH_INFO"] = Is(path.Clean(raw))
		}
	}},
	{NulRefused, func(c *Case) {
		if strings.Contains(c.rawPath(), "%00") {
			c.refuse()
		}
	}},
	{ControlRefused, func(c *Case) {
		if strings.Contains(c.Request.Target, "%0") {
			c.refuse()
		}
	}},
	{NoCustomReason, func(c *Case) { c.Reason = "" }},
	{AuthorizationDropped, func(c *Case) {
		if _, ok := c.Seen["HTTP_AUTHORIZATION"]; ok {
			c.Seen["HTTP_AUTHORIZATION"] = Absent
		}
	}},
	{HostPortDropped, func(c *Case) {
		host, _ := c.Request.Get("Host")
		if name, _, ok := strings.Cut(host, ":"); ok {
			c.Seen["HTTP_HOST"] = Is(name)
		}
	}},
	{ChunkedIs411, func(c *Case) {
		if c.Request.Chunked {
			c.refuse()
		}
	}},
	{UnderscoreDropped, func(c *Case) {
		if _, ok := c.Seen["HTTP_X_SPELLED"]; ok {
			c.Seen["HTTP_X_SPELLED"] = Is("dash")
			c.Seen["HTTP_SCRIPT_NAME"] = Absent
		}
	}},
	{CookieComma, func(c *Case) {
		if c.Request.count("Cookie") > 1 {
			c.Seen["HTTP_COOKIE"] = OneOf("a=1, b=2", "a=1; b=2")
		}
	}},
	{HTTP10Upgraded, func(c *Case) {
		if c.Reflect && c.Request.Proto == "HTTP/1.0" {
			c.Seen["SERVER_PROTOCOL"] = OneOf("HTTP/1.0", "HTTP/1.1")
		}
	}},
	{EmptyMountRedirects, func(c *Case) {
		if c.Mounted && c.rawPath() == "" {
			*c = Case{Name: c.Name, Request: c.Request, Status: 301, Mounted: true}
		}
	}},
}

// apply returns the case as it is for a target with these quirks.
func (q Quirks) apply(c Case) Case {
	c.Seen = maps.Clone(c.Seen)
	if c.Seen == nil {
		c.Seen = map[string]Match{}
	}
	for _, k := range quirks {
		if q&k.flag != 0 && !c.Refused {
			k.change(&c)
		}
	}
	return c
}

// refuse makes a case expect a status from 400 to 499.
func (c *Case) refuse() {
	*c = Case{Name: c.Name, Request: c.Request, Refused: true, Mounted: c.Mounted}
}

// rawPath is the path of the request, not decoded, below the mount.
func (c *Case) rawPath() string {
	raw, _, _ := strings.Cut(c.Request.Target, "?")
	return raw
}
