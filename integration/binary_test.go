package integration

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"
)

// runFolder is the temporary folder of this test run. Servers that drop root must
// be able to look into it, which t.TempDir's folders do not let them.
var runFolder string

func TestMain(m *testing.M) {
	os.Exit(runAll(m))
}

func runAll(m *testing.M) int {
	dir, err := os.MkdirTemp("", "wsgigate-it-")
	if err == nil {
		err = os.Chmod(dir, 0o755)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "integration:", err)
		return 1
	}
	defer os.RemoveAll(dir)
	runFolder = dir
	return m.Run()
}

// binaryEnv names a wsgigate to test in place of the one built from this tree.
const binaryEnv = "WSGIGATE_BINARY"

// binary returns the path of wsgigate, which is built once for a test run.
func binary(t testing.TB) string {
	t.Helper()
	path, err := buildOnce()
	if err != nil {
		t.Fatal(err)
	}
	return path
}

var buildOnce = sync.OnceValues(func() (string, error) {
	if path := os.Getenv(binaryEnv); path != "" {
		return path, nil
	}
	path := filepath.Join(runFolder, "wsgigate")
	out, err := exec.Command("go", "build", "-o", path, module+"/cmd/wsgigate").CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("go build: %w\n%s", err, out)
	}
	return path, nil
})

// pythonEnv names the interpreter that has testdata/requirements.txt.
const pythonEnv = "WSGIGATE_TEST_PYTHON"

// python returns the interpreter for the workers: the virtualenv that
// "scripts/test" makes.
func python(t testing.TB) string {
	t.Helper()
	path := os.Getenv(pythonEnv)
	if path == "" {
		path = filepath.Join(cacheFolder(t), "venv", "bin", "python")
	}
	if _, err := os.Stat(path); errors.Is(err, fs.ErrNotExist) {
		t.Fatalf("no interpreter at %s: run scripts/test once, or set %s to a Python with integration/testdata/requirements.txt", path, pythonEnv)
	} else if err != nil {
		t.Fatal(err)
	}
	return path
}

// cacheFolder is where scripts/test keeps what it downloads. For root it is not
// in the home folder: Apache drops root, and could not read it there.
func cacheFolder(t testing.TB) string {
	t.Helper()
	if os.Geteuid() == 0 {
		return "/var/cache/wsgigate"
	}
	dir, err := os.UserCacheDir()
	if err != nil {
		t.Fatal(err)
	}
	return filepath.Join(dir, "wsgigate")
}
