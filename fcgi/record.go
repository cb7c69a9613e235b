package fcgi

import (
	"encoding/binary"
	"errors"
	"fmt"
)

// recordType is the type of a record (FastCGI 1.0, section 8).
type recordType uint8

const (
	typeBeginRequest recordType = 1 + iota
	typeAbortRequest
	typeEndRequest
	typeParams
	typeStdin
	typeStdout
	typeStderr
	typeData
	typeGetValues
	typeGetValuesResult
	typeUnknownType
)

// protocolStatus is why a request ended (section 5.5).
type protocolStatus uint8

const (
	requestComplete protocolStatus = iota
	cantMultiplex
	overloaded
	unknownRole
)

// The roles on the wire (section 8), and the only flag of BEGIN_REQUEST.
const (
	wireResponder  = 1
	wireAuthorizer = 2
	wireFilter     = 3

	flagKeepConn = 1
)

const (
	version1  = 1
	headerLen = 8
	beginLen  = 8 // content of BEGIN_REQUEST, END_REQUEST and UNKNOWN_TYPE
	maxLength = 1<<31 - 1

	// maxContent is what a record can hold; alignedContent is the most that needs
	// no padding.
	maxContent     = 1<<16 - 1
	alignedContent = 1<<16 - 8
)

// record is the header of a record (section 3.3).
type record struct {
	kind    recordType
	id      uint16
	content uint16
	padding uint8
}

// errVersion is the error for a record of a protocol that is not FastCGI 1.
var errVersion = errors.New("fcgi: not a FastCGI 1 record")

// parseRecord reads the header that b begins with. b has at least headerLen bytes.
func parseRecord(b []byte) (record, error) {
	if b[0] != version1 {
		return record{}, fmt.Errorf("%w: version %d", errVersion, b[0])
	}
	return record{
		kind:    recordType(b[1]),
		id:      binary.BigEndian.Uint16(b[2:]),
		content: binary.BigEndian.Uint16(b[4:]),
		padding: b[6],
	}, nil
}

// putRecord writes a record's header over b[:headerLen].
func putRecord(b []byte, kind recordType, id uint16, content int, padding uint8) {
	_ = b[7]
	b[0], b[1] = version1, byte(kind)
	binary.BigEndian.PutUint16(b[2:], id)
	binary.BigEndian.PutUint16(b[4:], uint16(content))
	b[6], b[7] = padding, 0
}

func appendRecord(dst []byte, kind recordType, id uint16, content int, padding uint8) []byte {
	return append(dst, version1, byte(kind), byte(id>>8), byte(id), byte(content>>8), byte(content), padding, 0)
}

// padTo8 is how many bytes of padding align n bytes of content (section 3.3).
func padTo8(n int) uint8 { return uint8(-n & 7) }

var zeros [8]byte

// appendStream appends p as records of a stream, none if p is empty: an empty
// record would be its end.
func appendStream(dst []byte, kind recordType, id uint16, p []byte) []byte {
	for len(p) > 0 {
		n := min(len(p), alignedContent)
		pad := padTo8(n)
		dst = appendRecord(dst, kind, id, n, pad)
		dst = append(dst, p[:n]...)
		dst = append(dst, zeros[:pad]...)
		p = p[n:]
	}
	return dst
}

func appendBegin(dst []byte, id, role uint16, flags byte) []byte {
	dst = appendRecord(dst, typeBeginRequest, id, beginLen, 0)
	return append(dst, byte(role>>8), byte(role), flags, 0, 0, 0, 0, 0)
}

func appendEnd(dst []byte, id uint16, appStatus uint32, status protocolStatus) []byte {
	dst = appendRecord(dst, typeEndRequest, id, beginLen, 0)
	dst = binary.BigEndian.AppendUint32(dst, appStatus)
	return append(dst, byte(status), 0, 0, 0)
}

func appendUnknown(dst []byte, kind recordType) []byte {
	dst = appendRecord(dst, typeUnknownType, 0, beginLen, 0)
	return append(dst, byte(kind), 0, 0, 0, 0, 0, 0, 0)
}

// pairLengths reads the two lengths that a name-value pair begins with (section
// 3.4). head is how many bytes they take, 0 if b ends before they do.
func pairLengths(b []byte) (name, value, head int) {
	name, first := length(b)
	if first == 0 {
		return 0, 0, 0
	}
	value, second := length(b[first:])
	if second == 0 {
		return 0, 0, 0
	}
	return name, value, first + second
}

// length reads one length: a byte, or four with the high bit set. size is how
// many bytes it takes, 0 if b is too short.
func length(b []byte) (n, size int) {
	switch {
	case len(b) == 0:
		return 0, 0
	case b[0] < 0x80:
		return int(b[0]), 1
	case len(b) < 4:
		return 0, 0
	}
	return int(binary.BigEndian.Uint32(b) & maxLength), 4
}

func appendLength(dst []byte, n int) []byte {
	if n < 0x80 {
		return append(dst, byte(n))
	}
	return binary.BigEndian.AppendUint32(dst, uint32(n)|1<<31)
}

// appendPair appends a name-value pair, each at most maxLength bytes.
func appendPair[T string | []byte](dst []byte, name, value T) []byte {
	dst = appendLength(dst, len(name))
	dst = appendLength(dst, len(value))
	dst = append(dst, name...)
	return append(dst, value...)
}
