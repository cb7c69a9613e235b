package pyrunner

import (
	"sync"

	"wsgigate/environ"
)

// pump writes a response to its client while the exchange goes on to receive it
// from the worker: a slow client then costs memory, up to
// Limits.ResponseBuffer, and not a worker. Past that the worker has to wait.
type pump struct {
	w      environ.ResponseWriter
	r      *environ.Request
	header *environ.Header
	limit  int

	mu      sync.Mutex
	changed sync.Cond
	batches []batch
	size    int  // cost of the batches that are not written yet
	closed  bool // nothing more comes
	gone    bool // nobody reads: drop what comes
	done    chan struct{}
	err     error // why it gave up, valid after done
}

// batch is what one read brought of a body.
type batch struct {
	items []item
	held  []byte // the buffer that they point into, or nil
	cost  int    // bytes of memory
}

func (b batch) drop() {
	dropItems(b.items)
	putBuffer(b.held)
}

// startPump starts the writer of a response that does not come in one piece.
func startPump(x *exchange) *pump {
	p := &pump{w: x.w, r: x.r, header: &x.header, limit: x.pool.cfg.Limits.ResponseBuffer, done: make(chan struct{})}
	p.changed.L = &p.mu
	x.r.OnCancel(func(err error) {
		p.giveUp()
		x.cancelled(err)
	})
	go p.run()
	return p
}

// put adds a batch; it waits while too much is there already.
func (p *pump) put(b batch) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for p.size > p.limit && !p.gone {
		p.changed.Wait()
	}
	if p.gone {
		b.drop()
		return
	}
	p.batches = append(p.batches, b)
	p.size += b.cost
	p.changed.Broadcast()
}

// close says that nothing more comes and waits until all is written.
func (p *pump) close() {
	p.mu.Lock()
	p.closed = true
	p.changed.Broadcast()
	p.mu.Unlock()
	<-p.done
}

// giveUp drops what is there and what will come.
func (p *pump) giveUp() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.gone = true
	p.changed.Broadcast()
}

// take waits for batches and returns all of them; none at the end.
func (p *pump) take() []batch {
	p.mu.Lock()
	defer p.mu.Unlock()
	for len(p.batches) == 0 && !p.closed && !p.gone {
		p.changed.Wait()
	}
	taken := p.batches
	p.batches = nil
	return taken
}

// run is the writer. It returns when all is written or nobody reads.
func (p *pump) run() {
	defer close(p.done)
	err := p.w.WriteHeader(p.header)
	for err == nil {
		taken := p.take()
		if len(taken) == 0 {
			return
		}
		err = p.write(taken)
	}
	p.err = err
	p.giveUp()
	p.r.Cancel(environ.ErrClientGone)
	for _, b := range p.take() {
		b.drop()
	}
}

// write sends batches, and gives their memory back as it goes.
func (p *pump) write(taken []batch) (err error) {
	for _, b := range taken {
		if err == nil {
			err = writeItems(p.w, b.items)
		} else {
			dropItems(b.items)
		}
		putBuffer(b.held)
		p.mu.Lock()
		p.size -= b.cost
		p.changed.Broadcast()
		p.mu.Unlock()
	}
	if err == nil {
		err = p.w.Flush()
	}
	return err
}
