package status

import (
	"strconv"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"

	"wsgigate/pyrunner"
)

// newRegistry returns the metrics of the pool and of the gateway's own process.
func newRegistry(facts Facts, source Source) *prometheus.Registry {
	r := prometheus.NewPedanticRegistry()
	r.MustRegister(
		&collector{facts, source},
		// Its go_memstats_alloc_bytes is a gauge, and a counter too: OpenMetrics has one
		// family for both, and its parsers refuse the answer.
		collectors.NewGoCollector(collectors.WithGoCollectorMemStatsMetricsDisabled()),
		collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}),
	)
	return r
}

// collector turns one Status into metrics, so that all of a scrape belong
// together.
type collector struct {
	facts  Facts
	source Source
}

var _ prometheus.Collector = (*collector)(nil)

func newDesc(name, help string, labels ...string) *prometheus.Desc {
	return prometheus.NewDesc("wsgigate_"+name, help, labels, nil)
}

// The metrics. The package's documentation lists them too.
var (
	descInfo           = newDesc("info", "The application and the version of the gateway.", "app", "version")
	descState          = newDesc("state", "1 for the state that the pool is in, else 0.", "state")
	descStart          = newDesc("start_time_seconds", "When the pool was started, in seconds since the Unix epoch.")
	descGeneration     = newDesc("generation", "1, and one more for each reload that succeeded.")
	descWorkers        = newDesc("workers", "Worker processes by state.", "state")
	descBusy           = newDesc("workers_busy", "Workers that have a request.")
	descMin            = newDesc("workers_min", "Fewest workers that are kept.")
	descMax            = newDesc("workers_max", "Most workers that are started.")
	descThreads        = newDesc("worker_threads", "Requests that one worker takes at once.")
	descCPU            = newDesc("worker_cpu_seconds_total", "User and system time of a worker.", "pid")
	descRSS            = newDesc("worker_resident_memory_bytes", "Resident memory of a worker.", "pid")
	descRunning        = newDesc("requests_running", "Requests that workers have.")
	descWaiting        = newDesc("requests_waiting", "Requests in the queue.")
	descWaitingLimit   = newDesc("requests_waiting_limit", "Requests that may be in the queue.")
	descLongest        = newDesc("request_longest_seconds", "How long the oldest running request has been running.")
	descReceived       = newDesc("requests_received_total", "Requests that came in.")
	descRequests       = newDesc("requests_total", "Requests that ended, by how.", "result")
	descRetried        = newDesc("requests_retried_total", "Requests that were taken back unread from a worker that ended, and given to another.")
	descSlow           = newDesc("requests_slow_total", "Requests that took longer than --slow.")
	descTimedOut       = newDesc("requests_timed_out_total", "Requests that took longer than --timeout.")
	descResponses      = newDesc("responses_total", "Responses by status code.", "code")
	descDuration       = newDesc("request_duration_seconds", "Time from a request's arrival to the end of its answer.")
	descStarted        = newDesc("workers_started_total", "Workers that were started.")
	descCrashed        = newDesc("workers_crashed_total", "Workers that ended without being asked to.")
	descOutOfMemory    = newDesc("workers_out_of_memory_total", "Workers that the kernel's out-of-memory killer ended.")
	descRecycled       = newDesc("workers_recycled_total", "Workers that were replaced for their requests, age or memory.")
	descReloads        = newDesc("reloads_total", "Reloads that succeeded.")
	descReloadFailures = newDesc("reload_failures_total", "Reloads that failed and kept the old workers.")
	descReloading      = newDesc("reload_running", "1 while a reload runs.")
	descReloadSuccess  = newDesc("reload_last_success", "1 if the last reload succeeded.")
	descReloadTime     = newDesc("reload_last_timestamp_seconds", "When the last reload began, in seconds since the Unix epoch.")
	descReloadDuration = newDesc("reload_last_duration_seconds", "How long the last reload took.")
	descCrashLoop      = newDesc("crash_loop", "1 while workers do not start, or end before they have answered anything.")
	descCrashFailures  = newDesc("crash_loop_failures", "Workers in a row that did so.")
)

// allDescs are what Describe promises.
var allDescs = []*prometheus.Desc{
	descInfo, descState, descStart, descGeneration, descWorkers, descBusy, descMin, descMax, descThreads, descCPU, descRSS,
	descRunning, descWaiting, descWaitingLimit, descLongest, descReceived, descRequests, descRetried, descSlow, descTimedOut,
	descResponses, descDuration, descStarted, descCrashed, descOutOfMemory, descRecycled, descReloads, descReloadFailures,
	descReloading, descReloadSuccess, descReloadTime, descReloadDuration, descCrashLoop, descCrashFailures,
}

// Describe names all metrics.
func (c *collector) Describe(out chan<- *prometheus.Desc) {
	for _, d := range allDescs {
		out <- d
	}
}

// Collect asks for the status once.
func (c *collector) Collect(out chan<- prometheus.Metric) {
	s := Take(c.facts, c.source)
	e := emitter{out}
	e.gauge(descInfo, 1, s.App, s.Server.Version)
	for _, state := range []pyrunner.Health{
		pyrunner.HealthStarting, pyrunner.HealthIdle, pyrunner.HealthReady,
		pyrunner.HealthReloading, pyrunner.HealthCrashLoop, pyrunner.HealthStopping,
	} {
		e.gauge(descState, truth(s.State == state), string(state))
	}
	e.gauge(descStart, unixSeconds(s.Started))
	e.gauge(descGeneration, float64(s.Generation))
	e.workers(&s)
	e.requests(&s)
	e.events(&s)
	e.reload(&s)
}

// emitter sends metrics.
type emitter struct{ out chan<- prometheus.Metric }

func (e emitter) gauge(d *prometheus.Desc, value float64, labels ...string) {
	e.send(d, prometheus.GaugeValue, value, labels)
}

func (e emitter) counter(d *prometheus.Desc, value uint64, labels ...string) {
	e.send(d, prometheus.CounterValue, float64(value), labels)
}

func (e emitter) send(d *prometheus.Desc, kind prometheus.ValueType, value float64, labels []string) {
	for i := range labels { // the client library refuses what is not UTF-8
		labels[i] = strings.ToValidUTF8(labels[i], "\uFFFD")
	}
	e.out <- prometheus.MustNewConstMetric(d, kind, value, labels...)
}

func (e emitter) workers(s *Snapshot) {
	states := map[string]int{"starting": s.Starting, "standby": 0, stateReady: 0, "draining": 0, "doomed": 0}
	for i := range s.Workers {
		w := &s.Workers[i]
		pid := strconv.Itoa(w.PID)
		states[w.State]++
		e.send(descCPU, prometheus.CounterValue, w.CPU.Seconds(), []string{pid})
		e.gauge(descRSS, float64(w.RSS), pid)
	}
	for state, n := range states {
		e.gauge(descWorkers, float64(n), state)
	}
	busy, _ := s.Busy()
	e.gauge(descBusy, float64(busy))
	e.gauge(descMin, float64(s.MinWorkers))
	e.gauge(descMax, float64(s.MaxWorkers))
	e.gauge(descThreads, float64(s.Threads))
}

func (e emitter) requests(s *Snapshot) {
	_, running := s.Busy()
	e.gauge(descRunning, float64(running))
	e.gauge(descWaiting, float64(s.Waiting))
	e.gauge(descWaitingLimit, float64(s.QueueLimit))
	e.gauge(descLongest, longest(s).Seconds())
	e.counter(descReceived, s.Requests.Total)
	e.counter(descRequests, s.Requests.Answered, "answered")
	e.counter(descRequests, s.Requests.Failed, "failed")
	e.counter(descRequests, s.Requests.Refused, "refused")
	e.counter(descRequests, s.Requests.Cancelled, "cancelled")
	e.counter(descRetried, s.Requests.Retried)
	for code, n := range s.Requests.Status {
		e.counter(descResponses, n, strconv.Itoa(code))
	}
	e.out <- durations(s.Latency, s.LatencySum)
}

// longest is how long the oldest running request has been running.
func longest(s *Snapshot) (d time.Duration) {
	for i := range s.Workers {
		for _, r := range s.Workers[i].Current {
			d = max(d, r.For)
		}
	}
	return d
}

// durations makes the histogram.
func durations(latency []pyrunner.Bucket, sum time.Duration) prometheus.Metric {
	buckets := make(map[float64]uint64, len(latency))
	var all uint64
	for _, b := range latency {
		if b.Below > 0 {
			buckets[b.Below.Seconds()] = b.Count
		}
		all = b.Count
	}
	return prometheus.MustNewConstHistogram(descDuration, all, sum.Seconds(), buckets)
}

func (e emitter) events(s *Snapshot) {
	e.counter(descStarted, s.Events.Started)
	e.counter(descCrashed, s.Events.Crashed)
	e.counter(descOutOfMemory, s.Events.OutOfMemory)
	e.counter(descTimedOut, s.Events.TimedOut)
	e.counter(descSlow, s.Events.Slow)
	e.counter(descRecycled, s.Events.Recycled)
	e.counter(descReloads, s.Events.Reloads)
	e.counter(descReloadFailures, s.Events.ReloadFailures)
	failures := 0
	if s.CrashLoop != nil {
		failures = s.CrashLoop.Failures
	}
	e.gauge(descCrashLoop, truth(s.CrashLoop != nil))
	e.gauge(descCrashFailures, float64(failures))
}

func (e emitter) reload(s *Snapshot) {
	r := s.Reload
	e.gauge(descReloading, truth(r != nil && r.Running))
	if r == nil {
		return
	}
	e.gauge(descReloadTime, unixSeconds(r.Began))
	if !r.Running {
		e.gauge(descReloadSuccess, truth(r.Error == ""))
		e.gauge(descReloadDuration, r.Took.Seconds())
	}
}

func truth(b bool) float64 {
	if b {
		return 1
	}
	return 0
}

func unixSeconds(t time.Time) float64 { return float64(t.UnixMilli()) / 1e3 }
