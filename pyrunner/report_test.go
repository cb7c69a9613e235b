package pyrunner

import (
	"strings"
	"testing"
	"time"
)

// TestSlowOnce: a request is one incident, however often it waits for its client.
func TestSlowOnce(t *testing.T) {
	t.Parallel()
	p := startPool(t, preamble+`
def in_steps(environ, start_response):
    for n in range(4):
        time.sleep(0.25)
        environ["wsgi.input"].read(1 << 19)
    return hello(environ, start_response)
`, Config{Slow: 150 * time.Millisecond})
	r := post("/in-steps", strings.NewReader(strings.Repeat("x", 3<<20)), 3<<20)
	if w := p.serve(r); w.Status != 200 {
		t.Errorf("status %d", w.Status)
	}
	p.incident(r.Worker)
	if s := p.Status(); s.Events.Slow != 1 || len(s.Incidents) != 1 {
		t.Errorf("%d slow, %d incidents", s.Events.Slow, len(s.Incidents))
	}
}
