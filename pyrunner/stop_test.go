package pyrunner

import (
	"context"
	"os"
	"path/filepath"
	"testing"
	"time"
)

// A pool that is stopped while a worker imports the application ends that worker
// at once: however far the start has come, nobody waits for the import.
func TestShutdownWhileStarting(t *testing.T) {
	folder := t.TempDir()
	source := []byte("import time\ntime.sleep(60)\n")
	if err := os.WriteFile(filepath.Join(folder, "slow.py"), source, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, after := range []time.Duration{0, 5 * time.Millisecond, 200 * time.Millisecond} {
		pool, err := New(Config{App: "slow", Chdir: folder, StartupTimeout: time.Minute})
		if err != nil {
			t.Fatal(err)
		}
		started := make(chan error, 1)
		go func() { started <- pool.Start() }()
		<-time.After(after)
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		begun := time.Now()
		if err := pool.Shutdown(ctx); err != nil {
			t.Error(err)
		}
		if err := <-started; err == nil {
			t.Error("Start says that all is well")
		}
		if took := time.Since(begun); took > 10*time.Second {
			t.Errorf("stopping %v after the start took %v", after, took)
		}
	}
}
