package main

import (
	"slices"
	"strings"
	"testing"
)

// TestUnknownVariables: what is misspelled is found, and nothing else.
func TestUnknownVariables(t *testing.T) {
	env := []string{"WSGIGATE_WORKRES=3", "WSGIGATE_WORKERS=3", "WSGIGATE_QUEUE_TIMEOUT=3s", "WSGIGATE_CONFIG=", "WSGIGATE_=", "WSGIGATE_threads=1", "WSGIGATE_APP=x",
		"WSGIGATE_TEST_PYTHON=x", "WSGIGATE_SOAK=1s", "WSGIGATE_SEED=1", "WSGIGATE=1", "WSGIGATES=1", "HOME=/", "X_WSGIGATE_Y=1", "odd"}
	want := []string{"WSGIGATE_", "WSGIGATE_APP", "WSGIGATE_WORKRES", "WSGIGATE_threads"}
	if got := unknownVariables(env); !slices.Equal(got, want) {
		t.Errorf("%q, want %q", got, want)
	}
	g, log := newTestGateway()
	warnOfVariables(g.log, env)
	if got := log.String(); strings.Count(got, " WARN  there is no such setting") != len(want) || !strings.Contains(got, "names variable=WSGIGATE_WORKRES\n") {
		t.Errorf("%s", got)
	}
}
