package fcgi

import (
	"errors"

	"wsgigate/environ"
)

// params puts the pairs of one PARAMS stream together. A pair may straddle
// records, and a record the reads that it comes in.
type params struct {
	partial []byte // the beginning of a pair whose rest is still to come
	size    int    // of all names and values so far
}

func (p *params) reset() { p.partial, p.size = p.partial[:0], 0 }

var errPartialPair = errors.New("fcgi: PARAMS end within a pair")

// feed adds the pairs in b to e. An error carries the status to answer: nothing
// is stored, nor memory taken, for a pair that would pass a limit.
func (p *params) feed(e *environ.Environ, limits *environ.Limits, b []byte) error {
	if len(p.partial) > 0 {
		p.partial = append(p.partial, b...)
		b = p.partial
	}
	for {
		name, value, head := pairLengths(b)
		if head == 0 {
			break
		}
		left := limits.MaxHeaders - p.size
		if name > left || value > left-name {
			return environ.Errorf(431, "fcgi: variables larger than %d bytes", limits.MaxHeaders)
		}
		if len(b)-head < name+value {
			break
		}
		if e.Len() >= limits.MaxFields {
			return environ.Errorf(431, "fcgi: more than %d variables", limits.MaxFields)
		}
		pair := b[head : head+name+value]
		e.AddBytes(pair[:name], pair[name:])
		p.size += name + value
		b = b[head+name+value:]
	}
	if len(b) < len(p.partial) || len(p.partial) == 0 { // b is not the same already
		p.partial = append(p.partial[:0], b...)
	}
	return nil
}

// end checks that the stream did not end within a pair.
func (p *params) end() error {
	if len(p.partial) > 0 {
		return &environ.Error{Status: 400, Err: errPartialPair}
	}
	return nil
}
