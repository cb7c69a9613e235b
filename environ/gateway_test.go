package environ_test

import (
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"wsgigate/environ"
	"wsgigate/environ/environtest"
)

func TestFail(t *testing.T) {
	for status, reason := range map[int]string{
		400: "Bad Request", 413: "Content Too Large", 500: "Internal Server Error", 502: "Bad Gateway",
		503: "Service Unavailable", 504: "Gateway Timeout", 418: "Error",
	} {
		var w environtest.Recorder
		environ.Fail(&w, environtest.NewRequest("REQUEST_METHOD=GET"), environ.Errorf(status, "the secret reason"))
		body := w.Body.String()
		if w.Status != status || w.Reason != reason || !strings.Contains(body, strconv.Itoa(status)) || strings.Contains(body, "secret") {
			t.Errorf("%d: %d %s, %q", status, w.Status, w.Reason, body)
		}
		if w.Length != int64(len(body)) || !strings.HasPrefix(w.Get("Content-Type"), "text/plain") || w.Misuse != nil {
			t.Errorf("%d: length %d, %q, %v", status, w.Length, w.Fields, w.Misuse)
		}
		if (w.Get("Retry-After") != "") != (status == 503) {
			t.Errorf("%d: Retry-After %q", status, w.Get("Retry-After"))
		}
	}
}

func TestFailOfHead(t *testing.T) {
	var w environtest.Recorder
	environ.Fail(&w, environtest.NewRequest("REQUEST_METHOD=HEAD"), errors.New("x"))
	if w.Status != 500 || w.Body.Len() != 0 || w.Length <= 0 {
		t.Errorf("%d, length %d, body %q", w.Status, w.Length, w.Body.String())
	}
}

func TestFailToNobody(t *testing.T) {
	w := environtest.Recorder{WriteErr: errors.New("gone")}
	environ.Fail(&w, environtest.NewRequest(), errors.New("x"))
	if w.Body.Len() != 0 || w.Misuse != nil {
		t.Errorf("body %q, %v", w.Body.String(), w.Misuse)
	}
}

func TestStatusOf(t *testing.T) {
	inner := environ.Errorf(413, "too large: %w", io.ErrShortBuffer)
	for err, want := range map[error]int{inner: 413, fmt.Errorf("reading: %w", inner): 413, io.EOF: 500, errors.Join(io.EOF, inner): 413} {
		if got := environ.StatusOf(err); got != want {
			t.Errorf("%v: %d, want %d", err, got, want)
		}
	}
	if !errors.Is(inner, io.ErrShortBuffer) || inner.Error() != "too large: "+io.ErrShortBuffer.Error() {
		t.Errorf("got %v", inner)
	}
}

func TestCancelBeforeHook(t *testing.T) {
	var r environ.Request
	if r.Cancelled() != nil {
		t.Error("cancelled from the begin")
	}
	r.Cancel(environ.ErrClientGone)
	r.Cancel(environ.ErrAborted)
	var got []error
	r.OnCancel(func(err error) { got = append(got, err) })
	if len(got) != 1 || got[0] != environ.ErrClientGone || r.Cancelled() != environ.ErrClientGone {
		t.Errorf("hook got %v, Cancelled %v", got, r.Cancelled())
	}
}

func TestCancelAfterHook(t *testing.T) {
	var r environ.Request
	var got []string
	r.OnCancel(func(error) { got = append(got, "first") })
	r.OnCancel(func(err error) { got = append(got, err.Error()) })
	r.Cancel(environ.ErrAborted)
	r.Cancel(environ.ErrAborted)
	if len(got) != 1 || got[0] != environ.ErrAborted.Error() {
		t.Errorf("got %q", got)
	}
}

func TestCancelWithoutHook(t *testing.T) {
	var r environ.Request
	r.OnCancel(func(error) { t.Error("a removed hook was called") })
	r.OnCancel(nil)
	r.Cancel(environ.ErrAborted)
}

// TestNoHookAfterItsRemoval: when OnCancel(nil) has returned the hook neither runs
// nor will, so that what it uses can be given to the next request. The race
// detector sees it if not.
func TestNoHookAfterItsRemoval(t *testing.T) {
	for range 300 {
		var r environ.Request
		used := 0
		r.OnCancel(func(error) { used++ })
		var wg sync.WaitGroup
		wg.Go(func() { r.Cancel(environ.ErrClientGone) })
		r.OnCancel(nil)
		if used > 1 {
			t.Fatalf("the hook was called %d times", used)
		}
		used = -1
		wg.Wait()
		if used != -1 {
			t.Fatal("the hook was called after its removal")
		}
	}
}

// TestCancelRace: Cancel from many sides while a hook is set: it is called once.
func TestCancelRace(t *testing.T) {
	for range 300 {
		var r environ.Request
		var calls atomic.Int32
		var wg sync.WaitGroup
		for range 3 {
			wg.Go(func() { r.Cancel(environ.ErrClientGone) })
		}
		wg.Go(func() { r.OnCancel(func(error) { calls.Add(1) }) })
		wg.Go(func() { _ = r.Cancelled() })
		wg.Wait()
		if n := calls.Load(); n != 1 {
			t.Fatalf("the hook was called %d times", n)
		}
	}
}

func TestRequestReset(t *testing.T) {
	r := environtest.NewRequest("REQUEST_METHOD=HEAD")
	r.Worker, r.RunOnce, r.ExpectContinue, r.ContentLength = 5, true, true, 9
	r.Cancel(environ.ErrAborted)
	if !r.IsHead() {
		t.Error("not HEAD")
	}
	r.Reset()
	if r.Environ.Len() != 0 || r.Worker != 0 || r.RunOnce || r.ExpectContinue || r.ContentLength != 0 || r.Body != nil || r.Cancelled() != nil || r.ID != 0 {
		t.Errorf("left: %+v", r)
	}
}

func TestNextIDIsUnique(t *testing.T) {
	var mu sync.Mutex
	seen := map[uint64]bool{}
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for range 100 {
				id := environ.NextID()
				mu.Lock()
				if seen[id] || id == 0 {
					t.Errorf("id %d twice", id)
				}
				seen[id] = true
				mu.Unlock()
			}
		})
	}
	wg.Wait()
}

func TestRoleNames(t *testing.T) {
	for role, want := range map[environ.Role]string{environ.Responder: "RESPONDER", environ.Authorizer: "AUTHORIZER", environ.Filter: "FILTER"} {
		if role.String() != want {
			t.Errorf("%d: %s", role, role)
		}
	}
}
