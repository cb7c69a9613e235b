package pyrunner

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"wsgigate/environ"
)

// environApp answers with the environ's strings, as lines, then spoils its dict.
const environApp = preamble + `
def show(environ, start_response):
    start_response("200 OK", [("Content-Type", "text/plain")])
    lines = sorted("%s=%s" % pair for pair in environ.items() if isinstance(pair[1], str))
    environ.clear()
    return ["\n".join(lines).encode("latin-1")]
`

// lines returns what environApp shows of a request.
func lines(r *environ.Request) string {
	var all []string
	for name, value := range r.Environ.All() {
		all = append(all, string(name)+"="+string(value))
	}
	all = append(all, "wsgi.url_scheme="+environ.Scheme(&r.Environ))
	slices.Sort(all)
	return strings.Join(all, "\n")
}

// randomRequest has some of twenty variables in any order, of few values, so
// that they often stay the same.
func randomRequest(chance *rand.Rand) *environ.Request {
	values := []string{"", "a", "b", "caf\xe9", "\x80\xff", strings.Repeat("long", 100), strings.Repeat("\xe4", 300)}
	r := get("/show")
	for _, n := range chance.Perm(20)[:chance.IntN(21)] {
		r.Environ.Add(fmt.Sprint("HTTP_X_", n), values[chance.IntN(len(values))])
	}
	for _, name := range []string{"HTTP_COOKIE", "HTTP_AUTHORIZATION"} {
		if chance.IntN(3) == 0 {
			r.Environ.Add(name, fmt.Sprint("secret ", chance.Uint64()))
		}
	}
	if chance.IntN(20) == 0 {
		r.Environ.Add("HTTPS", "on")
	}
	if chance.IntN(40) == 0 {
		r.Environ.Add("HTTP_X_LONG", strings.Repeat("x", maxBase+chance.IntN(maxPacket)))
	}
	r.RunOnce = chance.IntN(20) == 0
	return r
}

// similar changes few variables of a request.
func similar(chance *rand.Rand, r *environ.Request) *environ.Request {
	next := get("/show")
	next.Environ.Reset()
	for name, value := range r.Environ.All() {
		switch {
		case string(name) == "PATH_INFO" || chance.IntN(20) > 0:
			next.Environ.AddBytes(name, value)
		case chance.IntN(2) == 0:
			next.Environ.Add(string(name), fmt.Sprint("changed ", chance.IntN(100)))
		}
	}
	if chance.IntN(4) == 0 {
		next.Environ.Add(fmt.Sprint("HTTP_X_NEW_", chance.IntN(9), "_", next.ID), "new")
	}
	return next
}

// TestEnvironArrives: whatever came before in the same slot.
func TestEnvironArrives(t *testing.T) {
	t.Parallel()
	p := startPool(t, environApp, Config{})
	chance := rand.New(rand.NewPCG(1, 2))
	s := p.queue.idle[0]
	changed := 0
	for n := range 800 {
		r := randomRequest(chance)
		for range chance.IntN(4) {
			if w := p.serve(r); w.Status != 200 || w.Body.String() != lines(r) {
				t.Fatalf("request %d: status %d\ngot  %q\nwant %q", n, w.Status, w.Body.String(), lines(r))
			}
			for name, value := range s.base.environ.All() {
				if bytes.Contains(value, []byte("secret")) {
					t.Fatalf("request %d: the base keeps %s", n, name)
				}
			}
			r = similar(chance, r)
			if _, _, ok := s.base.appendChanges(nil, r); ok {
				changed++
			}
		}
	}
	if changed < 200 {
		t.Errorf("only %d requests could be sent as changes", changed)
	}
}

// TestLongEnvironGoesOnTheStream: whole, and as changes of a base.
func TestLongEnvironGoesOnTheStream(t *testing.T) {
	t.Parallel()
	p := startPool(t, environApp, Config{})
	for n, size := range []int{1, maxPacket - 400, maxPacket, 1, 1, 3 * maxPacket, 1 << 20, 1, 1} {
		r := get("/show")
		r.Environ.Add("HTTP_X_LONG", strings.Repeat("\xfcx", size/2))
		r.Environ.Add("HTTP_X_NUMBER", fmt.Sprint(n))
		if w := p.serve(r); w.Status != 200 || w.Body.String() != lines(r) {
			t.Errorf("%d bytes: status %d, %d bytes came", size, w.Status, w.Body.Len())
		}
	}
}

// TestGoldenChanges: the gateway writes the golden REQUEST frames with CHANGES.
func TestGoldenChanges(t *testing.T) {
	t.Parallel()
	request := func(pairs [][2]any, changes [][2]any) *environ.Request {
		r := &environ.Request{}
		for _, kv := range append(slices.Clone(pairs), changes...) {
			name := kv[0].(string)
			switch value := kv[1].(type) {
			case nil:
				r.Environ.Del(name)
			case string:
				if !strings.HasPrefix(name, "wsgi.") {
					r.Environ.Set(name, string(latin1(value)))
				}
			}
		}
		return r
	}
	frames := map[string]goldenFrame{}
	for _, golden := range goldenFrames(t) {
		frames[golden.Name] = golden
	}
	whole := frames["request"].Fields.Environ
	for _, name := range []string{"request-same", "request-changes", "request-removes", "request-changes-more"} {
		golden := frames[name]
		var b base
		b.keep(request(whole, nil))
		got, flags, ok := b.appendChanges(nil, request(whole, golden.Fields.Environ))
		if want := goldenEnviron(golden.Fields.Environ); !ok || !bytes.Equal(got, want) {
			t.Errorf("%s: %v\ngot  %q\nwant %q", name, ok, got, want)
		}
		if want := golden.Flags &^ (flagMore | flagFilter); flags != want {
			t.Errorf("%s: flags %d, want %d", name, flags, want)
		}
	}
}

// TestBaseIsGivenUp: where an environ must be sent whole.
func TestBaseIsGivenUp(t *testing.T) {
	t.Parallel()
	kept := get("/a")
	for name, change := range map[string]func(*environ.Request){
		"another scheme":   func(r *environ.Request) { r.Environ.Add("HTTPS", "on") },
		"another run_once": func(r *environ.Request) { r.RunOnce = true },
		"much changed": func(r *environ.Request) {
			for n := range 9 {
				r.Environ.Add(fmt.Sprint("HTTP_X_", n), "new")
			}
		},
	} {
		var b base
		b.keep(kept)
		r := get("/a")
		if _, _, ok := b.appendChanges(nil, r); !ok {
			t.Errorf("%s: the same environ is sent whole", name)
		}
		change(r)
		if _, _, ok := b.appendChanges(nil, r); ok {
			t.Errorf("%s: sent as changes", name)
		}
	}
	var b base
	if _, _, ok := b.appendChanges(nil, kept); ok {
		t.Error("changes of no base")
	}
	long := get("/a")
	long.Environ.Add("HTTP_X_LONG", strings.Repeat("x", maxBase))
	b.keep(kept)
	b.keep(long)
	if _, _, ok := b.appendChanges(nil, long); ok || b.environ.Len() > 0 {
		t.Error("a long environ is kept")
	}
}
