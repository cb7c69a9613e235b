package wire

import (
	"cmp"
	"errors"
	"fmt"
	"net"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// listenUnix binds a socket file. The file is made under a umask that lets only
// its owner in, then given its owner and mode: at no time can somebody connect
// who should not.
func listenUnix(a Addr) (*Listener, error) {
	uid, gid, err := a.owner()
	if err != nil {
		return nil, fmt.Errorf("listen on %s: %w", a, err)
	}
	if err := removeDead(a.Path, uid); err != nil {
		return nil, fmt.Errorf("listen on %s: %w", a, err)
	}
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, fmt.Errorf("listen on %s: %w", a, os.NewSyscallError("socket", err))
	}
	old := unix.Umask(0o177)
	err = unix.Bind(fd, &unix.SockaddrUnix{Name: a.Path})
	unix.Umask(old)
	if err != nil {
		_ = unix.Close(fd)
		return nil, fmt.Errorf("listen on %s: %w", a, os.NewSyscallError("bind", err))
	}
	l, err := finishUnix(fd, a, uid, gid)
	if err != nil {
		_ = unix.Close(fd)
		_ = os.Remove(a.Path)
		return nil, fmt.Errorf("listen on %s: %w", a, err)
	}
	return l, nil
}

// backlog is how many connections wait for accept; the kernel cuts it to
// net.core.somaxconn.
const backlog = 4096

func finishUnix(fd int, a Addr, uid, gid int) (*Listener, error) {
	var st unix.Stat_t
	if err := unix.Lstat(a.Path, &st); err != nil {
		return nil, os.NewSyscallError("lstat", err)
	}
	if err := setAccess(a, uid, gid); err != nil {
		return nil, err
	}
	if err := unix.Listen(fd, backlog); err != nil {
		return nil, os.NewSyscallError("listen", err)
	}
	l, err := newListener(fd, &net.UnixAddr{Name: a.Path, Net: "unix"})
	if err != nil {
		return nil, err
	}
	l.path, l.device, l.inode = a.Path, st.Dev, st.Ino
	return l, nil
}

// setAccess gives the socket file its owner and mode. It follows no link: in a
// folder that others may write to, one may have been put in the file's place.
func setAccess(a Addr, uid, gid int) error {
	if uid < 0 && gid < 0 && a.Mode == 0 {
		return nil
	}
	fd, err := unix.Open(a.Path, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return os.NewSyscallError("open", err)
	}
	defer unix.Close(fd)
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return os.NewSyscallError("fstat", err)
	}
	if st.Mode&unix.S_IFMT != unix.S_IFSOCK {
		return errors.New("the socket file was replaced by something else: choose a folder that only its owner may write to")
	}
	if uid >= 0 || gid >= 0 {
		if err := unix.Fchownat(fd, "", uid, gid, unix.AT_EMPTY_PATH); err != nil {
			return os.NewSyscallError("fchownat", err)
		}
	}
	if a.Mode == 0 {
		return nil
	}
	// fchmod(2) does not take such a descriptor, but its name in /proc stands for the file.
	return os.NewSyscallError("chmod", unix.Chmod(fmt.Sprintf("/proc/self/fd/%d", fd), a.Mode))
}

// adopt makes the file at the address this listener's. Its owner and mode are changed
// only if they are not as asked: who has dropped privileges may not change them.
func (l *Listener) adopt(a Addr) error {
	uid, gid, err := a.owner()
	if err != nil {
		return err
	}
	var st unix.Stat_t
	if err := unix.Lstat(a.Path, &st); err != nil {
		return os.NewSyscallError("lstat", err)
	}
	if uid == int(st.Uid) {
		uid = -1
	}
	if gid == int(st.Gid) {
		gid = -1
	}
	if a.Mode = cmp.Or(a.Mode, privateMode); a.Mode == st.Mode&0o777 {
		a.Mode = 0
	}
	l.path, l.device, l.inode = a.Path, st.Dev, st.Ino
	return setAccess(a, uid, gid)
}

// KeepAccess notes the owner and the mode of the socket file. restore gives them back, if
// the file is still this listener's and somebody has changed them.
func (l *Listener) KeepAccess() (restore func() error) {
	before, ours := l.stat()
	return func() error {
		now, still := l.stat()
		if !ours || !still || now == before {
			return nil
		}
		uid, gid := before.uid, before.gid
		if uid == now.uid {
			uid = -1
		}
		if gid == now.gid {
			gid = -1
		}
		if err := setAccess(Addr{Path: l.addr.String(), Mode: before.mode}, uid, gid); err != nil {
			return fmt.Errorf("owner and mode of %s: %w", l.addr, err)
		}
		return nil
	}
}

// access is who may use a file.
type access struct {
	uid, gid int
	mode     uint32
}

// stat returns that of the socket file, unless there is none, or another's. It may be
// called while others close the listener.
func (l *Listener) stat() (a access, ours bool) {
	var st unix.Stat_t
	if l.inode == 0 || unix.Lstat(l.addr.String(), &st) != nil || st.Dev != l.device || st.Ino != l.inode {
		return access{}, false
	}
	return access{int(st.Uid), int(st.Gid), st.Mode & 0o777}, true
}

// privateMode is what a socket file has unless it is asked to have another one.
const privateMode = 0o600

// removeDead removes what an earlier run left at path: a socket of this user's, or of
// the owner that this run would give it, on which nobody listens. Anything else is an
// error that names the mend.
func removeDead(path string, owner int) error {
	var st unix.Stat_t
	err := unix.Lstat(path, &st)
	switch {
	case errors.Is(err, unix.ENOENT):
		return nil
	case err != nil:
		return os.NewSyscallError("lstat", err)
	case st.Mode&unix.S_IFMT == unix.S_IFLNK:
		return errors.New("the path is a symbolic link: remove it or choose another path")
	case st.Mode&unix.S_IFMT != unix.S_IFSOCK:
		return errors.New("the path exists and is not a socket: remove it or choose another path")
	case int(st.Uid) != os.Geteuid() && int(st.Uid) != owner:
		return fmt.Errorf("the socket there belongs to user %d: remove it or choose another path", st.Uid)
	}
	c, err := net.DialTimeout("unix", path, time.Second)
	if err == nil {
		_ = c.Close()
		return errors.New("another process listens on that socket: stop it or choose another path")
	}
	if !errors.Is(err, unix.ECONNREFUSED) {
		return fmt.Errorf("cannot tell whether another process listens on that socket: %w", err)
	}
	return os.Remove(path)
}
