package pyrunner

import (
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"

	"wsgigate/environ/environtest"
)

// load is clients that ask for /run of aheadApp, each request with an id of its own,
// until the load ends.
type load struct {
	p      *testPool
	stop   chan struct{}
	group  sync.WaitGroup
	served atomic.Int64
	other  atomic.Int64
	ids    sync.Map // of the requests that were served
}

// startLoad starts so many clients. What is not served is given to judge, if there is
// one.
func (p *testPool) startLoad(clients int, judge func(w *environtest.Recorder)) *load {
	l := &load{p: p, stop: make(chan struct{})}
	for client := range clients {
		l.group.Go(func() {
			chance := rand.New(rand.NewPCG(7, uint64(client)))
			for n := 0; ; n++ {
				select {
				case <-l.stop:
					return
				default:
				}
				l.ask(chance, fmt.Sprintf("%d-%d", client, n), judge)
			}
		})
	}
	return l
}

func (l *load) ask(chance *rand.Rand, id string, judge func(w *environtest.Recorder)) {
	r, body := aheadRequest(chance, id)
	w := l.p.serve(r)
	if w.Status == 200 && w.AbortErr == nil {
		if w.Body.String() != body {
			l.p.t.Errorf("%s: %.100q, want %.100q", id, w.Body.String(), body)
		}
		l.served.Add(1)
		l.ids.Store(id, true)
		return
	}
	l.other.Add(1)
	if judge != nil {
		judge(w)
	}
}

// end ends the load and checks that no request ran twice, and each that was served
// ran.
func (l *load) end() {
	l.p.t.Helper()
	close(l.stop)
	l.group.Wait()
	l.p.checkRuns(&l.ids)
	l.p.t.Logf("served %d, others %d", l.served.Load(), l.other.Load())
}
