package main

import (
	"slices"
)

// The wires, by the names of --wires.
const (
	fastcgiKept = "fastcgi-kept" // fastcgi_keep_conn on, connections kept
	fastcgi     = "fastcgi"      // a connection for each request
	scgi        = "scgi"
	direct      = "http" // wrk talks to the gateway itself
)

var allWires = []string{fastcgiKept, fastcgi, scgi, direct}

// The gateways.
const (
	wsgigate = "wsgigate"
	uwsgi    = "uwsgi"
	gunicorn = "gunicorn"
)

// side is a gateway on a wire: one process with its workers.
type side struct {
	gateway string
	wire    string
}

func (s side) String() string { return s.gateway + " " + s.wire }

// Kept reports whether nginx keeps connections to it.
func (s side) Kept() bool { return s.wire == fastcgiKept }

// Protocol is the name in nginx's directives.
func (s side) Protocol() string {
	if s.Kept() {
		return fastcgi
	}
	return s.wire
}

// peers are the sides that wsgigate is compared with on a wire. uWSGI closes a
// FastCGI connection after each request, so it is given the configuration that
// does not try to keep them: its best.
func peers(wire string) []side {
	switch wire {
	case fastcgiKept, fastcgi:
		return []side{{uwsgi, fastcgi}}
	case scgi:
		return []side{{uwsgi, scgi}}
	default:
		return []side{{gunicorn, direct}, {uwsgi, direct}}
	}
}

// target is the ratio of throughputs that the project wants; 0: none.
func target(caseName string, wire string, peer side) float64 {
	switch {
	case caseName == "blocks":
		return 1.0
	case caseName == "file":
		return 1.5
	case wire == fastcgiKept:
		return 1.3
	case wire == fastcgi, wire == scgi:
		return 1.0
	case peer.gateway == gunicorn:
		return 3.0
	default:
		return 0
	}
}

// group is a case and the sides that are up together and loaded in turn.
type group struct {
	benchCase
	sides []side
	wires []string // of wsgigate's sides
}

// plan makes a group for each case and each family of wires that has the same
// peers, so that kept and unkept FastCGI are compared with the same runs.
func plan(cases []benchCase, wires []string) []group {
	var groups []group
	for _, c := range cases {
		for _, family := range [][]string{{fastcgiKept, fastcgi}, {scgi}, {direct}} {
			g := group{benchCase: c}
			for _, w := range family {
				if slices.Contains(wires, w) {
					g.wires = append(g.wires, w)
					g.sides = append(g.sides, side{wsgigate, w})
				}
			}
			if len(g.wires) > 0 {
				g.sides = append(g.sides, peers(g.wires[0])...)
				groups = append(groups, g)
			}
		}
	}
	return groups
}

// proxied are all the sides that stand behind nginx.
func proxied() []side {
	return []side{
		{wsgigate, fastcgiKept}, {wsgigate, fastcgi}, {uwsgi, fastcgi},
		{wsgigate, scgi}, {uwsgi, scgi},
	}
}
