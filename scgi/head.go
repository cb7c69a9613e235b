package scgi

import (
	"bytes"

	"wsgigate/environ"
)

// maxDigits is how many digits the netstring's length may have before it is too
// long, whatever they are: more than any MaxHeaders has, fewer than could
// overflow an int.
const maxDigits = 9

// headSize returns the size in bytes of a request's head, "LENGTH:VARIABLES,", and
// where in it the variables begin, as soon as p, the beginning of the
// connection, shows them. Before that, size is 0.
//
// The length is digits without sign or leading zeros (a netstring), and no more
// than limit; that is known before anything of that size is allocated.
func headSize(p []byte, limit int) (size, start int, err error) {
	length := 0
	for i, c := range p {
		switch {
		case c == ':' && i > 0:
			return i + 1 + length + 1, i + 1, nil
		case c < '0' || c > '9', c == '0' && i == 0:
			return 0, 0, environ.Errorf(400, "scgi: request begins with %.20q, not with a netstring's length", p)
		case i == maxDigits:
			return 0, 0, environ.Errorf(431, "scgi: netstring %.20q is over the limit of %d bytes", p, limit)
		}
		length = length*10 + int(c-'0')
		if length > limit {
			return 0, 0, environ.Errorf(431, "scgi: netstring %.20q is over the limit of %d bytes", p, limit)
		}
	}
	return 0, 0, nil
}

// parseVariables adds the variables of a whole head to e. block is what is
// between the netstring's colon and its end, the comma included.
func parseVariables(e *environ.Environ, block []byte, maxFields int) error {
	last := len(block) - 1
	if block[last] != ',' {
		return environ.Errorf(400, "scgi: %q in place of the comma that ends the netstring", block[last])
	}
	block = block[:last]
	for first := true; len(block) > 0; first = false {
		name, value, rest, err := cutPair(block)
		switch {
		case err != nil:
			return err
		case first && (string(name) != "CONTENT_LENGTH" || len(value) == 0):
			return environ.Errorf(400, "scgi: the first variable is %.40q=%.40q, not a CONTENT_LENGTH", name, value)
		case e.Len() == maxFields:
			return environ.Errorf(431, "scgi: more than %d variables", maxFields)
		}
		e.AddBytes(name, value)
		block = rest
	}
	if version := e.Get("SCGI"); string(version) != "1" {
		return environ.Errorf(400, "scgi: SCGI is %.40q, not 1", version)
	}
	return checkRepeated(e)
}

// cutPair cuts a name and a value, each ended by a NUL, from the front of block.
func cutPair(block []byte) (name, value, rest []byte, err error) {
	name, rest, ok := bytes.Cut(block, []byte{0})
	if ok && len(name) > 0 {
		value, rest, ok = bytes.Cut(rest, []byte{0})
	}
	if !ok || len(name) == 0 {
		return nil, nil, nil, environ.Errorf(400, "scgi: malformed variable at %.40q", block)
	}
	return name, value, rest, nil
}

// checkRepeated refuses a name that occurs twice, but for the client's fields
// (see the package comment). A set of 64 bits tells nearly all names apart.
func checkRepeated(e *environ.Environ) error {
	var seen uint64
	for i := range e.Len() {
		name, _ := e.At(i)
		if bytes.HasPrefix(name, []byte("HTTP_")) {
			continue
		}
		n := len(name)
		bit := uint64(1) << (uint(n*5+int(name[n-1])*3+int(name[n/2])) & 63)
		if seen&bit != 0 && occursBefore(e, i, name) {
			return environ.Errorf(400, "scgi: variable %.40q was sent twice", name)
		}
		seen |= bit
	}
	return nil
}

func occursBefore(e *environ.Environ, i int, name []byte) bool {
	for j := range i {
		other, _ := e.At(j)
		if bytes.Equal(name, other) {
			return true
		}
	}
	return false
}
