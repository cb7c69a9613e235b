package environtest

import (
	"bytes"
	"errors"
	"io"
	"os"
	"sync"

	"wsgigate/environ"
)

// Recorder is a ResponseWriter that keeps what it is given. The zero value is
// ready for use. It reports misuse (a second WriteHeader, a Write before it) as
// errors and in Misuse.
type Recorder struct {
	Status   int
	Reason   string
	Fields   [][2]string
	Length   int64 // Content-Length, -1 if there is none
	Body     bytes.Buffer
	Flushes  int
	AbortErr error  // what Abort was given
	WriteErr error  // if set, every Write and Flush fails with it
	Misuse   error  // the first breach of ResponseWriter's contract
	OnWrite  func() // if set, called at the begin of every Write

	mu   sync.Mutex // WriteErrors may be called beside the others
	errs bytes.Buffer
}

var _ environ.ResponseWriter = (*Recorder)(nil)

// WriteHeader keeps a copy of h.
func (r *Recorder) WriteHeader(h *environ.Header) error {
	if r.Status != 0 {
		return r.misused("WriteHeader called twice")
	}
	r.Status, r.Reason, r.Length = h.Status(), string(h.Reason()), -1
	for name, value := range h.All() {
		r.Fields = append(r.Fields, [2]string{string(name), string(value)})
	}
	if n, ok := h.ContentLength(); ok {
		r.Length = n
	}
	return r.WriteErr
}

// Write appends to Body.
func (r *Recorder) Write(p []byte) (int, error) {
	if r.OnWrite != nil {
		r.OnWrite()
	}
	switch {
	case r.Status == 0:
		return 0, r.misused("Write before WriteHeader")
	case r.AbortErr != nil:
		return 0, r.misused("Write after Abort")
	case r.WriteErr != nil:
		return 0, r.WriteErr
	}
	return r.Body.Write(p)
}

// Flush counts.
func (r *Recorder) Flush() error {
	r.Flushes++
	return r.WriteErr
}

// WriteErrors keeps the text.
func (r *Recorder) WriteErrors(p []byte) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.errs.Write(p)
}

// Errors returns what was written to wsgi.errors.
func (r *Recorder) Errors() string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.errs.String()
}

// Abort keeps err.
func (r *Recorder) Abort(err error) {
	if err == nil {
		err = errors.New("Abort(nil)")
	}
	r.AbortErr = err
}

// Get returns the first value of a response field, or "".
func (r *Recorder) Get(name string) string {
	for _, field := range r.Fields {
		if field[0] == name {
			return field[1]
		}
	}
	return ""
}

func (r *Recorder) misused(text string) error {
	err := errors.New("environtest: " + text)
	if r.Misuse == nil {
		r.Misuse = err
	}
	return err
}

// FileRecorder is a Recorder that can send files.
type FileRecorder struct {
	Recorder
	Files int // how often SendFile was called
}

var _ environ.FileSender = (*FileRecorder)(nil)

// SendFile appends a part of f to Body.
func (r *FileRecorder) SendFile(f *os.File, off, n int64) (int64, error) {
	r.Files++
	return io.Copy(&r.Recorder, io.NewSectionReader(f, off, n))
}
