package environ

import (
	"strings"
	"testing"
)

// pathCase is what one front server sends, and what the application must get.
type pathCase struct {
	name         string
	vars         string // separated by line feeds
	script, info string
	mount        string // --env SCRIPT_NAME
	transport    string
}

const (
	nginx  = "SERVER_SOFTWARE=nginx/1.22.1\n"
	apache = "SERVER_SOFTWARE=Apache/2.4.71 (Debian)\n"
	lighty = "SERVER_SOFTWARE=lighttpd/1.4.69\n"
)

// The rows of nginx 1.22 (Debian's fastcgi_params, scgi_params, uwsgi_params).
var nginxPaths = []pathCase{
	{name: "fastcgi_params, root", vars: nginx + "SCRIPT_NAME=/\nDOCUMENT_URI=/", info: "/"},
	{name: "fastcgi_params", vars: nginx + "SCRIPT_NAME=/a b/c\nDOCUMENT_URI=/a b/c\nREQUEST_URI=/a%20b//c", info: "/a b/c"},
	{name: "fastcgi_params, slash at the end", vars: nginx + "SCRIPT_NAME=/a/\nDOCUMENT_URI=/a/", info: "/a/"},
	{name: "fastcgi_params without SERVER_SOFTWARE", vars: "SCRIPT_NAME=/a\nDOCUMENT_URI=/a", info: "/a"},
	{name: "fastcgi_params without DOCUMENT_URI", vars: nginx + "SCRIPT_NAME=/a", info: "/a"},
	{name: "scgi_params", vars: nginx + "DOCUMENT_URI=/a/b\nREQUEST_URI=/a%2Fb", info: "/a/b"},
	{name: "scgi_params, root", vars: nginx + "DOCUMENT_URI=/\nREQUEST_URI=/", info: "/"},
	{name: "scgi_params with a mount", vars: nginx + "DOCUMENT_URI=/app/b\nSCRIPT_NAME=/app\nSCRIPT_NAME=/app", script: "/app", info: "/b"},
	{name: "uwsgi_params", vars: nginx + "PATH_INFO=/a/b\nDOCUMENT_URI=/a/b", info: "/a/b"},
	{name: "split, match", vars: nginx + "SCRIPT_NAME=/app\nPATH_INFO=/x/y\nDOCUMENT_URI=/app/x/y", script: "/app", info: "/x/y"},
	{name: "split, match of everything", vars: nginx + "SCRIPT_NAME=/app\nPATH_INFO=\nDOCUMENT_URI=/app", script: "/app", info: ""},
	{name: "split, no match, slash at the end", vars: nginx + "SCRIPT_NAME=/x/\nPATH_INFO=\nDOCUMENT_URI=/x/", info: "/x/"},
	{name: "split, root mount", vars: nginx + "SCRIPT_NAME=\nPATH_INFO=/x\nDOCUMENT_URI=/x", info: "/x"},
	{name: "split, root mount at root", vars: nginx + "SCRIPT_NAME=/\nPATH_INFO=\nDOCUMENT_URI=/", info: "/"},
	{name: "SCRIPT_NAME set twice", vars: nginx + "SCRIPT_NAME=/app/x\nDOCUMENT_URI=/app/x\nSCRIPT_NAME=/app", script: "/app", info: "/x"},
	{name: "SCRIPT_NAME set twice, at the mount", vars: nginx + "SCRIPT_NAME=/app\nDOCUMENT_URI=/app\nSCRIPT_NAME=/app", script: "/app", info: ""},
	{name: "SCRIPT_NAME set twice with a slash", vars: nginx + "SCRIPT_NAME=/app/x\nDOCUMENT_URI=/app/x\nSCRIPT_NAME=/app/", script: "/app", info: "/x"},
	{name: "SCRIPT_NAME set twice to nothing", vars: nginx + "SCRIPT_NAME=/x\nDOCUMENT_URI=/x\nSCRIPT_NAME=", info: "/x"},
	{name: "SCRIPT_NAME set twice, path elsewhere", vars: nginx + "SCRIPT_NAME=/other\nDOCUMENT_URI=/other\nSCRIPT_NAME=/app", info: "/other"},
	{name: "SCRIPT_NAME set twice, longer segment", vars: nginx + "SCRIPT_NAME=/apple\nDOCUMENT_URI=/apple\nSCRIPT_NAME=/app", info: "/apple"},
	{name: "full-width letters stay", vars: nginx + "SCRIPT_NAME=/\xef\xbc\xa1\nDOCUMENT_URI=/\xef\xbc\xa1", info: "/\xef\xbc\xa1"},
}

// The rows of Apache 2.4.71, as seen with mod_proxy_scgi and mod_proxy_fcgi.
var apachePaths = []pathCase{
	{name: "ProxyPass / root", vars: apache + "SCRIPT_NAME=/\nSCRIPT_FILENAME=proxy:fcgi://127.0.0.1:9000/", info: "/"},
	{name: "ProxyPass /", vars: apache + "SCRIPT_NAME=/a b/A\nSCRIPT_FILENAME=proxy:fcgi://127.0.0.1:9000/a%20b/A", info: "/a b/A"},
	{name: "ProxyPass / with ?", vars: apache + "SCRIPT_NAME=/a?b\nSCRIPT_FILENAME=proxy:scgi://127.0.0.1:9000/a%3Fb", info: "/a?b"},
	{name: "ProxyPass /sub at the mount", vars: apache + "SCRIPT_NAME=/sub\nSCRIPT_FILENAME=proxy:scgi://127.0.0.1:9000/", script: "/sub", info: ""},
	{name: "ProxyPass /sub with slash", vars: apache + "SCRIPT_NAME=/sub/\nSCRIPT_FILENAME=proxy:scgi://127.0.0.1:9000/", script: "/sub", info: "/"},
	{name: "ProxyPass /sub", vars: apache + "SCRIPT_NAME=/sub/x\nSCRIPT_FILENAME=proxy:scgi://127.0.0.1:9000/x", script: "/sub", info: "/x"},
	{name: "ProxyPass /sub encoded", vars: apache + "SCRIPT_NAME=/sub/a?b#c\nSCRIPT_FILENAME=proxy:fcgi://h:1/a%3Fb%23c", script: "/sub", info: "/a?b#c"},
	{name: "ProxyPass /sub percent", vars: apache + "SCRIPT_NAME=/sub/%\nSCRIPT_FILENAME=proxy:fcgi://h:1/%25", script: "/sub", info: "/%"},
	{name: "ProxyPass /sub encoded percent", vars: apache + "SCRIPT_NAME=/sub/%41\nSCRIPT_FILENAME=proxy:fcgi://h:1/%2541", script: "/sub", info: "/%41"},
	{name: "ProxyPass /sub UTF-8", vars: apache + "SCRIPT_NAME=/sub/\xc3\xa9\nSCRIPT_FILENAME=proxy:fcgi://h:1/%C3%A9", script: "/sub", info: "/\xc3\xa9"},
	{name: "ProxyPass /sub twice in the path", vars: apache + "SCRIPT_NAME=/sub/sub/sub\nSCRIPT_FILENAME=proxy:fcgi://h:1/sub/sub", script: "/sub", info: "/sub/sub"},
	{name: "ProxyPass /sub/deep/", vars: apache + "SCRIPT_NAME=/sub/deep/x\nSCRIPT_FILENAME=proxy:fcgi://h:1/x", script: "/sub/deep", info: "/x"},
	{name: "ProxyPass /same to /same", vars: apache + "SCRIPT_NAME=/same/x\nSCRIPT_FILENAME=proxy:fcgi://h:1/same/x", info: "/same/x"},
	{name: "ProxyPass unix", vars: apache + "SCRIPT_NAME=/sub/a b\nSCRIPT_FILENAME=proxy:fcgi://localhost/a%20b", script: "/sub", info: "/a b"},
	{name: "ProxyPass unix, at the mount", vars: apache + "SCRIPT_NAME=/sub\nSCRIPT_FILENAME=proxy:fcgi://localhost/", script: "/sub", info: ""},
	{name: "ProxyPass unix with its path", vars: apache + "SCRIPT_NAME=/sub/x\nSCRIPT_FILENAME=proxy:unix:/run/app.sock|fcgi://localhost/x", script: "/sub", info: "/x"},
	{name: "ProxyPass IPv6", vars: apache + "SCRIPT_NAME=/sub/x\nSCRIPT_FILENAME=proxy:fcgi://[::1]:9000/x", script: "/sub", info: "/x"},
	{name: "ProxyPass, a rewrite hides the mount", vars: apache + "SCRIPT_NAME=/a/b\nSCRIPT_FILENAME=proxy:fcgi://h:1/other", info: "/a/b"},
	{name: "ProxyPass without a path", vars: apache + "SCRIPT_NAME=/a/b\nSCRIPT_FILENAME=proxy:fcgi://h:1", info: "/a/b"},
	{name: "ProxyPass, bad escape", vars: apache + "SCRIPT_NAME=/sub/%zz\nSCRIPT_FILENAME=proxy:fcgi://h:1/%zz", script: "/sub", info: "/%zz"},
	{name: "SetHandler", vars: apache + "SCRIPT_NAME=/app.fcgi\nPATH_INFO=/x\nSCRIPT_FILENAME=/srv/app.fcgi", script: "/app.fcgi", info: "/x"},
	{name: "SetHandler proxy prefix with PATH_INFO", vars: apache + "SCRIPT_NAME=/app\nPATH_INFO=/x\nSCRIPT_FILENAME=proxy:fcgi://h:1/srv/app", script: "/app", info: "/x"},
	{name: "fcgid", vars: apache + "SCRIPT_NAME=/app.fcgi\nPATH_INFO=/x/y\nSCRIPT_FILENAME=/srv/app.fcgi", script: "/app.fcgi", info: "/x/y"},
	{name: "fcgid at the mount", vars: apache + "SCRIPT_NAME=/app.fcgi\nSCRIPT_FILENAME=/srv/app.fcgi", script: "/app.fcgi", info: ""},
	{name: "cgid at root", vars: apache + "SCRIPT_NAME=\nPATH_INFO=/x", info: "/x", transport: "cgi"},
	{name: "cgid at /sub", vars: apache + "SCRIPT_NAME=/sub\nPATH_INFO=/x", script: "/sub", info: "/x", transport: "cgi"},
	{name: "cgid at /sub, no path", vars: apache + "SCRIPT_NAME=/sub", script: "/sub", info: "", transport: "cgi"},
	{name: "cgi behind nginx's fcgiwrap", vars: nginx + "SCRIPT_NAME=/cgi-bin/app\nDOCUMENT_URI=/cgi-bin/app", script: "/cgi-bin/app", info: "", transport: "cgi"},
	{name: "nothing at all", vars: "", info: "/", transport: "cgi"},
}

// The rows of lighttpd 1.4.69, HAProxy, Caddy, IIS and of deployments.
var otherPaths = []pathCase{
	{name: "lighttpd /app", vars: lighty + "SCRIPT_NAME=/app\nPATH_INFO=/x", script: "/app", info: "/x"},
	{name: "lighttpd /app, no path", vars: lighty + "SCRIPT_NAME=/app\nPATH_INFO=", script: "/app", info: ""},
	{name: "lighttpd /app, no PATH_INFO", vars: lighty + "SCRIPT_NAME=/app", script: "/app", info: ""},
	{name: "lighttpd / with fix-root-scriptname", vars: lighty + "SCRIPT_NAME=\nPATH_INFO=/x/y", info: "/x/y"},
	{name: "lighttpd / without it", vars: lighty + "SCRIPT_NAME=/x\nPATH_INFO=/y", script: "/x", info: "/y"},
	{name: "lighttpd / without it, mended", vars: lighty + "SCRIPT_NAME=/x\nPATH_INFO=/y", mount: "/", info: "/x/y"},
	{name: "lighttpd /f/ swallows a segment", vars: lighty + "SCRIPT_NAME=/f/a\nPATH_INFO=/b", script: "/f/a", info: "/b"},
	{name: "lighttpd /f/, mended", vars: lighty + "SCRIPT_NAME=/f/a\nPATH_INFO=/b", mount: "/f", script: "/f", info: "/a/b"},
	{name: "lighttpd /f/, mended, no path", vars: lighty + "SCRIPT_NAME=/f/\nPATH_INFO=", mount: "/f", script: "/f", info: "/"},
	{name: "HAProxy without path-info", vars: "SERVER_SOFTWARE=HAProxy 2.6\nSCRIPT_NAME=/a/b", info: "/a/b"},
	{name: "HAProxy with path-info", vars: "SERVER_SOFTWARE=HAProxy 2.6\nSCRIPT_NAME=/app\nPATH_INFO=/b", script: "/app", info: "/b"},
	{name: "Caddy with split_path", vars: "SERVER_SOFTWARE=Caddy/v2.6.2\nSCRIPT_NAME=/app.py\nPATH_INFO=/b", script: "/app.py", info: "/b"},
	{name: "Caddy without a match", vars: "SERVER_SOFTWARE=Caddy/v2.6.2\nSCRIPT_NAME=\nPATH_INFO=/a/b", info: "/a/b"},
	{name: "IIS, whole path", vars: "SERVER_SOFTWARE=Microsoft-IIS/10.0\nSCRIPT_NAME=/app.py\nPATH_INFO=/app.py/b", script: "/app.py", info: "/b"},
	{name: "IIS, at the script", vars: "SERVER_SOFTWARE=Microsoft-IIS/10.0\nSCRIPT_NAME=/app.py\nPATH_INFO=/app.py", script: "/app.py", info: ""},
	{name: "IIS, AllowPathInfoForScriptMappings", vars: "SERVER_SOFTWARE=Microsoft-IIS/10.0\nSCRIPT_NAME=/app.py\nPATH_INFO=/b", script: "/app.py", info: "/b"},
	{name: "IIS under CGI", vars: "SERVER_SOFTWARE=Microsoft-IIS/10.0\nSCRIPT_NAME=/app.py\nPATH_INFO=/app.py/b", script: "/app.py", info: "/b", transport: "cgi"},
	{name: "IIS, longer segment", vars: "SERVER_SOFTWARE=Microsoft-IIS/10.0\nSCRIPT_NAME=/app\nPATH_INFO=/apple", script: "/app", info: "/apple"},
	{name: "a front that sends neither", vars: "REQUEST_URI=/a%20b/%2525?q", info: "/a b/%25"},
	{name: "a front that sends neither, bad escape", vars: "REQUEST_URI=/a%zz?q", info: "/a%zz"},
	{name: "no variable at all", vars: "", info: "/"},
	{name: "unknown front that splits", vars: "SCRIPT_NAME=/app", script: "/app", info: ""},
	{name: "SCRIPT_NAME is a slash", vars: "SCRIPT_NAME=/\nPATH_INFO=/x", info: "/x"},
	{name: "SCRIPT_NAME ends in slashes", vars: "SCRIPT_NAME=/app//\nPATH_INFO=/x", script: "/app", info: "/x"},
	{name: "no slash at the begin", vars: "SCRIPT_NAME=app\nPATH_INFO=x", script: "/app", info: "/x"},
	{name: "both empty", vars: "SCRIPT_NAME=\nPATH_INFO=", info: "/"},
	{name: "two slashes stay in the path", vars: "SCRIPT_NAME=/app\nPATH_INFO=//x", script: "/app", info: "//x"},
	{name: "mount wins over nginx", vars: nginx + "SCRIPT_NAME=/app/x\nDOCUMENT_URI=/app/x", mount: "/app", script: "/app", info: "/x"},
	{name: "mount with a slash", vars: nginx + "SCRIPT_NAME=/app/x\nDOCUMENT_URI=/app/x", mount: "/app/", script: "/app", info: "/x"},
	{name: "mount at its point", vars: nginx + "SCRIPT_NAME=/app\nDOCUMENT_URI=/app", mount: "/app", script: "/app", info: ""},
	{name: "mount with a slash at its point", vars: "SCRIPT_NAME=/app\nPATH_INFO=", mount: "/app/", script: "/app", info: ""},
	{name: "mount without a slash", vars: "SCRIPT_NAME=/app\nPATH_INFO=/x", mount: "app", script: "/app", info: "/x"},
	{name: "mount that the path lacks", vars: nginx + "SCRIPT_NAME=/x\nDOCUMENT_URI=/x", mount: "/app", script: "/app", info: "/x"},
	{name: "mount is not a part of a segment", vars: nginx + "SCRIPT_NAME=/apple\nDOCUMENT_URI=/apple", mount: "/app", script: "/app", info: "/apple"},
	{name: "mount over a split", vars: "SCRIPT_NAME=/a\nPATH_INFO=/b/c", mount: "/a/b", script: "/a/b", info: "/c"},
	{name: "mount empty is the root", vars: "SCRIPT_NAME=/a\nPATH_INFO=/b", mount: "/", info: "/a/b"},
	{name: "mount under CGI", vars: apache + "SCRIPT_NAME=/cgi-bin/app.cgi\nPATH_INFO=/b", mount: "/app", script: "/app", info: "/cgi-bin/app.cgi/b", transport: "cgi"},
}

func TestPathRules(t *testing.T) {
	for group, cases := range map[string][]pathCase{"nginx": nginxPaths, "apache": apachePaths, "others": otherPaths} {
		for _, c := range cases {
			t.Run(group+"/"+c.name, func(t *testing.T) { c.check(t) })
		}
	}
}

func (c *pathCase) check(t *testing.T) {
	r := request("REQUEST_METHOD=GET")
	if c.transport != "" {
		r.Transport = c.transport
	}
	for line := range strings.SplitSeq(c.vars, "\n") {
		if name, value, ok := strings.Cut(line, "="); ok {
			r.Environ.Add(name, value)
		}
	}
	rules := &Rules{}
	if c.mount != "" {
		rules.Extra = [][2]string{{"SCRIPT_NAME", c.mount}}
	}
	if err := Prepare(r, rules); err != nil {
		t.Fatal(err)
	}
	got := asMap(t, &r.Environ)
	if got["SCRIPT_NAME"] != c.script || got["PATH_INFO"] != c.info {
		t.Errorf("SCRIPT_NAME %q and PATH_INFO %q, want %q and %q", got["SCRIPT_NAME"], got["PATH_INFO"], c.script, c.info)
	}
	if _, ok := got["PATH_INFO"]; !ok {
		t.Error("PATH_INFO is absent")
	}
}
