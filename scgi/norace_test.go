//go:build !race

package scgi

const mostAllocations = 2 // the connection, and now and then a buffer that the collector took
