package status

import (
	"time"

	"wsgigate/pyrunner"
)

// Source is what has a status: a *pyrunner.Pool.
type Source interface {
	Status() pyrunner.Status
}

// Facts are what is to be known of the server around the pool.
type Facts struct {
	Version   string    `json:"version"`
	Listeners []string  `json:"listeners"` // as people read them, such as "http 127.0.0.1:8000"
	PID       int       `json:"pid"`
	Started   time.Time `json:"started"`
}

// Snapshot is a server's status at one moment. In its JSON form the fields of
// pyrunner.Status stand beside "time" and "server".
type Snapshot struct {
	Time   time.Time `json:"time"`
	Server Facts     `json:"server"`
	pyrunner.Status
}

// Take asks the source for its status.
func Take(facts Facts, source Source) Snapshot {
	s := source.Status()
	return Snapshot{Time: time.Now(), Server: facts, Status: s}
}

// Busy counts the workers that have a request, and the requests they have.
func (s *Snapshot) Busy() (workers, requests int) {
	for i := range s.Workers {
		if n := len(s.Workers[i].Current); n > 0 {
			workers, requests = workers+1, requests+n
		}
	}
	return workers, requests
}

// stateReady is the state of a worker that takes requests.
const stateReady = "ready"

// Ready counts the workers that take requests.
func (s *Snapshot) Ready() (n int) {
	for i := range s.Workers {
		if s.Workers[i].State == stateReady {
			n++
		}
	}
	return n
}

// Trouble says what keeps the server from its work: a crash loop, or that no
// worker is there although one is needed. It is empty if all is well.
func (s *Snapshot) Trouble() string {
	switch {
	case s.State == pyrunner.HealthCrashLoop:
		return "workers end before they have answered anything (crash loop)"
	case len(s.Workers) == 0 && s.State != pyrunner.HealthIdle && s.State != pyrunner.HealthStarting:
		return "no worker is there"
	}
	return ""
}
