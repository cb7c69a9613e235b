package integration

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestApplicationForms: whatever way the application is named, it answers.
func TestApplicationForms(t *testing.T) {
	t.Parallel()
	for name, app := range map[string]string{
		"module and callable": "mistakes:hello",
		"factory":             "mistakes:create_app()",
		"default name":        "accept_forms",
		"file":                "./accept_forms.py",
		"file and callable":   "mistakes.py:hello",
		"file in a folder":    "site/page.wsgi",
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := prepare(t)
			source := "import mistakes\napplication = mistakes.hello\n"
			write(t, filepath.Join(s.apps(), "accept_forms.py"), source)
			write(t, filepath.Join(s.apps(), "site", "page.wsgi"), "import beside\napp = beside.hello\n")
			beside, err := os.ReadFile(filepath.Join(s.apps(), "mistakes.py"))
			if err != nil {
				t.Fatal(err)
			}
			write(t, filepath.Join(s.apps(), "site", "beside.py"), string(beside))
			s.run(t, nil, app, "--workers", "1")
			s.awaitAnnounced(t)
			if got := s.want(t, "http", get("/"), 200).body; string(got) != "hello" {
				t.Errorf("answer %q", got)
			}
		})
	}
}

func write(t testing.TB, file, text string) {
	t.Helper()
	mkdir(t, filepath.Dir(file))
	if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

// TestMistakesAtStart: an application that cannot be loaded ends the start with
// status 1, its own sentence and the mend, before a listener is announced
// (FAULTS.md, row 29).
func TestMistakesAtStart(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		app  string
		says []string
	}{
		"no module":         {"nowhere:app", []string{"there is no module 'nowhere'", "--chdir DIR or --pythonpath DIR"}},
		"module elsewhere":  {"below:app", []string{"there is one in", "use --chdir"}},
		"no attribute":      {"mistakes:helo", []string{"mistakes has no 'helo'", "mistakes:hello"}},
		"no default":        {"mistakes", []string{"neither 'application' nor 'app'", "mistakes:create_app()"}},
		"not callable":      {"mistakes:settings", []string{"is not callable but of type dict", "(environ, start_response)"}},
		"one argument":      {"mistakes:one_argument", []string{"takes 1 argument", "(environ, start_response)"}},
		"factory as app":    {"mistakes:create_app", []string{"takes no arguments", "write mistakes:create_app()"}},
		"factory of None":   {"mistakes:make_nothing()", []string{"what mistakes:make_nothing() returned is not callable but None"}},
		"asgi":              {"mistakes:asgi", []string{"ASGI", "adapter"}},
		"raises":            {"raising:app", []string{"raising cannot be imported: RuntimeError: no database at import", "Traceback (most recent call last)", `raising.py", line 3`}},
		"import is missing": {"wants_missing:app", []string{"imports 'not_installed_anywhere', which is missing", "--python", "Traceback"}},
		"syntax":            {"broken:app", []string{"broken has a syntax error at", "broken.py:2"}},
		"no file":           {"site/none.wsgi", []string{"site/none.wsgi does not exist", "--chdir"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := prepare(t)
			write(t, filepath.Join(s.apps(), "broken.py"), "def app(environ, start_response):\n    return (\n")
			write(t, filepath.Join(s.apps(), "folder", "below.py"), "")
			s.run(t, nil, c.app, "--workers", "2")
			if code := s.awaitExit(t, startTime); code != 1 {
				t.Errorf("exit status %d, want 1", code)
			}
			s.says(t, 1, c.says...)
			s.saysNot(t, "is answered by", "pyrunner:")
			if _, err := os.Lstat(s.addrs["fastcgi"]); err == nil {
				t.Error("the socket file is left behind")
			}
		})
	}
}

// TestMistakesInRequests: what only a call shows is a 500 without details, and
// its sentence is in the log.
func TestMistakesInRequests(t *testing.T) {
	t.Parallel()
	for app, sentence := range map[string]string{
		"returns_none": "the application returned None",
		"yields_str":   "WSGI body blocks must be bytes, not str: encode it",
		"returns_str":  "the application returned str: return a list of bytes blocks",
		"no_start":     "start_response",
	} {
		t.Run(app, func(t *testing.T) {
			t.Parallel()
			s := launch(t, "mistakes:"+app, "--workers", "1")
			for _, transport := range transports {
				a := s.want(t, transport, get("/"), 500)
				if text := string(a.body); strings.Contains(text, "mistakes") || strings.Contains(text, "Traceback") {
					t.Errorf("%s: the client sees details: %q", transport, text)
				}
			}
			s.awaitLog(t, "ERROR request failed .*pid=.*phase=.*error=.*"+sentence)
			s.signal(t, sigterm)
			if code := s.awaitExit(t, stopTime); code != 0 {
				t.Errorf("exit status %d", code)
			}
		})
	}
}

// TestDebug: with --debug the browser shows the traceback, escaped, and
// wsgiref.validate stands around the application; without it, no details.
func TestDebug(t *testing.T) {
	t.Parallel()
	for _, debug := range []bool{true, false} {
		var flags []string
		if debug {
			flags = []string{"--debug"}
		}
		s := launch(t, "fault_app:app", append(flags, "--workers", "1")...)
		for _, transport := range transports {
			text := string(s.want(t, transport, get("/raise"), 500).body)
			shown := strings.Contains(text, "Traceback") && strings.Contains(text, "&lt;script&gt;") && strings.Contains(text, "fault_app.py")
			if shown != debug || strings.Contains(text, "<script>") {
				t.Errorf("debug %v, %s: %q", debug, transport, text)
			}
			if !debug && strings.Contains(text, "secret") {
				t.Errorf("%s: details without --debug: %q", transport, text)
			}
		}
		want := 200
		if debug { // the validator finds the application's mistake
			want = 500
		}
		s.want(t, "http", get("/invalid"), want)
	}
}

// says wants each text in the log so many times.
func (s *server) says(t testing.TB, times int, texts ...string) {
	t.Helper()
	log := s.text(t)
	for _, text := range texts {
		if n := strings.Count(log, text); n != times {
			t.Errorf("the log has %q %d times, want %d:\n%s", text, n, times, log)
		}
	}
}

func (s *server) saysNot(t testing.TB, texts ...string) { t.Helper(); s.says(t, 0, texts...) }
