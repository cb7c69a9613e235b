//go:build !race

package fcgi

// raceEnabled: the race detector allocates on its own account.
const raceEnabled = false
