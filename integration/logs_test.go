package integration

import (
	"bufio"
	"errors"
	"io/fs"
	"os"
	"regexp"
	"strings"
	"testing"
)

// logFault matches lines that no log of any server may have, and complaint those
// that it may have only if they are expected.
var (
	logFault = regexp.MustCompile(`(?i)` + strings.Join([]string{
		`\[(emerg|alert|crit)\]`, // nginx
		`:(emerg|alert|crit)\]`,  // Apache
		`segfault`, `segmentation fault`, `core dumped`, `signal 11`, `sigsegv`,
		`\bpanic: `, `fatal error: `, `goroutine \d+ \[`, `data race`,
		`AssertionError`, `WSGIWarning`, // of wsgiref.validate
	}, "|"))

	complaint = regexp.MustCompile(`(?i)` + strings.Join([]string{
		`\[error\]`,                      // nginx
		`:error\]`,                       // Apache
		`\(mod_\w+\.c\.\d+\)`,            // lighttpd, whose log has no levels
		`level=error`, `"level":"error"`, // the gateway
	}, "|"))
)

// errorsText is what the reflect application writes to wsgi.errors at /errors.
const errorsText = "a line for wsgi.errors"

// expected are the lines that the conformance table itself causes: wsgi.errors,
// and the traceback of the page that fails.
var expected = []string{
	errorsText,
	`details that a client must not see`,
	`FastCGI-stderr:`,                    // lighttpd, before each line of wsgi.errors
	`FastCGI sent in stderr: "Traceback`, // nginx, before the first line of a record
	`AH01071: Got error '`,               // Apache's mod_proxy_fcgi, before each line
	`AH01215: `,                          // Apache's mod_cgid
}

// scanLog fails the test for each fault in a log that no pattern expects.
func scanLog(t testing.TB, file string, patterns ...string) {
	t.Helper()
	in, err := os.Open(file)
	if errors.Is(err, fs.ErrNotExist) {
		return // a server that had nothing to say
	}
	if err != nil {
		t.Error(err)
		return
	}
	defer in.Close()
	ok := regexp.MustCompile(strings.Join(append(patterns, expected...), "|"))
	lines := bufio.NewScanner(in)
	lines.Buffer(nil, maxLogLine)
	for lines.Scan() {
		line := lines.Text()
		if logFault.MatchString(line) || complaint.MatchString(line) && !ok.MatchString(line) {
			t.Errorf("%s: %s", file, line)
		}
	}
	if err := lines.Err(); err != nil {
		t.Errorf("%s: %v", file, err)
	}
}

// maxLogLine is more than any server writes.
const maxLogLine = 1 << 20

func TestLogFault(t *testing.T) {
	for line, want := range map[string]bool{
		`2026/01/02 [alert] 7#7: worker process 8 exited on signal 11`:                                              true,
		`2026/01/02 [error] 7#7: *1 upstream prematurely closed connection`:                                         true,
		`2026/01/02 [notice] 7#7: start worker processes`:                                                           false,
		`[Fri Jan 02 03:04:05 2026] [core:notice] [pid 7] AH00051: child pid 8 exit signal Segmentation fault (11)`: true,
		`[Fri Jan 02 03:04:05 2026] [proxy_fcgi:error] [pid 7] AH01067: Failed to read FastCGI header`:              true,
		`[Fri Jan 02 03:04:05 2026] [mpm_event:notice] [pid 7] AH00489: Apache configured`:                          false,
		`2026-01-02 03:04:05: (mod_fastcgi.c.421) unexpected end-of-file`:                                           true,
		`2026-01-02 03:04:05: (server.c.1909) server started (lighttpd/1.4.69)`:                                     false,
		`panic: runtime error: index out of range`:                                                                  true,
		`time=2026-01-02T03:04:05Z level=ERROR msg="worker failed"`:                                                 true,
		`time=2026-01-02T03:04:05Z level=INFO msg="listening"`:                                                      false,
	} {
		if got := logFault.MatchString(line) || complaint.MatchString(line); got != want {
			t.Errorf("%v for %q", got, line)
		}
	}
}
