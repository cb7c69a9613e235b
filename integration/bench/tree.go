package main

import (
	"bytes"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"
)

// tick is the unit of CPU times in /proc/PID/stat: USER_HZ is 100 on every
// architecture that Go has Linux for.
const tick = time.Second / 100

// procStat is what the benchmark takes from /proc/PID/stat (proc(5)).
type procStat struct {
	pid, parent int
	cpu         time.Duration // of the process, its ended threads, and the children it has reaped
}

// parseStat reads one /proc/PID/stat. The name is in parentheses and may hold
// anything, so fields are counted from the last one.
func parseStat(pid int, stat []byte) (procStat, error) {
	end := bytes.LastIndexByte(stat, ')')
	fields := strings.Fields(string(stat[end+1:]))
	if end < 0 || len(fields) < 15 {
		return procStat{}, fmt.Errorf("pid %d: unexpected /proc/PID/stat: %q", pid, stat)
	}
	p := procStat{pid: pid}
	var err error
	if p.parent, err = strconv.Atoi(fields[1]); err != nil {
		return procStat{}, fmt.Errorf("pid %d: parent: %w", pid, err)
	}
	for _, f := range fields[11:15] { // utime, stime, cutime, cstime
		ticks, err := strconv.ParseInt(f, 10, 64)
		if err != nil {
			return procStat{}, fmt.Errorf("pid %d: CPU time: %w", pid, err)
		}
		p.cpu += time.Duration(ticks) * tick
	}
	return p, nil
}

// processTree returns a process and all its descendants. A process that goes
// while this looks is left out: its parent has its CPU time then.
func processTree(root int) ([]procStat, error) {
	names, err := os.ReadDir("/proc")
	if err != nil {
		return nil, err
	}
	children := map[int][]procStat{}
	var tree []procStat
	for _, n := range names {
		pid, err := strconv.Atoi(n.Name())
		if err != nil {
			continue
		}
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		if err != nil {
			continue
		}
		p, err := parseStat(pid, b)
		if err != nil {
			return nil, err
		}
		if pid == root {
			tree = append(tree, p)
		}
		children[p.parent] = append(children[p.parent], p)
	}
	for i := 0; i < len(tree); i++ {
		tree = append(tree, children[tree[i].pid]...)
	}
	return tree, nil
}

// cpuTime is what a process tree has used so far, user and system.
func cpuTime(root int) (time.Duration, error) {
	tree, err := processTree(root)
	var sum time.Duration
	for _, p := range tree {
		sum += p.cpu
	}
	return sum, err
}

// resetPeak sets the VmHWM of each process of a tree to what it has now.
func resetPeak(root int) error {
	tree, err := processTree(root)
	if err != nil {
		return err
	}
	for _, p := range tree {
		if err := os.WriteFile(fmt.Sprintf("/proc/%d/clear_refs", p.pid), []byte("5"), 0); err != nil {
			return err
		}
	}
	return nil
}

// peakMemory is the sum of VmHWM over a process tree, in bytes. Pages that
// processes share count for each of them.
func peakMemory(root int) (int64, error) {
	tree, err := processTree(root)
	if err != nil {
		return 0, err
	}
	var sum int64
	for _, p := range tree {
		status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", p.pid))
		if err != nil {
			continue // it has just ended
		}
		for line := range strings.SplitSeq(string(status), "\n") {
			var kib int64
			if n, _ := fmt.Sscanf(line, "VmHWM: %d kB", &kib); n == 1 {
				sum += kib << 10
			}
		}
	}
	return sum, nil
}
