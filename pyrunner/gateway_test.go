package pyrunner

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"
)

// gatewayVariable makes the test binary a gateway; its value is the folder of
// the application.
const gatewayVariable = "WSGIGATE_TEST_GATEWAY"

// gatewayToKill runs two workers, one of them busy, and waits for its end. The
// workers write their process ids into files.
func gatewayToKill(dir string) {
	p, err := New(Config{App: "app:app", Chdir: dir, Python: os.Getenv(gatewayVariable + "_PYTHON"), Workers: 2, Preload: os.Getenv(gatewayVariable+"_PRELOAD") != ""})
	if err == nil {
		err = p.Start()
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	p.ServeGateway(nobody{}, get("/busy"))
	os.Exit(1)
}

// TestGatewayKilled: rows 27 and 28. Nobody but the kernel is left to end the
// workers, idle or busy.
func TestGatewayKilled(t *testing.T) {
	t.Parallel()
	var took time.Duration
	for range 3 { // a busy machine may be late once; the kernel is not three times
		if took = killGateway(t); took <= time.Second {
			return
		}
	}
	t.Errorf("the workers outlived the gateway by %v", took)
}

// killGateway kills a gateway that has an idle and a busy worker, and returns how
// long they lived on.
func killGateway(t *testing.T) time.Duration {
	t.Helper()
	dir := t.TempDir()
	source := preamble + `
open("idle.%d" % os.getpid(), "w").close()
def busy(environ, start_response):
    os.rename("idle.%d" % os.getpid(), "busy.%d" % os.getpid())
    while True:
        try:
            time.sleep(60)
        except BaseException:
            pass
`
	if err := os.WriteFile(filepath.Join(dir, "app.py"), []byte(source), 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := startGateway(t, dir)
	var idle, busy int
	eventually(t, "the workers", func() bool {
		idle, busy = pidOf(dir, "idle"), pidOf(dir, "busy")
		return idle != 0 && busy != 0
	})
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	killed := time.Now()
	_ = cmd.Wait()
	for name, pid := range map[string]int{"idle": idle, "busy": busy} {
		eventually(t, "the end of the "+name+" worker", func() bool { return ended(pid) })
	}
	took := time.Since(killed)
	if took > time.Second {
		t.Logf("the gateway said: %s", cmd.Stdout)
	}
	return took
}

// startGateway runs gatewayToKill in a process; env has more variables.
func startGateway(t *testing.T, dir string, env ...string) *exec.Cmd {
	t.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(append(os.Environ(), gatewayVariable+"="+dir, gatewayVariable+"_PYTHON="+python()), env...)
	var output bytes.Buffer
	cmd.Stdout, cmd.Stderr = &output, &output
	cmd.WaitDelay = patience
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	return cmd
}

// pidOf returns the process id in the name of a file "kind.PID".
func pidOf(dir, kind string) int {
	names, _ := filepath.Glob(filepath.Join(dir, kind+".*"))
	if len(names) != 1 {
		return 0
	}
	pid, _ := strconv.Atoi(strings.TrimPrefix(filepath.Ext(names[0]), "."))
	return pid
}

// ended reports whether a process that is not this one's child runs no more:
// where nothing reaps orphans it stays a zombie.
func ended(pid int) bool {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return true
	}
	_, state, _ := strings.Cut(string(stat), ") ")
	return strings.HasPrefix(state, "Z")
}
