package pyrunner

import (
	"context"
	"sync"
	"sync/atomic"
)

// generation is the workers between two reloads: those that imported the same code,
// as far as that did not change under them.
type generation struct {
	number int
	starts context.Context // its end ends every launch
	cancel context.CancelFunc
	proven atomic.Bool // one of its workers has answered a request

	large bool // the owner has said that Config.MaxMemory is too low for it

	starting sync.Mutex // held while a template starts
	mu       sync.Mutex // guards the rest
	preload  preload
}

func newGeneration(parent context.Context, number int) *generation {
	g := &generation{number: number}
	g.starts, g.cancel = context.WithCancel(parent)
	return g
}

// close ends the launches, and the template once its workers are gone.
func (g *generation) close() {
	g.cancel()
	g.mu.Lock()
	defer g.mu.Unlock()
	g.preload.closed = true
	if t := g.preload.template; t != nil {
		t.close()
	}
}
