package pyrunner

import (
	"bytes"
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"os/exec"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"

	"wsgigate/environ"
)

// environs is a table of what web servers send, and of what they could.
func environs() map[string][][2]string {
	every := make([]byte, 256)
	for i := range every {
		every[i] = byte(i)
	}
	return map[string][][2]string{
		"empty":          {},
		"usual":          {{"REQUEST_METHOD", "GET"}, {"PATH_INFO", "/a"}, {"QUERY_STRING", ""}},
		"latin-1":        {{"PATH_INFO", "/caf\xc3\xa9"}, {"HTTP_X", "\x80\xff"}},
		"every byte":     {{"HTTP_X", string(every)}, {"HTTP_Y", string(every[:128])}},
		"length 255":     {{"HTTP_X", strings.Repeat("x", 255)}},
		"length 256":     {{"HTTP_X", strings.Repeat("x", 256)}},
		"long":           {{"HTTP_X", strings.Repeat("x", 70000)}},
		"long latin-1":   {{"HTTP_X", strings.Repeat("\xe9", 70000)}},
		"empty key":      {{"", "nothing"}},
		"odd keys":       {{"a b", "1"}, {"ÄÖ", "2"}, {"\xff", "3"}, {"x=y", "4"}, {"\x00", "5"}},
		"long key":       {{strings.Repeat("K", 255), "1"}, {strings.Repeat("L", 256), "2"}},
		"key of a value": {{"X", "X"}, {"Y", "X"}},
		"https":          {{"HTTPS", "on"}},
		"many":           many(1000),
	}
}

func many(n int) (pairs [][2]string) {
	for i := range n {
		pairs = append(pairs, [2]string{fmt.Sprintf("HTTP_X_%d", i), fmt.Sprint(i)})
	}
	return pairs
}

// decoder reads lines of base64, each a marshalled object, and prints each as JSON.
const decoder = `
import base64, json, marshal, sys
for line in sys.stdin:
    got = marshal.loads(base64.b64decode(line))
    assert type(got) is dict, type(got)
    for key, value in got.items():
        assert type(key) is str
        if isinstance(value, str) and key not in ("app", "chdir"):
            assert not value or max(value) <= "\xff"
    version = got.get("wsgi.version", (1, 0))
    assert type(version) is tuple and version == (1, 0)
    print(json.dumps(got))
`

// loads decodes marshalled dicts with Python itself.
func loads(t *testing.T, objects [][]byte) []map[string]any {
	t.Helper()
	var input bytes.Buffer
	for _, object := range objects {
		fmt.Fprintln(&input, base64.StdEncoding.EncodeToString(object))
	}
	cmd := exec.Command(python(), "-c", decoder)
	cmd.Stdin = &input
	var complaint bytes.Buffer
	cmd.Stderr = &complaint
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%v: %s", err, complaint.String())
	}
	var decoded []map[string]any
	for line := range bytes.Lines(out) {
		var got map[string]any
		if err := json.Unmarshal(line, &got); err != nil {
			t.Fatal(err)
		}
		decoded = append(decoded, got)
	}
	if len(decoded) != len(objects) {
		t.Fatalf("%d of %d objects decoded", len(decoded), len(objects))
	}
	return decoded
}

// TestMarshalEnviron has Python decode what is made for it.
func TestMarshalEnviron(t *testing.T) {
	t.Parallel()
	p := &Pool{wsgiKeys: fixedKeys(true, false)}
	var names []string
	var objects [][]byte
	var wants []map[string]any
	for name, pairs := range environs() {
		r := &environ.Request{RunOnce: name == "usual"}
		want := map[string]any{
			"wsgi.version": []any{1.0, 0.0}, "wsgi.url_scheme": "http", "wsgi.run_once": r.RunOnce,
			"wsgi.multithread": true, "wsgi.multiprocess": false, "wsgi.input_terminated": true,
		}
		if name == "https" {
			want["wsgi.url_scheme"] = "https"
		}
		for _, kv := range pairs {
			r.Environ.Add(kv[0], kv[1])
			want[text(kv[0])] = text(kv[1])
		}
		names, wants = append(names, name), append(wants, want)
		objects = append(objects, p.appendEnviron(nil, r))
	}
	for i, got := range loads(t, objects) {
		if diff := cmp.Diff(wants[i], got); diff != "" {
			t.Errorf("%s: %s", names[i], diff)
		}
	}
}

// text returns the str that Latin-1 bytes mean.
func text(latin1 string) string {
	var b strings.Builder
	for _, c := range []byte(latin1) {
		b.WriteRune(rune(c))
	}
	return b.String()
}

func TestMarshalConfig(t *testing.T) {
	t.Parallel()
	c := initConfig{app: "bücher:app", slots: []int{5, 7}, requests: []int{6, 8}, chdir: "/x/日本", pythonPath: []string{"", "/a"}, debug: true, dumpFD: -1, dumpSignal: 40, raiseSignal: 41, watch: true}
	want := map[string]any{
		"app": "bücher:app", "slots": []any{5.0, 7.0}, "requests": []any{6.0, 8.0}, "chdir": "/x/日本", "pythonpath": []any{"", "/a"},
		"debug": true, "dump_fd": -1.0, "dump_signal": 40.0, "raise_signal": 41.0, "watch": true,
	}
	if diff := cmp.Diff(want, loads(t, [][]byte{c.appendTo(nil)})[0]); diff != "" {
		t.Error(diff)
	}
}

// FuzzMarshalLatin1: whatever the bytes are, the str has them as its code
// points, in one of the three forms, the shortest.
func FuzzMarshalLatin1(f *testing.F) {
	for _, pairs := range environs() {
		for _, kv := range pairs[:min(len(pairs), 5)] {
			f.Add([]byte(kv[1]))
		}
	}
	f.Fuzz(func(t *testing.T, value []byte) {
		dst := appendLatin1([]byte("before"), value)
		encoded, ok := bytes.CutPrefix(dst, []byte("before"))
		if !ok {
			t.Fatal("what was there is gone")
		}
		if got := decodeLatin1(t, encoded); !bytes.Equal(got, value) {
			t.Errorf("%x became %x", value, got)
		}
		if key := appendKey(nil, value); key[0] != marshalInterned && !bytes.Equal(key, encoded) {
			t.Errorf("key %x, value %x", key, encoded)
		} else if key[0] == marshalInterned && (len(value) > 255 || !bytes.Equal(key[2:], value) || int(key[1]) != len(value)) {
			t.Errorf("key %x of %x", key, value)
		}
	})
}

func decodeLatin1(t *testing.T, encoded []byte) []byte {
	kind := encoded[0]
	if kind == marshalShortASCII {
		if int(encoded[1]) != len(encoded)-2 {
			t.Fatalf("length %d of %d", encoded[1], len(encoded)-2)
		}
		return encoded[2:]
	}
	data := encoded[5:]
	if n := binary.LittleEndian.Uint32(encoded[1:]); int(n) != len(data) {
		t.Fatalf("length %d of %d", n, len(data))
	}
	if kind == marshalASCII {
		if len(data) < 256 {
			t.Error("a longer form than needed")
		}
		return data
	}
	if kind != marshalUnicode || !utf8.Valid(data) {
		t.Fatalf("kind %q, %x", kind, data)
	}
	return latin1(string(data))
}
