package main

import (
	"errors"
	"fmt"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"wsgigate/environ/wire"
)

// defaultHTTP is where serve listens if nothing else is said.
var defaultHTTP = wire.Addr{Host: "127.0.0.1", Port: 8000}

// checkListeners refuses to open to the network what trusts its peers.
func (c *config) checkListeners() (errs []error) {
	if len(c.fastcgi)+len(c.scgi)+len(c.http) == 0 {
		c.http = []wire.Addr{defaultHTTP}
	}
	if c.allow != nil {
		return nil
	}
	for _, l := range []struct {
		flag  string
		addrs []wire.Addr
	}{{"--fastcgi", c.fastcgi}, {"--scgi", c.scgi}} {
		for _, addr := range l.addrs {
			if !addr.Loopback() {
				errs = append(errs, fmt.Errorf("%s %s: a peer can claim to be any client and any user, so other machines must be named: add --allow CIDR, or listen on a unix socket or loopback", l.flag, addr))
			}
		}
	}
	return errs
}

// settleFolders looks whether folders are there. Those of --pythonpath are seen
// from the working directory of the application, as Python would see them.
func (c *config) settleFolders() (errs []error) {
	if c.chdir != "" {
		errs = append(errs, checkFolder("--chdir", c.chdir))
	}
	for i, dir := range c.pythonPath {
		dir, err := filepath.Abs(inFolder(c.chdir, dir))
		errs = append(errs, err, checkFolder("--pythonpath", dir))
		c.pythonPath[i] = dir
	}
	if c.chdir == "" {
		c.chdir = linkedFolder()
	}
	return slices.DeleteFunc(errs, func(err error) bool { return err == nil })
}

// linkedFolder returns the working directory as the shell calls it ($PWD) if that leads
// through a symbolic link, else "": a link to the current release, perhaps, which is to
// be followed anew by each worker.
func linkedFolder() string {
	dir, err := os.Getwd()
	if err != nil {
		return ""
	}
	if target, err := filepath.EvalSymlinks(dir); err != nil || target == dir {
		return ""
	}
	return dir
}

func checkFolder(flag, dir string) error {
	switch st, err := os.Stat(dir); {
	case errors.Is(err, fs.ErrNotExist):
		return fmt.Errorf("%s: there is no folder %s", flag, dir)
	case err != nil:
		return fmt.Errorf("%s: %w", flag, err)
	case !st.IsDir():
		return fmt.Errorf("%s: %s is not a folder", flag, dir)
	}
	return nil
}

// checkAdmin looks at the listeners that are not the application's.
func (c *config) checkAdmin() (errs []error) {
	if c.control != nil {
		switch {
		case c.control.Path == "":
			errs = append(errs, fmt.Errorf("--control %s: who may give commands is told by a file's owner: write unix:/path", c.control))
		case c.control.Mode != 0 || c.control.User != "" || c.control.Group != "":
			errs = append(errs, fmt.Errorf("--control %s: the socket is for the server's own user and root alone: leave mode=, user= and group= out", c.control))
		default:
			c.control.User = c.user // who the server will be, and the owner is asked for
		}
	}
	taken := map[string]string{}
	for _, l := range c.listeners() {
		where := place(l.addr)
		other, twice := taken[where]
		switch {
		case where == "" || !twice:
			taken[where] = l.flag
		case l.admin:
			errs = append(errs, fmt.Errorf("--%s %s: that is the address of --%s: choose one of its own", l.flag, l.addr, other))
		}
	}
	return errs
}

// leastMemory is an address space in which no Python starts: 3.11 alone needs 18 MiB.
const leastMemory = 16 << 20

// checkLimits refuses limits of a worker that the system will not set, or under which
// none can start.
func (c *config) checkLimits() (errs []error) {
	if c.limitMemory > 0 && c.limitMemory < leastMemory {
		errs = append(errs, fmt.Errorf("--limit-memory: %d bytes are too few for Python itself, which needs some 20 MiB before it imports anything: raise the limit", c.limitMemory))
	}
	for _, l := range []struct {
		flag     string
		resource int
		want     uint64 // 0: none
		most     uint64 // whoever asks
	}{
		{"--limit-memory", unix.RLIMIT_AS, uint64(c.limitMemory), math.MaxUint64},
		{"--limit-files", unix.RLIMIT_NOFILE, uint64(c.limitFiles), mostFiles()},
		{"--limit-cpu", unix.RLIMIT_CPU, uint64(c.limitCPU / time.Second), math.MaxUint64},
	} {
		var now unix.Rlimit
		if err := unix.Getrlimit(l.resource, &now); err != nil {
			continue // it is told when it is set
		}
		if most := min(now.Max, l.most); !c.mayRaiseLimits() && l.want > most {
			errs = append(errs, fmt.Errorf("%s %d: the hard limit that wsgigate was started with is %d: raise that, or ask for less", l.flag, l.want, most))
		} else if l.want > l.most {
			errs = append(errs, fmt.Errorf("%s %d: the system allows %d: ask for less", l.flag, l.want, l.most))
		}
	}
	return errs
}

// mostFiles is the number of open files that no limit may exceed (proc_sys_fs(5)).
func mostFiles() uint64 {
	text, err := os.ReadFile("/proc/sys/fs/nr_open")
	if err != nil {
		return math.MaxUint64
	}
	n, err := strconv.ParseUint(strings.TrimSpace(string(text)), 10, 64)
	if err != nil {
		return math.MaxUint64
	}
	return n
}

// mayRaiseLimits reports whether this process may raise its hard limits
// (CAP_SYS_RESOURCE) and will still be able to when it has become who --user says.
func (c *config) mayRaiseLimits() bool {
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var sets [2]unix.CapUserData // the second has the capabilities from 32 on
	return c.user == "" && unix.Capget(&header, &sets[0]) == nil && sets[0].Effective&(1<<unix.CAP_SYS_RESOURCE) != 0
}

// checkPlaces looks whether sockets and logs can be where they are to be, before any is
// made. Of what this user may not look at, opening it will tell.
func (c *config) checkPlaces() (errs []error) {
	for _, l := range c.listeners() {
		if l.addr.Path != "" {
			errs = append(errs, checkSocket("--"+l.flag+" "+l.addr.String(), l.addr.Path))
		}
		if l.flag != "control" { // whose owner is --user
			errs = append(errs, thisSystem.checkOwner("--"+l.flag+" "+l.addr.String(), l.addr.User, l.addr.Group)...)
		}
	}
	for _, l := range [][2]string{{"--access-log", c.accessLog}, {"--error-log", c.errorLog}} {
		if flag, path := l[0], l[1]; path != "" && path != "-" {
			errs = append(errs, checkLog(flag, path))
		}
	}
	return slices.DeleteFunc(errs, func(err error) bool { return err == nil })
}

// checkSocket looks whether a socket file can be made, or replaced.
func checkSocket(flag, path string) error {
	info, err := os.Lstat(path)
	switch {
	case err != nil:
		return checkParent(flag, path)
	case info.Mode()&fs.ModeSymlink != 0:
		return fmt.Errorf("%s: the path is a symbolic link: remove it or choose another path", flag)
	case info.Mode()&fs.ModeSocket == 0:
		return fmt.Errorf("%s: the path exists and is not a socket: remove it or choose another path", flag)
	}
	return nil
}

func checkLog(flag, path string) error {
	info, err := os.Stat(path)
	switch {
	case err != nil:
		return checkParent(flag, path)
	case info.IsDir():
		return fmt.Errorf("%s: %s is a folder: name a file in it", flag, path)
	}
	return nil
}

// checkParent looks whether the folder of a file is there.
func checkParent(flag, file string) error {
	if err := checkFolder(flag, filepath.Dir(file)); !errors.Is(err, fs.ErrPermission) {
		return err
	}
	return nil
}

// listenerSetting is one address to listen on.
type listenerSetting struct {
	flag  string // without dashes
	addr  wire.Addr
	admin bool // not the application's
}

// listeners returns all of them, those of the application first.
func (c *config) listeners() (all []listenerSetting) {
	for _, l := range []struct {
		flag  string
		addrs []wire.Addr
	}{{"fastcgi", c.fastcgi}, {"scgi", c.scgi}, {"http", c.http}} {
		for _, addr := range l.addrs {
			all = append(all, listenerSetting{flag: l.flag, addr: addr})
		}
	}
	if c.control != nil {
		all = append(all, listenerSetting{"control", *c.control, true})
	}
	if c.status != nil {
		all = append(all, listenerSetting{"status", *c.status, true})
	}
	return all
}

// place returns the same text for addresses that cannot both be listened on,
// empty for one that the system will choose.
func place(a wire.Addr) string {
	switch {
	case a.Path != "":
		if path, err := filepath.Abs(a.Path); err == nil {
			return "unix:" + path
		}
	case a.Systemd && a.Name == "", !a.IsFD && !a.Systemd && a.Port == 0:
		return ""
	case a.Host == "localhost":
		a.Host = "127.0.0.1"
	}
	return a.String()
}

// checkTogether refuses settings of which one makes the other void.
func (c *config) checkTogether() (errs []error) {
	refuse := func(wrong bool, format string, args ...any) {
		if wrong {
			errs = append(errs, fmt.Errorf(format, args...))
		}
	}
	refuse(c.slow > 0 && c.timeout > 0 && c.slow >= c.timeout,
		"--slow %v: no request lives so long, for --timeout is %v: choose a shorter time", c.slow, c.timeout)
	refuse(c.raiseOnTimeout && c.timeout == 0,
		"--raise-on-timeout: nothing is late with --timeout 0: give one")
	refuse(c.maxMemory > 0 && c.limitMemory > 0 && c.maxMemory >= c.limitMemory,
		"--max-memory: no worker gets so large, for --limit-memory is not more: choose a smaller size")
	refuse(c.limitCPU%time.Second != 0,
		"--limit-cpu %v: the system counts whole seconds: write for example 60s", c.limitCPU)
	refuse(c.reload && c.rolling,
		"--reload-mode rolling: for development there is nothing to save: leave it out, or --reload")
	if c.touchReload != "" {
		if err := checkFolder("--touch-reload", filepath.Dir(c.touchReload)); err != nil {
			errs = append(errs, err)
		}
		info, err := os.Stat(c.touchReload)
		refuse(err == nil && info.IsDir(), "--touch-reload: %s is a folder: name a file, which need not be there yet", c.touchReload)
	}
	if c.probe != "" {
		if _, err := c.probeRequest(); err != nil {
			errs = append(errs, fmt.Errorf("--probe: %w", err))
		}
	}
	return errs
}
