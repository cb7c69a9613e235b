package environ

// Environ is the CGI variables of one request (RFC 3875, section 4.1; PEP 3333,
// "environ Variables"): what the web server sent, in its order, byte for byte,
// over one backing buffer.
//
// A name may occur more than once, because front servers send it so; [Prepare]
// settles that before a [Handler] sees the request. Until then Get gives the
// last value, as php-fpm does.
//
// The zero value is empty and ready for use. The byte slices that its methods
// return are views, valid until Reset.
type Environ struct{ pairs }

// Reset empties the environ and keeps its memory for the next request.
func (e *Environ) Reset() { e.reset() }

// Size returns the number of bytes in all names and values.
func (e *Environ) Size() int {
	n := 0
	for _, at := range e.list {
		n += int(at.end - at.name)
	}
	return n
}

// Add appends a pair.
func (e *Environ) Add(name, value string) { e.list = append(e.list, e.store(name, value)) }

// AddBytes appends a pair.
func (e *Environ) AddBytes(name, value []byte) { e.list = append(e.list, e.storeBytes(name, value)) }

// find returns the index of the last pair of that name, or -1.
func (e *Environ) find(name string) int {
	for i := len(e.list) - 1; i >= 0; i-- {
		at := e.list[i]
		if int(at.value-at.name) == len(name) && string(e.buf[at.name:at.value]) == name {
			return i
		}
	}
	return -1
}

// Lookup returns the last value of name and whether there is one.
func (e *Environ) Lookup(name string) ([]byte, bool) {
	if i := e.find(name); i >= 0 {
		_, v := e.At(i)
		return v, true
	}
	return nil, false
}

// Get returns the last value of name, or nil.
func (e *Environ) Get(name string) []byte {
	v, _ := e.Lookup(name)
	return v
}

// Text returns the last value of name as a string of its own, or "".
func (e *Environ) Text(name string) string { return string(e.Get(name)) }

// Has reports whether name occurs.
func (e *Environ) Has(name string) bool { return e.find(name) >= 0 }

// Set replaces the last value of name, or appends the pair.
func (e *Environ) Set(name, value string) {
	if i := e.find(name); i >= 0 {
		key, _ := e.At(i)
		e.list[i] = e.store(string(key), value)
		return
	}
	e.Add(name, value)
}

// Del removes every pair of that name.
func (e *Environ) Del(name string) {
	e.filter(func(i int) bool {
		got, _ := e.At(i)
		return string(got) != name
	})
}
