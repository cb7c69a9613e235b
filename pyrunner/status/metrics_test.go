package status

import (
	"go/parser"
	"go/token"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus/testutil"

	"wsgigate/pyrunner"
)

var samples = map[string]func() pyrunner.Status{
	"busy": busyStatus, "idle": idleStatus, "crash loop": crashLoopStatus, "hostile": hostileStatus,
	"empty": func() pyrunner.Status { return pyrunner.Status{} },
}

// TestMetricsLint: names and help texts are as Prometheus wants them, and the
// metrics agree with each other, whatever the status is.
func TestMetricsLint(t *testing.T) {
	for name, sample := range samples {
		problems, err := testutil.GatherAndLint(newRegistry(testFacts, &fixed{status: sample()}))
		if err != nil {
			t.Errorf("%s: %v", name, err)
		}
		for _, p := range problems {
			if strings.HasPrefix(p.Metric, "wsgigate_") {
				t.Errorf("%s: %s: %s", name, p.Metric, p.Text)
			}
		}
	}
}

// TestMetricsOneStatus: all of a scrape is of one moment.
func TestMetricsOneStatus(t *testing.T) {
	source := &fixed{status: busyStatus()}
	if _, err := newRegistry(testFacts, source).Gather(); err != nil {
		t.Fatal(err)
	}
	if n := source.asked.Load(); n != 1 {
		t.Errorf("the status was asked for %d times", n)
	}
}

func TestMetricsValues(t *testing.T) {
	text := body(t, ask(t, busyStatus(), "GET", "/metrics"))
	for _, want := range []string{
		`wsgigate_info{app="mysite:application",version="1.2.0"} 1`,
		`wsgigate_state{state="ready"} 1`, `wsgigate_state{state="crash loop"} 0`,
		`wsgigate_workers{state="ready"} 2`, `wsgigate_workers{state="starting"} 1`, `wsgigate_workers_busy 2`,
		`wsgigate_worker_cpu_seconds_total{pid="4112"} 151`, `wsgigate_worker_resident_memory_bytes{pid="4120"} 6.3963136e+07`,
		`wsgigate_requests_running 3`, `wsgigate_requests_waiting 700`, `wsgigate_request_longest_seconds 14.2`,
		`wsgigate_requests_total{result="answered"} 130401`, `wsgigate_responses_total{code="504"} 8`,
		`wsgigate_request_duration_seconds_bucket{le="0.0005"} 310`, `wsgigate_request_duration_seconds_bucket{le="60"} 131459`,
		`wsgigate_request_duration_seconds_bucket{le="+Inf"} 131459`, `wsgigate_request_duration_seconds_count 131459`,
		`wsgigate_reload_last_success 1`, `wsgigate_reload_last_duration_seconds 0.412`, `wsgigate_crash_loop 0`,
	} {
		if !strings.Contains(text, "\n"+want+"\n") {
			t.Errorf("no line %q in\n%s", want, text)
		}
	}
	for _, own := range []string{"\ngo_goroutines ", "\nprocess_open_fds "} {
		if !strings.Contains(text, own) {
			t.Errorf("no metric %q of the gateway's own", own)
		}
	}
}

// TestMetricsNegotiated: a scraper gets the format that it asks for.
func TestMetricsNegotiated(t *testing.T) {
	for accept, want := range map[string]string{
		"":           "text/plain; version=0.0.4",
		"text/plain": "text/plain; version=0.0.4",
		"application/openmetrics-text;version=1.0.0,text/plain;q=0.5": "application/openmetrics-text; version=1.0.0",
	} {
		res := ask(t, busyStatus(), "GET", "/metrics", "Accept", accept)
		text := body(t, res)
		if got := res.Header.Get("Content-Type"); !strings.HasPrefix(got, want) {
			t.Errorf("Accept %q: Content-Type %q, want %q", accept, got, want)
		}
		if ends := strings.HasSuffix(text, "# EOF\n"); ends != strings.Contains(want, "openmetrics") {
			t.Errorf("Accept %q: the answer ends in # EOF: %v", accept, ends)
		}
	}
}

// TestMetricsDocumented: the package's documentation names each metric, and no other.
func TestMetricsDocumented(t *testing.T) {
	file, err := parser.ParseFile(token.NewFileSet(), "doc.go", nil, parser.ParseComments)
	if err != nil {
		t.Fatal(err)
	}
	_, list, _ := strings.Cut(file.Doc.Text(), "# Metrics")
	list, _, _ = strings.Cut(list, "\nThe two that")
	names := regexp.MustCompile(`wsgigate_\w+`)
	documented := names.FindAllString(list, -1)
	var made []string
	for _, d := range allDescs {
		made = append(made, names.FindString(d.String()))
	}
	slices.Sort(documented)
	slices.Sort(made)
	if !slices.Equal(documented, made) {
		t.Errorf("documented: %q\nmade:       %q", documented, made)
	}
}
