package pyrunner

import (
	"archive/zip"
	"embed"
	"fmt"
	"os"
	"path"

	"golang.org/x/sys/unix"
)

// The pattern takes __init__.py and __main__.py too, which a bare folder name
// would leave out, and no __pycache__.
//
//go:embed python/*.py
var runnerSource embed.FS

// openArchive returns the runner as a zip file that Python can execute, in
// memory: nothing is written to a disk, so nothing is left on one.
func openArchive() (*os.File, error) {
	fd, err := unix.MemfdCreate("wsgigate", unix.MFD_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("make the runner's archive: %w", os.NewSyscallError("memfd_create", err))
	}
	f := os.NewFile(uintptr(fd), "runner archive")
	if err := writeArchive(f); err != nil {
		_ = f.Close()
		return nil, fmt.Errorf("make the runner's archive: %w", err)
	}
	return f, nil
}

// writeArchive puts __main__.py at the root and the rest in the package
// wsgigate_runner.
func writeArchive(f *os.File) error {
	files, err := runnerSource.ReadDir("python")
	if err != nil {
		return err
	}
	archive := zip.NewWriter(f)
	for _, file := range files {
		source, err := runnerSource.ReadFile(path.Join("python", file.Name()))
		if err != nil {
			return err
		}
		name := file.Name()
		if name != "__main__.py" {
			name = path.Join("wsgigate_runner", name)
		}
		w, err := archive.CreateHeader(&zip.FileHeader{Name: name, Method: zip.Store})
		if err != nil {
			return err
		}
		if _, err := w.Write(source); err != nil {
			return err
		}
	}
	return archive.Close()
}
