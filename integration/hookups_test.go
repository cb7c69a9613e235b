package integration

import (
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"wsgigate/environ/environtest"
)

// hookup is one way to put wsgigate behind a front server.
type hookup struct {
	name    string
	front   *frontServer // that the client talks to; nil if that is wsgigate
	conf    string       // file in testdata/conf that hooks wsgigate up to it
	reuse   bool         // the front server keeps its connections (enablereuse)
	backend *backend     // that the front server talks to

	// quirks is what this hookup does differently, beside its front server's.
	quirks environtest.Quirks
	// logs are patterns of lines that the front server's error log may have.
	logs []string
}

// backend is a way to run wsgigate.
type backend struct {
	run func(*deployment, *site) // starts it, or prepares it for the front server

	// errorsTold: wsgi.errors reaches the web server's error log.
	errorsTold bool
	// runOnce: each request has a process of its own.
	runOnce bool
}

var (
	fastCGI    = &backend{run: (*deployment).listenFastCGI, errorsTold: true}
	spawnFCGI  = &backend{run: (*deployment).spawn, errorsTold: true}
	fcgiScript = &backend{run: (*deployment).writeFCGI, errorsTold: true}
	cgiScript  = &backend{run: (*deployment).writeCGI, errorsTold: true, runOnce: true}
	scgi       = &backend{run: (*deployment).listenSCGI}
	direct     = &backend{run: (*deployment).listenHTTP}
)

// hookups are all of them.
var hookups = []hookup{
	{name: "nginx-fastcgi", front: nginx, conf: "nginx-fastcgi.conf", backend: fastCGI},
	{name: "nginx-fastcgi-keepalive", front: nginx, conf: "nginx-fastcgi-keepalive.conf", backend: fastCGI},
	{name: "nginx-fastcgi-unbuffered", front: nginx, conf: "nginx-fastcgi-unbuffered.conf", backend: fastCGI},
	{name: "nginx-scgi", front: nginx, conf: "nginx-scgi.conf", backend: scgi},
	{name: "spawn-fcgi", front: nginx, conf: "nginx-fastcgi.conf", backend: spawnFCGI},

	{name: "lighttpd-fastcgi", front: lighttpd, conf: "lighttpd-fastcgi.conf", backend: fastCGI},
	{name: "lighttpd-fastcgi-binpath", front: lighttpd, conf: "lighttpd-fastcgi-binpath.conf", backend: fcgiScript},
	{name: "lighttpd-scgi", front: lighttpd, conf: "lighttpd-scgi.conf", backend: scgi},
	{name: "lighttpd-cgi", front: lighttpd, conf: "lighttpd-cgi.conf", backend: cgiScript},

	{name: "apache-cgid", front: apache, conf: "apache-cgid.conf", backend: cgiScript},
	{name: "apache-fcgid", front: apache, conf: "apache-fcgid.conf", backend: fcgiScript},
	{name: "apache-proxy-fcgi", front: apache, conf: "apache-proxy-fcgi.conf", backend: fastCGI},
	{name: "apache-proxy-fcgi-reuse", front: apache, conf: "apache-proxy-fcgi.conf", backend: fastCGI, reuse: true},
	{name: "apache-sethandler", front: apache, conf: "apache-sethandler.conf", backend: fastCGI},
	{name: "apache-sethandler-reuse", front: apache, conf: "apache-sethandler.conf", backend: fastCGI, reuse: true},
	{name: "apache-proxy-scgi", front: apache, conf: "apache-proxy-scgi.conf", backend: scgi, quirks: environtest.ChunkedIs411},

	{name: "http", backend: direct, quirks: environtest.NoCustomReason | environtest.UnderscoreDropped},
}

// apps are the applications that run behind every hookup, by the name of their
// file in testdata/apps.
var apps = map[string]string{
	"reflect": "reflect_app",
	"flask":   "flask_site:app",
	"django":  "django_site:application",
}

// mounts are where each of them is found.
var mounts = []string{"", "/sub"}

// site is one application at one mount behind a hookup, on a port of its own.
// Configuration templates read its fields.
type site struct {
	App   string // key of apps
	Mount string
	Port  int // where the client finds it

	// Where the front server finds wsgigate: a socket, or an executable.
	Unix              string
	TCP, Host         string
	TCPPort           int
	Script, ScriptDir string
	Command           string

	Reuse   bool
	Modules string
}

// name is unique within a deployment and fit for a file name.
func (s *site) name() string {
	if s.Mount == "" {
		return s.App
	}
	return s.App + "-sub"
}

func (s *site) addr() string { return net127(s.Port) }
func (s *site) url() string  { return "http://" + s.addr() + s.Mount }

func net127(port int) string { return "127.0.0.1:" + strconv.Itoa(port) }

// deployment is a hookup that runs: its front server, gateways and sites.
type deployment struct {
	hookup
	t        *testing.T
	dir      string
	sites    []*site
	gateways map[string]*gateway // that listen on sockets, by application
}

// deploy starts everything of a hookup, for all applications at all mounts. It is
// stopped, and its logs are read, when the test ends.
func deploy(t *testing.T, h hookup) *deployment {
	d := &deployment{hookup: h, t: t, dir: filepath.Join(runFolder, h.name), gateways: map[string]*gateway{}}
	for _, dir := range []string{d.dir, filepath.Join(d.dir, "htdocs")} {
		mkdir(t, dir)
	}
	t.Cleanup(func() {
		awaitGone(t, d.dir)
		os.RemoveAll(d.dir)
	})
	if err := os.CopyFS(filepath.Join(d.dir, "apps"), os.DirFS("testdata/apps")); err != nil {
		t.Fatal(err)
	}
	for app := range apps {
		for _, mount := range mounts {
			s := &site{App: app, Mount: mount, Port: freePort(t), Reuse: h.reuse, Modules: apacheModules}
			h.backend.run(d, s)
			d.sites = append(d.sites, s)
		}
	}
	if h.front != nil {
		d.quirks |= h.front.quirks
		h.front.start(d)
	}
	return d
}

func mkdir(t testing.TB, dir string) {
	t.Helper()
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
}

// options are the flags that every wsgigate of a deployment gets.
func (d *deployment) options() []string {
	return []string{"--python", python(d.t), "--chdir", filepath.Join(d.dir, "apps"), "--workers", "1"}
}

// listenFastCGI runs wsgigate with FastCGI listeners, once for both mounts.
func (d *deployment) listenFastCGI(s *site) { d.listen(s, "--fastcgi") }

// listenSCGI does the same with SCGI listeners.
func (d *deployment) listenSCGI(s *site) { d.listen(s, "--scgi") }

func (d *deployment) listen(s *site, flag string) {
	g := d.gateways[s.App]
	if g == nil {
		g = newGateway(d, s.App)
		g.serve(d, flag, "unix:"+g.unix+",mode=0666", flag, net127(g.port))
		g.awaitListening(d.t, "unix", g.unix)
		g.awaitListening(d.t, "tcp", net127(g.port))
		d.gateways[s.App] = g
	}
	s.Unix, s.TCP, s.Host, s.TCPPort = g.unix, net127(g.port), "127.0.0.1", g.port
	s.script(d, "serve") // a file for the URL to lead to; nobody runs it
}

// listenHTTP runs wsgigate with its own HTTP listener. There is nobody before it
// who could say where the application is, so the deployment does.
func (d *deployment) listenHTTP(s *site) {
	g := newGateway(d, s.name())
	args := []string{"--http", s.addr()}
	if s.Mount != "" {
		args = append(args, "--env", "SCRIPT_NAME="+s.Mount)
	}
	g.app = s.App
	g.serve(d, args...)
	g.awaitListening(d.t, "tcp", s.addr())
}

// spawn runs a wsgigate that finds its listener on descriptor 0.
func (d *deployment) spawn(s *site) {
	s.Unix = filepath.Join(d.dir, s.name()+".sock")
	g := newGateway(d, s.name())
	args := []string{"spawn-fcgi", "-n", "-M", "0666", "-s", s.Unix, "--"}
	g.process = start(d.t, "spawn-fcgi", g.log, append(args, d.fcgiCommand(s)...)...)
	g.scanAtEnd(d)
	g.awaitListening(d.t, "unix", s.Unix)
}

// fcgiCommand is a command that wants its listener on descriptor 0.
func (d *deployment) fcgiCommand(s *site) []string {
	args := append([]string{binary(d.t), "fcgi"}, d.options()...)
	return append(args, apps[s.App])
}

// writeFCGI gives the front server a file, and a command, to run with a listener
// on descriptor 0.
func (d *deployment) writeFCGI(s *site) {
	s.Unix = filepath.Join(d.dir, s.name()+".sock")
	s.Command = strings.Join(d.fcgiCommand(s), " ")
	s.script(d, "fcgi")
}

// writeCGI writes a file that the front server runs for each request.
func (d *deployment) writeCGI(s *site) { s.script(d, "cgi") }

// script writes the executable of a site, in a folder of its own: the application
// itself, with a first line that makes the kernel run "wsgigate COMMAND FILE". It
// cannot give options, so it finds its interpreter as a deployment would: in the
// virtualenv beside it.
func (s *site) script(d *deployment, command string) {
	s.ScriptDir = filepath.Join(d.dir, s.name())
	mkdir(d.t, s.ScriptDir)
	module, _, _ := strings.Cut(apps[s.App], ":")
	source, err := os.ReadFile(filepath.Join(d.dir, "apps", module+".py"))
	if err != nil {
		d.t.Fatal(err)
	}
	s.Script = filepath.Join(s.ScriptDir, module+".wsgi")
	firstLine := "#!" + binary(d.t) + " " + command + "\n"
	if err := os.WriteFile(s.Script, append([]byte(firstLine), source...), 0o755); err != nil {
		d.t.Fatal(err)
	}
	venv := filepath.Dir(filepath.Dir(python(d.t)))
	if err := os.Symlink(venv, filepath.Join(s.ScriptDir, ".venv")); err != nil {
		d.t.Fatal(err)
	}
}
