package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
	"golang.org/x/sys/unix"
)

// TestMain lets the test binary be wsgigate itself for the scripts.
func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){"wsgigate": main})
}

// TestScripts runs the sessions of testdata/script.
func TestScripts(t *testing.T) {
	python := findInterpreter(t)
	testscript.Run(t, testscript.Params{
		Dir:                 "testdata/script",
		RequireExplicitExec: true,
		RequireUniqueNames:  true,
		Setup: func(env *testscript.Env) error {
			env.Setenv("PYTHON", python)
			env.Setenv("WSGIGATE", wsgigate(env.Getenv("PATH")))
			env.Setenv("PATH", env.Getenv("PATH")+string(os.PathListSeparator)+filepath.Dir(python))
			env.Setenv("PYTHONDONTWRITEBYTECODE", "1")
			env.Setenv("GORACE", "atexit_sleep_ms=0") // else each process waits for a second at its end
			return os.CopyFS(env.WorkDir, os.DirFS("testdata/apps"))
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"exits":     exits,
			"await":     await,
			"fetch":     fetch,
			"awaitbody": awaitBody,
			"hang":      hang,
			"signal":    sendSignal,
		},
	})
}

// wsgigate returns the command's own path.
func wsgigate(path string) string {
	return filepath.Join(filepath.SplitList(path)[0], "wsgigate")
}

// findInterpreter returns the interpreter behind python3, which may be a script
// that finds it by variables that scripts do not have.
func findInterpreter(t *testing.T) string {
	out, err := exec.Command("python3", "-c", "import sys; print(sys.executable)").Output()
	if err != nil {
		t.Fatalf("no python3: %v", err)
	}
	return strings.TrimSpace(string(out))
}

// exits runs a program and wants its exit status: "exits 78 wsgigate --workers 0".
func exits(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: exits STATUS PROGRAM ARGUMENT...")
	}
	want, err := strconv.Atoi(args[0])
	ts.Check(err)
	got := 0
	if err := ts.Exec(args[1], args[2:]...); err != nil {
		exit, ok := errors.AsType[*exec.ExitError](err)
		if !ok {
			ts.Fatalf("%v", err)
		}
		got = exit.ExitCode()
	}
	if got != want {
		ts.Fatalf("exit status %d, want %d", got, want)
	}
}

// patience is how long a server may take for anything on a busy machine.
const patience = 30 * time.Second

// await polls until a file has a line that matches: "await log REGEXP".
func await(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 2 {
		ts.Fatalf("usage: await FILE REGEXP")
	}
	want, err := regexp.Compile("(?m)" + args[1])
	ts.Check(err)
	for end := time.Now().Add(patience); ; time.Sleep(10 * time.Millisecond) {
		text, err := os.ReadFile(ts.MkAbs(args[0]))
		if err == nil && want.Match(text) {
			return
		}
		if time.Now().After(end) {
			ts.Fatalf("%s has no %q after %v: %v\n%s", args[0], args[1], patience, err, text)
		}
	}
}

// fetch makes a GET request over a unix socket and wants the status:
// "fetch 200 SOCKET PATH [FILE]". The body goes to FILE.
func fetch(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 3 {
		ts.Fatalf("usage: fetch STATUS SOCKET PATH [FILE]")
	}
	status, body, err := fetchOnce(ts.MkAbs(args[1]), args[2])
	ts.Check(err)
	if got := fmt.Sprint(status); got != args[0] {
		ts.Fatalf("status %s, want %s:\n%s", got, args[0], body)
	}
	if len(args) > 3 {
		ts.Check(os.WriteFile(ts.MkAbs(args[3]), body, 0o644))
	}
}

func fetchOnce(socket, path string) (status int, body []byte, err error) {
	client := &http.Client{Timeout: patience, Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", socket)
		},
	}}
	res, err := client.Get("http://localhost" + path)
	if err != nil {
		return 0, nil, err
	}
	defer res.Body.Close()
	body, err = io.ReadAll(res.Body)
	return res.StatusCode, body, err
}

// awaitBody asks until the answer is the text of a file: "awaitbody SOCKET PATH FILE".
func awaitBody(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 3 {
		ts.Fatalf("usage: awaitbody SOCKET PATH FILE")
	}
	want := ts.ReadFile(args[2])
	for end := time.Now().Add(patience); ; time.Sleep(10 * time.Millisecond) {
		status, body, err := fetchOnce(ts.MkAbs(args[0]), args[1])
		if err == nil && string(body) == want {
			return
		}
		if time.Now().After(end) {
			ts.Fatalf("status %d, %v, %q after %v, want %q", status, err, body, patience, want)
		}
	}
}

// hang connects to a unix socket, sends a text with escapes as Go has them, and keeps
// the connection until the script ends: "hang SOCKET [TEXT]".
func hang(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 1 || len(args) > 2 {
		ts.Fatalf("usage: hang SOCKET [TEXT]")
	}
	c, err := net.Dial("unix", ts.MkAbs(args[0]))
	ts.Check(err)
	ts.Defer(func() { _ = c.Close() })
	if len(args) == 2 {
		text, err := strconv.Unquote(`"` + args[1] + `"`)
		ts.Check(err)
		_, err = io.WriteString(c, text)
		ts.Check(err)
	}
}

// sendSignal signals the process whose number a file has: "signal TERM FILE".
// (The kill of testscript knows no SIGTERM.)
func sendSignal(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 2 {
		ts.Fatalf("usage: signal NAME FILE")
	}
	pid, err := strconv.Atoi(strings.TrimSpace(ts.ReadFile(args[1])))
	ts.Check(err)
	ts.Check(unix.Kill(pid, unix.SignalNum("SIG"+args[0])))
}
