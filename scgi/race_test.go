//go:build race

package scgi

// The race detector makes sync.Pool drop some of what it is given, a whole
// exchange's allocations each time.
const mostAllocations = 8
