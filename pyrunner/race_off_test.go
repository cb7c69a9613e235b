//go:build !race

package pyrunner

// raceEnabled: see race_on_test.go.
const raceEnabled = false
