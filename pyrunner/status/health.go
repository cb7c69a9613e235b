package status

import (
	"fmt"
	"strings"

	"wsgigate/pyrunner"
)

// alive reports why /ping is not answered with 200, or nothing.
func (s *Snapshot) alive() string {
	if len(s.Workers) > 0 || s.State == pyrunner.HealthIdle {
		return ""
	}
	return "no worker: " + s.inShort()
}

// able reports why no worker could take a request now, or nothing.
func (s *Snapshot) able() string {
	switch {
	case s.State == pyrunner.HealthIdle:
		return ""
	case s.State == pyrunner.HealthStopping:
		return "stopping"
	case s.Ready() == 0:
		return "no worker is ready: " + s.inShort()
	case s.QueueLimit > 0 && s.Waiting >= s.QueueLimit:
		return fmt.Sprintf("the queue is full: %d requests wait", s.Waiting)
	case s.QueueLimit == 0 && s.free() == 0:
		return "all workers are busy, and no request may wait"
	}
	return ""
}

// free counts the requests that workers could take at once.
func (s *Snapshot) free() (n int) {
	for i := range s.Workers {
		if w := &s.Workers[i]; w.State == stateReady {
			n += max(0, s.Threads-len(w.Current))
		}
	}
	return n
}

// inShort is the state, in a crash loop with the last line of the traceback:
// that is the exception.
func (s *Snapshot) inShort() string {
	if s.CrashLoop == nil {
		return string(s.State)
	}
	reason := strings.TrimSpace(s.CrashLoop.Reason)
	return "crash loop: " + visible(reason[strings.LastIndexByte(reason, '\n')+1:])
}
