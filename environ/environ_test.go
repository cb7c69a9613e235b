package environ

import (
	"fmt"
	"slices"
	"strings"
	"testing"
)

// list returns the pairs as "NAME=value".
func list(p *pairs) []string {
	var all []string
	for name, value := range p.All() {
		all = append(all, string(name)+"="+string(value))
	}
	return all
}

func environOf(vars ...string) *Environ {
	var e Environ
	for _, v := range vars {
		name, value, _ := strings.Cut(v, "=")
		e.Add(name, value)
	}
	return &e
}

func wantList(t *testing.T, p *pairs, want ...string) {
	t.Helper()
	if got := list(p); !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
}

func TestEnvironKeepsOrderAndBytes(t *testing.T) {
	var e Environ
	e.Add("B", "2")
	e.AddBytes([]byte("A"), []byte("\x00\xff\r\n"))
	e.Add("", "")
	e.Add("B", "3")
	wantList(t, &e.pairs, "B=2", "A=\x00\xff\r\n", "=", "B=3")
	if e.Len() != 4 || e.Size() != 1+1+1+4+0+1+1 {
		t.Errorf("Len %d, Size %d", e.Len(), e.Size())
	}
}

func TestEnvironGetsTheLast(t *testing.T) {
	e := environOf("A=1", "AB=no", "A=2", "a=no")
	if got := e.Text("A"); got != "2" {
		t.Errorf("got %q", got)
	}
	if v, ok := e.Lookup("C"); v != nil || ok || e.Has("C") || e.Text("C") != "" {
		t.Errorf("C is %q, %v", v, ok)
	}
	if v, ok := environOf("E=").Lookup("E"); len(v) != 0 || !ok {
		t.Errorf("an empty value is %q, %v", v, ok)
	}
}

func TestEnvironSet(t *testing.T) {
	e := environOf("A=1", "B=2", "A=3")
	e.Set("A", "a longer value")
	e.Set("C", "")
	wantList(t, &e.pairs, "A=1", "B=2", "A=a longer value", "C=")
}

func TestEnvironDel(t *testing.T) {
	e := environOf("A=1", "B=2", "A=3", "C=4")
	e.Del("A")
	e.Del("none")
	wantList(t, &e.pairs, "B=2", "C=4")
}

func TestEnvironViewsStayValid(t *testing.T) {
	e := environOf("A=first")
	view := e.Get("A")
	for i := range 1000 {
		e.Add(fmt.Sprint("N", i), "value")
	}
	e.Set("A", "second")
	e.Del("N1")
	if string(view) != "first" {
		t.Errorf("the view became %q", view)
	}
	if grown := append(view, "xx"...); string(grown) != "firstxx" || e.Text("N0") != "value" {
		t.Error("appending to a view changed the environ")
	}
}

func TestEnvironResetKeepsNothing(t *testing.T) {
	e := environOf("A=1", "B=2")
	e.Reset()
	if e.Len() != 0 || e.Size() != 0 || e.Has("A") {
		t.Errorf("left: %q", list(&e.pairs))
	}
	e.Add("C", "3")
	wantList(t, &e.pairs, "C=3")
}

func TestAllStops(t *testing.T) {
	n := 0
	for range environOf("A=1", "B=2", "C=3").All() {
		if n++; n == 2 {
			break
		}
	}
	if n != 2 {
		t.Errorf("%d pairs", n)
	}
}
