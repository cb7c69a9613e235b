package pyrunner

import (
	"encoding/binary"
	"errors"
	"fmt"
	"path/filepath"
	"strings"
)

// The frames of PROTOCOL.md. This file is the codec: bytes in, values out.

const protocolVersion = 1

// frameType is the first byte of a frame.
type frameType uint8

const (
	frameInit    frameType = 0x01
	frameRequest frameType = 0x02
	frameBody    frameType = 0x03
	frameCancel  frameType = 0x04
	frameFork    frameType = 0x10
	frameReap    frameType = 0x11

	frameHello    frameType = 0x81
	frameReady    frameType = 0x82
	frameFailed   frameType = 0x83
	frameHeaders  frameType = 0x84
	frameData     frameType = 0x85
	frameFile     frameType = 0x86
	frameErrors   frameType = 0x87
	frameRead     frameType = 0x88
	frameEnd      frameType = 0x89
	frameWarn     frameType = 0x8a
	frameImported frameType = 0x8b
	frameForked   frameType = 0x90
	frameRefused  frameType = 0x91
	frameReaped   frameType = 0x92
)

// Flags; each has a meaning only in the frames named.
const (
	flagMore    = 1 // REQUEST: the body goes on; FORK: more descriptors follow
	flagFilter  = 2 // REQUEST: there is a data stream
	flagChanges = 4 // REQUEST: the environ is the slot's base with these changes
	flagRemoves = 8 // REQUEST: some of them are None: without that variable
	flagLast    = 1 // BODY, HEADERS, DATA, FILE: the stream ends here
	flagBroken  = 2 // BODY: the stream ended early
	flagData    = 4 // BODY, READ: of the data stream

	flagFailed    = 1 // END
	flagCancelled = 2 // END
	flagAlways    = 1 // REFUSED: and every other FORK too
)

// Sizes in bytes.
const (
	headLen = 12 // type, flags, reserved, length, request id

	// maxFrame bounds the payload of a worker's frame: a block of a body may be
	// large, but the worker cuts it.
	maxFrame = 1<<20 + 64

	// maxControl bounds every frame that is not DATA: those are held in memory whole.
	maxControl = 256 << 10

	// maxInline is how much of a body travels with its request.
	maxInline = 16 << 10

	// maxRead is how many bytes of a body one READ may ask for.
	maxRead = 256 << 10
)

// frameHead is the fixed part of a frame.
type frameHead struct {
	kind    frameType
	flags   uint8
	payload int // length of what follows the head
	request uint32
}

// errFrame is in the chain of every complaint about a worker's frames.
var errFrame = errors.New("worker broke the protocol")

// parseHead reads the head of a worker's frame. It checks what can be checked
// without knowing the request.
func parseHead(b []byte) (frameHead, error) {
	length := binary.LittleEndian.Uint32(b[4:])
	h := frameHead{kind: frameType(b[0]), flags: b[1], request: binary.LittleEndian.Uint32(b[8:])}
	allowed, known := workerFlags[h.kind]
	switch {
	case !known:
		return h, fmt.Errorf("%w: unknown frame type 0x%02x", errFrame, b[0])
	case h.flags&^allowed != 0 || b[2] != 0 || b[3] != 0:
		return h, fmt.Errorf("%w: frame 0x%02x with flags 0x%02x, reserved %02x%02x", errFrame, b[0], b[1], b[2], b[3])
	case length < 4 || length > maxFrame:
		return h, fmt.Errorf("%w: frame 0x%02x of %d bytes", errFrame, b[0], length)
	}
	h.payload = int(length) - 4
	if h.kind != frameData && h.payload > maxControl {
		return h, fmt.Errorf("%w: frame 0x%02x of %d bytes", errFrame, b[0], length)
	}
	return h, nil
}

// workerFlags has the frames that a worker may send, with their flags.
var workerFlags = map[frameType]uint8{
	frameHello:    0,
	frameReady:    0,
	frameFailed:   0,
	frameHeaders:  flagLast,
	frameData:     flagLast,
	frameFile:     flagLast,
	frameErrors:   0,
	frameRead:     flagData,
	frameEnd:      flagFailed | flagCancelled,
	frameWarn:     0,
	frameImported: 0,
	frameForked:   0, // this one and the rest: of a template
	frameRefused:  flagAlways,
	frameReaped:   0,
}

// beginFrame appends a head whose length endFrame fills in.
func beginFrame(dst []byte, kind frameType, flags uint8, request uint32) []byte {
	dst = append(dst, byte(kind), flags, 0, 0, 0, 0, 0, 0)
	return binary.LittleEndian.AppendUint32(dst, request)
}

// endFrame fills in the length of the frame that starts at dst[start].
func endFrame(dst []byte, start int) []byte {
	binary.LittleEndian.PutUint32(dst[start+4:], uint32(len(dst)-start-8))
	return dst
}

// appendFrame appends a whole frame.
func appendFrame(dst []byte, kind frameType, flags uint8, request uint32, payload []byte) []byte {
	start := len(dst)
	dst = beginFrame(dst, kind, flags, request)
	return endFrame(append(dst, payload...), start)
}

// hello is the payload of HELLO.
type hello struct {
	version     uint16
	pid         uint32
	interpreter string
}

func parseHello(payload []byte) (hello, error) {
	if len(payload) < 6 {
		return hello{}, fmt.Errorf("%w: HELLO of %d bytes", errFrame, len(payload))
	}
	return hello{
		version:     binary.LittleEndian.Uint16(payload),
		pid:         binary.LittleEndian.Uint32(payload[2:]),
		interpreter: string(payload[6:]),
	}, nil
}

// fileRange is the payload of FILE.
type fileRange struct{ offset, count int64 }

func parseFile(payload []byte) (fileRange, error) {
	if len(payload) != 16 {
		return fileRange{}, fmt.Errorf("%w: FILE of %d bytes", errFrame, len(payload))
	}
	f := fileRange{int64(binary.LittleEndian.Uint64(payload)), int64(binary.LittleEndian.Uint64(payload[8:]))}
	if f.offset < 0 || f.count < 0 || f.offset+f.count < 0 {
		return f, fmt.Errorf("%w: FILE with offset %d and count %d", errFrame, f.offset, f.count)
	}
	return f, nil
}

// parseRead returns how many bytes READ asks for.
func parseRead(payload []byte) (int, error) {
	if len(payload) != 4 {
		return 0, fmt.Errorf("%w: READ of %d bytes", errFrame, len(payload))
	}
	n := binary.LittleEndian.Uint32(payload)
	if n == 0 || n > maxRead {
		return 0, fmt.Errorf("%w: READ for %d bytes", errFrame, n)
	}
	return int(n), nil
}

// parseImported returns the file names of IMPORTED: absolute, so that what a worker
// sends is never taken relative to the gateway's own folder.
func parseImported(payload []byte) ([]string, error) {
	files := strings.Split(string(payload), "\x00")
	for _, file := range files {
		if !filepath.IsAbs(file) {
			return nil, fmt.Errorf("%w: IMPORTED with the name %.100q", errFrame, file)
		}
	}
	return files, nil
}
