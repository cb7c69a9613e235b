//go:build race

package pyrunner

// raceEnabled: the race detector has sync.Pool drop things at random.
const raceEnabled = true
