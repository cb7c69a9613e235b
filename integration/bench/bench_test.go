package main

import (
	"bytes"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"
)

func TestPlanSharesPeers(t *testing.T) {
	c, _ := caseNamed("hello")
	groups := plan([]benchCase{c}, allWires)
	var got [][]side
	for _, g := range groups {
		got = append(got, g.sides)
	}
	want := [][]side{
		{{wsgigate, fastcgiKept}, {wsgigate, fastcgi}, {uwsgi, fastcgi}},
		{{wsgigate, scgi}, {uwsgi, scgi}},
		{{wsgigate, direct}, {gunicorn, direct}, {uwsgi, direct}},
	}
	if !slices.EqualFunc(got, want, slices.Equal) {
		t.Errorf("plan = %v, want %v", got, want)
	}
	kept := plan([]benchCase{c}, []string{fastcgiKept})
	if len(kept) != 1 || !slices.Equal(kept[0].sides, []side{{wsgigate, fastcgiKept}, {uwsgi, fastcgi}}) {
		t.Errorf("plan of %s alone = %v", fastcgiKept, kept)
	}
}

func TestTargets(t *testing.T) {
	for _, c := range []struct {
		name, wire string
		peer       side
		want       float64
	}{
		{"hello", fastcgiKept, side{uwsgi, fastcgi}, 1.3},
		{"echo", fastcgi, side{uwsgi, fastcgi}, 1.0},
		{"hello", scgi, side{uwsgi, scgi}, 1.0},
		{"hello", direct, side{gunicorn, direct}, 3.0},
		{"hello", direct, side{uwsgi, direct}, 0},
		{"blocks", fastcgiKept, side{uwsgi, fastcgi}, 1.0},
		{"file", direct, side{gunicorn, direct}, 1.5},
	} {
		if got := target(c.name, c.wire, c.peer); got != c.want {
			t.Errorf("target(%s, %s, %s) = %v, want %v", c.name, c.wire, c.peer, got, c.want)
		}
	}
}

func TestOptionsRefused(t *testing.T) {
	for _, args := range [][]string{
		{"--cases", "hello,nonsense"}, {"--wires", "uwsgi"}, {"--rounds", "0"}, {"extra"},
	} {
		if _, err := parseOptions(args); err == nil {
			t.Errorf("parseOptions(%q): no error", args)
		}
	}
	o, err := parseOptions([]string{"--quick", "--rounds", "3", "--cases", "file,echo"})
	if err != nil {
		t.Fatal(err)
	}
	if o.rounds != 3 || o.seconds != 1 || len(o.cases) != 2 || o.cases[0].name != "file" {
		t.Errorf("options = %+v", o)
	}
}

// The echo application must be able to give the body back byte by byte.
func TestEchoRequest(t *testing.T) {
	cmd := exec.Command("python3", "-c",
		`import json,sys; sys.stdout.write(json.dumps(json.load(sys.stdin), separators=(",", ":")))`)
	cmd.Stdin = bytes.NewReader(jsonBody())
	out, err := cmd.Output()
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(out, jsonBody()) {
		t.Errorf("Python gives back\n%s\nfor\n%s", out, jsonBody())
	}
	if n := len(out); n < echoSize-100 || n > echoSize+100 {
		t.Errorf("the body has %d bytes, want about %d", n, echoSize)
	}
	if n := len(browserHeaders()) + 2; n != 20 { // wrk adds Host and Content-Length
		t.Errorf("%d headers, want 20", n)
	}
}

func TestParseStat(t *testing.T) {
	line := "42 (a) (b c) S 7 42 42 0 -1 4194304 1 2 3 4 150 50 30 20 20 0 1 0 99\n"
	p, err := parseStat(42, []byte(line))
	if err != nil {
		t.Fatal(err)
	}
	if want := (procStat{pid: 42, parent: 7, cpu: 2500 * time.Millisecond}); p != want {
		t.Errorf("parseStat = %+v, want %+v", p, want)
	}
	for _, bad := range []string{"", "42 (a", "42 (a) S 7", "42 (a) S x 42 42 0 -1 0 1 2 3 4 1 1 1 1 20 0"} {
		if _, err := parseStat(42, []byte(bad)); err == nil {
			t.Errorf("parseStat(%q): no error", bad)
		}
	}
}

// A tree holds the processes below its root, and its memory is all of theirs.
func TestProcessTree(t *testing.T) {
	p, err := startProcess(t.TempDir(), t.TempDir()+"/log", "/bin/sh", "-c", "sleep 60 & sleep 60 & wait")
	if err != nil {
		t.Fatal(err)
	}
	defer p.stop()
	deadline := time.Now().Add(10 * time.Second)
	for {
		tree, err := processTree(p.cmd.Process.Pid)
		if err != nil {
			t.Fatal(err)
		}
		if len(tree) == 3 {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("tree = %+v, want a shell and two children", tree)
		}
		time.Sleep(pollEvery)
	}
	all, err := peakMemory(p.cmd.Process.Pid)
	if err != nil || all <= 0 {
		t.Errorf("peakMemory = %d, %v", all, err)
	}
	if err := resetPeak(p.cmd.Process.Pid); err != nil {
		t.Errorf("resetPeak: %v", err)
	}
	if own, err := cpuTime(os.Getpid()); err != nil || own < 0 {
		t.Errorf("cpuTime = %v, %v", own, err)
	}
}

func TestParseLoad(t *testing.T) {
	out := "Running 1s test\n\nRESULT {\"micros\":2000000,\"requests\":110,\"bytes\":5,\"p50\":1500,\"p99\":9000," +
		"\"status\":10,\"connect\":1,\"read\":2,\"write\":3,\"timeout\":4}\n"
	l, err := parseLoad([]byte(out))
	if err != nil {
		t.Fatal(err)
	}
	if l.perSecond() != 50 || l.errors() != 20 || l.P99 != 9000 {
		t.Errorf("load = %+v: %v/s, %d errors", l, l.perSecond(), l.errors())
	}
	if _, err := parseLoad([]byte("unable to connect")); err == nil {
		t.Error("output without a result: no error")
	}
}

func TestMedian(t *testing.T) {
	for _, c := range []struct {
		values []float64
		want   float64
	}{{nil, 0}, {[]float64{3}, 3}, {[]float64{9, 1, 2}, 2}, {[]float64{4, 1, 2, 3}, 2.5}} {
		if got := median(c.values); got != c.want {
			t.Errorf("median(%v) = %v, want %v", c.values, got, c.want)
		}
	}
}

// fakeSeries has one run for each throughput.
func fakeSeries(s side, perSecond ...int64) *series {
	out := &series{side: s}
	for _, n := range perSecond {
		out.samples = append(out.samples, sample{load: load{Micros: 1e6, Requests: n, P50: 1000, P99: 2000},
			cpu: time.Second, peak: 1 << 20})
	}
	return out
}

func TestReport(t *testing.T) {
	own := fakeSeries(side{wsgigate, fastcgiKept}, 100, 130, 120)
	peer := fakeSeries(side{uwsgi, fastcgi}, 100, 100, 80)
	peer.samples[1].Read = 7
	silent := fakeSeries(side{uwsgi, scgi})
	silent.problem("not measured: it ended")
	results := []result{
		{"hello", own, peer, 1.3},
		{"file", own, peer, 1.0},
		{"hello", fakeSeries(side{wsgigate, scgi}, 100), silent, 1.0},
	}
	var out bytes.Buffer
	printTable(&out, results)
	printNotes(&out, results)
	printSummary(&out, results)
	for _, want := range []string{
		"| hello | fastcgi-kept | uwsgi fastcgi | 120 | 100 | **1.20** | 1.00..1.50 | 1.3 **not met** |",
		"| 1.0 met |",
		"| hello | scgi | uwsgi | 100 | 0.00 | not measured |",
		"0 / 7 |",
		"- hello, uwsgi fastcgi: of 280 requests: 0 with status 400 or above; socket errors: 0 connect, 7 read",
		"- hello, uwsgi scgi: not measured: it ended",
		"**Targets: 1 of 3 met.** Not met: hello fastcgi-kept against uwsgi fastcgi 1.20 instead of 1.3; " +
			"hello scgi against uwsgi was not measured.",
	} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("the report lacks %q:\n%s", want, &out)
		}
	}
}

func TestOwnFailure(t *testing.T) {
	good := fakeSeries(side{wsgigate, scgi}, 100)
	bad := fakeSeries(side{uwsgi, scgi}, 100)
	bad.samples[0].Status = 3
	if err := ownFailure([]result{{"hello", good, bad, 1}}); err != nil {
		t.Errorf("a peer's errors are not ours: %v", err)
	}
	good.samples[0].Status = 3
	if err := ownFailure([]result{{"hello", good, bad, 1}}); err == nil {
		t.Error("wsgigate answered 3 requests with an error: no error")
	}
}

// Only the socket and what keeps connections may differ between the sides.
func TestNginxConfigIsTheSame(t *testing.T) {
	b, err := newBench(&options{workers: 2, nginxWorkers: 1})
	if err != nil {
		t.Fatal(err)
	}
	defer b.close()
	config, err := b.nginxConfig()
	if err != nil {
		t.Fatal(err)
	}
	for text, want := range map[string]int{
		"listen 127.0.0.1:": 5, "upstream ": 1, "fastcgi_keep_conn on;": 1,
		"fastcgi_pass": 3, "scgi_pass": 2, "_param PATH_INFO $document_uri;": 5,
	} {
		if got := strings.Count(string(config), text); got != want {
			t.Errorf("%q is there %d times, want %d:\n%s", text, got, want, config)
		}
	}
}
