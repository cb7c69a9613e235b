package status

import (
	"sync/atomic"
	"time"

	"wsgigate/pyrunner"
)

// fixed is a Source that always has the same status, and counts who asks.
type fixed struct {
	status pyrunner.Status
	asked  atomic.Int64
}

var _ Source = (*fixed)(nil)

// Status returns it.
func (f *fixed) Status() pyrunner.Status {
	f.asked.Add(1)
	return f.status
}

// base is the moment of all samples.
var base = time.Date(2026, 3, 14, 15, 9, 26, 0, time.UTC)

var testFacts = Facts{
	Version:   "1.2.0",
	Listeners: []string{"fastcgi unix:/run/app.sock", "http 127.0.0.1:8000"},
	PID:       4100,
	Started:   base.Add(-51*time.Hour - 12*time.Minute),
}

// snapshot is a sample at its moment.
func snapshot(s pyrunner.Status) Snapshot { return Snapshot{Time: base, Server: testFacts, Status: s} }

// bounds are those of the samples' histograms.
var bounds = []time.Duration{
	time.Millisecond / 2, time.Millisecond, 2 * time.Millisecond, 5 * time.Millisecond,
	10 * time.Millisecond, 25 * time.Millisecond, 50 * time.Millisecond, 100 * time.Millisecond,
	250 * time.Millisecond, 500 * time.Millisecond, time.Second, 2500 * time.Millisecond,
	5 * time.Second, 10 * time.Second, 30 * time.Second, time.Minute, 0,
}

// histogram makes cumulative buckets of counts of each.
func histogram(counts ...uint64) []pyrunner.Bucket {
	buckets := make([]pyrunner.Bucket, len(bounds))
	var sum uint64
	for i, bound := range bounds {
		if i < len(counts) {
			sum += counts[i]
		}
		buckets[i] = pyrunner.Bucket{Below: bound, Count: sum}
	}
	return buckets
}

func idleStatus() pyrunner.Status {
	return pyrunner.Status{
		App: "mysite:application", State: pyrunner.HealthIdle, Started: testFacts.Started, Generation: 1, Threads: 1,
		MaxWorkers: 4, QueueLimit: 1024, Latency: histogram(),
	}
}

func busyStatus() pyrunner.Status {
	const mib = 1 << 20
	worker := func(pid int, state string, age time.Duration, requests uint64, cpu time.Duration, rss, peak int64, now ...pyrunner.RequestStatus) pyrunner.WorkerStatus {
		return pyrunner.WorkerStatus{PID: pid, State: state, Generation: 3, Started: base.Add(-age), Requests: requests,
			CPU: cpu, RSS: rss * mib, PeakRSS: peak * mib, Current: now}
	}
	request := func(id uint64, method, uri string, d time.Duration) pyrunner.RequestStatus {
		return pyrunner.RequestStatus{ID: id, Method: method, URI: uri, Remote: "203.0.113.9", Phase: "app", For: d}
	}
	upload := request(90217, "POST", "/upload/photos?album=summer", 740*time.Millisecond)
	upload.BytesIn, upload.Phase = 3*mib, "body"
	download := request(90212, "GET", "/download/archive-2025.tar", 2300*time.Millisecond)
	download.BytesOut, download.Phase = 41*mib, "answer"
	s := pyrunner.Status{
		App: "mysite:application", State: pyrunner.HealthReady, Started: testFacts.Started, Generation: 3, Threads: 2,
		MinWorkers: 2, MaxWorkers: 8, Starting: 1, Waiting: 700, QueueLimit: 1024, Rate: 1284.6,
		Workers: []pyrunner.WorkerStatus{
			worker(4107, "draining", 3*time.Hour+7*time.Minute, 90211, 610*time.Second, 181, 190, request(81007, "GET", "/reports/yearly.pdf?year=2025&format=a4", 14200*time.Millisecond)),
			worker(4112, "ready", 47*time.Minute, 20417, 151*time.Second, 96, 118, upload, download),
			worker(4118, "ready", 47*time.Minute, 19988, 149*time.Second, 94, 117),
			worker(4120, "standby", 9*time.Second, 0, 480*time.Millisecond, 61, 61),
		},
		Requests: pyrunner.Counters{Total: 130616, Answered: 130401, Failed: 31, Refused: 57, Cancelled: 124, Retried: 2,
			Status: map[int]uint64{200: 118022, 302: 9127, 304: 2801, 404: 451, 500: 19, 502: 4, 503: 57, 504: 8}},
		Latency: histogram(310, 1120, 9007, 38811, 45002, 24007, 9120, 2800, 840, 301, 90, 31, 12, 4, 3, 1),
		Events:  pyrunner.EventCounts{Started: 19, Crashed: 1, TimedOut: 8, Slow: 44, Recycled: 6, Reloads: 2, ReloadFailures: 1},
		Reload:  &pyrunner.ReloadState{Began: base.Add(-47 * time.Minute), Took: 412 * time.Millisecond},
		Incidents: []pyrunner.Incident{
			{Time: base.Add(-4 * time.Second), Kind: "slow", PID: 4107, Request: &pyrunner.RequestStatus{ID: 81007, Method: "GET",
				URI: "/reports/yearly.pdf?year=2025&format=a4", Remote: "203.0.113.9", Phase: "app", For: 10 * time.Second},
				Stacks: "Thread 0x00007f3b2c5ff740 (most recent call first):\n  File \"/srv/site/reports.py\", line 88 in render\n  File \"/srv/site/views.py\", line 31 in yearly\n",
				Stderr: []string{"rendering 412 pages"}},
			{Time: base.Add(-19 * time.Minute), Kind: "crash", PID: 4099, Ended: "SIGSEGV (segmentation fault)",
				Request: &pyrunner.RequestStatus{ID: 60002, Method: "POST", URI: "/resize", Remote: "203.0.113.80", Phase: "app", For: 120 * time.Millisecond, BytesIn: 90211},
				Others:  []pyrunner.RequestStatus{request(60001, "GET", "/", 4*time.Millisecond)}},
			{Time: base.Add(-26 * time.Hour), Kind: "out of memory", PID: 3807, Ended: "SIGKILL (the kernel ran out of memory)"},
		},
	}
	s.Workers[0].Generation, s.Workers[3].Forked = 2, true
	s.Workers[2].IdleFor, s.Workers[3].IdleFor = 31*time.Millisecond, 9*time.Second
	return s
}

func crashLoopStatus() pyrunner.Status {
	return pyrunner.Status{
		App: "mysite:application", State: pyrunner.HealthCrashLoop, Started: testFacts.Started, Generation: 1, Threads: 1,
		MinWorkers: 4, MaxWorkers: 4, QueueLimit: 1024, Waiting: 0,
		Requests: pyrunner.Counters{Total: 220, Refused: 220, Status: map[int]uint64{503: 220}},
		Latency:  histogram(),
		Events:   pyrunner.EventCounts{Started: 6, Crashed: 6, ReloadFailures: 1},
		CrashLoop: &pyrunner.CrashLoop{Failures: 6, RetryAt: base.Add(11 * time.Second),
			Reason: "the application cannot be imported: ModuleNotFoundError: No module named 'flask'\nTraceback (most recent call last):\n  File \"/srv/site/mysite.py\", line 1, in <module>\n    from flask import Flask\nModuleNotFoundError: No module named 'flask'\n"},
		Reload: &pyrunner.ReloadState{Began: base.Add(-time.Minute), Took: 380 * time.Millisecond,
			Error: "the new application cannot be imported: SyntaxError: '(' was never closed (mysite.py, line 7)\n  File \"/srv/site/mysite.py\", line 7\n    app = Flask(__name__\n               ^\nSyntaxError: '(' was never closed\n"},
		PreloadOff: "a thread runs in the template process: threading.Thread \"metrics\"",
		Incidents:  []pyrunner.Incident{{Time: base.Add(-30 * time.Second), Kind: "crash", PID: 4290, Ended: "exit status 3", Stderr: []string{"Traceback (most recent call last):", "ModuleNotFoundError: No module named 'flask'"}}},
	}
}

// hostileStatus has in every text what an attacker, or an application, may put
// there.
func hostileStatus() pyrunner.Status {
	const evil = "</script><script>alert(1)</script>\"'><img src=x onerror=alert(2)>\x1b[2J\u202e\xff\x00{{.}}"
	s := busyStatus()
	s.App, s.PreloadOff = evil, evil
	s.State = pyrunner.HealthCrashLoop
	s.CrashLoop = &pyrunner.CrashLoop{Failures: 1, RetryAt: base, Reason: evil + "\n" + evil}
	s.Reload = &pyrunner.ReloadState{Began: base, Error: evil + "\n" + evil}
	request := pyrunner.RequestStatus{Method: evil, URI: "/" + evil, Remote: evil, Phase: evil}
	s.Workers[0].State = evil
	s.Workers[0].Current = []pyrunner.RequestStatus{request}
	s.Incidents = []pyrunner.Incident{{Kind: evil, Ended: evil, Request: &request, Others: []pyrunner.RequestStatus{request}, Stacks: evil, Stderr: []string{evil}}}
	return s
}
