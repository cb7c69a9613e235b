package integration

import (
	"encoding/json"
	"errors"
	"io"
	"os/exec"
	"strings"
	"testing"
)

// module is the project's module path.
const module = "wsgigate"

// layers says what each folder of the project may import of the project; a
// folder may always import what is below itself. Data flows from the transports
// through environ to the pool, so neither side knows the other and everything
// composes in cmd.
var layers = map[string][]string{
	"environ":     nil,
	"fcgi":        {"environ"},
	"scgi":        {"environ"},
	"uwsgi":       {"environ"},
	"httpd":       {"environ"},
	"cgi":         {"environ", "fcgi"}, // the CGI front is a FastCGI client
	"pyrunner":    {"environ"},
	"integration": {"environ", "fcgi"}, // the FastCGI client
	"cmd":         {"environ", "fcgi", "scgi", "uwsgi", "httpd", "cgi", "pyrunner"},
}

type goPackage struct {
	ImportPath                         string
	Imports, TestImports, XTestImports []string
}

// TestImportRules holds the layout: environ imports nothing of the project, the
// transports and the pool import only environ, cmd wires.
func TestImportRules(t *testing.T) {
	packages := listPackages(t)
	seen := map[string]bool{}
	for _, p := range packages {
		folder := folderOf(p.ImportPath)
		seen[folder] = true
		allowed, known := layers[folder]
		if !known {
			t.Errorf("%s: folder %q has no import rule: add one to layers", p.ImportPath, folder)
			continue
		}
		imports := append(append(p.Imports, p.TestImports...), p.XTestImports...)
		for _, path := range imports {
			if !mayImport(folder, allowed, path) {
				t.Errorf("%s must not import %s (%s may import %v)", p.ImportPath, path, folder, allowed)
			}
		}
	}
	for _, folder := range []string{"environ", "fcgi", "scgi", "cgi", "httpd", "pyrunner", "cmd"} {
		if !seen[folder] {
			t.Errorf("no package in %s/: does go list see the whole project?", folder)
		}
	}
}

// mayImport reports whether a package of folder may import path.
func mayImport(folder string, allowed []string, path string) bool {
	if path != module && !strings.HasPrefix(path, module+"/") {
		return true // the standard library and other modules
	}
	target := folderOf(path)
	if target == folder {
		return true
	}
	for _, name := range allowed {
		if target == name {
			return true
		}
	}
	return false
}

// folderOf returns the top folder of a package of the project.
func folderOf(path string) string {
	rest, _ := strings.CutPrefix(path, module+"/")
	folder, _, _ := strings.Cut(rest, "/")
	return folder
}

func listPackages(t *testing.T) []goPackage {
	t.Helper()
	cmd := exec.Command("go", "list", "-json=ImportPath,Imports,TestImports,XTestImports", module+"/...")
	cmd.Dir = ".."
	out, err := cmd.Output()
	if err != nil {
		if exit, ok := errors.AsType[*exec.ExitError](err); ok {
			t.Fatalf("go list: %v\n%s", err, exit.Stderr)
		}
		t.Fatalf("go list: %v", err)
	}
	var packages []goPackage
	for dec := json.NewDecoder(strings.NewReader(string(out))); ; {
		var p goPackage
		if err := dec.Decode(&p); errors.Is(err, io.EOF) {
			return packages
		} else if err != nil {
			t.Fatalf("go list: %v", err)
		}
		packages = append(packages, p)
	}
}

func TestImportRulesRefuse(t *testing.T) {
	for _, c := range []struct {
		folder, path string
		want         bool
	}{
		{"environ", "wsgigate/environ/wire", true},
		{"environ", "wsgigate/fcgi", false},
		{"fcgi", "wsgigate/environ/wire", true},
		{"fcgi", "wsgigate/scgi", false},
		{"cgi", "wsgigate/fcgi", true},
		{"cgi", "net/http/fcgi", true},
		{"pyrunner", "wsgigate/fcgi", false},
		{"pyrunner", "github.com/x/wsgigate/fcgi", true},
		{"cmd", "wsgigate/pyrunner", true},
	} {
		if got := mayImport(c.folder, layers[c.folder], c.path); got != c.want {
			t.Errorf("mayImport(%s, %s) = %v", c.folder, c.path, got)
		}
	}
}
