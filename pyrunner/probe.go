package pyrunner

import (
	"errors"
	"fmt"
	"time"

	"wsgigate/environ"
)

// probeText is how much of a failed probe's answer goes into the error, in bytes.
const probeText = 2 << 10

// probe asks the canary of a reload for Config.Probe. Anything but a complete
// answer with a status from 200 to 399 is an error.
func (p *Pool) probe(w *worker) error {
	s := w.slots[0]
	if !p.queue.takeHeld(s) {
		return errors.New(p.endOf(w, "the new worker", "before it could be probed"))
	}
	timer := time.AfterFunc(p.cfg.StartupTimeout, s.interrupt)
	defer timer.Stop()
	answer := &probeWriter{}
	r := p.cfg.Probe()
	x := exchanges.Get().(*exchange)
	defer x.end()
	x.begin(p, answer, r)
	x.own, x.body.ended, x.data.ended = true, true, true
	read := x.run(s, false)
	switch {
	case !timer.Stop():
		return fmt.Errorf("the probe %s was not answered within --startup-timeout %v", r.Environ.Text("REQUEST_URI"), p.cfg.StartupTimeout)
	case !read:
		return errors.New(p.endOf(w, "the new worker", "before it read the probe"))
	case p.queue.isBroken(s):
		return fmt.Errorf("the new worker failed with the probe %s (status %d, the log says more): %s", r.Environ.Text("REQUEST_URI"), answer.status, w.exitStatus(exitGrace))
	}
	if answer.err == nil && answer.status >= 200 && answer.status < 400 {
		return nil
	}
	return fmt.Errorf("the probe %s was answered with status %d: the log has the traceback, if there is one\n%s",
		r.Environ.Text("REQUEST_URI"), answer.status, answer.text)
}

// probeWriter keeps the status and the beginning of the body.
type probeWriter struct {
	status int
	text   []byte
	err    error // of Abort
}

var _ environ.ResponseWriter = (*probeWriter)(nil)

// WriteHeader keeps the status.
func (w *probeWriter) WriteHeader(h *environ.Header) error {
	w.status = h.Status()
	return nil
}

// Write keeps what it has room for.
func (w *probeWriter) Write(p []byte) (int, error) {
	w.text = append(w.text, p[:min(len(p), probeText-len(w.text))]...)
	return len(p), nil
}

// Flush does nothing.
func (w *probeWriter) Flush() error { return nil }

// WriteErrors drops the text: the log has it.
func (w *probeWriter) WriteErrors([]byte) {}

// Abort keeps the error.
func (w *probeWriter) Abort(err error) { w.err = err }
