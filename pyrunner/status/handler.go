package status

import (
	"bytes"
	"encoding/json"
	"io"
	"net/http"
	"strconv"

	"github.com/prometheus/client_golang/prometheus/promhttp"
)

// Handler returns the status page and its machine-readable companions; the
// package's documentation lists their paths. It is for a listener of its own.
func Handler(facts Facts, source Source) http.Handler {
	h := &handler{facts, source}
	mux := http.NewServeMux()
	mux.HandleFunc("/{$}", h.page)
	mux.HandleFunc("/fragment", h.fragment)
	mux.HandleFunc("/status.json", h.json)
	mux.HandleFunc("/ping", h.ping)
	mux.HandleFunc("/ready", h.ready)
	mux.Handle("/metrics", promhttp.HandlerFor(newRegistry(facts, source), promhttp.HandlerOpts{EnableOpenMetrics: true}))
	return guard(mux)
}

type handler struct {
	facts  Facts
	source Source
}

// guard answers what mux does not have, and says what a browser may do with an
// answer: show it, and nothing else.
func guard(mux *http.ServeMux) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		h := w.Header()
		h.Set("Cache-Control", "no-store")
		h.Set("X-Content-Type-Options", "nosniff")
		h.Set("Content-Security-Policy", "default-src 'none'; frame-ancestors 'none'")
		h.Set("Cross-Origin-Resource-Policy", "same-origin")
		h.Set("Referrer-Policy", "no-referrer")
		next, pattern := mux.Handler(r)
		switch {
		case pattern == "":
			send(w, http.StatusNotFound, "text/plain; charset=utf-8", []byte("not found\n"))
		case r.Method != http.MethodGet && r.Method != http.MethodHead:
			h.Set("Allow", "GET, HEAD")
			send(w, http.StatusMethodNotAllowed, "text/plain; charset=utf-8", []byte("only GET and HEAD\n"))
		default:
			next.ServeHTTP(w, r)
		}
	})
}

func send(w http.ResponseWriter, code int, contentType string, body []byte) {
	w.Header().Set("Content-Type", contentType)
	w.Header().Set("Content-Length", strconv.Itoa(len(body)))
	w.WriteHeader(code)
	_, _ = w.Write(body) // a client that left needs no answer
}

func (h *handler) page(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set("Content-Security-Policy", pagePolicy)
	h.html(w, "page")
}

func (h *handler) fragment(w http.ResponseWriter, _ *http.Request) { h.html(w, "main") }

// html sends a template whole or, if it fails, not at all.
func (h *handler) html(w http.ResponseWriter, name string) {
	var b bytes.Buffer
	if err := pages.ExecuteTemplate(&b, name, newView(Take(h.facts, h.source))); err != nil {
		http.Error(w, "the page cannot be written", http.StatusInternalServerError)
		return
	}
	send(w, http.StatusOK, "text/html; charset=utf-8", b.Bytes())
}

func (h *handler) json(w http.ResponseWriter, _ *http.Request) {
	var b bytes.Buffer
	if err := WriteJSON(&b, Take(h.facts, h.source)); err != nil {
		http.Error(w, "the status cannot be written", http.StatusInternalServerError)
		return
	}
	send(w, http.StatusOK, "application/json", b.Bytes())
}

// WriteJSON writes a snapshot, indented.
func WriteJSON(w io.Writer, s Snapshot) error {
	e := json.NewEncoder(w)
	e.SetIndent("", "  ")
	return e.Encode(s)
}

func (h *handler) ping(w http.ResponseWriter, _ *http.Request) {
	s := Take(h.facts, h.source)
	tell(w, "pong", s.alive())
}

func (h *handler) ready(w http.ResponseWriter, _ *http.Request) {
	s := Take(h.facts, h.source)
	tell(w, "ready", s.able())
}

// tell answers a load balancer: 200, or 503 with what is in the way.
func tell(w http.ResponseWriter, good, obstacle string) {
	code, text := http.StatusOK, good
	if obstacle != "" {
		code, text = http.StatusServiceUnavailable, obstacle
	}
	send(w, code, "text/plain; charset=utf-8", []byte(text+"\n"))
}
