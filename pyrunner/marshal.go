package pyrunner

import (
	"encoding/binary"

	"wsgigate/environ"
)

// The environ and the configuration travel as bytes of Python's marshal format,
// which its C decoder turns into builtin objects. Only the types that exist
// since Python 3.4 (marshal version 4) and mean the same ever since are used
// (CPython's Python/marshal.c).
const (
	marshalDict       = '{' // pairs, then marshalNull
	marshalNull       = '0'
	marshalNone       = 'N'
	marshalTrue       = 'T'
	marshalFalse      = 'F'
	marshalInt        = 'i' // i32
	marshalList       = '[' // u32 length
	marshalTuple      = ')' // u8 length
	marshalUnicode    = 'u' // u32 length, UTF-8
	marshalASCII      = 'a' // u32 length
	marshalShortASCII = 'z' // u8 length
	marshalInterned   = 'Z' // u8 length, ASCII, interned: the keys
)

// appendLatin1 appends a str whose code points are the bytes of s (PEP 3333,
// "Unicode Issues": every CGI variable is Latin-1).
func appendLatin1(dst, s []byte) []byte {
	high := 0
	for _, c := range s {
		high += int(c >> 7)
	}
	switch {
	case high == 0 && len(s) < 256:
		dst = append(dst, marshalShortASCII, byte(len(s)))
		return append(dst, s...)
	case high == 0:
		dst = append(dst, marshalASCII)
		dst = binary.LittleEndian.AppendUint32(dst, uint32(len(s)))
		return append(dst, s...)
	}
	dst = append(dst, marshalUnicode)
	dst = binary.LittleEndian.AppendUint32(dst, uint32(len(s)+high))
	for _, c := range s {
		if c < 0x80 {
			dst = append(dst, c)
		} else {
			dst = append(dst, 0xc0|c>>6, 0x80|c&0x3f)
		}
	}
	return dst
}

// appendKey appends a dict key, interned if it has the usual form.
func appendKey(dst, name []byte) []byte {
	if len(name) >= 256 {
		return appendLatin1(dst, name)
	}
	for _, c := range name {
		if c >= 0x80 {
			return appendLatin1(dst, name)
		}
	}
	dst = append(dst, marshalInterned, byte(len(name)))
	return append(dst, name...)
}

func appendInternedString(dst []byte, name string) []byte {
	dst = append(dst, marshalInterned, byte(len(name)))
	return append(dst, name...)
}

func appendBool(dst []byte, v bool) []byte {
	if v {
		return append(dst, marshalTrue)
	}
	return append(dst, marshalFalse)
}

func appendInt(dst []byte, n int) []byte {
	dst = append(dst, marshalInt)
	return binary.LittleEndian.AppendUint32(dst, uint32(int32(n)))
}

// appendText appends a str of UTF-8 text.
func appendText(dst []byte, s string) []byte {
	dst = append(dst, marshalUnicode)
	dst = binary.LittleEndian.AppendUint32(dst, uint32(len(s)))
	return append(dst, s...)
}

func appendList(dst []byte, n int) []byte {
	dst = append(dst, marshalList)
	return binary.LittleEndian.AppendUint32(dst, uint32(n))
}

func appendInts(dst []byte, numbers []int) []byte {
	dst = appendList(dst, len(numbers))
	for _, n := range numbers {
		dst = appendInt(dst, n)
	}
	return dst
}

// appendEnviron appends the environ of a request: the CGI variables and those
// of the "wsgi." keys that the gateway knows (PEP 3333, "environ Variables").
func (p *Pool) appendEnviron(dst []byte, r *environ.Request) []byte {
	dst = append(dst, marshalDict)
	for i := range r.Environ.Len() {
		name, value := r.Environ.At(i)
		dst = appendKey(dst, name)
		dst = appendLatin1(dst, value)
	}
	dst = appendInternedString(dst, "wsgi.url_scheme")
	dst = appendInternedString(dst, environ.Scheme(&r.Environ))
	dst = appendInternedString(dst, "wsgi.run_once")
	dst = appendBool(dst, r.RunOnce)
	dst = append(dst, p.wsgiKeys...)
	return append(dst, marshalNull)
}

// fixedKeys returns the "wsgi." keys that are the same for every request.
// wsgi.input_terminated is always true: every transport knows where a body ends.
func fixedKeys(multithread, multiprocess bool) []byte {
	dst := appendInternedString(nil, "wsgi.version")
	dst = append(dst, marshalTuple, 2)
	dst = appendInt(appendInt(dst, 1), 0)
	dst = appendInternedString(dst, "wsgi.multithread")
	dst = appendBool(dst, multithread)
	dst = appendInternedString(dst, "wsgi.multiprocess")
	dst = appendBool(dst, multiprocess)
	dst = appendInternedString(dst, "wsgi.input_terminated")
	return appendBool(dst, true)
}

// initConfig is what a worker is told before it loads the application.
type initConfig struct {
	app         string
	slots       []int
	requests    []int
	chdir       string
	pythonPath  []string
	debug       bool
	dumpFD      int
	dumpSignal  int
	raiseSignal int
	watch       bool
	template    int // the descriptor of a template's commands; 0: this is a worker
}

func (c initConfig) appendTo(dst []byte) []byte {
	dst = append(dst, marshalDict)
	dst = appendText(appendInternedString(dst, "app"), c.app)
	dst = appendInts(appendInternedString(dst, "slots"), c.slots)
	dst = appendInts(appendInternedString(dst, "requests"), c.requests)
	dst = appendText(appendInternedString(dst, "chdir"), c.chdir)
	dst = appendList(appendInternedString(dst, "pythonpath"), len(c.pythonPath))
	for _, dir := range c.pythonPath {
		dst = appendText(dst, dir)
	}
	dst = appendBool(appendInternedString(dst, "debug"), c.debug)
	dst = appendInt(appendInternedString(dst, "dump_fd"), c.dumpFD)
	dst = appendInt(appendInternedString(dst, "dump_signal"), c.dumpSignal)
	dst = appendInt(appendInternedString(dst, "raise_signal"), c.raiseSignal)
	dst = appendBool(appendInternedString(dst, "watch"), c.watch)
	if c.template > 0 {
		dst = appendInt(appendInternedString(dst, "template"), c.template)
	}
	return append(dst, marshalNull)
}
