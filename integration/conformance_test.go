package integration

import (
	"testing"

	"wsgigate/environ/environtest"
)

// TestHookups runs the conformance table, Flask and Django through every
// hookup, at every mount. A row's name ends like
// "apache-cgid/reflect-sub/path_encoded_space".
func TestHookups(t *testing.T) {
	for _, h := range hookups {
		t.Run(h.name, func(t *testing.T) {
			t.Parallel()
			d := deploy(t, h)
			for _, s := range d.sites {
				t.Run(s.name(), func(t *testing.T) {
					if s.App == "reflect" {
						conformance(t, d, s)
					} else {
						useSite(t, s)
					}
				})
			}
		})
	}
}

func conformance(t *testing.T, d *deployment, s *site) {
	environtest.Run(t, environtest.Target{
		Do:      environtest.HTTP("tcp", s.addr()),
		Mount:   s.Mount,
		RunOnce: d.backend.runOnce,
		Quirks:  d.quirks,
	})
}
