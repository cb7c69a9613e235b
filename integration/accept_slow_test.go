package integration

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

// The crowd of TestSlowClients.
const (
	slowSenders = 500 // clients that send a byte a second
	slowReaders = 500 // clients that read 1 KiB a second
	fastClients = 8
	slowPage    = 256 << 10 // bytes of the answer that the slow readers want

	attempts  = 3           // to measure
	rounds    = 5           // windows without and with the crowd
	window    = time.Second // in which the fast clients' requests are counted
	warming   = 300 * time.Millisecond
	mayLose   = 0.20 // of the fast clients' rate
	readEvery = time.Second
)

// TestSlowClients: a crowd of slow clients costs connections and no workers, so
// that the fast ones go on as before. It compares windows that alternate, counts
// requests by the processor time that other programs left, and measures
// again before it fails: the machine may do other things meanwhile.
func TestSlowClients(t *testing.T) {
	s := launch(t, "fault_app:app", "--workers", "2")
	var alone, beside float64
	for attempt := range attempts {
		alone, beside = s.measureCrowd(t)
		t.Logf("attempt %d: %.0f requests per free CPU second alone, %.0f beside %d slow clients", attempt, alone, beside, slowSenders+slowReaders)
		if beside >= (1-mayLose)*alone {
			return
		}
	}
	t.Errorf("the fast clients' rate fell from %.0f to %.0f requests per free CPU second", alone, beside)
}

// measureCrowd returns the medians of the fast clients' rates without and with
// the slow clients.
func (s *server) measureCrowd(t *testing.T) (alone, beside float64) {
	var without, with []float64
	for range rounds {
		without = append(without, s.fastRate(t))
		crowd := s.gather(t)
		with = append(with, s.fastRate(t))
		crowd.leave()
	}
	slices.Sort(without)
	slices.Sort(with)
	return without[rounds/2], with[rounds/2]
}

// fastRate is how many requests the fast clients make over kept connections, for
// each second of processor time that was free for them.
func (s *server) fastRate(t *testing.T) float64 {
	var count atomic.Int64
	var stop atomic.Bool
	var group sync.WaitGroup
	for range fastClients {
		group.Go(func() {
			conn := s.connect(t, "http")
			defer conn.Close()
			in := bufio.NewReader(conn)
			for !stop.Load() {
				if err := askKept(conn, in); err != nil {
					t.Errorf("fast client: %v", err)
					return
				}
				count.Add(1)
			}
		})
	}
	time.Sleep(warming)
	first, free := count.Load(), s.freeCPU(t)
	time.Sleep(window)
	n, took := count.Load()-first, s.freeCPU(t)-free
	stop.Store(true)
	group.Wait()
	return float64(n) / took.Seconds()
}

// freeCPU is the processor time so far that was idle or went to this test, the
// gateway and its workers. What other programs take does not count.
func (s *server) freeCPU(t *testing.T) time.Duration {
	all := cpuFields(t, "/proc/stat", "cpu ")
	ticks := all[3] + all[4] // idle and iowait
	for _, pid := range append(s.workers(t), s.cmd.Process.Pid, os.Getpid()) {
		own := cpuFields(t, fmt.Sprintf("/proc/%d/stat", pid), ") ")
		ticks += own[11] + own[12] // utime and stime, counted behind the name
	}
	return time.Duration(ticks) * time.Second / userHz
}

// userHz is the unit of times in /proc, in all of Linux's user interfaces.
const userHz = 100

// cpuFields returns the numbers of a file's first line behind a mark; what is no
// number is 0.
func cpuFields(t *testing.T, file, mark string) []int64 {
	t.Helper()
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	line, _, _ := strings.Cut(string(text), "\n")
	_, rest, _ := strings.Cut(line, mark)
	var numbers []int64
	for _, field := range strings.Fields(rest) {
		n, _ := strconv.ParseInt(field, 10, 64)
		numbers = append(numbers, n)
	}
	return numbers
}

func askKept(conn net.Conn, in *bufio.Reader) error {
	if _, err := io.WriteString(conn, "GET /ok HTTP/1.1\r\nHost: localhost\r\n\r\n"); err != nil {
		return err
	}
	resp, err := http.ReadResponse(in, nil)
	if err != nil {
		return err
	}
	_, err = io.Copy(io.Discard, resp.Body)
	return err
}

// crowd are slow clients that all send and read until they leave.
type crowd struct {
	t                *testing.T
	senders, readers []net.Conn
	stop             chan struct{}
	stopped          sync.WaitGroup
	served           atomic.Int64 // bytes that readers got
}

// gather connects the crowd. Half of the senders are slow with their header,
// half with their body. It returns when each has done its first step.
func (s *server) gather(t *testing.T) *crowd {
	c := &crowd{t: t, stop: make(chan struct{})}
	for i := range slowSenders {
		text := "GET /ok HTTP/1.1\r\nHost: localhost\r\nX-Slow: "
		if i%2 == 0 {
			text = "POST /ok HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100000\r\n\r\n"
		}
		c.senders = append(c.senders, c.dial(s, text))
	}
	for range slowReaders {
		c.readers = append(c.readers, c.dial(s, "GET /blocks?256 HTTP/1.1\r\nHost: localhost\r\n\r\n"))
	}
	c.awaitBegun()
	c.stopped.Go(func() { c.spread(c.senders, c.send) })
	c.stopped.Go(func() { c.spread(c.readers, c.read) })
	return c
}

// dial connects a slow client, whose small receive buffer lets the gateway feel it.
func (c *crowd) dial(s *server, text string) net.Conn {
	dialer := net.Dialer{Control: func(_, _ string, raw syscall.RawConn) error {
		return raw.Control(func(fd uintptr) {
			_ = syscall.SetsockoptInt(int(fd), syscall.SOL_SOCKET, syscall.SO_RCVBUF, 4<<10)
		})
	}}
	conn, err := dialer.Dial("tcp", s.addrs["http"])
	if err != nil {
		c.t.Fatal(err)
	}
	c.t.Cleanup(func() { conn.Close() })
	if _, err := io.WriteString(conn, text); err != nil {
		c.t.Fatal(err)
	}
	return conn
}

// awaitBegun reads the first bytes of every answer: then the application has
// answered all slow readers, and they hold no worker.
func (c *crowd) awaitBegun() {
	for _, conn := range c.readers {
		_ = conn.SetReadDeadline(time.Now().Add(clientTime))
		c.read(conn)
	}
}

// spread does something with each connection once a second until the crowd leaves.
func (c *crowd) spread(conns []net.Conn, do func(net.Conn)) {
	tick := time.NewTicker(readEvery / time.Duration(len(conns)))
	defer tick.Stop()
	for i := 0; ; i++ {
		select {
		case <-tick.C:
			do(conns[i%len(conns)])
		case <-c.stop:
			return
		}
	}
}

func (c *crowd) send(conn net.Conn) {
	if _, err := conn.Write([]byte{'a'}); err != nil {
		c.t.Errorf("slow sender: %v", err)
	}
}

func (c *crowd) read(conn net.Conn) {
	n, err := conn.Read(make([]byte, 1<<10))
	if err != nil {
		c.t.Errorf("slow reader: %v", err)
	}
	c.served.Add(int64(n))
}

func (c *crowd) leave() {
	close(c.stop)
	c.stopped.Wait()
	for _, conn := range slices.Concat(c.senders, c.readers) {
		conn.Close()
	}
	if most := int64(slowReaders * slowPage); c.served.Load() >= most {
		c.t.Errorf("the slow readers were done: %d bytes", c.served.Load())
	}
}
