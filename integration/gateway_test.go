package integration

import (
	"path/filepath"
	"testing"
)

// gateway is a wsgigate that the test itself starts.
type gateway struct {
	*process
	app  string // key of apps
	log  string
	unix string // where it may listen
	port int
}

// newGateway names the files and the port of a gateway; it does not start it.
func newGateway(d *deployment, name string) *gateway {
	return &gateway{
		app:  name,
		log:  filepath.Join(d.dir, name+".log"),
		unix: filepath.Join(d.dir, name+".sock"),
		port: freePort(d.t),
	}
}

// serve starts "wsgigate serve" with those listeners.
func (g *gateway) serve(d *deployment, listeners ...string) {
	d.t.Helper()
	args := append([]string{binary(d.t), "serve"}, d.options()...)
	args = append(append(args, listeners...), apps[g.app])
	g.process = start(d.t, "wsgigate", g.log, args...)
	g.scanAtEnd(d)
}

// scanAtEnd has the gateway's log read when the test ends. If the test failed,
// it is shown.
func (g *gateway) scanAtEnd(d *deployment) {
	d.t.Cleanup(func() {
		g.stop(d.t)
		scanLog(d.t, g.log)
		showIfFailed(d.t, g.log)
	})
}

// showIfFailed adds the end of a log to a failed test.
func showIfFailed(t testing.TB, file string) {
	t.Helper()
	if text := tail(file); t.Failed() && text != "" {
		t.Logf("%s:\n%s", filepath.Base(file), text)
	}
}
