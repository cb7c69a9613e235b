package pyrunner

import (
	"time"
)

// Status is what a pool is and does at one moment. Its JSON form is what
// "wsgigate status --json" and the status page's /status.json give.
type Status struct {
	App        string    `json:"app"`
	State      Health    `json:"state"`
	Started    time.Time `json:"started"`
	Generation int       `json:"generation"` // from 1; one more with each reload whose workers serve, all or, if a rolling one failed, some
	Threads    int       `json:"threads"`    // slots of each worker

	MinWorkers int            `json:"min_workers"`
	MaxWorkers int            `json:"max_workers"`
	Starting   int            `json:"starting"` // workers that are not READY yet
	Workers    []WorkerStatus `json:"workers"`  // oldest first

	Waiting    int `json:"waiting"`     // requests in the queue
	QueueLimit int `json:"queue_limit"` // how many may wait

	Requests Counters    `json:"requests"`
	Rate     float64     `json:"rate"` // requests answered per second, of the last ten
	Latency  []Bucket    `json:"latency"`
	Events   EventCounts `json:"events"`

	LatencySum time.Duration `json:"latency_sum_ns"` // of all that Latency counts

	CrashLoop  *CrashLoop   `json:"crash_loop,omitempty"`  // workers do not start, or end at once
	Reload     *ReloadState `json:"reload,omitempty"`      // the last reload, or the one that runs
	Incidents  []Incident   `json:"incidents"`             // the last ones, newest first
	PreloadOff string       `json:"preload_off,omitempty"` // why --preload does not fork
}

// Health sums a pool up in a word.
type Health string

// The words.
const (
	HealthStarting  Health = "starting"   // no worker was READY yet
	HealthIdle      Health = "idle"       // on demand: no worker, and none is needed
	HealthReady     Health = "ready"      // all is well
	HealthReloading Health = "reloading"  // new workers start beside those that serve
	HealthCrashLoop Health = "crash loop" // workers do not start, or end before they answer
	HealthStopping  Health = "stopping"
)

// WorkerStatus is one worker process.
type WorkerStatus struct {
	PID        int             `json:"pid"`
	State      string          `json:"state"` // standby, ready, draining, doomed
	Generation int             `json:"generation"`
	Started    time.Time       `json:"started"`
	Requests   uint64          `json:"requests"`
	CPU        time.Duration   `json:"cpu_ns"`   // user and system
	RSS        int64           `json:"rss"`      // bytes
	PeakRSS    int64           `json:"peak_rss"` // bytes
	IdleFor    time.Duration   `json:"idle_ns"`  // 0 while any slot is busy
	Forked     bool            `json:"forked"`   // from the --preload template
	Current    []RequestStatus `json:"current"`  // the requests that it has now
}

// RequestStatus is a request that a worker has.
type RequestStatus struct {
	ID       uint64        `json:"id"`
	Method   string        `json:"method"`
	URI      string        `json:"uri"`
	Remote   string        `json:"remote"`
	Phase    string        `json:"phase"`
	For      time.Duration `json:"for_ns"`
	BytesIn  int64         `json:"bytes_in"`
	BytesOut int64         `json:"bytes_out"`
}

// Counters count requests since the pool's start. Each request is in exactly one of
// Answered, Failed, Refused and Cancelled once it has ended.
type Counters struct {
	Total     uint64         `json:"total"`     // came in
	Answered  uint64         `json:"answered"`  // got the application's whole answer
	Failed    uint64         `json:"failed"`    // got an error page of the gateway's, or an answer that was cut
	Refused   uint64         `json:"refused"`   // no worker has seen them
	Cancelled uint64         `json:"cancelled"` // their client left
	Retried   uint64         `json:"retried"`   // were taken back unread from a worker that ended, and given to another
	Status    map[int]uint64 `json:"status"`    // by the status that was sent: of those answered, failed and refused
}

// Bucket is one of a histogram of how long requests took, from their arrival in the
// pool to the end of their answer. Counts are cumulative, as Prometheus has them.
type Bucket struct {
	Below time.Duration `json:"below_ns"` // upper bound, inclusive; the last bucket's is 0 and means none
	Count uint64        `json:"count"`
}

// EventCounts count what happened to workers since the pool's start.
type EventCounts struct {
	Started        uint64 `json:"started"`
	Crashed        uint64 `json:"crashed"` // ended without being asked to
	OutOfMemory    uint64 `json:"out_of_memory"`
	TimedOut       uint64 `json:"timed_out"`
	Slow           uint64 `json:"slow"` // requests that took longer than Config.Slow
	Recycled       uint64 `json:"recycled"`
	Reloads        uint64 `json:"reloads"`
	ReloadFailures uint64 `json:"reload_failures"`
}

// CrashLoop says that workers end before they have answered anything.
type CrashLoop struct {
	Failures int       `json:"failures"` // in a row
	RetryAt  time.Time `json:"retry_at"`
	Reason   string    `json:"reason"` // of the last failure, with the traceback
}

// ReloadState is a reload.
type ReloadState struct {
	Began   time.Time     `json:"began"`
	Took    time.Duration `json:"took_ns"`
	Running bool          `json:"running"`
	Error   string        `json:"error,omitempty"` // why the old workers were kept, with the traceback
}

// Incident is something that an administrator should look at: a request that was
// slow or timed out, or a worker that ended without being asked to.
type Incident struct {
	Time    time.Time       `json:"time"`
	Kind    string          `json:"kind"` // slow, timeout, crash, out of memory
	PID     int             `json:"pid"`
	Ended   string          `json:"ended,omitempty"` // how the process ended, with the signal's name
	Request *RequestStatus  `json:"request,omitempty"`
	Others  []RequestStatus `json:"others,omitempty"` // which the worker had at the same time
	Stacks  string          `json:"stacks,omitempty"` // of every Python thread
	Stderr  []string        `json:"stderr,omitempty"` // the worker's last lines
}
