package integration

import (
	"slices"
	"syscall"
	"testing"
)

// templateRounds is how often TestManageTemplateKilled kills one.
const templateRounds = 4

// TestManageTemplateKilled: the end of a --preload template takes its workers along. It
// costs the requests that they had and no other: those that wait, and those that
// come, are answered by the workers of the next template.
func TestManageTemplateKilled(t *testing.T) {
	m := manage(t, "--workers", "3", "--preload")
	l := m.load()
	l.add(nginxKept, 4, "ms=20")
	l.add(nginxNew, 4, "ms=20")
	l.add(viaHTTP, 2, "ms=20")
	var killed []int
	for range templateRounds {
		l.awaitMore(t, 50)
		template := m.template(t)
		for _, w := range m.look(t).Workers {
			killed = append(killed, w.PID)
		}
		if err := syscall.Kill(template, syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		m.await(t, "workers of another template", startTime, func() bool {
			s := m.look(t)
			return len(s.Workers) == 3 && s.Starting == 0 && !slices.Contains(m.parents(), template) &&
				!slices.ContainsFunc(s.Workers, func(w workerStatus) bool { return slices.Contains(killed, w.PID) })
		})
	}
	l.awaitMore(t, 50)
	l.end()
	m.wantOnlyTheirs(t, l, killed, 1)
	m.release(t, healthy(88)) // and reloads go on
	m.reload(t)
	m.wantCode(t, 88)
}

// template returns the process that the workers were forked from.
func (m *managed) template(t *testing.T) int {
	t.Helper()
	parents := m.parents()
	if len(parents) != 1 {
		t.Fatalf("the gateway has %d children with children, want the template alone", len(parents))
	}
	return parents[0]
}

// parents returns the gateway's children that have children.
func (m *managed) parents() (pids []int) {
	for _, pid := range children(m.cmd.Process.Pid) {
		if len(children(pid)) > 0 {
			pids = append(pids, pid)
		}
	}
	return pids
}
