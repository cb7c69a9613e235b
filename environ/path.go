package environ

import (
	"bytes"
	"net/url"
)

// Where the application ends and the path in it begins is what front servers
// agree on least. Each rule below has a name, and says which server and version
// needs it and by what it is recognised. Without any of them the pair is
// what RFC 3875 says it is.

// paths is SCRIPT_NAME and PATH_INFO of one request, as views or copies.
type paths struct {
	script, info       []byte
	hasScript, hasInfo bool
}

// settlePaths applies the path rules and stores the result: SCRIPT_NAME is
// empty or begins with a slash and does not end in one; PATH_INFO is always
// there, and not empty if SCRIPT_NAME is (PEP 3333, "environ Variables").
//
// guess is false for a transport whose web server is known to split by RFC 3875
// (CGI itself).
func settlePaths(x *names, guess bool, rules *Rules) {
	var p paths
	p.script, p.hasScript = x.lookup("SCRIPT_NAME")
	p.info, p.hasInfo = x.lookup("PATH_INFO")
	mount, mounted := rules.mount()
	switch {
	case iisWholePathInfo(x):
		p.stripScriptFromInfo()
	case guess && !p.hasInfo:
		p.supplyInfo(x)
	}
	if mounted {
		p.deployerMount(mount)
	}
	p.tidy()
	x.setPath("SCRIPT_NAME", p.script)
	x.setPath("PATH_INFO", p.info)
}

// setPath sets a path that may be a view into the environ.
func (x *names) setPath(name string, value []byte) {
	if old, ok := x.lookup(name); !ok || !bytes.Equal(old, value) {
		x.set(name, string(value))
	}
}

func (r *Rules) mount() (string, bool) {
	for _, kv := range r.Extra {
		if kv[0] == "SCRIPT_NAME" {
			return kv[1], true
		}
	}
	return "", false
}

// supplyInfo finds the path for a request that came without PATH_INFO.
func (p *paths) supplyInfo(x *names) {
	filename := x.get("SCRIPT_FILENAME")
	document, fromNginx := x.lookup("DOCUMENT_URI")
	software := x.get("SERVER_SOFTWARE")
	switch {
	case p.apacheAlias(x.get("CONTEXT_PREFIX")):
	case bytes.HasPrefix(filename, []byte("proxy:")):
		p.apacheProxyPass(filename)
	case fromNginx && (!p.hasScript || x.scriptTwice || len(x.get("SCGI")) > 0):
		p.nginxMount(document)
	case fromNginx && bytes.Equal(p.script, document),
		bytes.HasPrefix(software, []byte("nginx")),
		bytes.HasPrefix(software, []byte("HAProxy")):
		p.wholePathInScriptName()
	case !p.hasScript:
		p.pathOfRequestURI(x.get("REQUEST_URI"))
	}
}

// wholePathInScriptName: nginx with its own fastcgi_params ($fastcgi_script_name
// is the whole path without fastcgi_split_path_info) and HAProxy without
// path-info. The application is at the root.
func (p *paths) wholePathInScriptName() {
	p.script, p.info = nil, p.script
}

// nginxMount: nginx with scgi_params, which has neither variable, so that a
// SCRIPT_NAME over SCGI is "scgi_param SCRIPT_NAME /mount;", or with
// fastcgi_params followed by "fastcgi_param SCRIPT_NAME /mount;", so that the
// name comes twice. The path is what follows the mount in DOCUMENT_URI.
func (p *paths) nginxMount(document []byte) {
	p.info = document
	if rest, ok := underMount(document, p.script); ok {
		p.info = rest
	} else {
		p.script = nil
	}
}

// apacheAlias: Apache 2.4 with an Alias for one file, whose handler is
// "proxy:fcgi://...", splits by RFC 3875 and leaves PATH_INFO out if it is empty.
// CONTEXT_PREFIX is the alias, empty for ProxyPass.
func (p *paths) apacheAlias(prefix []byte) bool {
	return len(prefix) > 0 && bytes.Equal(prefix, p.script)
}

// apacheProxyPass: Apache 2.4 with ProxyPass to fcgi: or scgi: sends the whole
// path as SCRIPT_NAME and, as SCRIPT_FILENAME, "proxy:fcgi://host:port/rest",
// where rest is what the ProxyPass line appended. What is before rest in the path
// is the mount. For the mount point itself, without a slash at its end, rest is a
// slash that Apache 2.4.71 invents.
func (p *paths) apacheProxyPass(filename []byte) {
	_, target, _ := bytes.Cut(filename, []byte("://"))
	slash := bytes.IndexByte(target, '/')
	if slash < 0 {
		p.wholePathInScriptName()
		return
	}
	rest, _, _ := bytes.Cut(target[slash:], []byte{'?'})
	if string(rest) == "/" && !bytes.HasSuffix(p.script, rest) {
		return
	}
	if !bytes.HasSuffix(p.script, rest) {
		if decoded, err := url.PathUnescape(string(rest)); err == nil {
			rest = []byte(decoded)
		}
	}
	if !bytes.HasSuffix(p.script, rest) {
		p.wholePathInScriptName()
		return
	}
	at := len(p.script) - len(rest)
	p.script, p.info = p.script[:at], p.script[at:]
}

// pathOfRequestURI: a front that sends neither variable nor DOCUMENT_URI. The
// path is REQUEST_URI's, percent-decoded once.
func (p *paths) pathOfRequestURI(uri []byte) {
	raw, _, _ := bytes.Cut(uri, []byte{'?'})
	if decoded, err := url.PathUnescape(string(raw)); err == nil {
		p.info = []byte(decoded)
	} else {
		p.info = raw
	}
}

// iisWholePathInfo recognises IIS, whose PATH_INFO begins with SCRIPT_NAME unless
// AllowPathInfoForScriptMappings is set (wsgiref's IISCGIHandler).
func iisWholePathInfo(x *names) bool {
	return bytes.HasPrefix(x.get("SERVER_SOFTWARE"), []byte("Microsoft-IIS"))
}

func (p *paths) stripScriptFromInfo() {
	if rest, ok := underMount(p.info, p.script); ok {
		p.info = rest
	}
}

// deployerMount: the deployment says where the application is ("--env
// SCRIPT_NAME=/mount"). It is the mend for lighttpd 1.4.69, which with a
// mount that ends in a slash counts the first segment behind it to SCRIPT_NAME.
func (p *paths) deployerMount(mount string) {
	whole := append(bytes.Clone(p.script), p.info...)
	p.script, p.info = withSlash(bytes.TrimRight([]byte(mount), "/")), whole
	if rest, ok := underMount(whole, p.script); ok {
		p.info = rest
	}
}

// underMount returns what follows mount in path, if path is mount or below it.
func underMount(path, mount []byte) ([]byte, bool) {
	mount = bytes.TrimRight(mount, "/")
	rest, ok := bytes.CutPrefix(path, mount)
	return rest, ok && (len(rest) == 0 || rest[0] == '/')
}

// tidy gives the pair the form that PEP 3333 and its validator ask for.
//
// An empty PATH_INFO behind a SCRIPT_NAME that ends in a slash is a whole path:
// nginx sends it when fastcgi_split_path_info does not match. Left so, an
// application that redirects "" to "/" would do it for ever.
func (p *paths) tidy() {
	if n := len(p.script); n > 0 && p.script[n-1] == '/' {
		trimmed := bytes.TrimRight(p.script, "/")
		switch {
		case len(p.info) == 0 && len(trimmed) == 0:
			p.script, p.info = nil, []byte{'/'}
		case len(p.info) == 0:
			p.script, p.info = nil, p.script
		default:
			p.script = trimmed
		}
	}
	p.script = withSlash(p.script)
	p.info = withSlash(p.info)
	if len(p.script) == 0 && len(p.info) == 0 {
		p.info = []byte{'/'}
	}
}

// withSlash puts a slash before a path that is not empty and has none.
func withSlash(path []byte) []byte {
	if len(path) == 0 || path[0] == '/' {
		return path
	}
	return append([]byte{'/'}, path...)
}
