package pyrunner

import (
	"errors"
	"log/slog"
	"os/exec"
	"testing"
)

// TestFamily: which processes are not for ReapOrphans.
func TestFamily(t *testing.T) {
	t.Parallel()
	f := &family{own: map[int]int{}, kick: make(chan struct{}, 1)}
	startAs := func(pid int, err error) {
		t.Helper()
		if got, gotErr := f.start(func() (int, error) { return pid, err }); got != pid || !errors.Is(gotErr, err) {
			t.Errorf("start: %d, %v", got, gotErr)
		}
	}
	startAs(0, exec.ErrNotFound)
	if len(f.own) != 0 {
		t.Errorf("a failed start: %v", f.own)
	}
	startAs(7, nil)
	startAs(7, nil) // the number of one that was waited for a moment ago
	f.waited(7)
	if f.own[7] != 1 {
		t.Errorf("the second process of the number is not known: %v", f.own)
	}
	f.waited(7)
	if len(f.own) != 0 {
		t.Errorf("left: %v", f.own)
	}
	select {
	case <-f.kick:
	default:
		t.Error("the end of a process of our own does not make orphans be looked for")
	}
}

// TestOnlyProcessOne: elsewhere nothing may wait for the children of a library, as
// this test's.
func TestOnlyProcessOne(t *testing.T) {
	stop := ReapOrphans(slog.New(slog.DiscardHandler))
	defer stop()
	for range 20 {
		if err := exec.Command("true").Run(); err != nil {
			t.Fatal(err)
		}
	}
}

// TestEndedChild: the kernel's answer is read as it is meant, and the child is
// left to wait for.
func TestEndedChild(t *testing.T) {
	cmd := exec.Command("true")
	waited, err := StartChild(func() (int, error) {
		err := cmd.Start()
		if err != nil {
			return 0, err
		}
		return cmd.Process.Pid, nil
	})
	if err != nil {
		t.Fatal(err)
	}
	defer waited()
	eventually(t, "the child among those that ended", func() bool { return endedChild() == cmd.Process.Pid })
	if err := cmd.Wait(); err != nil {
		t.Error(err)
	}
}
