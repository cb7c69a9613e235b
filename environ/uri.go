package environ

import "strings"

// These functions mean what their namesakes in CPython's wsgiref.util mean, and
// quote as they do. They take an environ that Prepare has been over.

// ApplicationURI returns the absolute URI of the application: scheme, host and
// SCRIPT_NAME, without PATH_INFO (wsgiref.util.application_uri; PEP 3333, "URL
// Reconstruction").
func ApplicationURI(e *Environ) string { return string(appendApplicationURI(nil, e)) }

func appendApplicationURI(dst []byte, e *Environ) []byte {
	scheme, standardPort := Scheme(e), "80"
	if scheme == "https" {
		standardPort = "443"
	}
	dst = append(append(dst, scheme...), "://"...)
	if host := e.Get("HTTP_HOST"); len(host) > 0 {
		dst = append(dst, host...)
	} else {
		dst = append(dst, e.Get("SERVER_NAME")...)
		if port := e.Get("SERVER_PORT"); string(port) != standardPort {
			dst = append(append(dst, ':'), port...)
		}
	}
	if script := e.Get("SCRIPT_NAME"); len(script) > 0 {
		return appendQuoted(dst, script, "/")
	}
	return append(dst, '/')
}

// RequestURI returns the absolute URI of the request, with the query string if
// asked for and not empty (wsgiref.util.request_uri).
func RequestURI(e *Environ, includeQuery bool) string {
	uri := appendApplicationURI(nil, e)
	if len(e.Get("SCRIPT_NAME")) == 0 {
		uri = uri[:len(uri)-1] // the slash is the path's own
		if len(e.Get("PATH_INFO")) == 0 {
			uri = append(uri, '/')
		}
	}
	return string(appendPathAndQuery(uri, e, includeQuery))
}

func appendPathAndQuery(dst []byte, e *Environ, includeQuery bool) []byte {
	dst = appendQuoted(dst, e.Get("PATH_INFO"), "/;=,")
	if query := e.Get("QUERY_STRING"); includeQuery && len(query) > 0 {
		dst = append(append(dst, '?'), query...)
	}
	return dst
}

// appendQuoted percent-encodes every byte but RFC 3986's unreserved characters
// and those of safe, as urllib.parse.quote does.
func appendQuoted(dst, path []byte, safe string) []byte {
	const hex = "0123456789ABCDEF"
	for _, c := range path {
		switch {
		case 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z', '0' <= c && c <= '9',
			strings.IndexByte("_.-~", c) >= 0, strings.IndexByte(safe, c) >= 0:
			dst = append(dst, c)
		default:
			dst = append(dst, '%', hex[c>>4], hex[c&15])
		}
	}
	return dst
}

// ShiftPathInfo moves the first segment of PATH_INFO to SCRIPT_NAME and returns it
// (wsgiref.util.shift_path_info). Empty and "." segments before the last are
// dropped; ".." takes the last segment off SCRIPT_NAME. A PATH_INFO of "/" gives an
// empty name and a SCRIPT_NAME with a slash at its end, so that an application
// can tell "/x" from "/x/". ok is false if nothing is left to shift, and for a
// last segment ".", which is dropped.
func ShiftPathInfo(e *Environ) (name string, ok bool) {
	info := e.Text("PATH_INFO")
	if info == "" || info[0] != '/' {
		return "", false
	}
	segments := usefulSegments(info)
	name = segments[0]
	rest := ""
	if len(segments) > 1 {
		rest = "/" + strings.Join(segments[1:], "/")
	}
	script := strings.TrimSuffix(normalPath(e.Text("SCRIPT_NAME")+"/"+name), "/")
	if name == "" && !strings.HasSuffix(script, "/") {
		script += "/"
	}
	e.Set("SCRIPT_NAME", script)
	e.Set("PATH_INFO", rest)
	return name, name != "."
}

// usefulSegments returns the segments of a path that begins with a slash,
// without the empty and "." ones before the last.
func usefulSegments(path string) []string {
	var segments []string
	parts := strings.Split(path[1:], "/")
	for i, part := range parts {
		if last := i == len(parts)-1; last || part != "" && part != "." {
			segments = append(segments, part)
		}
	}
	return segments
}

// normalPath is posixpath.normpath for a path that is not relative: path.Clean,
// but exactly two slashes at the begin stay (POSIX.1-2017, section 4.13).
func normalPath(path string) string {
	var kept []string
	for part := range strings.SplitSeq(path, "/") {
		switch {
		case part == "" || part == ".":
		case part == "..":
			kept = kept[:max(0, len(kept)-1)]
		default:
			kept = append(kept, part)
		}
	}
	root := "/"
	if strings.HasPrefix(path, "//") && !strings.HasPrefix(path, "///") {
		root = "//"
	}
	return root + strings.Join(kept, "/")
}

// appendRequestTarget appends REQUEST_URI, or what it must have been where the
// web server does not send it.
func appendRequestTarget(dst []byte, e *Environ) []byte {
	if uri := e.Get("REQUEST_URI"); len(uri) > 0 {
		return append(dst, uri...)
	}
	dst = appendQuoted(dst, e.Get("SCRIPT_NAME"), "/;=,")
	return appendPathAndQuery(dst, e, true)
}
