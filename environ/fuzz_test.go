package environ

import (
	"bytes"
	"errors"
	"slices"
	"strings"
	"testing"
)

// FuzzPrepare: whatever a front server sends, an environ that Prepare accepts has
// the form that PEP 3333 promises, and a second Prepare changes nothing.
//
// The input is variables as SCGI sends them, NAME NUL value NUL.
func FuzzPrepare(f *testing.F) {
	for _, cases := range [][]pathCase{nginxPaths, apachePaths, otherPaths} {
		for _, c := range cases {
			vars := strings.NewReplacer("=", "\x00", "\n", "\x00").Replace(c.vars)
			f.Add("REQUEST_METHOD\x00GET\x00"+vars+"\x00", c.mount, c.transport == "cgi")
		}
	}
	f.Add("REQUEST_METHOD\x00GET\x00HTTP_PROXY\x00x\x00HTTP_A\x00a\x00HTTP_A\x00b\x00HTTP_COOKIE\x00a\x00HTTP_COOKIE\x00b\x00", "", false)
	f.Add("REQUEST_METHOD\x00POST\x00CONTENT_LENGTH\x005\x00CONTENT_LENGTH\x005\x00", "/m/", false)
	f.Add("REQUEST_METHOD\x00POST\x00CONTENT_LENGTH\x0000\x00HTTP_HOST\x00[::1]:8\x00SERVER_NAME\x00\x00", "m", true)
	f.Fuzz(func(t *testing.T, vars, mount string, cgi bool) {
		r := &Request{Transport: "scgi"}
		if cgi {
			r.Transport = "cgi"
		}
		parts := strings.Split(vars, "\x00")
		for i := 0; i+1 < len(parts); i += 2 {
			r.Environ.Add(parts[i], parts[i+1])
		}
		rules := &Rules{Limits: Limits{MaxBody: 1 << 20}}
		if mount != "" {
			rules.Extra = [][2]string{{"SCRIPT_NAME", mount}}
		}
		if err := Prepare(r, rules); err != nil {
			if status := StatusOf(err); status != 400 && status != 413 {
				t.Fatalf("status %d: %v", status, err)
			}
			return
		}
		checkPrepared(t, r)
		if iis := strings.HasPrefix(r.Environ.Text("SERVER_SOFTWARE"), "Microsoft-IIS"); iis {
			return // its rule takes SCRIPT_NAME off PATH_INFO each time
		}
		before, length := list(&r.Environ.pairs), r.ContentLength
		if err := Prepare(r, rules); err != nil {
			t.Fatalf("a second time: %v", err)
		}
		if after := list(&r.Environ.pairs); !slices.Equal(before, after) || r.ContentLength != length {
			t.Errorf("a second time: %q, length %d; before %q, length %d", after, r.ContentLength, before, length)
		}
	})
}

func checkPrepared(t *testing.T, r *Request) {
	t.Helper()
	e := asMap(t, &r.Environ) // each name once
	for _, name := range []string{"", "HTTP_PROXY", "HTTP_CONTENT_TYPE", "HTTP_CONTENT_LENGTH"} {
		if value, ok := e[name]; ok {
			t.Errorf("%q = %q", name, value)
		}
	}
	for _, name := range []string{"REQUEST_METHOD", "SERVER_NAME", "SERVER_PORT", "SERVER_PROTOCOL"} {
		if e[name] == "" {
			t.Errorf("%s is empty", name)
		}
	}
	for _, name := range []string{"QUERY_STRING", "PATH_INFO"} {
		if _, ok := e[name]; !ok {
			t.Errorf("%s is absent", name)
		}
	}
	script, info := e["SCRIPT_NAME"], e["PATH_INFO"]
	if script != "" && (script[0] != '/' || strings.HasSuffix(script, "/")) {
		t.Errorf("SCRIPT_NAME %q", script)
	}
	if info != "" && info[0] != '/' || info == "" && script == "" {
		t.Errorf("PATH_INFO %q with SCRIPT_NAME %q", info, script)
	}
	length, given := e["CONTENT_LENGTH"]
	if given && (length == "" || strings.Trim(length, "0123456789") != "") || given != (r.ContentLength >= 0) {
		t.Errorf("CONTENT_LENGTH %q, %v, as %d", length, given, r.ContentLength)
	}
}

// FuzzHeaderParse: what Parse accepts leaves the gateway as the same fields, and
// no byte of it can end a line or begin another.
func FuzzHeaderParse(f *testing.F) {
	f.Add(block)
	for _, bad := range rejectedBlocks {
		f.Add([]byte(bad))
	}
	f.Add([]byte("200 OK\nA: 1\nA: 2\nb: \nX: \x80\xff a: b\tc \n"))
	f.Fuzz(func(t *testing.T, block []byte) {
		var h Header
		if err := h.Parse(block); err != nil {
			if !errors.Is(err, ErrHeader) {
				t.Errorf("error without ErrHeader: %v", err)
			}
			return
		}
		out := h.AppendCGI(nil)
		head, ok := bytes.CutSuffix(out, []byte("\r\n\r\n"))
		if !ok {
			t.Fatalf("no end: %q", out)
		}
		lines := bytes.Split(head, []byte("\r\n"))
		for _, line := range lines {
			if badValueByte(line) >= 0 || len(line) == 0 {
				t.Errorf("line %q", line)
			}
		}
		if len(lines) != h.Len()+1 {
			t.Errorf("%d lines for %d fields", len(lines), h.Len())
		}
		status, ok := bytes.CutPrefix(bytes.Join(lines, []byte("\n")), []byte("Status: "))
		if again := append(status, '\n'); !ok || !bytes.Equal(again, block) {
			t.Errorf("%q became %q", block, again)
		}
	})
}
