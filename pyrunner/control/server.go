package control

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"os"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"wsgigate/pyrunner"
	"wsgigate/pyrunner/status"
)

// Server is what can be controlled. Its methods may be called at any time and at
// once.
type Server interface {
	// Status tells what the pool is and does.
	Status() pyrunner.Status
	// Reload replaces the workers and returns when the new ones serve. The text of
	// its error is a sentence and, after a line feed, a traceback.
	Reload(ctx context.Context) error
	// Stop begins to stop the server and returns at once.
	Stop()
}

// Handler answers the protocol. The http.Server that it is given to needs
// ConnContext, or every peer is refused. A WriteTimeout does not bound a reload.
func Handler(facts status.Facts, s Server) http.Handler { return newHandler(facts, s, signEvery) }

// signEvery is the time between two signs of life while a reload runs.
const signEvery = 2 * time.Second

func newHandler(facts status.Facts, s Server, signEvery time.Duration) http.Handler {
	h := &handler{facts, s, signEvery}
	mux := http.NewServeMux()
	mux.HandleFunc("/status", h.only(http.MethodGet, h.status))
	mux.HandleFunc("/reload", h.only(http.MethodPost, h.reload))
	mux.HandleFunc("/stop", h.only(http.MethodPost, h.stop))
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		refuse(w, http.StatusNotFound, fmt.Sprintf("there is no %s: known are /status, /reload and /stop", r.URL.Path))
	})
	return checked(mux)
}

type handler struct {
	facts     status.Facts
	server    Server
	signEvery time.Duration
}

func (h *handler) only(method string, next http.HandlerFunc) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		if r.Method != method {
			w.Header().Set("Allow", method)
			refuse(w, http.StatusMethodNotAllowed, fmt.Sprintf("%s takes %s, not %s", r.URL.Path, method, r.Method))
			return
		}
		next(w, r)
	}
}

func (h *handler) status(w http.ResponseWriter, _ *http.Request) {
	answer(w, http.StatusOK, status.Take(h.facts, h.server))
}

// reload waits with the client, who is told at once that it has begun. It goes on when
// the client leaves.
func (h *handler) reload(w http.ResponseWriter, r *http.Request) {
	_ = http.NewResponseController(w).SetWriteDeadline(time.Time{}) // an import takes what it takes
	began := time.Now()
	done := make(chan error, 1)
	go func() { done <- h.server.Reload(context.WithoutCancel(r.Context())) }() // ends with the reload
	if err := h.giveSigns(w, done); err != nil {
		sentence, traceback, _ := strings.Cut(err.Error(), "\n")
		answer(w, http.StatusInternalServerError, failure{sentence, traceback})
		return
	}
	took := time.Since(began)
	s := status.Take(h.facts, h.server)
	answer(w, http.StatusOK, Reloaded{Took: took, Generation: s.Generation, Workers: s.Ready()})
}

// giveSigns answers 102 now and then until done says how the reload went.
func (h *handler) giveSigns(w http.ResponseWriter, done <-chan error) error {
	tick := time.NewTicker(h.signEvery)
	defer tick.Stop()
	for {
		w.WriteHeader(http.StatusProcessing) // sent at once; the answer is still to come
		select {
		case err := <-done:
			return err
		case <-tick.C:
		}
	}
}

func (h *handler) stop(w http.ResponseWriter, _ *http.Request) {
	answer(w, http.StatusAccepted, stopping{h.facts.PID})
	h.server.Stop()
}

// Reloaded is the answer to a reload that succeeded.
type Reloaded struct {
	Took       time.Duration `json:"took_ns"`
	Generation int           `json:"generation"`
	Workers    int           `json:"workers"` // that take requests now
}

// failure is the answer to what did not succeed.
type failure struct {
	Error     string `json:"error"`
	Traceback string `json:"traceback,omitempty"`
}

type stopping struct {
	PID int `json:"pid"`
}

func refuse(w http.ResponseWriter, code int, why string) { answer(w, code, failure{Error: why}) }

// What every answer has, so that a client knows that it has found the right server.
const (
	contentType    = "application/json"
	protocolHeader = "Wsgigate-Control"
	protocol       = "1"
)

func answer(w http.ResponseWriter, code int, v any) {
	body, err := json.Marshal(v)
	if err != nil {
		code, body = http.StatusInternalServerError, []byte(`{"error": "the answer cannot be written"}`)
	}
	w.Header().Set("Content-Type", contentType)
	w.Header().Set(protocolHeader, protocol)
	w.WriteHeader(code)
	_, _ = w.Write(append(body, '\n')) // a client that left needs no answer
}

// peerKey is the context key of a connection's peer.
type peerKey struct{}

// ConnContext notes who the peer of a connection is; it is for the field of this
// name of an http.Server.
func ConnContext(ctx context.Context, c net.Conn) context.Context {
	if uid, err := peer(c); err == nil {
		return context.WithValue(ctx, peerKey{}, uid)
	}
	return ctx
}

// peer returns the user at the other end of a unix socket.
func peer(c net.Conn) (uid uint32, err error) {
	socket, ok := c.(syscall.Conn)
	if !ok {
		return 0, fmt.Errorf("control: a %T has no credentials", c)
	}
	raw, err := socket.SyscallConn()
	if err != nil {
		return 0, err
	}
	controlErr := raw.Control(func(fd uintptr) {
		var cred *unix.Ucred
		if cred, err = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED); err == nil {
			uid = cred.Uid
		}
	})
	if err == nil {
		err = controlErr
	}
	return uid, err
}

// checked refuses peers that are neither this process's user nor root.
func checked(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		uid, known := r.Context().Value(peerKey{}).(uint32)
		switch {
		case !known:
			refuse(w, http.StatusForbidden, "it is not known which user asks")
		case !permitted(uid, os.Geteuid()):
			refuse(w, http.StatusForbidden, fmt.Sprintf("user %d may not control a server of user %d", uid, os.Geteuid()))
		default:
			next.ServeHTTP(w, r)
		}
	})
}

func permitted(uid uint32, own int) bool { return uid == 0 || int64(uid) == int64(own) }
