package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
)

// profile loads a side once more while perf samples its processes: the data and
// a list of the functions where the time goes are left in --profile's folder.
func (c *contest) profile(ctx context.Context, i int) {
	r, s := c.up[i], c.series[i]
	if r == nil {
		return
	}
	name := filepath.Join(c.profileTo, c.name+"-"+fileName(r.side))
	if err := c.perf(ctx, r, name+".data"); err != nil {
		s.problem("profile: %v", errors.Join(err, r.ended()))
		return
	}
	out, err := exec.CommandContext(ctx, "perf", "report", "--input", name+".data", "--stdio",
		"--no-children", "--call-graph", "none", "--sort", "comm,dso,symbol", "--percent-limit", "0.5").Output()
	if err == nil {
		err = os.WriteFile(name+".txt", out, 0o644)
	}
	if err != nil {
		s.problem("profile: %v", err)
	}
}

// perf runs perf record over one run of the load.
func (c *contest) perf(ctx context.Context, r *running, path string) error {
	tree, err := processTree(r.cmd.Process.Pid)
	if err != nil {
		return err
	}
	var pids []string
	for _, p := range tree {
		pids = append(pids, strconv.Itoa(p.pid))
	}
	var said strings.Builder
	perf := exec.Command("perf", "record", "--freq", "1999", "-g", "--output", path, "--pid", strings.Join(pids, ","))
	perf.Stderr = &said
	if err := perf.Start(); err != nil {
		return err
	}
	_, err = c.wrk(ctx, r, c.benchCase, c.seconds)
	_ = perf.Process.Signal(syscall.SIGINT) // it writes its file and ends
	_ = perf.Wait()                         // by that signal
	if _, missing := os.Stat(path); missing != nil {
		return fmt.Errorf("perf: %s", said.String())
	}
	return err
}
