package pyrunner

import (
	"context"
	"sync"
)

// generation is the workers between two reloads: those that imported the same code,
// as far as that did not change under them.
type generation struct {
	number int
	starts context.Context // its end ends every launch
	cancel context.CancelFunc

	mu       sync.Mutex // held while a template starts
	execOnly string     // why workers start by exec, although Config.Preload is set
	closed   bool
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
	g.closed = true
}

// whyExec returns why workers are not forked.
func (g *generation) whyExec() string {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.execOnly
}
