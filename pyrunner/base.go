package pyrunner

import (
	"bytes"

	"wsgigate/environ"
)

// base is the environ that a slot's worker keeps as the pattern of the next: of
// some thirty variables a handful differ from one request to the next, and a
// dict copied in the worker costs a tenth of one decoded. Both ends have the
// same base, because the gateway alone decides when it changes.
type base struct {
	environ environ.Environ
	scheme  string
	runOnce bool
	valid   bool
	seen    []bool // by index in environ: the request has the variable
}

// maxBase is the size in bytes of an environ that is kept.
const maxBase = 16 << 10

// secret reports whether a variable must not stay in a base, and so in a
// worker's memory after its request.
func secret(name []byte) bool {
	return string(name) == "HTTP_COOKIE" || string(name) == "HTTP_AUTHORIZATION"
}

// keep makes the environ of a request that was sent whole the base.
func (b *base) keep(r *environ.Request) {
	b.environ.Reset()
	if b.valid = r.Environ.Size() <= maxBase; !b.valid {
		return
	}
	for name, value := range r.Environ.All() {
		if !secret(name) {
			b.environ.AddBytes(name, value)
		}
	}
	b.scheme, b.runOnce = environ.Scheme(&r.Environ), r.RunOnce
	b.seen = make([]bool, b.environ.Len())
}

// appendChanges appends, as a marshal dict, what differs in a request's environ
// from the base; None stands for a variable that it lacks. It returns false if
// that would be much, and appends then nothing of use.
func (b *base) appendChanges(dst []byte, r *environ.Request) (out []byte, flags uint8, ok bool) {
	if !b.valid || environ.Scheme(&r.Environ) != b.scheme || r.RunOnce != b.runOnce {
		return dst, 0, false
	}
	clear(b.seen)
	left := max(b.environ.Len()/2, 8) // changes that are still worth it
	hint := 0
	dst = append(dst, marshalDict)
	for i := range r.Environ.Len() {
		name, value := r.Environ.At(i)
		at := b.find(name, hint)
		if at >= 0 {
			hint = at + 1
			b.seen[at] = true
			if _, old := b.environ.At(at); bytes.Equal(old, value) {
				continue
			}
		}
		dst = appendLatin1(appendKey(dst, name), value)
		if left--; left < 0 {
			return dst, 0, false
		}
	}
	flags = flagChanges
	for at, seen := range b.seen {
		if !seen {
			name, _ := b.environ.At(at)
			dst = append(appendKey(dst, name), marshalNone)
			flags |= flagRemoves
		}
	}
	return append(dst, marshalNull), flags, true
}

// find returns the index of a variable, most likely at hint, or -1.
func (b *base) find(name []byte, hint int) int {
	n := b.environ.Len()
	for i := range n {
		at := hint + i
		if at >= n {
			at -= n
		}
		if got, _ := b.environ.At(at); bytes.Equal(got, name) {
			return at
		}
	}
	return -1
}
