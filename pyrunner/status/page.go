package status

import (
	"crypto/sha256"
	_ "embed"
	"encoding/base64"
	"encoding/hex"
	"html/template"
	"time"

	"wsgigate/pyrunner"
)

var (
	//go:embed page.html
	pageHTML string
	//go:embed page.css
	pageCSS string
	//go:embed page.js
	pageJS string
)

// pagePolicy lets the page's own style and script in by their hashes, its icon,
// and requests to where it came from; nothing else, whatever a URI smuggles in.
var pagePolicy = "default-src 'none'; style-src '" + hash(pageCSS) + "'; script-src '" + hash(pageJS) + "'; " +
	"connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"

func hash(s string) string {
	sum := sha256.Sum256([]byte(s))
	return "sha256-" + base64.StdEncoding.EncodeToString(sum[:])
}

// edition changes with the page's style and script: a page that an older gateway
// gave loads itself anew.
var edition = func() string {
	sum := sha256.Sum256([]byte(pageCSS + pageJS + pageHTML))
	return hex.EncodeToString(sum[:6])
}()

var pages = template.Must(template.New("").Funcs(template.FuncMap{
	"style":    func() template.HTML { return template.HTML("<style>" + pageCSS + "</style>") },
	"script":   func() template.HTML { return template.HTML("<script>" + pageJS + "</script>") },
	"edition":  func() string { return edition },
	"duration": duration,
	"size":     size,
	"count":    count[uint64],
	"number":   count[int],
	"visible":  visible,
	"uri":      func(s string) string { return cut(visible(s), shownURI) },
	"text":     func(s string) string { return cut(visibleLines(s), shownText) },
	"clock":    func(t time.Time) string { return t.Format("2006-01-02 15:04:05 MST") },
	"iso":      func(t time.Time) string { return t.Format(time.RFC3339) },
}).Parse(pageHTML))

// What the page shows of one text; /status.json has it whole. Somebody's URL of
// 60 KiB would make the page unreadable, and it is sent again each second.
const (
	shownURI  = 240
	shownText = 16 << 10
)

// view is what the template sees: the snapshot, and what is computed from it.
type view struct {
	Snapshot
}

func newView(s Snapshot) *view { return &view{s} }

// Ago is how long ago something was.
func (v *view) Ago(t time.Time) string { return duration(v.Time.Sub(t)) }

// Until is how long it is until something.
func (v *view) Until(t time.Time) string { return duration(t.Sub(v.Time)) }

// RateText is the requests per second.
func (v *view) RateText() string { return perSecond(v.Rate) }

// Quantile is a latency for people.
func (v *view) Quantile(q float64) string { return quantileText(v.Latency, q) }

// Measured counts the requests of the histogram.
func (v *view) Measured() uint64 {
	if len(v.Latency) == 0 {
		return 0
	}
	return v.Latency[len(v.Latency)-1].Count
}

// Slots are the requests that all workers could have at once, and how many they
// have.
func (v *view) Slots() meter {
	_, running := v.Busy()
	return meter{running, max(running, len(v.Workers)*v.Threads)}
}

// Queue is how full the queue is.
func (v *view) Queue() meter { return meter{v.Waiting, v.QueueLimit} }

// meter is a part of a whole.
type meter struct{ Part, Whole int }

// Percent is the part as it is drawn.
func (m meter) Percent() float64 {
	if m.Whole <= 0 {
		return 0
	}
	return min(100, 100*float64(m.Part)/float64(m.Whole))
}

// Level colours a meter.
func (m meter) Level() string {
	switch p := m.Percent(); {
	case p >= 90:
		return "bad"
	case p >= 60:
		return "warn"
	}
	return "fine"
}

// Memory is what all workers hold.
func (v *view) Memory() (sum int64) {
	for i := range v.Workers {
		sum += v.Workers[i].RSS
	}
	return sum
}

// Peak is the most that one worker has ever held.
func (v *view) Peak() (most int64) {
	for i := range v.Workers {
		most = max(most, v.Workers[i].PeakRSS)
	}
	return most
}

// Bounds are the numbers of workers that may be.
func (v *view) Bounds() string {
	if v.MinWorkers == v.MaxWorkers {
		return count(v.MaxWorkers)
	}
	return count(v.MinWorkers) + " to " + count(v.MaxWorkers)
}

// column is one bar of the histogram.
type column struct {
	From, To string // of the bucket; To is empty in the last one
	Label    string
	Count    uint64
	Share    float64 // of all, in percent
	Height   float64 // of the highest, in percent
	Top      float64 // what is above the bar
}

// least is the height of a bar that is not empty, so that it can be seen.
const least = 2.5

// Columns are the bars of the histogram.
func (v *view) Columns() []column {
	columns := make([]column, len(v.Latency))
	var before, most uint64
	var from time.Duration
	for i, b := range v.Latency {
		c := column{From: duration(from), Count: b.Count - min(b.Count, before)}
		if b.Below > 0 {
			c.To, c.Label = duration(b.Below), duration(b.Below)
		} else {
			c.Label = ">" + duration(from)
		}
		before, from, most = b.Count, b.Below, max(most, c.Count)
		columns[i] = c
	}
	for i := range columns {
		c := &columns[i]
		if c.Count > 0 {
			c.Share = 100 * float64(c.Count) / float64(before)
			c.Height = max(least, 100*float64(c.Count)/float64(most))
		}
		c.Top = 100 - c.Height
	}
	return columns
}

// part is a stretch of the bar of how requests ended.
type part struct {
	Name, Level string
	Count       uint64
	From, Width float64 // in percent
}

// Outcomes are how requests ended.
func (v *view) Outcomes() []part {
	r := &v.Requests
	parts := []part{
		{Name: "answered", Level: "fine", Count: r.Answered},
		{Name: "failed", Level: "bad", Count: r.Failed},
		{Name: "refused", Level: "warn", Count: r.Refused},
		{Name: "cancelled", Level: "dull", Count: r.Cancelled},
	}
	all := float64(max(1, r.Answered+r.Failed+r.Refused+r.Cancelled))
	var at float64
	for i := range parts {
		parts[i].From, parts[i].Width = at, 100*float64(parts[i].Count)/all
		at += parts[i].Width
	}
	return parts
}

// Level colours a status code by its class.
func (v *view) Level(code int) string {
	switch {
	case code >= 500:
		return "bad"
	case code >= 400:
		return "warn"
	case code >= 300:
		return "dull"
	}
	return "fine"
}

// StateLevel colours the pool's state.
func (v *view) StateLevel() string {
	switch v.State {
	case pyrunner.HealthReady:
		return "fine"
	case pyrunner.HealthCrashLoop:
		return "bad"
	case pyrunner.HealthStarting, pyrunner.HealthReloading:
		return "warn"
	}
	return "dull"
}

// WorkerLevel colours a worker's state.
func (v *view) WorkerLevel(w pyrunner.WorkerStatus) string {
	switch {
	case w.State == "doomed":
		return "bad"
	case w.State == "draining":
		return "warn"
	case len(w.Current) > 0:
		return "busy"
	case w.State == stateReady:
		return "fine"
	}
	return "dull"
}

// WorkerWord is a worker's state in a word.
func (v *view) WorkerWord(w pyrunner.WorkerStatus) string {
	if w.State == stateReady && len(w.Current) > 0 {
		return "busy"
	}
	return visible(w.State)
}

// Load is the part of its life that a worker was computing, in percent.
func (v *view) Load(w pyrunner.WorkerStatus) string {
	age := v.Time.Sub(w.Started)
	if age <= 0 {
		return "0%"
	}
	return short(100*w.CPU.Seconds()/age.Seconds()) + "%"
}

// slow is from when on the page marks how long a request has been running.
const slow = 5 * time.Second

// Slow reports whether a request has been running for long.
func (v *view) Slow(r pyrunner.RequestStatus) bool { return r.For >= slow }

// happening is a number of events.
type happening struct {
	Name  string
	Count uint64
	Level string // if there were any
}

// Happenings are what happened to workers.
func (v *view) Happenings() []happening {
	e := &v.Events
	return []happening{
		{"workers started", e.Started, ""}, {"recycled", e.Recycled, ""},
		{"crashed", e.Crashed, "bad"}, {"out of memory", e.OutOfMemory, "bad"},
		{"requests timed out", e.TimedOut, "bad"}, {"slow", e.Slow, "warn"},
		{"retried", v.Requests.Retried, "warn"},
		{"reloads", e.Reloads, ""}, {"failed reloads", e.ReloadFailures, "bad"},
	}
}

// IncidentLevel colours an incident.
func (v *view) IncidentLevel(i pyrunner.Incident) string {
	if i.Kind == "slow" {
		return "warn"
	}
	return "bad"
}

// FirstLine and OtherLines are the two parts of an error: a sentence, and the
// traceback.
func (v *view) FirstLine(s string) string { return visible(firstLine(s)) }

// OtherLines are those after the first.
func (v *view) OtherLines(s string) string { return otherLines(s) }
