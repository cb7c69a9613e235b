package integration

import (
	"bytes"
	"fmt"
	"maps"
	"slices"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// differences are the variables of one request that are not the same over every
// transport, and why.
var differences = map[string]string{
	"SERVER_SOFTWARE": "over HTTP there is no web server but wsgigate",
	"REMOTE_PORT":     "over HTTP it is that of the test's own connection",
	"RAW_URI":         "only HTTP has a request line",
	"HTTP_CONNECTION": "only an HTTP client sends it",
	"SCGI":            "the SCGI specification wants it",
}

// TestThreeListeners: one pool answers all transports at once, with the same
// bytes, and the application sees the same request.
func TestThreeListeners(t *testing.T) {
	t.Parallel()
	s := launch(t, "accept_app:app", "--workers", "2", "--threads", "2")
	t.Run("at once", func(t *testing.T) { meetAll(t, s) })
	t.Run("same bytes", func(t *testing.T) { loadAll(t, s) })
	t.Run("same environ", func(t *testing.T) { compareEnvirons(t, s) })
}

// meetAll: three requests wait in the application for each other.
func meetAll(t *testing.T, s *server) {
	var group sync.WaitGroup
	for _, transport := range transports {
		group.Go(func() {
			if a := s.ask(transport, get("/meet?"+transport)); a.err != nil || a.status != 200 {
				t.Errorf("%s: status %d, %v: the transports do not answer at the same time", transport, a.status, a.err)
			}
		})
	}
	group.Wait()
}

// Load of loadAll: over each transport, clients that ask one after the other.
const (
	loadClients  = 6
	loadRequests = 40
)

func loadAll(t *testing.T, s *server) {
	fixed := make([]byte, 0, 256*100)
	for range 100 {
		for b := range 256 {
			fixed = append(fixed, byte(b))
		}
	}
	var group sync.WaitGroup
	for _, transport := range transports {
		for client := range loadClients {
			group.Go(func() {
				for i := range loadRequests {
					number := client*loadRequests + i
					sent := bytes.Repeat([]byte{byte(number)}, number*100) // inline, and more than that
					want := append(append(fmt.Appendf(nil, "%08d", number), fixed...), sent...)
					a := s.ask(transport, post(fmt.Sprintf("/bytes?%d", number), sent))
					if a.err != nil || a.status != 200 || !bytes.Equal(a.body, want) || a.header.Get("X-Fixed") != "caf\xe9" {
						t.Errorf("%s request %d: status %d, %d bytes, %v", transport, number, a.status, len(a.body), a.err)
						return
					}
				}
			})
		}
	}
	group.Wait()
}

func compareEnvirons(t *testing.T, s *server) {
	m := post("/seen?a=1&b=%41", []byte("body"))
	m.fields = [][2]string{
		{"Content-Type", "text/plain"}, {"Cookie", "a=1; b=2"}, {"X-Latin", "caf\xe9"},
		{"Accept", "*/*"}, {"Authorization", "Basic eDp5"},
	}
	seen := map[string]map[string]any{}
	found := map[string]bool{}
	for _, transport := range transports {
		m.body = bytes.NewReader([]byte("body"))
		seen[transport] = decode[map[string]any](t, s.want(t, transport, m, 200).body)
		for name := range differences {
			if !cmp.Equal(seen[transport][name], seen["fastcgi"][name]) {
				found[name] = true
			}
		}
	}
	if len(found) != len(differences) {
		t.Errorf("only %v differ: the list is longer", slices.Sorted(maps.Keys(found)))
	}
	for name := range differences {
		for _, environ := range seen {
			delete(environ, name)
		}
	}
	for _, transport := range transports[1:] {
		if diff := cmp.Diff(seen["fastcgi"], seen[transport]); diff != "" {
			t.Errorf("environ (-fastcgi +%s):\n%s", transport, diff)
		}
	}
	if got := seen["http"]["HTTP_X_LATIN"]; got != "caf\u00e9" {
		t.Errorf("HTTP_X_LATIN is %q", got)
	}
}
