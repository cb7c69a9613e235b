package wire

import (
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

// TestSetAccessFollowsNoLink: owner and mode go to the socket alone, whatever was
// put in its place since it was bound (FAULTS row S7).
func TestSetAccessFollowsNoLink(t *testing.T) {
	dir := t.TempDir()
	victim, path := filepath.Join(dir, "victim"), filepath.Join(dir, "s")
	if err := os.WriteFile(victim, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for what, replace := range map[string]func() error{
		"symbolic link": func() error { return os.Symlink(victim, path) },
		"hard link":     func() error { return os.Link(victim, path) },
	} {
		if err := replace(); err != nil {
			t.Fatal(err)
		}
		if err := setAccess(Addr{Path: path, Mode: 0o666}, os.Geteuid(), os.Getegid()); err == nil {
			t.Errorf("%s: no error", what)
		}
		if st, err := os.Stat(victim); err != nil || st.Mode() != 0o600 {
			t.Errorf("%s: the victim's mode is now %v, %v", what, st.Mode(), err)
		}
		if err := os.Remove(path); err != nil {
			t.Fatal(err)
		}
	}
}

func TestSetAccess(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	if err := unix.Bind(fd, &unix.SockaddrUnix{Name: path}); err != nil {
		t.Fatal(err)
	}
	uid, gid := os.Geteuid(), os.Getegid()
	if uid == 0 {
		uid, gid = 54321, 54322
	}
	if err := setAccess(Addr{Path: path, Mode: 0o640}, uid, gid); err != nil {
		t.Fatal(err)
	}
	var st unix.Stat_t
	if err := unix.Lstat(path, &st); err != nil || st.Mode&0o777 != 0o640 || int(st.Uid) != uid || int(st.Gid) != gid {
		t.Errorf("mode %o, %d:%d, %v", st.Mode, st.Uid, st.Gid, err)
	}
}
