package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os/exec"
	"strconv"
	"time"
)

// load is what wrk reports of one run; its JSON names are load.lua's.
type load struct {
	Micros   int64 `json:"micros"` // length of the run
	Requests int64 `json:"requests"`
	Bytes    int64 `json:"bytes"` // received, headers included
	P50      int64 `json:"p50"`   // latency, microseconds
	P99      int64 `json:"p99"`
	Status   int64 `json:"status"` // answers that are 400 or above
	Connect  int64 `json:"connect"`
	Read     int64 `json:"read"`
	Write    int64 `json:"write"`
	Timeout  int64 `json:"timeout"`
}

// good is how many requests were answered with a status below 400.
func (l load) good() int64 { return l.Requests - l.Status }

// perSecond is the throughput of good requests.
func (l load) perSecond() float64 {
	if l.Micros == 0 {
		return 0
	}
	return float64(l.good()) * 1e6 / float64(l.Micros)
}

// errors counts what went wrong.
func (l load) errors() int64 { return l.Status + l.Connect + l.Read + l.Write + l.Timeout }

// parseLoad finds load.lua's line in wrk's output.
func parseLoad(out []byte) (load, error) {
	var l load
	for line := range bytes.Lines(out) {
		if text, ok := bytes.CutPrefix(line, []byte("RESULT ")); ok {
			err := json.Unmarshal(text, &l)
			return l, err
		}
	}
	return l, fmt.Errorf("wrk printed no result:\n%s", out)
}

// wrk loads one side for some seconds.
func (b *bench) wrk(ctx context.Context, r *running, c benchCase, seconds int) (load, error) {
	body := ""
	if len(c.body) > 0 {
		body = b.bodyFile(c)
	}
	args := append([]string{
		"-t", strconv.Itoa(wrkThreads), "-c", strconv.Itoa(connections), "-d", fmt.Sprint(seconds, "s"),
		"--timeout", "10s", "-s", b.script(), r.url, "--", c.method, body,
	}, c.headers...)
	// wrk ends by itself; what hangs is ended here.
	ctx, cancel := context.WithTimeout(ctx, time.Duration(seconds)*time.Second+30*time.Second)
	defer cancel()
	out, err := exec.CommandContext(ctx, "wrk", args...).CombinedOutput()
	if err != nil {
		return load{}, fmt.Errorf("wrk: %w\n%s", err, out)
	}
	return parseLoad(out)
}
