package integration

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// seedEnv repeats a soak: it has the seed that another one printed.
const seedEnv = "WSGIGATE_SEED"

// Of TestSoak.
const (
	soakFor     = 5 * time.Second
	soakClients = 2               // by each way in
	soakHang    = 2 * time.Second // --timeout
	soakMemory  = "300M"
)

// soak is a gateway that many things happen to at once.
type soak struct {
	m        *managed
	threads  int
	mu       sync.Mutex
	visits   map[int]visit
	outcomes map[int]outcome
	killed   map[int]bool // workers that the soak ended
	unseen   int          // requests that failed before the application had them
	loops    crashLoops
	events   map[string]int
}

// TestSoak lets clients of all kinds come by every way while workers are killed,
// the application is reloaded, the gateway is replaced, requests hang and workers
// wear out. At the end each request is accounted for, on both sides, none has run
// twice, and nothing is left behind. WSGIGATE_SOAK says how long, WSGIGATE_SEED which
// of all soaks.
func TestSoak(t *testing.T) {
	t.Parallel()
	seed := soakSeed(t)
	t.Logf("seed: %s=%d", seedEnv, seed)
	random := rand.New(rand.NewPCG(seed, 0))
	shared := sharedMemory()
	s := beginSoak(t, random)
	before := s.warm(t, seed)

	length := soakFor
	if d := soakTime(t); d > 0 {
		length = d
	}
	var clients sync.WaitGroup
	stop := time.Now().Add(length)
	for way := range s.ways() {
		for i := range soakClients {
			clients.Go(func() { s.client(way, stop, rand.New(rand.NewPCG(seed, uint64(i+1)*1000+uint64(len(way))))) })
		}
	}
	for time.Now().Before(stop) {
		s.event(t, random)
		time.Sleep(upTo(random, 400*time.Millisecond)) // until the next accident
	}
	clients.Wait()
	s.m.wantFootprint(t, before)
	s.account(t)
	if after := sharedMemory(); !slices.Equal(shared, after) {
		t.Errorf("/dev/shm before: %v, after: %v", shared, after)
	}
	if left, err := os.ReadDir(filepath.Join(s.m.dir, "tmp")); err != nil || len(left) > 0 {
		t.Errorf("temporary files left behind: %v, %v", left, err)
	}
}

func soakSeed(t *testing.T) uint64 {
	t.Helper()
	text := os.Getenv(seedEnv)
	if text == "" {
		return rand.Uint64()
	}
	seed, err := strconv.ParseUint(text, 10, 64)
	if err != nil {
		t.Fatalf("%s: %v", seedEnv, err)
	}
	return seed
}

func sharedMemory() (names []string) {
	list, _ := os.ReadDir("/dev/shm")
	for _, entry := range list {
		names = append(names, entry.Name())
	}
	return names
}

// beginSoak starts a gateway of a random shape.
func beginSoak(t *testing.T, random *rand.Rand) *soak {
	t.Helper()
	threads := 1 + random.IntN(3)
	flags := []string{
		"--workers", []string{"3", "2:4", "1:4"}[random.IntN(3)], "--threads", strconv.Itoa(threads),
		"--timeout", soakHang.String(), "--slow", "1s", "--graceful-timeout", "8s", "--idle-timeout", "1s",
		"--max-requests", "150", "--max-age", "10s", "--max-memory", soakMemory, "--probe", "/health",
	}
	for _, flag := range []string{"--preload", "--raise-on-timeout", "--reload-mode=rolling"} {
		if random.IntN(2) == 0 {
			flags = append(flags, flag)
		}
	}
	t.Logf("flags: %v", flags)
	return &soak{
		m: manage(t, flags...), threads: threads, visits: map[int]visit{}, outcomes: map[int]outcome{},
		killed: map[int]bool{}, events: map[string]int{},
	}
}

// ways are all ways in.
func (s *soak) ways() map[string]bool {
	return map[string]bool{nginxKept: true, nginxNew: true, nginxSCGI: true, viaHTTP: true, viaSCGI: true, viaFCGI: true}
}

// warm makes a visit of each harmless kind, then measures the gateway at rest.
func (s *soak) warm(t *testing.T, seed uint64) footprint {
	t.Helper()
	var group sync.WaitGroup
	random := rand.New(rand.NewPCG(seed, 1))
	for way := range s.ways() {
		for range soakClients {
			v := s.small(random)
			group.Go(func() {
				c := &visitor{m: s.m, way: way}
				defer c.hangUp()
				s.note(v, c.make(v))
			})
		}
	}
	group.Wait()
	s.m.reload(t)
	before := s.m.atRest(t)
	s.m.startNginx(t)
	return before
}

// client makes visits until that time.
func (s *soak) client(way string, until time.Time, random *rand.Rand) {
	c := &visitor{m: s.m, way: way}
	defer c.hangUp()
	for time.Now().Before(until) {
		v := s.plan(random)
		s.note(v, c.make(v))
		if random.IntN(4) == 0 {
			c.hangUp()
			time.Sleep(upTo(random, 20*time.Millisecond)) // a client that comes and goes
		}
	}
}

func (s *soak) note(v visit, o outcome) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.visits[v.id], s.outcomes[v.id] = v, o
}

func (s *soak) small(random *rand.Rand) visit {
	return visit{id: int(s.m.last.Add(1)), kind: "small", piece: 4 << 10, query: fmt.Sprintf("&ms=%d", random.IntN(20))}
}

// plan chooses a visit.
func (s *soak) plan(random *rand.Rand) visit {
	v := s.small(random)
	v.piece = 1 + random.IntN(60<<10)
	switch n := random.IntN(100); {
	case n < 40:
	case n < 55:
		v.kind, v.up, v.query = "upload", 1+random.IntN(3<<20), "&read=1"
	case n < 60:
		v.kind, v.up = "unread", 1+random.IntN(512<<10)
	case n < 73:
		v.kind, v.down = "download", 1+random.IntN(4<<20)
	case n < 80:
		v.kind, v.up, v.query = "slow sender", 64<<10, "&read=1"
		v.piece, v.pause = 2<<10, upTo(random, 10*time.Millisecond)
	case n < 87:
		v.kind, v.down = "slow reader", 1<<20
		v.piece, v.pause = 16<<10, upTo(random, 10*time.Millisecond)
	case n < 97:
		v.kind, v.leaves = "leaves", inHead+phase(random.IntN(3))
		v.up, v.query = 1+random.IntN(2<<20), "&read=1"
		if v.leaves == inAnswer {
			v.up, v.down, v.query = 0, 4<<20, ""
		}
	case n < 98:
		v.kind, v.query = "hang", "&ms=60000"
	case n < 99:
		v.kind, v.query = "leak", "&leak=8192"
	default:
		v.kind, v.query = "die", "&die=1"
	}
	if v.down > 0 {
		v.query += fmt.Sprintf("&down=%d", v.down)
	}
	return v
}

// event is something that happens to the gateway.
func (s *soak) event(t *testing.T, random *rand.Rand) {
	t.Helper()
	m, name := s.m, ""
	switch n := random.IntN(100); {
	case n < 40:
		name = "kill"
		s.kill(t, random)
	case n < 65:
		name = "SIGHUP"
		_ = syscall.Kill(m.gateways(t)[0], syscall.SIGHUP)
	case n < 80:
		name = "reload"
		m.release(t, healthy(random.IntN(1e6)))
		if status, _, stderr := m.command(t, "reload"); status != 0 {
			t.Errorf("a reload failed: %s", stderr)
		}
	case n < 90:
		name = "failing reload"
		m.release(t, "CODE = 9\nHEALTHY = False\n")
		if status, _, stderr := m.command(t, "reload"); status != 1 {
			t.Errorf("a reload to code that is not healthy ended with status %d: %s", status, stderr)
		}
		m.release(t, healthy(random.IntN(1e6)))
	default:
		name = "upgrade"
		m.upgrade(t)
	}
	s.events[name]++
}

// kill ends a worker that has answered something: the end of others is a crash
// loop, which has requests refused.
func (s *soak) kill(t *testing.T, random *rand.Rand) {
	t.Helper()
	answered := map[int]bool{}
	j := s.m.journal(t)
	for _, pids := range j.closed {
		for _, pid := range pids {
			answered[pid] = true
		}
	}
	var found []int
	for _, w := range s.m.look(t).Workers {
		if answered[w.PID] {
			found = append(found, w.PID)
		}
	}
	if len(found) == 0 {
		return
	}
	victim := found[random.IntN(len(found))]
	if syscall.Kill(victim, syscall.SIGKILL) == nil {
		s.killed[victim] = true
	}
}

// account explains every request.
func (s *soak) account(t *testing.T) {
	t.Helper()
	j := s.m.journal(t)
	s.addSuicides(j)
	s.loops = s.m.crashLoops(t)
	kinds, fates := map[string]int{}, map[string]int{}
	shown, slowest := 0, outcome{}
	for id, o := range s.outcomes {
		v := s.visits[id]
		if o.took > slowest.took {
			slowest = o
			slowest.body = v.kind
		}
		kinds[v.kind]++
		fate, ok := s.fate(v, o, j)
		fates[fate]++
		if !ok {
			if shown++; shown <= shownMost {
				t.Errorf("request %d (%s, in worker %v): %v\n%s", id, v.kind, j.begun[id], o, s.m.logOf(t, id))
			}
		}
	}
	sent := int(s.m.last.Load())
	if len(s.outcomes) != sent || fates["answered"]+fates["failed"]+fates["left"] != sent {
		t.Errorf("%d requests sent, %d outcomes: %v", sent, len(s.outcomes), fates)
	}
	if most := len(s.killed) * s.threads; s.unseen > most {
		t.Errorf("%d requests failed unseen by the application: %d workers of %d threads were killed", s.unseen, len(s.killed), s.threads)
	}
	if shown > 0 {
		t.Errorf("%d requests have no explanation", shown)
	}
	j.wantNoneTwice(t)
	s.wantClosed(t, j)
	s.compare(t, fates)
	t.Logf("the slowest request: %v", slowest)
	t.Logf("%d requests %v, by kind %v; events %v; %d workers killed, %d requests unseen in them", sent, fates, kinds, s.events, len(s.killed), s.unseen)
}

// addSuicides adds the workers that ended in a request.
func (s *soak) addSuicides(j journal) {
	for id, v := range s.visits {
		if v.kind == "die" {
			for _, pid := range j.begun[id] {
				s.killed[pid] = true
			}
		}
	}
}

// fate says how a request ended, and whether that is as it should be.
func (s *soak) fate(v visit, o outcome, j journal) (fate string, ok bool) {
	lost := len(j.begun[v.id]) > 0 && s.killed[j.begun[v.id][0]]
	whole := o.err == nil
	switch {
	case errors.Is(o.err, os.ErrDeadlineExceeded):
		return "failed", false // nobody may be left waiting
	case v.leaves != never:
		return "left", errors.Is(o.err, errLeft) || lost || whole && o.status >= 502
	case whole && o.status == 200:
		return "answered", v.kind != "hang" && v.kind != "die" && len(j.begun[v.id]) == 1
	case v.kind == "hang" && whole && o.status == 504, v.kind == "die" && whole && o.status == 502:
		return "failed", true
	case whole && o.status == 503 && s.loops.during(o):
		return "failed", len(j.begun[v.id]) == 0
	case lost:
		return "failed", !whole && o.status == 200 || whole && o.status == 502
	default:
		// A worker had read it and was killed before the application could note it. It
		// is the gateway that says so, not nginx.
		s.unseen++
		return "failed", whole && o.status == 502 && len(j.begun[v.id]) == 0 && !strings.Contains(o.body, "nginx")
	}
}

// wantClosed wants that close() of each answer was called once, where the worker
// lived on.
func (s *soak) wantClosed(t *testing.T, j journal) {
	t.Helper()
	for id, pids := range j.begun {
		n := len(j.closed[id])
		if kind := s.visits[id].kind; n != 1 && len(j.ended[id]) > 0 && !s.killed[pids[0]] || n > 1 {
			t.Errorf("request %d (%s, in worker %v): close() was called %d times", id, kind, pids, n)
		}
	}
}

// compare compares the clients' counts with those of the gateways.
func (s *soak) compare(t *testing.T, fates map[string]int) {
	t.Helper()
	var sum tally
	tallies := s.m.tallies(t)
	if len(tallies) != s.events["upgrade"]+1 {
		t.Errorf("%d upgrades, and %d gateways that told what they counted", s.events["upgrade"], len(tallies))
	}
	for pid, c := range tallies {
		if c.total != c.answered+c.failed+c.refused+c.cancelled {
			t.Errorf("gateway %d counted %+v, which does not add up", pid, c)
		}
		sum.total += c.total
		sum.answered += c.answered
		sum.failed += c.failed
		sum.refused += c.refused
		sum.cancelled += c.cancelled
	}
	left := fates["left"] // may have ended in any way, or never have come
	within := func(what string, n, least int) {
		if n < least || n > least+left {
			t.Errorf("%s: the gateways counted %d, the clients %d and %d that left", what, n, least, left)
		}
	}
	within("all", sum.total, int(s.m.last.Load())-left)
	within("answered", sum.answered, fates["answered"])
	within("failed", sum.failed+sum.refused, fates["failed"])
	t.Logf("the gateways counted %+v, the clients %v", sum, fates)
}

// upTo returns a time below most.
func upTo(random *rand.Rand, most time.Duration) time.Duration {
	return time.Duration(random.Int64N(int64(most)))
}
