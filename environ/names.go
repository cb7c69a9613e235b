package environ

import (
	"bytes"
	"hash/maphash"
	"math/bits"
)

// names finds the pairs of an environ by name while Prepare works on it, and
// holds that each name is there once. It is a hash table with open addressing
// because Prepare asks some twenty times, and a scan of the list for each was
// most of its time. The hash is seeded: clients choose names.
type names struct {
	e    *Environ
	few  [256]uint32 // each 0, or 1 + the index of a pair
	many []uint32    // instead of few for a long list; a power of two, half empty

	scriptTwice bool // SCRIPT_NAME was sent more than once
	lengthTwice bool // CONTENT_LENGTH was
}

var nameSeed = maphash.MakeSeed()

// settle removes what must not reach an application, leaves each name once, and
// makes the table for it, with room for some more names.
//
// A repeated HTTP_ variable is a header that the client repeated (nginx before
// 1.23 sends it so) or spelled twice (lighttpd sends X-A and X_A alike): the
// values are joined, as RFC 9110, section 5.2, has it, so that a second spelling
// cannot replace the first. Of any other name, and of HTTP_HOST, which a client
// cannot repeat, the last one counts: nginx sends a name as often as its
// configuration sets it.
func (x *names) settle(e *Environ, room int) {
	x.e = e
	if need := 2 * (e.Len() + room); need > len(x.few) {
		x.many = make([]uint32, 1<<bits.Len(uint(need)))
	}
	lengths, n := 0, 0
	for i := range e.list {
		name, value := e.At(i)
		if string(name) == "CONTENT_LENGTH" {
			lengths++
		}
		if forbidden(name) || len(value) == 0 && emptyIsAbsent(name) {
			continue
		}
		slot := x.slot(name)
		if *slot != 0 {
			x.repeated(int(*slot-1), i)
			continue
		}
		e.list[n] = e.list[i]
		n++
		*slot = uint32(n)
	}
	e.list = e.list[:n]
	x.lengthTwice = lengths > 1
}

// repeated settles the name of pair first, which occurs again from pair i on: all of
// its values at once, because to join them one by one would copy, and keep, a
// number of bytes that grows with the square of theirs.
func (x *names) repeated(first, i int) {
	e := x.e
	name, value := e.At(first)
	separator := joinedBy(name)
	if separator != "" {
		e.list[first] = e.storeBytes(name, value)
	}
	x.scriptTwice = x.scriptTwice || string(name) == "SCRIPT_NAME"
	for k := i; k < len(e.list); k++ {
		other, value := e.At(k)
		switch {
		case !bytes.Equal(other, name), len(value) == 0 && emptyIsAbsent(name):
			continue
		case separator == "":
			e.list[first] = e.list[k]
		default:
			e.buf = append(append(e.buf, separator...), value...)
			e.list[first].end = uint32(len(e.buf))
		}
		e.list[k] = pair{} // without a name: forbidden
	}
}

// slot returns where a name is in the table, or the empty slot where it would be.
func (x *names) slot(name []byte) *uint32 {
	slots := x.many
	if slots == nil {
		slots = x.few[:]
	}
	mask := uint64(len(slots) - 1)
	for h := maphash.Bytes(nameSeed, name); ; h++ {
		slot := &slots[h&mask]
		if *slot == 0 {
			return slot
		}
		if other, _ := x.e.At(int(*slot - 1)); bytes.Equal(other, name) {
			return slot
		}
	}
}

func (x *names) lookup(name string) ([]byte, bool) {
	slot := *x.slot([]byte(name))
	if slot == 0 {
		return nil, false
	}
	_, value := x.e.At(int(slot - 1))
	return value, true
}

func (x *names) get(name string) []byte {
	value, _ := x.lookup(name)
	return value
}

// set replaces the value of name, or appends the pair.
func (x *names) set(name, value string) {
	slot := x.slot([]byte(name))
	if *slot == 0 {
		x.e.Add(name, value)
		*slot = uint32(x.e.Len())
		return
	}
	x.e.list[*slot-1] = x.e.store(name, value)
}

// joinedBy returns what stands between the values of a repeated name, "" if the
// last value counts alone.
func joinedBy(name []byte) string {
	switch {
	case !bytes.HasPrefix(name, []byte("HTTP_")), string(name) == "HTTP_HOST":
		return ""
	case string(name) == "HTTP_COOKIE":
		return "; " // RFC 6265, section 5.4; a comma is part of old cookies' values
	}
	return ", "
}

// forbidden reports whether a variable must not reach an application:
// HTTP_PROXY, which libraries take for the proxy of outgoing requests
// (CVE-2016-5385 and its siblings); the two headers that CGI renames and
// wsgiref.validate forbids; anything that would pose as the server's own keys.
func forbidden(name []byte) bool {
	switch string(name) {
	case "", "HTTP_PROXY", "HTTP_CONTENT_TYPE", "HTTP_CONTENT_LENGTH":
		return true
	}
	return name[0] == 'w' && (bytes.HasPrefix(name, []byte("wsgi.")) || bytes.HasPrefix(name, []byte("wsgigate.")))
}

// emptyIsAbsent: nginx and Apache send these two without a value for a request
// without a body, and applications write int(environ["CONTENT_LENGTH"]).
func emptyIsAbsent(name []byte) bool {
	return string(name) == "CONTENT_TYPE" || string(name) == "CONTENT_LENGTH"
}
