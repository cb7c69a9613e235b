package main

import (
	"log/slog"
	"slices"
	"strings"
)

// testVariables are for the project's tests: WSGIGATE_ and one of these, which may go on.
var testVariables = []string{"TEST_", "SOAK", "SEED", "BINARY", "SCREENSHOTS"}

// unknownVariables returns the names of variables that look like settings and are none.
// A file's keys are refused then; the environment may have been made for another version.
func unknownVariables(env []string) (unknown []string) {
	known := []string{"WSGIGATE_CONFIG"}
	for i := range settings {
		known = append(known, settings[i].envName())
	}
	for _, variable := range env {
		name, _, _ := strings.Cut(variable, "=")
		rest, ours := strings.CutPrefix(name, "WSGIGATE_")
		ofTests := slices.ContainsFunc(testVariables, func(prefix string) bool { return strings.HasPrefix(rest, prefix) })
		if ours && !ofTests && !slices.Contains(known, name) {
			unknown = append(unknown, name)
		}
	}
	slices.Sort(unknown)
	return unknown
}

// warnOfVariables says which variables have no effect, though they seem to be meant.
func warnOfVariables(log *slog.Logger, env []string) {
	for _, name := range unknownVariables(env) {
		log.Warn("there is no such setting, so the variable has no effect: wsgigate serve --help has the names", "variable", name)
	}
}
