package main

import (
	"fmt"
	"io"
	"slices"
	"strings"
)

// printMachine prints where this was measured.
func printMachine(w io.Writer, lines []string) {
	fmt.Fprintln(w, "### Benchmark")
	fmt.Fprintln(w)
	for _, l := range lines {
		fmt.Fprintln(w, "-", l)
	}
	fmt.Fprintln(w)
}

// printTable prints a line for each pair. Except for the throughput, a cell is
// the ratio and the two values: wsgigate's, the peer's.
func printTable(w io.Writer, results []result) {
	header := []string{"case", "wire", "against", "req/s", "theirs", "ratio", "min..max", "target",
		"p50 ms", "p99 ms", "CPU us/req", "nginx us/req", "peak MiB", "errors"}
	printRow(w, header)
	printRow(w, slices.Repeat([]string{"--"}, len(header)))
	for _, r := range results {
		printRow(w, append([]string{r.caseName, r.own.wire, against(r)}, cells(r)...))
	}
	fmt.Fprintln(w)
}

// against names the peer, and its wire if it is not the same.
func against(r result) string {
	if r.peer.wire != r.own.wire {
		return r.peer.String()
	}
	return r.peer.gateway
}

// cells are the figures of a line.
func cells(r result) []string {
	own, peer := r.own, r.peer
	out := []string{number(own.medianOf(throughput)), number(peer.medianOf(throughput))}
	if r.measured() {
		middle, low, high := r.throughputRatio()
		out = append(out, fmt.Sprintf("**%.2f**", middle), fmt.Sprintf("%.2f..%.2f", low, high))
	} else {
		out = append(out, "not measured", "")
	}
	out = append(out, targetCell(r))
	if !r.measured() {
		return append(out, slices.Repeat([]string{""}, 6)...)
	}
	return append(out,
		pair(own.medianOf(p50), peer.medianOf(p50)),
		pair(own.medianOf(p99), peer.medianOf(p99)),
		pair(own.medianOf(cpuEach), peer.medianOf(cpuEach)),
		pair(own.medianOf(nginxEach), peer.medianOf(nginxEach)),
		pair(own.peak(), peer.peak()),
		fmt.Sprintf("%d / %d", own.errors(), peer.errors()))
}

func targetCell(r result) string {
	switch {
	case r.target == 0:
		return ""
	case !r.measured():
		return fmt.Sprintf("%.1f", r.target)
	case r.met():
		return fmt.Sprintf("%.1f met", r.target)
	default:
		return fmt.Sprintf("%.1f **not met**", r.target)
	}
}

func pair(own, peer float64) string {
	if own == 0 && peer == 0 {
		return "" // nginx, where it is not used
	}
	return fmt.Sprintf("%.2f (%s / %s)", ratio(own, peer), number(own), number(peer))
}

// number prints three significant digits or whole numbers.
func number(x float64) string {
	switch {
	case x >= 100:
		return fmt.Sprintf("%.0f", x)
	case x >= 10:
		return fmt.Sprintf("%.1f", x)
	default:
		return fmt.Sprintf("%.2f", x)
	}
}

func printRow(w io.Writer, cells []string) {
	fmt.Fprintf(w, "| %s |\n", strings.Join(cells, " | "))
}

// printNotes says what the columns mean and who misbehaved.
func printNotes(w io.Writer, results []result) {
	fmt.Fprint(w, "Cases: ")
	var cases []string
	for _, c := range benchCases {
		if slices.ContainsFunc(results, func(r result) bool { return r.caseName == c.name }) {
			cases = append(cases, c.name+" ("+c.says+")")
		}
	}
	fmt.Fprintln(w, strings.Join(cases, "; ")+".")
	fmt.Fprint(w, `A ratio is wsgigate's median divided by the peer's; min..max are the ratios of neighbouring runs. CPU is user and
system time of the gateway and all its workers; nginx's is beside it. Peak memory is the sum of VmHWM over those
processes, shared pages counted for each. Errors: answers of 400 and above, and socket errors, in all runs.
`)
	fmt.Fprintln(w)
	var lines []string
	seen := map[*series]bool{}
	for _, r := range results {
		for _, s := range []*series{r.own, r.peer} {
			if !seen[s] {
				seen[s] = true
				lines = append(lines, complaints(r.caseName, s)...)
			}
		}
	}
	if len(lines) > 0 {
		fmt.Fprintf(w, "Misbehaved:\n\n%s\n", strings.Join(lines, ""))
	}
}

// complaints are what went wrong with a side in a case.
func complaints(caseName string, s *series) []string {
	var out []string
	add := func(text string) { out = append(out, fmt.Sprintf("- %s, %s: %s\n", caseName, s.side, text)) }
	var sum load
	for _, r := range s.samples {
		sum.Requests += r.Requests
		sum.Status += r.Status
		sum.Connect += r.Connect
		sum.Read += r.Read
		sum.Write += r.Write
		sum.Timeout += r.Timeout
	}
	if sum.errors() > 0 {
		add(fmt.Sprintf("of %d requests: %d with status 400 or above; socket errors: %d connect, %d read, %d write, %d timeout",
			sum.Requests, sum.Status, sum.Connect, sum.Read, sum.Write, sum.Timeout))
		if sum.Read > sum.Requests*9/10 { // wrk sends its next request into the closed connection
			add("it closes the connection after each answer and does not say so (Connection: close)")
		}
	}
	if s.idle.Seconds() > idleShare*s.idleFor.Seconds() {
		add(fmt.Sprintf("idle, it used %.1f %% of a core", 100*s.idle.Seconds()/s.idleFor.Seconds()))
	}
	for _, p := range s.problems {
		add(strings.ReplaceAll(p, "\n", "\n  "))
	}
	return out
}

// printSummary is one line: how many targets are met, and which are not.
func printSummary(w io.Writer, results []result) {
	var wanted, reached int
	var missed []string
	for _, r := range results {
		if r.target == 0 {
			continue
		}
		wanted++
		middle, _, _ := r.throughputRatio()
		switch {
		case !r.measured():
			missed = append(missed, fmt.Sprintf("%s %s against %s was not measured", r.caseName, r.own.wire, against(r)))
		case r.met():
			reached++
		default:
			missed = append(missed, fmt.Sprintf("%s %s against %s %.2f instead of %.1f",
				r.caseName, r.own.wire, against(r), middle, r.target))
		}
	}
	fmt.Fprintf(w, "**Targets: %d of %d met.**", reached, wanted)
	if len(missed) > 0 {
		fmt.Fprintf(w, " Not met: %s.", strings.Join(missed, "; "))
	}
	fmt.Fprintln(w)
}
