package status

import (
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strings"
)

// OnlyFor answers 421 (RFC 9110, section 15.5.20) to requests over TCP that name a host
// other than an IP address, "localhost" or name, and leaves the others to next. A web
// page that a user of this machine visits can point a name of its own at the
// machine's address, and then read what its browser gets there (DNS rebinding); it
// cannot make the browser send another name. No browser reaches a unix socket. What
// load balancers and Prometheus ask for has neither URLs nor tracebacks, and those send
// whatever name they know: they get it.
func OnlyFor(name string, next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		local, _ := r.Context().Value(http.LocalAddrContextKey).(net.Addr)
		if local != nil && local.Network() == "unix" || expected(r.Host, name) || slices.Contains(forMachines, r.URL.Path) {
			next.ServeHTTP(w, r)
			return
		}
		w.Header().Set("X-Content-Type-Options", "nosniff")
		send(w, http.StatusMisdirectedRequest, "text/plain; charset=utf-8",
			[]byte("this page has another name: ask for the server's IP address, or for the name that --status has\n"))
	})
}

// forMachines are the paths that programs ask for.
var forMachines = []string{"/metrics", "/ping", "/ready"}

// expected reports whether a Host field is one that a person or a program uses who means
// this server. Browsers always send one.
func expected(field, name string) bool {
	host, _, err := net.SplitHostPort(field)
	if err != nil {
		host = strings.TrimSuffix(strings.TrimPrefix(field, "["), "]")
	}
	if _, err := netip.ParseAddr(host); err == nil || host == "" {
		return true
	}
	host = strings.TrimSuffix(host, ".")
	return strings.EqualFold(host, "localhost") || name != "" && strings.EqualFold(host, name)
}
