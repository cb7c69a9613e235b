package environ

import "testing"

func TestAppendVisible(t *testing.T) {
	for text, want := range map[string]string{
		"plain text\n\tindented\n": "plain text\n\tindented\n",
		"a\x1b[31m\rb\x00\x7f":     `a\x1b[31m\x0db\x00\x7f`,
		"caf\xc3\xa9":              "caf\xc3\xa9",
	} {
		if got := string(AppendVisible(nil, []byte(text))); got != want {
			t.Errorf("%q: %q, want %q", text, got, want)
		}
	}
}
