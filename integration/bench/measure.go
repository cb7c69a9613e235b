package main

import (
	"context"
	"fmt"
	"os"
	"strings"
	"time"
)

// idleShare is how much of a core a side may use while another one is loaded.
// More would make the other one look slow, so it is reported.
const idleShare = 0.01

// sample is one run of one side.
type sample struct {
	load
	cpu, nginxCPU time.Duration // used by the side's process tree and by nginx's
	peak          int64         // bytes
}

// series is all runs of one side in a group.
type series struct {
	side
	samples  []sample
	problems []string      // in the order they were seen, each once
	idle     time.Duration // CPU time used while others were loaded,
	idleFor  time.Duration // in this time
}

// problem notes what a side did wrong, once.
func (s *series) problem(format string, args ...any) {
	text := fmt.Sprintf(format, args...)
	for _, p := range s.problems {
		if p == text {
			return
		}
	}
	s.problems = append(s.problems, text)
	fmt.Fprintf(os.Stderr, "  %s: %s\n", s.side, text)
}

// contest is a group that is running: series[i] belongs to up[i]. up[i] is nil
// if the side does not work.
type contest struct {
	*bench
	group
	up     []*running
	series []*series
}

// measure runs one group and returns a result for each pair in it.
func (b *bench) measure(ctx context.Context, g group) ([]result, error) {
	fmt.Fprintf(os.Stderr, "%s: %v\n", g.name, g.sides)
	c := &contest{bench: b, group: g}
	defer c.stop()
	c.start(ctx)
	c.warmUp(ctx)
	for round := 0; round < b.rounds && ctx.Err() == nil; round++ {
		for i := range c.up {
			c.run(ctx, i)
		}
	}
	for i, r := range c.up { // does it still answer as it should?
		if r != nil {
			if err := check(ctx, r.url, g.benchCase); err != nil && ctx.Err() == nil {
				c.series[i].problem("after the load: %v", err)
			}
		}
	}
	if b.profileTo != "" {
		for i := range c.up {
			c.profile(ctx, i)
		}
	}
	return c.results(), ctx.Err()
}

// start starts all sides and makes one checked request to each.
func (c *contest) start(ctx context.Context) {
	for _, s := range c.sides {
		data := &series{side: s}
		r, err := c.startSide(s, c.benchCase)
		if err != nil {
			data.problem("does not start: %v", err)
		}
		c.series, c.up = append(c.series, data), append(c.up, r)
	}
	for i, r := range c.up {
		if r == nil {
			continue
		}
		err := poll(ctx, r.process, func() error { return check(ctx, r.url, c.benchCase) })
		if err == nil {
			err = c.samePython(ctx, r)
		}
		if err != nil {
			c.series[i].problem("not measured: %v", err)
			r.stop()
			c.up[i] = nil
		}
	}
}

// samePython refuses a side whose interpreter is not the one of the others.
func (c *contest) samePython(ctx context.Context, r *running) error {
	version, err := interpreter(ctx, r.url)
	if err != nil {
		return fmt.Errorf("which Python: %w", err)
	}
	if c.version == "" {
		c.version = version
	}
	if version != c.version {
		return fmt.Errorf("it runs Python %s, the others run %s (see --python)", version, c.version)
	}
	return nil
}

// stop ends all sides.
func (c *contest) stop() {
	for _, r := range c.up {
		if r != nil {
			r.stop()
		}
	}
}

// warmUp loads each side for a second that is not counted.
func (c *contest) warmUp(ctx context.Context) {
	for i, r := range c.up {
		if r == nil {
			continue
		}
		if _, err := c.wrk(ctx, r, c.benchCase, 1); err != nil && ctx.Err() == nil {
			c.series[i].problem("warm-up: %v", err)
		}
	}
}

// run loads one side once and records it.
func (c *contest) run(ctx context.Context, i int) {
	r, s := c.up[i], c.series[i]
	if r == nil {
		return
	}
	if err := resetPeak(r.cmd.Process.Pid); err != nil {
		s.problem("its peak memory is since its start: %v", err)
	}
	logged := fileSize64(c.nginxLog())
	before := c.usage()
	l, err := c.wrk(ctx, r, c.benchCase, c.seconds)
	after := c.usage()
	if ctx.Err() != nil {
		return
	}
	c.noteLog(i, logged)
	if err != nil {
		s.problem("%v", err)
		return
	}
	if err := r.ended(); err != nil { // no figures of a run that it did not survive
		s.problem("%v\nthis run had %d failures in %d requests; it is not measured further", err, l.errors(), l.Requests)
		r.stop()
		c.up[i] = nil
		return
	}
	c.record(i, l, before, after)
}

// record keeps the figures of a run of side i.
func (c *contest) record(i int, l load, before, after usage) {
	s := c.series[i]
	peak, err := peakMemory(c.up[i].cmd.Process.Pid)
	if err != nil {
		s.problem("peak memory: %v", err)
	}
	s.samples = append(s.samples, sample{
		load: l, peak: peak,
		cpu:      after.sides[i] - before.sides[i],
		nginxCPU: after.nginx - before.nginx,
	})
	c.noteIdle(i, before, after)
	c.judge(i, l)
	fmt.Fprintf(os.Stderr, "  %-22s %9.0f/s  p50 %.2f ms  p99 %.2f ms\n",
		s.side, l.perSecond(), float64(l.P50)/1e3, float64(l.P99)/1e3)
}

// usage is the CPU time of everybody at one moment.
type usage struct {
	at    time.Time
	nginx time.Duration
	sides []time.Duration
}

func (c *contest) usage() usage {
	u := usage{sides: make([]time.Duration, len(c.up))}
	for i, r := range c.up {
		if r != nil {
			u.sides[i], _ = cpuTime(r.cmd.Process.Pid) // 0: gone, which run reports
		}
	}
	u.nginx, _ = cpuTime(c.nginx.cmd.Process.Pid)
	u.at = time.Now()
	return u
}

// noteIdle adds what the other sides used while side i was loaded.
func (c *contest) noteIdle(loaded int, before, after usage) {
	for i, s := range c.series {
		if i != loaded && c.up[i] != nil {
			s.idle += after.sides[i] - before.sides[i]
			s.idleFor += after.at.Sub(before.at)
		}
	}
}

// judge reports what a side did wrong under one run's load.
func (c *contest) judge(i int, l load) {
	s := c.series[i]
	if l.good() == 0 {
		s.problem("no request succeeded in a run")
	}
	// What is counted holds the headers and the begun answers too, so that it
	// is less than the bodies only if some were cut short.
	if l.Bytes < l.good()*int64(len(c.want)) {
		s.problem("answers were cut short: %d bytes for %d answers of %d", l.Bytes, l.good(), len(c.want))
	}
}

// noteLog reports nginx's first complaint about a side's socket in what its log
// has got since a run began. nginx names the socket in each such line; what it
// still had to write about another side's run is not this side's.
func (c *contest) noteLog(i int, from int64) {
	b, err := os.ReadFile(c.nginxLog())
	if err != nil || int64(len(b)) <= from {
		return
	}
	for line := range strings.Lines(string(b[from:])) {
		if !strings.Contains(line, c.socket(c.series[i].side)) {
			continue
		}
		if _, text, ok := strings.Cut(line, " *"); ok { // after date, level, process, connection
			_, line, _ = strings.Cut(text, " ")
		}
		line, _, _ = strings.Cut(line, ", client:")
		c.series[i].problem("nginx's error log: %s", strings.TrimSpace(line))
		return
	}
}

func fileSize64(path string) int64 {
	info, err := os.Stat(path)
	if err != nil {
		return 0 // not written yet
	}
	return info.Size()
}
