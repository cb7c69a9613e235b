package pyrunner

import (
	"bytes"
	"fmt"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// Usage is what a worker's process has used of the machine.
type Usage struct {
	CPU     time.Duration // user and system, of all its threads since its start
	RSS     int64         // bytes of resident memory, now
	PeakRSS int64         // bytes, the most that it ever was
}

// usageEvery is how old a Usage may be: people look at it, and the kernel has to
// write a whole page of text for the peak.
const usageEvery = 250 * time.Millisecond

// meter reads what one process uses. Its zero value measures nothing.
type meter struct {
	pid int

	mu    sync.Mutex
	statm int // descriptor of /proc/PID/statm, kept open; 0: none
	taken int64
	last  Usage
	buf   [2048]byte // of /proc/PID/statm and status
}

// begin measures that process, which lives. The open file stays that process's,
// whoever gets its number afterwards (proc(5): reading it then fails).
func (m *meter) begin(pid int) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.pid = pid
	fd, err := unix.Open(fmt.Sprintf("/proc/%d/statm", pid), unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err == nil {
		m.statm = fd
	}
}

// close ends the measuring; what was measured last stays.
func (m *meter) close() {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.statm > 0 {
		_ = unix.Close(m.statm)
		m.statm = 0
	}
}

// usage returns what the worker uses, as it was at most usageEvery ago. Of a process
// that is gone it returns what was measured last.
func (w *worker) usage() Usage {
	m := &w.meter
	m.mu.Lock()
	defer m.mu.Unlock()
	now := monotonic()
	if m.statm == 0 || m.taken > 0 && now-m.taken < int64(usageEvery) {
		return m.last
	}
	m.taken = now
	m.readRSS()
	if cpu := processCPU(m.pid); cpu > 0 {
		m.last.CPU = cpu
	}
	m.last.PeakRSS = max(m.last.PeakRSS, m.readPeak())
	return m.last
}

// rss returns the bytes of resident memory that the worker has now, 0 if that is not
// known. It costs one system call.
func (w *worker) rss() int64 {
	m := &w.meter
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.readRSS()
}

// peakRSS returns the most that the worker ever had. It costs as much as rss, and
// misses what was used and freed again since usage looked.
func (w *worker) peakRSS() int64 {
	m := &w.meter
	m.mu.Lock()
	defer m.mu.Unlock()
	m.readRSS()
	return m.last.PeakRSS
}

// cpu returns the processor time of the worker, of all its threads since its start;
// 0 if it is gone. It costs one system call.
func (w *worker) cpu() time.Duration { return processCPU(w.pid) }

// readRSS reads /proc/PID/statm: size and resident, in pages (proc(5)).
func (m *meter) readRSS() int64 {
	if m.statm == 0 {
		return 0
	}
	n, err := unix.Pread(m.statm, m.buf[:], 0)
	if err != nil {
		return 0
	}
	_, rest, _ := bytes.Cut(m.buf[:n], []byte{' '})
	m.last.RSS = decimal(rest) * pageSize
	m.last.PeakRSS = max(m.last.PeakRSS, m.last.RSS)
	return m.last.RSS
}

var pageSize = int64(os.Getpagesize())

// readPeak reads VmHWM of /proc/PID/status, in kB.
func (m *meter) readPeak() int64 {
	fd, err := unix.Open(fmt.Sprintf("/proc/%d/status", m.pid), unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return 0
	}
	defer unix.Close(fd)
	n, err := unix.Read(fd, m.buf[:])
	if err != nil {
		return 0
	}
	return decimal(fieldOf(m.buf[:n], "VmHWM:")) << 10
}

// fieldOf returns what follows a name at the beginning of a line, up to the line's
// end; nil if there is none.
func fieldOf(text []byte, name string) []byte {
	for line := range bytes.Lines(text) {
		if len(line) > len(name) && string(line[:len(name)]) == name {
			return bytes.TrimSpace(line[len(name):])
		}
	}
	return nil
}

// decimal returns the number that a text begins with; 0 if it does not.
func decimal(text []byte) (n int64) {
	for _, c := range text {
		if c < '0' || c > '9' {
			break
		}
		n = n*10 + int64(c-'0')
	}
	return n
}

// processCPU reads a process's CPU clock. The clock's number is made of the process's
// as clock_getcpuclockid(3) makes it; the kernel lets everybody read it.
func processCPU(pid int) time.Duration {
	const scheduled = 2 // CPUCLOCK_SCHED: nanoseconds of the scheduler, not ticks
	var ts unix.Timespec
	if pid <= 0 || unix.ClockGettime(int32(^pid)<<3|scheduled, &ts) != nil {
		return 0
	}
	return time.Duration(ts.Nano())
}
