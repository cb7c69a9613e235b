package pyrunner

import (
	"errors"
	"os"
)

// preload is how a generation's workers come from a template.
type preload struct {
	template *template // that was started last; nil: none
	off      error     // why workers start by exec, although Config.Preload is set
	closed   bool
}

// fork has a worker forked from the generation's template, which is started if there
// is none. It returns no process if the workers of this generation start by exec.
func (g *generation) fork(p *Pool, w *worker, theirs []*os.File) (process, error) {
	for again := false; ; again = true {
		t, err := g.needTemplate(p)
		if t == nil {
			return nil, err
		}
		proc, err := t.fork(w, theirs)
		switch {
		case err == nil:
			return proc, nil
		case errors.Is(err, errNoFork):
			g.startByExec(err)
			return nil, nil
		case again || !errors.Is(err, errNoTemplate):
			return nil, err
		}
	}
}

// needTemplate returns a template that forks; none if workers start by exec.
func (g *generation) needTemplate(p *Pool) (*template, error) {
	g.starting.Lock()
	defer g.starting.Unlock()
	now := g.preloaded()
	switch {
	case now.closed:
		return nil, errStopped
	case now.off != nil:
		return nil, nil
	case now.template != nil && now.template.forks():
		return now.template, nil
	}
	t, err := p.startTemplate(g)
	if err != nil {
		return nil, err
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.preload.closed {
		t.close()
		return nil, errStopped
	}
	g.preload.template = t
	return t, nil
}

func (g *generation) preloaded() preload {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.preload
}

func (g *generation) startByExec(why error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.preload.off = why
}

// whyExec returns why workers are not forked.
func (g *generation) whyExec() string {
	if off := g.preloaded().off; off != nil {
		return off.Error()
	}
	return ""
}
