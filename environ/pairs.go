package environ

import "iter"

// pairs is an ordered list of name-value pairs over one backing buffer: the
// common part of [Environ] and [Header]. Values stay valid until reset, however
// the list changes: the buffer is only appended to.
type pairs struct {
	buf  []byte
	list []pair
}

// pair locates a name and its value, buf[name:value] and buf[value:end].
type pair struct{ name, value, end uint32 }

// Len returns the number of pairs.
func (p *pairs) Len() int { return len(p.list) }

// At returns the i-th pair.
func (p *pairs) At(i int) (name, value []byte) {
	at := p.list[i]
	return p.buf[at.name:at.value:at.value], p.buf[at.value:at.end:at.end]
}

// All ranges over the pairs in order.
func (p *pairs) All() iter.Seq2[[]byte, []byte] {
	return func(yield func(name, value []byte) bool) {
		for i := range p.list {
			if !yield(p.At(i)) {
				return
			}
		}
	}
}

func (p *pairs) reset() {
	p.buf = p.buf[:0]
	p.list = p.list[:0]
}

// store appends the bytes of a pair and returns where they are. It is not a
// generic function because the compiler inlines this form.
func (p *pairs) store(name, value string) pair {
	start := uint32(len(p.buf))
	p.buf = append(p.buf, name...)
	mid := uint32(len(p.buf))
	p.buf = append(p.buf, value...)
	return pair{start, mid, uint32(len(p.buf))}
}

func (p *pairs) storeBytes(name, value []byte) pair {
	start := uint32(len(p.buf))
	p.buf = append(p.buf, name...)
	mid := uint32(len(p.buf))
	p.buf = append(p.buf, value...)
	return pair{start, mid, uint32(len(p.buf))}
}

// filter keeps the pairs for which keep is true, in order.
func (p *pairs) filter(keep func(i int) bool) {
	n := 0
	for i := range p.list {
		if keep(i) {
			p.list[n] = p.list[i]
			n++
		}
	}
	p.list = p.list[:n]
}
