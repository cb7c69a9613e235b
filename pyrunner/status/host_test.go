package status

import (
	"context"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
)

// TestOnlyFor: a name that somebody else can point at this machine is refused, over TCP.
func TestOnlyFor(t *testing.T) {
	const name = "status.example.org"
	handler := OnlyFor(name, Handler(testFacts, &fixed{status: busyStatus()}))
	for host, want := range map[string]int{
		"127.0.0.1": 200, "127.0.0.1:9080": 200, "[::1]:9080": 200, "[::1]": 200, "::1": 200, "192.0.2.7:9080": 200,
		"localhost": 200, "localhost:9080": 200, "LocalHost.": 200, name: 200, name + ":9080": 200, "Status.Example.org.:80": 200, "": 200,
		"evil.example": 421, "evil.example:9080": 421, "127.0.0.1.evil.example": 421, "localhost.evil.example": 421, "x." + name: 421,
		"127.0.0.1@evil.example": 421, "0x7f000001": 421, "127.1": 421,
	} {
		for _, path := range []string{"/metrics", "/ping", "/ready"} {
			if got := answered(handler, &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)}, host, path); got.Code != 200 {
				t.Errorf("%q, %s: %d", host, path, got.Code)
			}
		}
		for _, path := range []string{"/", "/status.json"} {
			if got := answered(handler, &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)}, host, path); got.Code != want {
				t.Errorf("%q, %s: %d, want %d", host, path, got.Code, want)
			} else if text := got.Body.String(); want == 421 && !strings.HasPrefix(text, "this page has another name: ") {
				t.Errorf("%q, %s: %q", host, path, text)
			}
		}
		if got := answered(handler, &net.UnixAddr{Net: "unix"}, host, "/"); got.Code != 200 {
			t.Errorf("%q on a unix socket: %d", host, got.Code)
		}
	}
	if got := answered(OnlyFor("", handler), &net.TCPAddr{}, name, "/"); got.Code != 421 {
		t.Errorf("a name though none is known: %d", got.Code)
	}
}

// answered is the answer to a request for a host that came to a local address.
func answered(h http.Handler, local net.Addr, host, path string) *httptest.ResponseRecorder {
	r := httptest.NewRequest("GET", path, nil)
	r.Host = host
	w := httptest.NewRecorder()
	h.ServeHTTP(w, r.WithContext(context.WithValue(r.Context(), http.LocalAddrContextKey, local)))
	return w
}
