package status

import (
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"wsgigate/pyrunner"
)

// shownIncidents are as many as the text has; a terminal is not high.
const shownIncidents = 5

// WriteText writes a snapshot for a terminal of width columns; 0 means that no
// line is cut. Whatever clients and applications sent, it moves no cursor.
func WriteText(w io.Writer, s Snapshot, width int) error {
	t := &text{Snapshot: s}
	t.head()
	t.numbers()
	t.troubles()
	t.workers()
	t.incidents()
	var out strings.Builder
	for line := range strings.Lines(t.String()) {
		line = strings.TrimRight(line, " \n")
		if width > 0 {
			line = cut(line, width)
		}
		out.WriteString(line + "\n")
	}
	_, err := io.WriteString(w, out.String())
	return err
}

// text is what WriteText has written so far.
type text struct {
	Snapshot
	strings.Builder
}

func (t *text) line(format string, args ...any) { fmt.Fprintf(t, format+"\n", args...) }

func (t *text) ago(at time.Time) string { return duration(t.Time.Sub(at)) }

func (t *text) head() {
	t.line("%s: %s, up %s, generation %d", visible(t.App), t.State, t.ago(t.Server.Started), t.Generation)
	t.line("  wsgigate %s, pid %d", visible(t.Server.Version), t.Server.PID)
	for _, l := range t.Server.Listeners {
		t.line("  %s", visible(l))
	}
}

func (t *text) numbers() {
	v := newView(t.Snapshot)
	_, running := t.Busy()
	t.line("")
	workers := fmt.Sprintf("%d of %s, %d ready, %d starting", len(t.Workers), v.Bounds(), t.Ready(), t.Starting)
	if t.Threads > 1 {
		workers += fmt.Sprintf(", %d threads each", t.Threads)
	}
	t.line("workers   %s", workers)
	t.line("now       %d running, %d of %d waiting, %s requests/s", running, t.Waiting, t.QueueLimit, v.RateText())
	t.line("latency   50%% %s, 95%% %s, 99%% %s", v.Quantile(.5), v.Quantile(.95), v.Quantile(.99))
	r := &t.Requests
	t.line("requests  %s: %s answered, %s failed, %s refused, %s cancelled",
		count(r.Total), count(r.Answered), count(r.Failed), count(r.Refused), count(r.Cancelled))
	var codes []string
	for _, code := range slices.Sorted(maps.Keys(r.Status)) {
		codes = append(codes, fmt.Sprintf("%d: %s", code, count(r.Status[code])))
	}
	t.list("statuses", codes)
	var events []string
	for _, h := range v.Happenings() {
		if h.Count > 0 {
			events = append(events, h.Name+" "+count(h.Count))
		}
	}
	t.list("events", events)
}

// list writes items, some on each line.
func (t *text) list(name string, items []string) {
	const onLine = 5
	for some := range slices.Chunk(items, onLine) {
		t.line("%-9s %s", name, strings.Join(some, ", "))
		name = ""
	}
}

func (t *text) troubles() {
	if c := t.CrashLoop; c != nil {
		retry := "now"
		if c.RetryAt.After(t.Time) {
			retry = "in " + duration(c.RetryAt.Sub(t.Time))
		}
		t.line("\nCRASH LOOP: workers end before they have answered anything, %d in a row, next try %s", c.Failures, retry)
		t.indented(c.Reason)
	}
	if r := t.Reload; r != nil {
		switch {
		case r.Running:
			t.line("\nreload    running for %s", t.ago(r.Began))
		case r.Error != "":
			t.line("\nRELOAD FAILED %s ago after %s, the old workers serve on", t.ago(r.Began), duration(r.Took))
			t.indented(r.Error)
		default:
			t.line("reload    %s ago, took %s", t.ago(r.Began), duration(r.Took))
		}
	}
	if t.PreloadOff != "" {
		t.line("preload   off: %s", visible(t.PreloadOff))
	}
}

func (t *text) indented(s string) {
	for line := range strings.Lines(strings.TrimRight(s, "\n")) {
		t.line("  %s", visible(strings.TrimRight(line, "\n")))
	}
}

func (t *text) workers() {
	if len(t.Workers) == 0 {
		return
	}
	t.line("")
	table := tabwriter.NewWriter(t, 0, 0, 2, ' ', 0)
	fmt.Fprintln(table, "PID\tSTATE\tAGE\tREQUESTS\tCPU\tMEMORY\tPEAK\tNOW")
	v := newView(t.Snapshot)
	for _, w := range t.Workers {
		now := []string{"idle " + duration(w.IdleFor)}
		if len(w.Current) > 0 {
			now = nil
		}
		for _, r := range w.Current {
			now = append(now, requestText(r))
		}
		state := v.WorkerWord(w)
		if w.Generation != t.Generation {
			state += fmt.Sprintf(", gen %d", w.Generation)
		}
		fmt.Fprintf(table, "%d\t%s\t%s\t%s\t%s\t%s\t%s\t%s\n", w.PID, state, t.ago(w.Started),
			count(w.Requests), duration(w.CPU), size(w.RSS), size(w.PeakRSS), now[0])
		for _, more := range now[1:] {
			fmt.Fprintf(table, "\t\t\t\t\t\t\t%s\n", more)
		}
	}
	_ = table.Flush() // writing to memory does not fail
}

// requestText is a request in a line.
func requestText(r pyrunner.RequestStatus) string {
	return fmt.Sprintf("%s %s %s", duration(r.For), cut(visible(r.Method), 20), cut(visible(r.URI), shownURI))
}

func (t *text) incidents() {
	if len(t.Incidents) == 0 {
		return
	}
	t.line("")
	table := tabwriter.NewWriter(t, 0, 0, 2, ' ', 0)
	fmt.Fprintln(table, "INCIDENT\tAGO\tPID\t")
	for _, i := range t.Incidents[:min(len(t.Incidents), shownIncidents)] {
		var what []string
		if i.Ended != "" {
			what = append(what, visible(i.Ended))
		}
		if i.Request != nil {
			what = append(what, requestText(*i.Request))
		}
		fmt.Fprintf(table, "%s\t%s\t%d\t%s\n", visible(i.Kind), t.ago(i.Time), i.PID, strings.Join(what, ": "))
	}
	_ = table.Flush() // writing to memory does not fail
	if more := len(t.Incidents) - shownIncidents; more > 0 {
		t.line("and %d more: wsgigate status --json has them with their stacks", more)
	}
}
