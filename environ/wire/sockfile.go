package wire

import (
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
	if err := removeDead(a.Path); err != nil {
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
	if uid >= 0 || gid >= 0 {
		if err := os.Lchown(a.Path, uid, gid); err != nil {
			return nil, err
		}
	}
	if a.Mode != 0 {
		if err := os.Chmod(a.Path, os.FileMode(a.Mode)); err != nil {
			return nil, err
		}
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

// removeDead removes what an earlier run left at path: a socket of this user's
// on which nobody listens. Anything else is an error that names the mend.
func removeDead(path string) error {
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
	case int(st.Uid) != os.Geteuid():
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
