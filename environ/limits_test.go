package environ

import (
	"errors"
	"io"
	"strings"
	"testing"
	"testing/iotest"
)

func TestBoundBody(t *testing.T) {
	for _, c := range []struct {
		body string
		max  int64
		want string
		ok   bool
	}{
		{"", 0, "", true}, {"12345", 5, "12345", true}, {"1234", 5, "1234", true}, {"123456", 5, "12345", false}, {"1", 0, "", false},
	} {
		for name, body := range readers(c.body) {
			r := BoundBody(body, c.max)
			got, err := io.ReadAll(r)
			if string(got) != c.want || (err == nil) != c.ok {
				t.Errorf("%s: %q of at most %d: %q, %v", name, c.body, c.max, got, err)
			}
			if err != nil && StatusOf(err) != 413 {
				t.Errorf("%s: status %d, want 413", name, StatusOf(err))
			}
			if _, again := r.Read(make([]byte, 1)); (again == io.EOF) != c.ok {
				t.Errorf("%s: reading on gives %v", name, again)
			}
		}
	}
}

func TestExactBody(t *testing.T) {
	for _, c := range []struct {
		body string
		n    int64
		want string
		err  error // nil: any other than io.ErrUnexpectedEOF
		ok   bool
	}{
		{body: "", n: 0, want: "", ok: true},
		{body: "12345", n: 5, want: "12345", ok: true},
		{body: "1234", n: 5, want: "1234", err: io.ErrUnexpectedEOF},
		{body: "", n: 5, want: "", err: io.ErrUnexpectedEOF},
		{body: "123456", n: 5, want: "12345"},
		{body: "1", n: 0, want: ""},
	} {
		for name, body := range readers(c.body) {
			r := ExactBody(body, c.n)
			got, err := io.ReadAll(r)
			if string(got) != c.want || (err == nil) != c.ok {
				t.Errorf("%s: %q of exactly %d: %q, %v", name, c.body, c.n, got, err)
			}
			if err != nil && (StatusOf(err) != 400 || errors.Is(err, io.ErrUnexpectedEOF) != (c.err != nil)) {
				t.Errorf("%s: %q of exactly %d: %v with status %d", name, c.body, c.n, err, StatusOf(err))
			}
			if _, again := r.Read(make([]byte, 1)); (again == io.EOF) != c.ok {
				t.Errorf("%s: reading on gives %v", name, again)
			}
		}
	}
}

// readers are the ways in which a transport may give the same bytes.
func readers(body string) map[string]io.Reader {
	return map[string]io.Reader{
		"whole":        strings.NewReader(body),
		"bytes":        iotest.OneByteReader(strings.NewReader(body)),
		"data and EOF": iotest.DataErrReader(strings.NewReader(body)),
	}
}

func TestBodiesPassErrors(t *testing.T) {
	broken := errors.New("broken")
	for name, body := range map[string]io.Reader{
		"bound": BoundBody(iotest.ErrReader(broken), 5),
		"exact": ExactBody(iotest.ErrReader(broken), 5),
		"end":   ExactBody(iotest.ErrReader(broken), 0),
	} {
		if _, err := io.ReadAll(body); !errors.Is(err, broken) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestNoBody(t *testing.T) {
	if n, err := NoBody.Read(make([]byte, 1)); n != 0 || err != io.EOF {
		t.Errorf("%d, %v", n, err)
	}
}

func TestLimitsWithDefaults(t *testing.T) {
	l := Limits{MaxBody: 7}
	d := l.WithDefaults()
	if d.MaxBody != 7 || d.MaxHeaders != 64<<10 || l.MaxHeaders != 0 {
		t.Errorf("got %+v from %+v", d, l)
	}
	if d.WithDefaults() != d {
		t.Error("defaults of defaults differ")
	}
	if d.MaxFields == 0 || d.ReadAhead == 0 || d.ResponseBuffer == 0 || d.HeaderTimeout == 0 || d.BodyTimeout == 0 ||
		d.WriteTimeout == 0 || d.IdleTimeout == 0 || d.MaxRequestsPerConn == 0 {
		t.Errorf("a field has no default: %+v", d)
	}
}
