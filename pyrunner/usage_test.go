package pyrunner

import (
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"
)

const usageApp = preamble + `
kept = []
def burn(environ, start_response):
    end = time.process_time() + 0.3
    while time.process_time() < end:
        pass
    return hello(environ, start_response)

def sleep(environ, start_response):
    time.sleep(0.3)
    return hello(environ, start_response)

def keep(environ, start_response):
    kept.append(b"x" * (64 << 20))
    return hello(environ, start_response)

def free(environ, start_response):
    kept.clear()
    return hello(environ, start_response)
`

// fresh returns what the worker uses now.
func (w *worker) fresh() Usage {
	w.meter.mu.Lock()
	w.meter.taken = 0
	w.meter.mu.Unlock()
	return w.usage()
}

func TestUsage(t *testing.T) {
	t.Parallel()
	p := startPool(t, usageApp, Config{})
	w := p.onlySlot().worker
	before := w.fresh()
	if before.CPU <= 0 || before.RSS < 1<<20 || before.PeakRSS < before.RSS || before.RSS > 60<<20 {
		t.Fatalf("a new worker uses %+v", before)
	}
	cpu := func(path string) time.Duration {
		from := w.cpu()
		p.text(path)
		return w.cpu() - from
	}
	if took := cpu("/sleep"); took > 250*time.Millisecond {
		t.Errorf("sleeping took %v of CPU", took)
	}
	if took := cpu("/burn"); took < 300*time.Millisecond || took > 3*time.Second {
		t.Errorf("0.3 s of CPU were measured as %v", took)
	}

	const grown = 60 << 20
	p.text("/keep")
	if rss := w.rss(); rss < before.RSS+grown {
		t.Errorf("%d bytes after 64 MiB more than %d", rss, before.RSS)
	}
	if peak := w.peakRSS(); peak < before.RSS+grown {
		t.Errorf("peak of %d bytes", peak)
	}
	held := w.fresh()
	p.text("/free")
	freed := w.fresh()
	if freed.RSS > held.RSS-grown || freed.PeakRSS < held.RSS || freed.CPU < held.CPU {
		t.Errorf("%+v with 64 MiB, %+v without", held, freed)
	}

	// A look at it is not repeated at once.
	p.text("/keep")
	w.usage()
	p.text("/burn")
	if u := w.usage(); u.CPU != freed.CPU && u.CPU < freed.CPU+usageEvery {
		t.Errorf("measured again before its time: %+v", u)
	}
	p.shutdown(10 * time.Second)
	if last := w.usage(); last.PeakRSS < held.RSS || last.CPU < held.CPU {
		t.Errorf("%+v is left of a worker that is gone", last)
	}
	if w.cpu() != 0 || w.rss() != 0 {
		t.Error("a worker that is gone is measured")
	}
}

// TestUsagePeak: the kernel's own peak counts, even of memory that was freed before
// anybody looked.
func TestUsagePeak(t *testing.T) {
	t.Parallel()
	p := startPool(t, usageApp+`
def spike(environ, start_response):
    len(b"x" * (64 << 20))
    return hello(environ, start_response)
`, Config{})
	w := p.onlySlot().worker
	p.text("/spike")
	if u := w.fresh(); u.PeakRSS < u.RSS+60<<20 {
		t.Errorf("%+v", u)
	}
}

// TestMeasured: a request that asks for it is told what it cost, and its answer is
// the same.
func TestMeasured(t *testing.T) {
	t.Parallel()
	p := startPool(t, usageApp, Config{})
	for path, least := range map[string]time.Duration{"/burn": 300 * time.Millisecond, "/sleep": 0} {
		r := get(path)
		r.Measure = true
		if w := p.serve(r); w.Status != 200 || r.App != "app:app" {
			t.Errorf("status %d of %q", w.Status, r.App)
		}
		if r.CPU < least || r.CPU > least+250*time.Millisecond || r.PeakMemory < 1<<20 || r.PeakMemory > 60<<20 {
			t.Errorf("%s: %v, %d bytes", path, r.CPU, r.PeakMemory)
		}
	}
	r := get("/burn")
	if p.serve(r); r.CPU != 0 || r.PeakMemory != 0 {
		t.Errorf("measured unasked: %v, %d bytes", r.CPU, r.PeakMemory)
	}
}

// TestMeasureOfTheDead: there is nothing to measure, and nothing made up.
func TestMeasureOfTheDead(t *testing.T) {
	t.Parallel()
	p := startPool(t, preamble+`
def dies(environ, start_response):
    os._exit(1)
`, Config{})
	r := get("/dies")
	r.Measure = true
	if w := p.serve(r); w.Status != 502 || r.CPU < 0 || r.CPU > time.Second {
		t.Errorf("status %d, %v", w.Status, r.CPU)
	}
}

// TestUsageAllocates: what requests call costs no memory.
func TestUsageAllocates(t *testing.T) {
	w := &worker{pid: os.Getpid()}
	w.meter.begin(w.pid)
	defer w.meter.close()
	if n := testing.AllocsPerRun(100, func() { w.cpu(); w.rss(); w.peakRSS() }); n > 0 {
		t.Errorf("%v allocations, want none", n)
	}
}

// TestMeterOfTheDead: the open file is not the next process's of that number, and a
// meter that could not begin measures nothing.
func TestMeterOfTheDead(t *testing.T) {
	cmd := exec.Command("sleep", "60")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	w := &worker{pid: cmd.Process.Pid}
	w.meter.begin(w.pid)
	defer w.meter.close()
	if w.rss() == 0 {
		t.Error("nothing measured")
	}
	_ = cmd.Process.Kill()
	_ = cmd.Wait()
	if w.rss() != 0 {
		t.Error("measured after the end")
	}
	dead := &worker{pid: cmd.Process.Pid}
	dead.meter.begin(dead.pid)
	defer dead.meter.close()
	if got := dead.usage(); got != (Usage{}) {
		t.Errorf("%+v", got)
	}
}

func TestFieldOf(t *testing.T) {
	text := []byte("Name:\tx\nVmHWM:\t  1234 kB\nVmHWMx: 9\nlast:")
	for name, want := range map[string]string{"VmHWM:": "1234 kB", "Name:": "x", "last:": "", "none:": ""} {
		if got := string(fieldOf(text, name)); got != want {
			t.Errorf("%s: %q", name, got)
		}
	}
	if n := decimal([]byte("1234 kB")); n != 1234 {
		t.Error(n)
	}
	if n := decimal([]byte(strings.Repeat(" ", 3))); n != 0 {
		t.Error(n)
	}
}

func BenchmarkUsage(b *testing.B) {
	cmd := exec.Command("sleep", "600")
	if err := cmd.Start(); err != nil {
		b.Fatal(err)
	}
	w := &worker{pid: cmd.Process.Pid}
	w.meter.begin(w.pid)
	b.Cleanup(func() {
		w.meter.close()
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	for name, call := range map[string]func(){
		"cpu":   func() { w.cpu() },
		"rss":   func() { w.rss() },
		"peak":  func() { w.peakRSS() },
		"fresh": func() { w.fresh() },
	} {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				call()
			}
		})
	}
}
