package wire

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os/user"
	"strconv"
	"strings"
)

// Addr is where to listen or to connect.
type Addr struct {
	Path  string // of a unix socket
	Mode  uint32 // of the socket file; 0 means 0600
	User  string // owner of the socket file, a name or a number; empty: the process's
	Group string

	Host string // name or address of a TCP socket
	Port uint16

	FD int // number of an inherited descriptor, if IsFD
	// IsFD tells descriptor 0 from none.
	IsFD bool

	Systemd bool   // a socket that systemd has opened (sd_listen_fds(3))
	Name    string // FileDescriptorName= of its unit; empty: the first one
}

// ParseAddr reads an address as the command line has it:
// "unix:/path[,mode=0660,user=U,group=G]", "HOST:PORT", ":PORT" (loopback), "fd:N", "systemd[:NAME]".
func ParseAddr(s string) (Addr, error) {
	switch {
	case strings.HasPrefix(s, "unix:"):
		return parseUnix(strings.TrimPrefix(s, "unix:"))
	case strings.HasPrefix(s, "fd:"):
		n, err := strconv.ParseUint(strings.TrimPrefix(s, "fd:"), 10, 20)
		if err != nil {
			return Addr{}, fmt.Errorf("address %q: write the number of an open descriptor, for example fd:3", s)
		}
		return Addr{FD: int(n), IsFD: true}, nil
	case s == "systemd" || strings.HasPrefix(s, "systemd:"):
		return parseSystemd(s)
	case strings.HasPrefix(s, "/"):
		return Addr{}, fmt.Errorf("address %q: for a unix socket write unix:%s", s, s)
	}
	return parseTCP(s)
}

func parseSystemd(s string) (Addr, error) {
	_, name, named := strings.Cut(s, ":")
	if named && name == "" {
		return Addr{}, fmt.Errorf("address %q: the name is missing: write systemd, or systemd:NAME with FileDescriptorName=NAME in the socket unit", s)
	}
	return Addr{Systemd: true, Name: name}, nil
}

func parseUnix(s string) (Addr, error) {
	path, options, _ := strings.Cut(s, ",")
	a := Addr{Path: path}
	if path == "" {
		return a, errors.New(`address "unix:": the path is missing, for example unix:/run/app.sock`)
	}
	if len(path) > maxUnixPath {
		return a, fmt.Errorf("unix socket path %q has %d bytes, the system allows %d: choose a shorter one", path, len(path), maxUnixPath)
	}
	for _, option := range strings.Split(options, ",") {
		name, value, _ := strings.Cut(option, "=")
		switch name {
		case "":
		case "mode":
			mode, err := strconv.ParseUint(value, 8, 32)
			if err != nil || mode > 0o777 {
				return a, fmt.Errorf("unix socket mode %q: write an octal number such as 0660", value)
			}
			a.Mode = uint32(mode)
		case "user":
			a.User = value
		case "group":
			a.Group = value
		default:
			return a, fmt.Errorf("unix socket option %q: known are mode=, user= and group=", option)
		}
	}
	return a, nil
}

// maxUnixPath is the room in sockaddr_un less the final NUL.
const maxUnixPath = 107

func parseTCP(s string) (Addr, error) {
	host, port, err := net.SplitHostPort(s)
	if err != nil {
		return Addr{}, fmt.Errorf("address %q: write unix:/path, HOST:PORT, :PORT, fd:N or systemd[:NAME]", s)
	}
	n, err := strconv.ParseUint(port, 10, 16)
	if err != nil {
		return Addr{}, fmt.Errorf("address %q: port %q is not a number from 0 to 65535", s, port)
	}
	if host == "" {
		host = "127.0.0.1"
	}
	return Addr{Host: host, Port: uint16(n)}, nil
}

// String returns the address in the form that ParseAddr reads.
func (a Addr) String() string {
	switch {
	case a.IsFD:
		return "fd:" + strconv.Itoa(a.FD)
	case a.Systemd && a.Name != "":
		return "systemd:" + a.Name
	case a.Systemd:
		return "systemd"
	case a.Path != "":
		return "unix:" + a.Path
	default:
		return net.JoinHostPort(a.Host, strconv.Itoa(int(a.Port)))
	}
}

// Loopback reports whether only this machine can reach the address.
func (a Addr) Loopback() bool {
	if a.Path != "" || a.IsFD || a.Systemd || a.Host == "localhost" {
		return true
	}
	ip, err := netip.ParseAddr(a.Host)
	return err == nil && ip.IsLoopback()
}

// owner returns the numbers for chown; -1 leaves one as it is.
func (a Addr) owner() (uid, gid int, err error) {
	uid, gid = -1, -1
	if a.User != "" {
		if uid, err = lookupID(a.User, func(name string) (string, error) {
			u, err := user.Lookup(name)
			if err != nil {
				return "", err
			}
			return u.Uid, nil
		}); err != nil {
			return 0, 0, err
		}
	}
	if a.Group != "" {
		if gid, err = lookupID(a.Group, func(name string) (string, error) {
			g, err := user.LookupGroup(name)
			if err != nil {
				return "", err
			}
			return g.Gid, nil
		}); err != nil {
			return 0, 0, err
		}
	}
	return uid, gid, nil
}

// lookupID takes a number as it is and looks a name up.
func lookupID(name string, lookup func(string) (string, error)) (int, error) {
	if n, err := strconv.Atoi(name); err == nil {
		return n, nil
	}
	id, err := lookup(name)
	if err != nil {
		return 0, err
	}
	return strconv.Atoi(id)
}
