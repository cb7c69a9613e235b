package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strings"
)

// nginxPath finds nginx, which is not on every user's PATH.
func nginxPath() string {
	if path, err := exec.LookPath("nginx"); err == nil {
		return path
	}
	return "/usr/sbin/nginx"
}

// describeMachine returns a line for the machine and one for the versions, or an
// error that names everything that is missing.
func describeMachine(ctx context.Context, o *options) ([]string, error) {
	tools := []struct {
		name string
		args []string
	}{
		{"wsgigate", []string{o.wsgigate, "version"}},
		{"python", []string{o.python, "--version"}},
		{"nginx", []string{nginxPath(), "-v"}},
		{"uwsgi", []string{"uwsgi", "--version"}},
		{"gunicorn", []string{o.python, "-c", "import gunicorn; print(gunicorn.__version__)"}},
		{"wrk", []string{"wrk", "-v"}},
	}
	versions := []string{runtime.Version()}
	var missing []string
	for _, t := range tools {
		line := firstLine(exec.CommandContext(ctx, t.args[0], t.args[1:]...))
		if line == "" || strings.HasPrefix(line, "Traceback") {
			missing = append(missing, t.name)
			continue
		}
		if !strings.Contains(strings.ToLower(line), t.name) {
			line = t.name + " " + line
		}
		versions = append(versions, line)
	}
	if len(missing) > 0 {
		return nil, fmt.Errorf("missing: %s; \"scripts/bench\" says which packages", strings.Join(missing, ", "))
	}
	return []string{
		fmt.Sprintf("%s, %d cores, Linux %s, load average %s at the start",
			processor(), runtime.NumCPU(), readLine("/proc/sys/kernel/osrelease"), loadAverage()),
		strings.Join(versions, "; "),
	}, nil
}

// firstLine is what a program prints first, wherever and however it ends: wrk -v
// ends with an error, nginx -v prints on stderr. Empty: it cannot be run.
func firstLine(cmd *exec.Cmd) string {
	out, err := cmd.CombinedOutput()
	if err != nil && cmd.ProcessState == nil {
		return ""
	}
	line, _, _ := strings.Cut(string(out), "\n")
	line, _, _ = strings.Cut(line, " Copyright")
	line = strings.TrimPrefix(line, "nginx version: ")
	return strings.TrimSpace(line)
}

func processor() string {
	b, _ := os.ReadFile("/proc/cpuinfo")
	for line := range strings.SplitSeq(string(b), "\n") {
		name, value, _ := strings.Cut(line, ":")
		if strings.TrimSpace(name) == "model name" {
			return strings.TrimSpace(value)
		}
	}
	return runtime.GOARCH
}

func loadAverage() string {
	one, _, _ := strings.Cut(readLine("/proc/loadavg"), " ")
	return one
}

// readLine returns the first line of a file, empty if it cannot be read.
func readLine(path string) string {
	b, _ := os.ReadFile(path)
	line, _, _ := strings.Cut(string(b), "\n")
	return line
}
