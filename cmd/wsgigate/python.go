package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
)

// findPython settles which interpreter runs the workers: --python, else
// $VIRTUAL_ENV, else .venv or venv beside the application, else python3.
func (c *config) findPython() error {
	if c.python != "" {
		path, err := exec.LookPath(c.python)
		if err != nil {
			if inner, ok := errors.AsType[*exec.Error](err); ok {
				err = inner.Err // without "exec:", whose reader thinks of a shell
			}
			return fmt.Errorf("--python %s: %w: name an interpreter, for example /usr/bin/python3", c.python, err)
		}
		return c.setPython(path)
	}
	var candidates []string
	if env := os.Getenv("VIRTUAL_ENV"); env != "" {
		candidates = append(candidates, filepath.Join(env, "bin", "python"))
	}
	for _, name := range []string{".venv", "venv"} {
		candidates = append(candidates, filepath.Join(c.appFolder(), name, "bin", "python"))
	}
	for _, path := range candidates {
		if exists(path) {
			return c.setPython(path)
		}
	}
	for _, name := range []string{"python3", "python"} {
		if path, err := exec.LookPath(name); err == nil {
			return c.setPython(path)
		}
	}
	return errors.New("no Python found: install Python 3.8 or newer, or name the interpreter with --python")
}

// setPython makes the path independent of the working directory.
func (c *config) setPython(path string) error {
	path, err := filepath.Abs(path)
	if err != nil {
		return fmt.Errorf("--python: %w", err)
	}
	c.python = path
	return nil
}
