package integration

import (
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// readMetrics is a scraper: it reads all of stdin in the format of its argument, and
// prints the label that tells the application.
const readMetrics = `
import importlib, sys
parser = importlib.import_module(sys.argv[1])
text = sys.stdin.buffer.read().decode("utf-8", "strict")
families = list(parser.text_string_to_metric_families(text))
names = [family.name for family in families]
assert len(names) == len(set(names)), names
app, = (s.labels["app"] for f in families for s in f.samples if s.name == "wsgigate_info")
sys.stdout.buffer.write(app.encode())
`

// TestMetricsParsed: a reader that is not Go's own takes all of /metrics in both formats,
// also when a label needs each escape that there is.
func TestMetricsParsed(t *testing.T) {
	t.Parallel()
	addr := net127(freePort(t))
	s := prepare(t)
	app := filepath.Join(s.apps(), "an \"odd\"\\name\nof é=1,{}.py")
	code, err := os.ReadFile(filepath.Join(s.apps(), "fault_app.py"))
	if err == nil {
		err = os.WriteFile(app, code, 0o644)
	}
	if err != nil {
		t.Fatal(err)
	}
	s.run(t, nil, app, "--workers", "2", "--status", addr)
	s.await(t, "answer to /ready", startTime, func() bool { return s.scrape(addr, "/ready", "") != "" })
	s.want(t, "http", get("/ok"), http.StatusOK)
	for accept, parser := range map[string]string{
		"text/plain": "prometheus_client.parser",
		"application/openmetrics-text; version=1.0.0": "prometheus_client.openmetrics.parser",
	} {
		text := s.scrape(addr, "/metrics", accept)
		cmd := exec.Command(python(t), "-c", readMetrics, parser)
		cmd.Stdin = strings.NewReader(text)
		if out, err := cmd.CombinedOutput(); err != nil || string(out) != app {
			t.Errorf("%s: %v, %q, want %q of\n%s", accept, err, out, app, text)
		}
	}
}

// scrape returns the body of an answer with status 200, else nothing.
func (s *server) scrape(addr, path, accept string) string {
	r, err := http.NewRequest("GET", "http://"+addr+path, nil)
	if err != nil {
		return ""
	}
	r.Header.Set("Accept", accept)
	r.Close = true
	res, err := http.DefaultClient.Do(r)
	if err != nil {
		return ""
	}
	defer res.Body.Close()
	text, err := io.ReadAll(res.Body)
	if err != nil || res.StatusCode != http.StatusOK {
		return ""
	}
	return string(text)
}
