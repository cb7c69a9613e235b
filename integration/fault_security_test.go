package integration

import (
	"net"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"unicode/utf8"

	"wsgigate/environ/environtest"
)

// TestFaultHeaderNames: no header becomes HTTP_PROXY (row S1), and no second
// spelling of a name replaces the first or another variable (row S2).
func TestFaultHeaderNames(t *testing.T) {
	t.Parallel()
	s := launch(t, "fault_app:app", "--workers", "1")
	for _, transport := range transports {
		m := post("/seen", []byte("body"))
		m.fields = [][2]string{
			{"Proxy", "http://evil/"}, {"PROXY", "http://evil/"}, {"X-A", "first"}, {"X_A", "second"}, {"X-B", "1"}, {"X-B", "2"},
			{"Content_Length", "99"}, {"Script_Name", "/evil"}, {"Content_Type", "text/evil"}, {"Host_", "evil"},
		}
		if transport == "http" {
			m.fields = append(m.fields, [2]string{"X.A", "third"}, [2]string{"X~A", "fourth"})
		}
		seen := decode[map[string]string](t, s.want(t, transport, m, 200).body)
		for name, want := range map[string]string{
			"HTTP_PROXY": "", "HTTP_CONTENT_LENGTH": "", "HTTP_CONTENT_TYPE": "",
			"CONTENT_LENGTH": "4", "SCRIPT_NAME": "", "HTTP_HOST": "localhost:8080",
		} {
			if seen[name] != want {
				t.Errorf("%s: %s is %q, want %q", transport, name, seen[name], want)
			}
		}
		if !strings.HasPrefix(seen["HTTP_X_A"], "first") || transport == "http" && seen["HTTP_X_A"] != "first" {
			t.Errorf("%s: HTTP_X_A is %q", transport, seen["HTTP_X_A"])
		}
		for name := range seen {
			if strings.Trim(name, "ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_") != "" && !strings.HasPrefix(name, "wsgi.") {
				t.Errorf("%s: a variable %q", transport, name)
			}
		}
	}
}

// TestFaultPaths: strange paths are bytes that the application gets, and choose no
// file (row S4).
func TestFaultPaths(t *testing.T) {
	t.Parallel()
	s := launch(t, "fault_app:app", "--workers", "1")
	for target, want := range map[string]string{
		"/a%00b":                "/a\x00b",
		"/a%0d%0ab":             "/a\r\nb",
		"/a%2fb":                "/a/b",
		"/../../etc/passwd":     "/../../etc/passwd",
		"/..%2f..%2fetc/passwd": "/../../etc/passwd",
		"//a//b":                "//a//b",
		"/OK":                   "/OK",
		"/%EF%BD%8F%EF%BD%8B":   "/\u00ef\u00bd\u008f\u00ef\u00bd\u008b", // full-width "ok", as Latin-1
		"/fault_app.py":         "/fault_app.py",
	} {
		for _, transport := range transports {
			if transport == "scgi" && strings.Contains(target, "%00") {
				continue // NUL ends a value on that wire
			}
			seen := decode[map[string]string](t, s.want(t, transport, get(target), 200).body)
			if seen["SCRIPT_NAME"]+seen["PATH_INFO"] != want {
				t.Errorf("%s %s: SCRIPT_NAME %q, PATH_INFO %q; want %q", transport, target, seen["SCRIPT_NAME"], seen["PATH_INFO"], want)
			}
		}
	}
}

// TestFaultLogText: nothing that a peer sends can forge a log line or move a
// cursor (row S6).
func TestFaultLogText(t *testing.T) {
	t.Parallel()
	for _, format := range []string{"text", "json", "combined"} {
		t.Run(format, func(t *testing.T) {
			t.Parallel()
			s := launch(t, "fault_app:app", "--workers", "1", "--access-log", "-", "--log-format", format)
			forged := "/raise?x=\x1b[2J\r\n2026-01-01 FORGED line\u0085\x9b31m\x00"
			for _, transport := range []string{"fastcgi", "scgi"} {
				m := get(strings.TrimSuffix(forged, "\x00"))
				m.fields = [][2]string{{"User-Agent", forged[:40] + "\" agent"}, {"Referer", "\x1b]0;title\x07"}}
				s.send(t, transport, append(m.opening(transport), stdinEnd(transport)...), false)
				bad := withBody(transport, "/ok", []string{"\x1b[2J\r\nFORGED"}, nil)
				s.send(t, transport, bad, false)
			}
			s.want(t, "http", get("/prints"), 200)
			s.awaitLog(t, "prints")
			text := s.text(t)
			if at := regexp.MustCompile(`[\x00-\x08\x0b-\x1f\x7f]`).FindStringIndex(text); at != nil {
				t.Errorf("a control character in the log: %q", text[max(0, at[0]-80):at[1]])
			}
			if !utf8.ValidString(text) || strings.Contains(text, "\u0085") { // a terminal's controls of 8 bits
				t.Error("bytes of a request are in the log as they came")
			}
			if regexp.MustCompile(`(?m)^(FORGED|2026-01-01)`).MatchString(text) {
				t.Error("a line of the log was forged")
			}
		})
	}
}

// workerKinds are the ways in which a worker comes to be, as flags.
var workerKinds = map[string][]string{"exec": {}, "fork": {"--preload"}}

// hostileEnvironment is what a gateway may have that is not for its workers: of the
// service manager, a web server, a predecessor, an administrator's shell.
var hostileEnvironment = []string{
	"SECRET=1", "AWS_SECRET_ACCESS_KEY=1", "LISTEN_FDS=1", "LISTEN_PID=1", "LISTEN_FDNAMES=x", "NOTIFY_SOCKET=/run/x", "WATCHDOG_USEC=60000000",
	"WATCHDOG_PID=1", "MAINPID=1", "INVOCATION_ID=1", "CREDENTIALS_DIRECTORY=/run/x", "WSGIGATE_QUEUE=100", "WSGIGATE_X=1",
	"TABLEFLIP_HAS_PARENT_7DIU3=yes", "FCGI_WEB_SERVER_ADDRS=127.0.0.1", "HTTP_PROXY=http://evil", "http_proxy=http://evil", "HTTP_COOKIE=x",
	"CONTENT_LENGTH=1", "QUERY_STRING=x", "REMOTE_USER=root", "LD_AUDIT=", "BASH_ENV=/x", "GODEBUG=", "GOMAXPROCS=1", "SSH_AUTH_SOCK=/x", "SUDO_USER=x",
}

// TestFaultWorkerEnvironment: a worker gets an allow-list and --env of the gateway's
// environment (row S9).
func TestFaultWorkerEnvironment(t *testing.T) {
	t.Parallel()
	allowed := regexp.MustCompile(`^(PATH|HOME|USER|LOGNAME|SHELL|TZ|TMPDIR|LANG|LANGUAGE|LC_.*|VIRTUAL_ENV|PYTHON.*|LD_LIBRARY_PATH|SSL_CERT_(FILE|DIR)|XDG_.*|SET|PASSED)$`)
	for kind, flags := range workerKinds {
		t.Run(kind, func(t *testing.T) {
			t.Parallel()
			s := prepare(t)
			s.run(t, append([]string{"PASSED=on", "LC_ALL=C.UTF-8"}, hostileEnvironment...),
				"fault_app:app", append(flags, "--workers", "1", "--env", "SET=here=there", "--env", "PASSED")...)
			s.awaitAnnounced(t)
			seen := decode[struct {
				Environ map[string]string
				Argv    []string
			}](t, s.want(t, "http", get("/environment"), 200).body)
			for name, want := range map[string]string{"SET": "here=there", "PASSED": "on", "LC_ALL": "C.UTF-8", "PATH": os.Getenv("PATH")} {
				if seen.Environ[name] != want {
					t.Errorf("%s is %q, want %q", name, seen.Environ[name], want)
				}
			}
			for name := range seen.Environ {
				if !allowed.MatchString(name) {
					t.Errorf("%s reached the worker", name)
				}
			}
			if len(seen.Argv) != 1 || seen.Argv[0] != "fault_app" {
				t.Errorf("sys.argv is %q", seen.Argv)
			}
		})
	}
}

// TestFaultWorkerDescriptors: a worker has 0, 1, 2 and what the protocol needs: no
// listener, no connection of a client, nothing that the gateway inherited; a
// program that it starts has 0, 1 and 2 (row S10).
func TestFaultWorkerDescriptors(t *testing.T) {
	t.Parallel()
	for kind, flags := range workerKinds {
		t.Run(kind, func(t *testing.T) {
			t.Parallel()
			s := prepare(t)
			secret := filepath.Join(s.dir, "secret")
			write(t, secret, "")
			// A shell opens the descriptor that leaks, as mod_fcgid leaks two.
			shell := []string{"sh", "-c", "exec 7<" + secret + "; exec \"$@\"", "sh"}
			s.run(t, shell, "fault_app:app", append(flags, "--workers", "2", "--threads", "2", "--access-log", filepath.Join(s.dir, "access"),
				"--control", "unix:"+filepath.Join(s.dir, "control"), "--status", "unix:"+filepath.Join(s.dir, "status"))...)
			s.awaitAnnounced(t)
			for _, transport := range transports {
				checkDescriptors(t, decode[map[string]string](t, s.want(t, transport, get("/descriptors"), 200).body))
			}
			child := decode[map[string]string](t, s.want(t, "http", get("/descriptors?child"), 200).body)
			checkDescriptors(t, child)
			if len(child) != 3 {
				t.Errorf("a program that the worker starts has %v", child)
			}
		})
	}
}

// checkDescriptors looks at what the descriptors of a worker with two threads are.
func checkDescriptors(t *testing.T, open map[string]string) {
	t.Helper()
	// Each slot has two sockets, and there is a pipe for stacks.
	if most := 3 + 2*2 + 1; len(open) > most {
		t.Errorf("%d descriptors, want %d at most: %v", len(open), most, open)
	}
	if open["0"] != "/dev/null" || !strings.HasPrefix(open["1"], "pipe:") || !strings.HasPrefix(open["2"], "pipe:") {
		t.Errorf("0, 1 and 2 are %q, %q and %q", open["0"], open["1"], open["2"])
	}
	for fd, to := range open {
		inode, isSocket := strings.CutPrefix(to, "socket:[")
		switch {
		case isSocket && inNetwork(t, strings.TrimSuffix(inode, "]")):
			t.Errorf("descriptor %s is a socket that clients connect to", fd)
		case !isSocket && fd != "0" && !strings.HasPrefix(to, "pipe:"):
			t.Errorf("descriptor %s is %s", fd, to)
		}
	}
}

// inNetwork reports whether a socket is TCP, or a unix socket with a name.
func inNetwork(t testing.TB, inode string) bool {
	t.Helper()
	for file, pattern := range map[string]string{
		"/proc/net/tcp": `(?m)^\s*\d+: .* ` + inode + ` `, "/proc/net/unix": `(?m) ` + inode + ` \S+$`,
	} {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		if regexp.MustCompile(pattern).Match(text) {
			return true
		}
	}
	return false
}

// TestFaultPeers: a TCP listener for FastCGI or SCGI answers only the peers that
// --allow names (row S11).
func TestFaultPeers(t *testing.T) {
	t.Parallel()
	s := prepare(t)
	port := net127(freePort(t))
	s.run(t, nil, "fault_app:app", "--workers", "1", "--allow", "192.0.2.0/24", "--fastcgi", port)
	s.await(t, "announcement", startTime, func() bool { return strings.Count(s.text(t), "is answered by") == 4 })
	for transport, addr := range map[string]string{"fastcgi": port, "scgi": s.addrs["scgi"]} {
		if conn, err := net.Dial("tcp", addr); err == nil { // it may be reset at any step
			_, _ = conn.Write(append(get("/ok").opening(transport), stdinEnd(transport)...))
			if n, err := conn.Read(make([]byte, 1)); n != 0 || err == nil {
				t.Errorf("%s answers a peer that is not allowed", transport)
			}
			conn.Close()
		}
		s.awaitLog(t, "peer refused.*peer=127.0.0.1:")
	}
	s.worker(t, "fastcgi") // a unix socket has its mode
	s.worker(t, "http")    // and HTTP is for everybody
}

// TestFaultQueryArguments: Apache's mod_cgid makes arguments of the words of a query;
// they are data (row S3, CVE-2012-1823, CVE-2024-4577).
func TestFaultQueryArguments(t *testing.T) {
	t.Parallel()
	d := deploy(t, hookup{
		name: "apache-cgid-arguments", front: apache, conf: "apache-cgid.conf",
		backend: &backend{run: (*deployment).writeCGI, runOnce: true},
	})
	for _, s := range d.sites {
		if s.App != "reflect" {
			continue
		}
		for _, query := range []string{
			"-d+x", "--help", "cgi+other:app", "version", "-c+import%20os", "--app+os:getcwd", "%2D%2Dpython=/bin/false", "--env+HTTP_PROXY=x",
			"--config=/etc/passwd", "-h", "--", "-%0a--help", "%AD%AD" + "help",
		} {
			resp, err := environtest.HTTP("tcp", s.addr())(&environtest.Request{Method: "GET", Target: s.Mount + "/x?" + query, Proto: "HTTP/1.1"})
			if err != nil || resp.Status != http.StatusOK {
				t.Errorf("?%s: %+v, %v", query, resp, err)
				continue
			}
			seen := decode[struct{ Environ map[string]string }](t, resp.Body).Environ
			if seen["QUERY_STRING"] != query || seen["PATH_INFO"] != "/x" {
				t.Errorf("?%s: QUERY_STRING %q, PATH_INFO %q", query, seen["QUERY_STRING"], seen["PATH_INFO"])
			}
		}
	}
}
