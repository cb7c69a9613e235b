package main

import (
	"bytes"
	"context"
	"embed"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"text/template"
	"time"
)

//go:embed files/bench_app.py files/load.lua files/nginx.conf
var files embed.FS

// bench is the temporary folder and what lives as long as it: nginx.
type bench struct {
	*options
	dir     string
	ports   map[side]int
	nginx   *process
	version string // of the Python that the first side runs
}

func newBench(o *options) (*bench, error) {
	dir, err := os.MkdirTemp("", "wsgigate-bench-")
	if err != nil {
		return nil, err
	}
	b := &bench{options: o, dir: dir, ports: map[side]int{}}
	if err := b.writeFiles(); err != nil {
		b.close()
		return nil, err
	}
	return b, nil
}

func (b *bench) appDir() string              { return filepath.Join(b.dir, "app") }
func (b *bench) script() string              { return filepath.Join(b.dir, "load.lua") }
func (b *bench) nginxLog() string            { return filepath.Join(b.dir, "nginx-error.log") }
func (b *bench) socket(s side) string        { return filepath.Join(b.dir, fileName(s)+".sock") }
func (b *bench) logFile(s side) string       { return filepath.Join(b.dir, fileName(s)+".log") }
func (b *bench) bodyFile(c benchCase) string { return filepath.Join(b.dir, c.name+".body") }

func fileName(s side) string { return strings.ReplaceAll(s.String(), " ", "-") }

// writeFiles fills the temporary folder and chooses the ports.
func (b *bench) writeFiles() error {
	if err := os.Mkdir(b.appDir(), 0o755); err != nil {
		return err
	}
	for name, path := range map[string]string{
		"bench_app.py": filepath.Join(b.appDir(), "bench_app.py"),
		"load.lua":     b.script(),
	} {
		content, err := files.ReadFile("files/" + name)
		if err != nil {
			return err
		}
		if err := os.WriteFile(path, content, 0o644); err != nil {
			return err
		}
	}
	if err := os.WriteFile(filepath.Join(b.appDir(), "file.bin"), fileContent(), 0o644); err != nil {
		return err
	}
	for _, c := range b.cases {
		if err := os.WriteFile(b.bodyFile(c), c.body, 0o644); err != nil {
			return err
		}
	}
	sides := append(proxied(), side{wsgigate, direct}, side{gunicorn, direct}, side{uwsgi, direct})
	return b.choosePorts(sides)
}

// choosePorts finds a free port for each side, all held until all are found.
func (b *bench) choosePorts(sides []side) error {
	for _, s := range sides {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			return err
		}
		defer l.Close()
		b.ports[s] = l.Addr().(*net.TCPAddr).Port
	}
	return nil
}

// nginxConfig is the one configuration, with a server block for each side.
func (b *bench) nginxConfig() ([]byte, error) {
	type server struct {
		side
		Name, Socket string
		Port         int
	}
	var servers []server
	for _, s := range proxied() {
		servers = append(servers, server{s, fileName(s), b.socket(s), b.ports[s]})
	}
	t, err := template.ParseFS(files, "files/nginx.conf")
	if err != nil {
		return nil, err
	}
	var out bytes.Buffer
	err = t.Execute(&out, map[string]any{
		"Root": os.Getuid() == 0, "Workers": b.nginxWorkers, "Connections": connections,
		"Dir": b.dir, "Log": b.nginxLog(), "Sides": servers,
	})
	return out.Bytes(), err
}

// startNginx starts nginx and waits until it listens.
func (b *bench) startNginx(ctx context.Context) error {
	config, err := b.nginxConfig()
	if err != nil {
		return err
	}
	path := filepath.Join(b.dir, "nginx.conf")
	if err := os.WriteFile(path, config, 0o644); err != nil {
		return err
	}
	log := filepath.Join(b.dir, "nginx.log")
	b.nginx, err = startProcess(b.dir, log, nginxPath(), "-p", b.dir, "-c", path, "-e", b.nginxLog())
	if err != nil {
		return err
	}
	address := fmt.Sprintf("127.0.0.1:%d", b.ports[proxied()[0]])
	err = poll(ctx, b.nginx, func() error {
		c, err := net.DialTimeout("tcp", address, time.Second)
		if err == nil {
			c.Close()
		}
		return err
	})
	if err != nil {
		return fmt.Errorf("nginx: %w", err)
	}
	return nil
}

// close stops nginx and removes the folder.
func (b *bench) close() {
	if b.nginx != nil {
		b.nginx.stop()
	}
	_ = os.RemoveAll(b.dir)
}
