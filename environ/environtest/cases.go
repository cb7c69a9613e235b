package environtest

import (
	"slices"
	"strconv"
	"strings"
)

// Cases returns the conformance table.
func Cases() []Case {
	return slices.Concat(pathCases(), queryCases(), headerCases(), bodyCases(), answerCases(), clientCases())
}

// saw is a GET whose environ is looked at.
func saw(name, target string, fields ...[2]string) Case {
	return Case{Name: name, Request: Request{Target: target, Header: fields}, Reflect: true}
}

// with adds what the environ must have.
func (c Case) with(name string, m Match) Case {
	if c.Seen == nil {
		c.Seen = map[string]Match{}
	}
	c.Seen[name] = m
	return c
}

// pathCases: PATH_INFO is the path, percent-decoded once, as bytes; nothing in
// it is folded, and no file is chosen by it (S4).
func pathCases() []Case {
	atMount := saw("path empty at the mount", "")
	atMount.Mounted = true
	return []Case{
		atMount,
		saw("path root", "/"),
		saw("path plain", "/a/b"),
		saw("path slash at the end", "/a/b/"),
		saw("path letter case", "/Straw/BERRY"),
		saw("path encoded letter", "/%41bc"),
		saw("path encoded slash", "/a%2Fb"),
		saw("path encoded space", "/a%20b"),
		saw("path plus is a plus", "/a+b"),
		saw("path encoded percent is decoded once", "/100%25/%2525"),
		saw("path encoded question mark and hash", "/what%3Fis%23this"),
		saw("path unreserved and sub-delims", "/;a=b,c!d$e&f'g(h)*i+j~k:l@m"),
		saw("path two slashes", "/a//b"),
		saw("path dots", "/a/../b"),
		saw("path encoded UTF-8", "/caf%C3%A9/%E2%82%AC"),
		saw("path encoded Latin-1", "/caf%E9"),
		saw("path full-width letters", "/%EF%BC%A1%EF%BC%8F%EF%BC%8E"),
		saw("path encoded NUL", "/a%00b"),
		saw("path encoded newline", "/a%0Ab"),
		saw("path of a file", "/etc/passwd.py"),
		saw("path long", strings.Repeat("/segment-of-path", 100)),
	}
}

// queryCases: QUERY_STRING is what follows the question mark, byte for byte.
func queryCases() []Case {
	return []Case{
		saw("query empty", "/q?"),
		saw("query form", "/q?a=1&b=2&a=3"),
		saw("query encoded", "/q?a=%20%2F%3F%26&b=+&c=%C3%A9&d=%E9&e=%00%0A"),
		saw("query with delimiters", "/q?a=b?c/d:e@f;g,h!i$j'k(l)m*n=o==&&"),
		saw("query indexed is data only", "/q?-d+x"), // S3, CVE-2012-1823
		saw("query like an option", "/q?--help"),
		saw("query indexed with spaces", "/q?-s+a%20b+--version"),
		saw("query long", "/q?x="+strings.Repeat("0123456789", 400)),
	}
}

func headerCases() []Case {
	field := func(name, value string) [2]string { return [2]string{name, value} }
	var many [][2]string
	for i := range 60 {
		many = append(many, field("X-Many-"+strconv.Itoa(i), "value "+strconv.Itoa(i)))
	}
	return []Case{
		saw("header own", "/h", field("X-Own", "a value, of \"its\" own")).
			with("HTTP_X_OWN", Is("a value, of \"its\" own")),
		saw("header empty", "/h", field("X-Empty", "")).with("HTTP_X_EMPTY", EmptyOrAbsent),
		saw("header Latin-1", "/h", field("X-Latin", "caf\xe9")).with("HTTP_X_LATIN", Is("caf\xe9")),
		saw("header UTF-8", "/h", field("X-Utf8", "\xe2\x82\xac")).with("HTTP_X_UTF8", Is("\xe2\x82\xac")),
		saw("header long", "/h", field("X-Long", strings.Repeat("l", 3000))).
			with("HTTP_X_LONG", Is(strings.Repeat("l", 3000))),
		saw("header many", "/h", many...).
			with("HTTP_X_MANY_0", Is("value 0")).with("HTTP_X_MANY_59", Is("value 59")),
		saw("header repeated", "/h", field("X-Twice", "one"), field("X-Twice", "two")).
			with("HTTP_X_TWICE", List("one", "two")),
		saw("header usual", "/h", field("User-Agent", "test/1.0 (x; y)"), field("Accept", "text/html,*/*;q=0.8"),
			field("Referer", "http://wsgi.test/a?b"), field("Accept-Language", "de-CH, de;q=0.9")).
			with("HTTP_USER_AGENT", Is("test/1.0 (x; y)")).with("HTTP_ACCEPT", Is("text/html,*/*;q=0.8")).
			with("HTTP_REFERER", Is("http://wsgi.test/a?b")).with("HTTP_ACCEPT_LANGUAGE", Is("de-CH, de;q=0.9")),
		saw("header Host", "/h").with("HTTP_HOST", Is(DefaultHost)),
		saw("header Host with port", "/h", field("Host", "wsgi.test:8081")).with("HTTP_HOST", Is("wsgi.test:8081")),
		saw("header Cookie", "/h", field("Cookie", `a=1; b="x,y"`)).
			with("HTTP_COOKIE", Is(`a=1; b="x,y"`)),
		saw("header Cookie repeated", "/h", field("Cookie", "a=1"), field("Cookie", "b=2")).
			with("HTTP_COOKIE", Is("a=1; b=2")),
		saw("header Authorization", "/h", field("Authorization", "Bearer abc.def-_~+/=")).
			with("HTTP_AUTHORIZATION", Is("Bearer abc.def-_~+/=")),
		saw("header Proxy never arrives", "/h", field("Proxy", "http://evil.test:3128")), // S1: always checked
		saw("header spellings cannot override", "/h", // S2
			field("X-Spelled", "dash"), field("X_Spelled", "underscore"), field("X.Spelled", "dot"),
			field("Script_Name", "/evil"), field("Path_Info", "/evil")).
			with("HTTP_X_SPELLED", ListWith("dash")),
		lengthSpelling(),
	}
}

// lengthSpelling: lighttpd passes Content_Length as a second
// HTTP_CONTENT_LENGTH (S2).
func lengthSpelling() Case {
	c := posted("header Content_Length cannot override", "text/plain", []byte("12345"))
	c.Request.Header = append(c.Request.Header, [2]string{"Content_Length", "3"}, [2]string{"Content_Type", "evil/type"})
	return c
}

func posted(name, contentType string, body []byte) Case {
	return Case{Name: name, Reflect: true, Request: Request{
		Method: "POST", Target: "/post", Body: body, Header: [][2]string{{"Content-Type", contentType}},
	}}
}

// pattern is n bytes of all values that repeat with no power of two.
func pattern(n int) []byte {
	p := make([]byte, n)
	for i := range p {
		p[i] = byte(i % 251)
	}
	return p
}

func bodyCases() []Case {
	const form, octets = "application/x-www-form-urlencoded", "application/octet-stream"
	method := func(m string, body []byte) Case {
		c := posted("body "+m, octets, body)
		c.Request.Method = m
		return c
	}
	chunked := func(name string, body []byte) Case {
		c := posted(name, octets, body)
		c.Request.Chunked = true
		return c
	}
	untyped := posted("body without a type", "", []byte("x"))
	untyped.Request.Header = nil
	untyped = untyped.with("CONTENT_TYPE", EmptyOrAbsent.Or(NotEmpty))
	expecting := posted("body after Expect", octets, pattern(40000))
	expecting.Request.Header = append(expecting.Request.Header, [2]string{"Expect", "100-continue"})
	empty := posted("body empty", octets, []byte{})
	return []Case{
		posted("body form", form, []byte("a=1&b=%20x&c=%C3%A9")),
		posted("body type with parameters", `multipart/form-data; boundary="x y"`, []byte("--x y--\r\n")),
		posted("body every byte", octets, []byte("\x00\x01\r\n\r\n\xff\xfe"+string(pattern(256)))),
		posted("body over the inline bound", octets, pattern(16<<10+1)),
		posted("body 2 MiB", octets, pattern(2<<20)),
		empty, untyped, expecting,
		method("PUT", pattern(1000)), method("PATCH", pattern(1000)), method("DELETE", nil), method("OPTIONS", nil),
		chunked("body chunked", []byte("chunked body")),
		chunked("body chunked empty", []byte{}),
		chunked("body chunked 2 MiB", pattern(2<<20)),
		{Name: "body not read", Request: Request{Method: "POST", Target: "/unread", Body: pattern(200_000)}, Body: []byte(unreadText)},
		{Name: "body read in part", Request: Request{Method: "POST", Target: "/partial", Body: pattern(50_000)}, Body: pattern(10)},
	}
}

// got is a request for one of the application's fixed pages.
func got(name, target, body string) Case {
	return Case{Name: name, Request: Request{Target: target}, Body: []byte(body)}
}

func answerCases() []Case {
	header := func(c Case, name string, values ...string) Case {
		if c.Header == nil {
			c.Header = map[string][]string{}
		}
		c.Header[name] = values
		return c
	}
	reason := got("answer with a reason of its own", "/reason", pageText)
	reason.Reason = "Very Fine"
	redirect := header(status(got("answer redirects", "/redirect", pageText), 302), "Location", "/elsewhere?x=1")
	many := got("answer with many headers", "/headers/many", pageText)
	for i := range 30 {
		many = header(many, "X-Field-"+strconv.Itoa(i), "value "+strconv.Itoa(i))
	}
	cases := []Case{
		header(got("answer page", "/page", pageText), "Content-Type", "text/plain"),
		got("answer empty", "/empty", ""),
		reason, redirect, many,
		header(got("answer with two cookies", "/headers/dup", pageText), "Set-Cookie", "a=1", "b=2; Path=/"),
		header(got("answer with a Latin-1 header", "/headers/latin1", pageText), "X-Latin", "caf\xe9"),
		header(status(got("answer 204", "/nobody/204", ""), 204), "Content-Length"),
		header(status(got("answer 304", "/nobody/304", ""), 304), "Etag", `"abc"`),
		got("answer streamed", "/stream", streamText),
		got("answer by write", "/write", writeText),
		got("answer 2 MiB", "/big", string(bigBody())),
		got("answer 2 MiB streamed", "/bigstream", string(bigBody())),
		got("answer from a file", "/file", string(fileBody())),
		got("answer after wsgi.errors", "/errors", pageText),
		{Name: "answer of a failing application", Request: Request{Target: "/fail"}, Status: 500},
		header(status(got("answer 401", "/status/401", "status 401\n"), 401), "Www-Authenticate", `Basic realm="test"`),
	}
	for _, code := range []int{201, 400, 403, 404, 410, 422, 500, 503} {
		text := strconv.Itoa(code)
		cases = append(cases, status(got("answer "+text, "/status/"+text, "status "+text+"\n"), code))
	}
	return cases
}

func status(c Case, code int) Case {
	c.Status = code
	return c
}

// clientCases: what depends on the client's side of the connection.
func clientCases() []Case {
	head := func(target string) Case {
		return Case{Name: "HEAD " + target, Request: Request{Method: "HEAD", Target: target}, Body: []byte{}}
	}
	old := func(c Case) Case { c.Request.Proto = "HTTP/1.0"; return c }
	noHost := old(saw("HTTP/1.0 without Host", "/old"))
	noHost.Request.NoHost = true
	return []Case{
		head("/page"), head("/stream"), head("/file"), head("/seen"), status(head("/nobody/304"), 304),
		noHost,
		old(saw("HTTP/1.0 with Host", "/old")).with("HTTP_HOST", Is(DefaultHost)),
		old(got("HTTP/1.0 streamed", "/stream", streamText)),
		old(Case{
			Name: "HTTP/1.0 large", Request: Request{Target: "/bigstream"}, Body: bigBody(),
		}),
	}
}
