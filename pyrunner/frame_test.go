package pyrunner

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"wsgigate/environ"
)

// goldenFrame is an entry of testdata/golden/golden.json, which the tests of the
// Python half read too.
type goldenFrame struct {
	Name, File, From string
	Type             frameType
	Flags            uint8
	Request          uint32
	Fields           struct {
		Config, Environ         [][2]any
		Body, Data, Text, Block string
		Version                 uint16
		PID                     uint32
		Interpreter             string
		Offset, Count           int64
		Size                    int
		Files                   []string
	}
}

func goldenFrames(t testing.TB) []goldenFrame {
	t.Helper()
	text, err := os.ReadFile("testdata/golden/golden.json")
	if err != nil {
		t.Fatal(err)
	}
	var index struct {
		Version int
		Frames  []goldenFrame
	}
	if err := json.Unmarshal(text, &index); err != nil {
		t.Fatal(err)
	}
	if index.Version != protocolVersion || len(index.Frames) < 20 {
		t.Fatalf("golden.json has version %d and %d frames", index.Version, len(index.Frames))
	}
	return index.Frames
}

func TestGoldenFrames(t *testing.T) {
	t.Parallel()
	for _, golden := range goldenFrames(t) {
		t.Run(golden.Name, func(t *testing.T) {
			want, err := os.ReadFile(filepath.Join("testdata/golden", golden.File))
			if err != nil {
				t.Fatal(err)
			}
			payload := golden.encode(t)
			if got := appendFrame(nil, golden.Type, golden.Flags, golden.Request, payload); !bytes.Equal(got, want) {
				t.Errorf("encoded\n%x, want\n%x", got, want)
			}
			if golden.From == "worker" {
				golden.decode(t, want)
			} else if _, err := parseHead(want); !errors.Is(err, errFrame) {
				t.Errorf("a frame of the gateway is taken from a worker: %v", err)
			}
		})
	}
}

// encode returns the payload that the fields make.
func (g goldenFrame) encode(t *testing.T) []byte {
	f := g.Fields
	switch g.Type {
	case frameInit:
		return goldenConfig(t, f.Config).appendTo(nil)
	case frameRequest:
		env := goldenEnviron(f.Environ)
		payload := append(binary.LittleEndian.AppendUint32(nil, uint32(len(env))), env...)
		return append(payload, unhex(t, f.Body)...)
	case frameHello:
		payload := binary.LittleEndian.AppendUint16(nil, f.Version)
		return append(binary.LittleEndian.AppendUint32(payload, f.PID), f.Interpreter...)
	case frameHeaders:
		return latin1(f.Block)
	case frameFile:
		payload := binary.LittleEndian.AppendUint64(nil, uint64(f.Offset))
		return binary.LittleEndian.AppendUint64(payload, uint64(f.Count))
	case frameRead:
		return binary.LittleEndian.AppendUint32(nil, uint32(f.Size))
	}
	if g.Type == frameImported {
		return []byte(strings.Join(f.Files, "\x00"))
	}
	return append(unhex(t, f.Data), f.Text...)
}

// decode checks that the gateway reads the frame as the fields say.
func (g goldenFrame) decode(t *testing.T, frame []byte) {
	head, err := parseHead(frame)
	if err != nil {
		t.Fatal(err)
	}
	if want := (frameHead{g.Type, g.Flags, len(frame) - headLen, g.Request}); head != want {
		t.Errorf("head %+v, want %+v", head, want)
	}
	f, payload := g.Fields, frame[headLen:]
	switch g.Type {
	case frameHello:
		got, err := parseHello(payload)
		if err != nil || got != (hello{f.Version, f.PID, f.Interpreter}) {
			t.Errorf("HELLO %+v, %v", got, err)
		}
	case frameFile:
		got, err := parseFile(payload)
		if err != nil || got != (fileRange{f.Offset, f.Count}) {
			t.Errorf("FILE %+v, %v", got, err)
		}
	case frameRead:
		if got, err := parseRead(payload); err != nil || got != f.Size {
			t.Errorf("READ %d, %v", got, err)
		}
	case frameImported:
		if got, err := parseImported(payload); err != nil || !slices.Equal(got, f.Files) {
			t.Errorf("IMPORTED %q, %v", got, err)
		}
	case frameHeaders:
		var h environ.Header
		if err := h.Parse(payload); err != nil {
			t.Error(err)
		}
	}
}

func goldenConfig(t *testing.T, pairs [][2]any) initConfig {
	var c initConfig
	for _, kv := range pairs {
		switch kv[0] {
		case "app":
			c.app = kv[1].(string)
		case "slots":
			for _, fd := range kv[1].([]any) {
				c.slots = append(c.slots, int(fd.(float64)))
			}
		case "requests":
			for _, fd := range kv[1].([]any) {
				c.requests = append(c.requests, int(fd.(float64)))
			}
		case "chdir":
			c.chdir = kv[1].(string)
		case "pythonpath":
			for _, dir := range kv[1].([]any) {
				c.pythonPath = append(c.pythonPath, dir.(string))
			}
		case "debug":
			c.debug = kv[1].(bool)
		case "dump_fd":
			c.dumpFD = int(kv[1].(float64))
		case "dump_signal":
			c.dumpSignal = int(kv[1].(float64))
		case "raise_signal":
			c.raiseSignal = int(kv[1].(float64))
		case "watch":
			c.watch = kv[1].(bool)
		default:
			t.Errorf("unknown key %v of INIT", kv[0])
		}
	}
	return c
}

func goldenEnviron(pairs [][2]any) []byte {
	dst := []byte{marshalDict}
	for _, kv := range pairs {
		name := kv[0].(string)
		if name == "wsgi.version" {
			return append(append(dst, fixedKeys(false, true)...), marshalNull)
		}
		dst = appendKey(dst, []byte(name))
		switch value := kv[1].(type) {
		case nil:
			dst = append(dst, marshalNone)
		case bool:
			dst = appendBool(dst, value)
		case string:
			if name == "wsgi.url_scheme" {
				dst = appendInternedString(dst, value)
			} else {
				dst = appendLatin1(dst, latin1(value))
			}
		}
	}
	return append(dst, marshalNull)
}

// latin1 encodes a text whose characters are all below U+0100.
func latin1(text string) []byte {
	var out []byte
	for _, r := range text {
		out = append(out, byte(r))
	}
	return out
}

func unhex(t *testing.T, text string) []byte {
	data, err := hex.DecodeString(text)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

func TestParseHeadRefuses(t *testing.T) {
	t.Parallel()
	head := func(kind frameType, flags, reserved byte, length uint32) []byte {
		b := binary.LittleEndian.AppendUint32([]byte{byte(kind), flags, reserved, 0}, length)
		return binary.LittleEndian.AppendUint32(b, 1)
	}
	for name, row := range map[string]struct {
		head []byte
		want string
	}{
		"type 0":             {head(0, 0, 0, 4), "unknown frame type"},
		"type between":       {head(0x80, 0, 0, 4), "unknown frame type"},
		"type behind":        {head(0x8c, 0, 0, 4), "unknown frame type"},
		"REQUEST":            {head(frameRequest, 0, 0, 4), "unknown frame type"},
		"BODY":               {head(frameBody, 0, 0, 4), "unknown frame type"},
		"flag of another":    {head(frameData, flagData, 0, 5), "flags"},
		"flag of END":        {head(frameEnd, 4, 0, 4), "flags"},
		"flag on ERRORS":     {head(frameErrors, 1, 0, 5), "flags"},
		"reserved":           {head(frameData, 0, 1, 5), "reserved"},
		"reserved, second":   {append([]byte{byte(frameData), 0, 0, 1}, head(0, 0, 0, 4)[4:]...), "reserved"},
		"length 0":           {head(frameEnd, 0, 0, 0), "0 bytes"},
		"length 3":           {head(frameEnd, 0, 0, 3), "3 bytes"},
		"DATA too long":      {head(frameData, 0, 0, maxFrame+1), "bytes"},
		"HEADERS too long":   {head(frameHeaders, 0, 0, maxControl+5), "bytes"},
		"ERRORS too long":    {head(frameErrors, 0, 0, maxControl+5), "bytes"},
		"length 0x7fffffff":  {head(frameData, 0, 0, 0x7fffffff), "bytes"},
		"length 0xffffffff":  {head(frameData, 0, 0, 0xffffffff), "bytes"},
		"length 0xffffffff+": {head(frameEnd, 0, 0, 0xfffffff8), "bytes"},
	} {
		_, err := parseHead(row.head)
		if !errors.Is(err, errFrame) || !strings.Contains(err.Error(), row.want) {
			t.Errorf("%s: %v", name, err)
		}
	}
	for name, b := range map[string][]byte{
		"longest DATA":    head(frameData, flagLast, 0, maxFrame),
		"longest HEADERS": head(frameHeaders, 0, 0, maxControl+4),
		"shortest":        head(frameEnd, flagFailed|flagCancelled, 0, 4),
	} {
		if _, err := parseHead(b); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestParsePayloadRefuses(t *testing.T) {
	t.Parallel()
	u64 := func(values ...uint64) (b []byte) {
		for _, v := range values {
			b = binary.LittleEndian.AppendUint64(b, v)
		}
		return b
	}
	for _, payload := range [][]byte{
		nil, u64(1), u64(1, 2, 3), u64(1<<63, 1), u64(0, 1<<63), u64(1<<62, 1<<62), u64(1<<63-1, 1),
	} {
		if f, err := parseFile(payload); !errors.Is(err, errFrame) {
			t.Errorf("FILE %x: %+v, %v", payload, f, err)
		}
	}
	for _, payload := range [][]byte{nil, {1}, {0, 0, 0, 0}, {1, 0, 4, 0}, {0xff, 0xff, 0xff, 0xff}, {1, 0, 0, 0, 0}} {
		if n, err := parseRead(payload); !errors.Is(err, errFrame) {
			t.Errorf("READ %x: %d, %v", payload, n, err)
		}
	}
	for _, payload := range []string{"", "app.py", "/srv/app.py\x00", "/srv/app.py\x00../views.py", "\x00/srv/app.py"} {
		if files, err := parseImported([]byte(payload)); !errors.Is(err, errFrame) {
			t.Errorf("IMPORTED %q: %q, %v", payload, files, err)
		}
	}
	for _, payload := range [][]byte{nil, {1}, {1, 0, 1, 1, 1}} {
		if h, err := parseHello(payload); !errors.Is(err, errFrame) {
			t.Errorf("HELLO %x: %+v, %v", payload, h, err)
		}
	}
}
