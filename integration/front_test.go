package integration

import (
	"bytes"
	"os"
	"os/user"
	"path/filepath"
	"slices"
	"syscall"
	"testing"
	"text/template"

	"wsgigate/environ/environtest"
)

// frontServer is a real web server. Its configuration is testdata/conf/NAME.conf
// with a hookup's file within it.
type frontServer struct {
	name    string
	command []string // stays in the foreground; the configuration file follows
	end     syscall.Signal
	quirks  environtest.Quirks
}

var (
	nginx = &frontServer{
		name:    "nginx",
		command: []string{sbin("nginx"), "-e", "stderr", "-c"},
		end:     syscall.SIGTERM,
		quirks:  environtest.NginxQuirks | environtest.HostPortDropped, // with Debian's parameter files
	}
	lighttpd = &frontServer{
		name:    "lighttpd",
		command: []string{sbin("lighttpd"), "-D", "-f"},
		end:     syscall.SIGTERM,
		quirks:  environtest.LighttpdQuirks,
	}
	apache = &frontServer{
		name:    "apache",
		command: []string{sbin("apache2"), "-DFOREGROUND", "-f"},
		// Asked to stop at once, a child process may free its memory under its own
		// threads and crash (seen once with 2.4.71); asked gracefully it waits for them.
		end:    syscall.SIGWINCH,
		quirks: environtest.ApacheQuirks,
	}
)

// apacheModules is where Debian keeps them.
const apacheModules = "/usr/lib/apache2/modules"

// sbin finds a server that is not on the PATH of users who are not root.
func sbin(name string) string {
	if path := filepath.Join("/usr/sbin", name); isFile(path) {
		return path
	}
	return name
}

func isFile(path string) bool {
	info, err := os.Stat(path)
	return err == nil && info.Mode().IsRegular()
}

// frontConf is what a configuration template reads.
type frontConf struct {
	Dir, Log, Modules string
	Root              bool // a server that starts as root wants to be told what to become
	User, Group       string
	SparePort         int // lighttpd listens on one port beside those of the sites
	Sites             []*site
}

// start writes the configuration of a deployment's front server, starts it and
// has its log read in the end.
func (f *frontServer) start(d *deployment) {
	d.t.Helper()
	conf := f.configure(d)
	log := filepath.Join(d.dir, "error.log")
	out := filepath.Join(d.dir, f.name+".out")
	p := start(d.t, f.name, out, append(slices.Clone(f.command), conf)...)
	p.end = f.end
	d.t.Cleanup(func() {
		p.stop(d.t)
		scanLog(d.t, log, d.logs...)
		scanLog(d.t, out, d.logs...)
		if d.backend.errorsTold && !contains(d.t, errorsText, log, out) {
			d.t.Errorf("%s has no %q: wsgi.errors did not reach the web server", log, errorsText)
		}
	})
	for _, s := range d.sites {
		p.awaitListening(d.t, "tcp", s.addr())
	}
}

// configure writes the configuration file and returns its path.
func (f *frontServer) configure(d *deployment) string {
	d.t.Helper()
	files := []string{"testdata/conf/" + f.name + ".conf", "testdata/conf/" + d.conf}
	parsed, err := template.New(f.name + ".conf").Option("missingkey=error").ParseFiles(files...)
	if err != nil {
		d.t.Fatal(err)
	}
	data := frontConf{
		Dir: d.dir, Log: filepath.Join(d.dir, "error.log"), Modules: apacheModules,
		Root: os.Geteuid() == 0, SparePort: freePort(d.t), Sites: d.sites,
	}
	if data.Root {
		data.User, data.Group = unprivileged(d.t)
	}
	path := filepath.Join(d.dir, f.name+".conf")
	out, err := os.Create(path)
	if err != nil {
		d.t.Fatal(err)
	}
	defer out.Close()
	if err := parsed.Execute(out, data); err != nil {
		d.t.Fatal(err)
	}
	return path
}

// unprivileged returns the user that Apache becomes, which refuses to serve as
// root.
func unprivileged(t testing.TB) (name, group string) {
	t.Helper()
	u, err := user.Lookup("www-data")
	if err != nil {
		t.Fatal(err)
	}
	g, err := user.LookupGroupId(u.Gid)
	if err != nil {
		t.Fatal(err)
	}
	return u.Username, g.Name
}

// contains reports whether one of the files has that text.
func contains(t testing.TB, text string, files ...string) bool {
	t.Helper()
	for _, file := range files {
		content, err := os.ReadFile(file)
		if err != nil {
			t.Error(err)
		}
		if bytes.Contains(content, []byte(text)) {
			return true
		}
	}
	return false
}
