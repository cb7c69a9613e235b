package environ

import (
	"encoding/json"
	"os"
	"testing"
)

// wsgirefTable is what wsgiref.util itself gives; testdata/wsgiref_uri.py makes it.
type wsgirefTable struct {
	URIs []struct {
		Environ                    map[string]string
		Application, Request, Path string
	}
	Shifts []struct {
		Script, Info string
		Name         *string
		ScriptAfter  string `json:"script_after"`
		InfoAfter    string `json:"info_after"`
	}
}

func readWsgiref(t *testing.T) (table wsgirefTable) {
	t.Helper()
	text, err := os.ReadFile("testdata/wsgiref_uri.json")
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(text, &table); err != nil {
		t.Fatal(err)
	}
	if len(table.URIs) < 40 || len(table.Shifts) < 20 {
		t.Fatal("testdata/wsgiref_uri.json is not whole")
	}
	return table
}

// latin1Bytes turns a WSGI string into the bytes that it stands for.
func latin1Bytes(text string) string {
	var b []byte
	for _, c := range text {
		b = append(b, byte(c))
	}
	return string(b)
}

func TestURIsAreThoseOfWsgiref(t *testing.T) {
	for _, row := range readWsgiref(t).URIs {
		var e Environ
		for name, value := range row.Environ {
			e.Add(name, latin1Bytes(value))
		}
		for what, pair := range map[string][2]string{
			"ApplicationURI":     {ApplicationURI(&e), row.Application},
			"RequestURI":         {RequestURI(&e, true), row.Request},
			"RequestURI (plain)": {RequestURI(&e, false), row.Path},
		} {
			if want := latin1Bytes(pair[1]); pair[0] != want {
				t.Errorf("%s of %q: %q, want %q", what, row.Environ, pair[0], want)
			}
		}
	}
}

func TestShiftPathInfoIsThatOfWsgiref(t *testing.T) {
	for _, row := range readWsgiref(t).Shifts {
		var e Environ
		e.Add("SCRIPT_NAME", latin1Bytes(row.Script))
		e.Add("PATH_INFO", latin1Bytes(row.Info))
		name, ok := ShiftPathInfo(&e)
		if ok != (row.Name != nil) || ok && name != latin1Bytes(*row.Name) {
			t.Errorf("%q %q: name %q, %v", row.Script, row.Info, name, ok)
		}
		script, info := e.Text("SCRIPT_NAME"), e.Text("PATH_INFO")
		if script != latin1Bytes(row.ScriptAfter) || info != latin1Bytes(row.InfoAfter) {
			t.Errorf("%q %q: then %q %q, want %q %q", row.Script, row.Info, script, info, row.ScriptAfter, row.InfoAfter)
		}
	}
}

func TestShiftPathInfoWithoutASlash(t *testing.T) {
	var e Environ
	e.Add("PATH_INFO", "x")
	if name, ok := ShiftPathInfo(&e); ok || name != "" || e.Text("PATH_INFO") != "x" {
		t.Errorf("got %q, %v and PATH_INFO %q", name, ok, e.Text("PATH_INFO"))
	}
}
