package pyrunner

import (
	"os"
	"runtime"
	"testing"
)

// TestReserveThreads: a pool has made the threads that it will need where the system
// lets it make no more (row 51).
func TestReserveThreads(t *testing.T) {
	newSpawner().stop()
	threads, err := os.ReadDir("/proc/self/task")
	if err != nil {
		t.Fatal(err)
	}
	if want := spareThreads + runtime.GOMAXPROCS(0); len(threads) < want {
		t.Errorf("%d threads, want %d", len(threads), want)
	}
}
