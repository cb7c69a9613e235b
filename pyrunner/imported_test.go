package pyrunner

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
)

// importedFiles collects what Config.Imported is told.
type importedFiles struct {
	mu    sync.Mutex
	files []string
}

func (i *importedFiles) add(files []string) {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.files = append(i.files, files...)
}

// below returns the names in a folder, each once, and forgets all.
func (i *importedFiles) below(dir string) string {
	i.mu.Lock()
	defer i.mu.Unlock()
	var names []string
	for _, file := range i.files {
		if rest, ok := strings.CutPrefix(file, dir+"/"); ok {
			names = append(names, rest)
		}
	}
	i.files = nil
	slices.Sort(names)
	return strings.Join(slices.Compact(names), " ")
}

func TestImported(t *testing.T) {
	t.Parallel()
	var told importedFiles
	p := newPool(t, `
import helper
def app(environ, start_response):
    path = environ["PATH_INFO"]
    if path == "/lazy":
        import lazy
    start_response("200 OK", [("Content-Length", "5")])
    return Late(path)

class Late:
    def __init__(self, path):
        self.path = path

    def __iter__(self):
        yield b"hello"

    def close(self):
        if self.path == "/late":
            import late
`, Config{Imported: told.add})
	for _, name := range []string{"helper", "lazy", "late"} {
		addModule(p, name+".py", "")
	}
	if err := p.Start(); err != nil {
		t.Fatal(err)
	}
	steps := []struct{ path, want string }{{"/", "app.py helper.py"}, {"/lazy", "lazy.py"}, {"/late", "late.py"}, {"/", ""}}
	for i, step := range steps {
		if i > 0 {
			told.below(p.dir)
		}
		if body := p.text(step.path); body != "hello" {
			t.Errorf("%s: %q", step.path, body)
		}
		p.text("/none") // in the same slot, so close() has returned
		if got := told.below(p.dir); got != step.want {
			t.Errorf("%s: %q, want %q", step.path, got, step.want)
		}
	}
}

// TestImportedBeforeFailure: so that mending the file is noticed.
func TestImportedBeforeFailure(t *testing.T) {
	t.Parallel()
	var told importedFiles
	p := newPool(t, "import broken\n", Config{Imported: told.add})
	addModule(p, "broken.py", "def (\n")
	if err := p.Start(); err == nil || !strings.Contains(err.Error(), "syntax error") {
		t.Errorf("start: %v", err)
	}
	if got := told.below(p.dir); got != "app.py broken.py" {
		t.Errorf("told of %q", got)
	}
}

// TestImportedUnasked: nobody asked, so it is a violation, in a request and after it.
func TestImportedUnasked(t *testing.T) {
	t.Parallel()
	for name, row := range map[string]struct {
		told    func([]string)
		payload string
	}{
		"unasked":  {nil, "/srv/app.py"},
		"relative": {func([]string) {}, "app.py"},
	} {
		p := newPool(t, "", Config{Imported: row.told})
		if err := p.imported([]byte(row.payload)); !errors.Is(err, errFrame) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// addModule puts a file into the application's folder.
func addModule(p *testPool, name, source string) {
	p.t.Helper()
	if err := os.WriteFile(filepath.Join(p.dir, name), []byte(source), 0o600); err != nil {
		p.t.Fatal(err)
	}
}
