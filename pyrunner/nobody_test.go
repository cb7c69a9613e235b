package pyrunner

import "wsgigate/environ"

// nobody is a client that takes everything and keeps nothing.
type nobody struct{}

func (nobody) WriteHeader(*environ.Header) error { return nil }
func (nobody) Write(p []byte) (int, error)       { return len(p), nil }
func (nobody) Flush() error                      { return nil }
func (nobody) WriteErrors([]byte)                {}
func (nobody) Abort(error)                       {}
