package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"time"

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
	return slices.DeleteFunc(errs, func(err error) bool { return err == nil })
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
	}
	if c.probe != "" {
		if _, err := c.probeRequest(); err != nil {
			errs = append(errs, fmt.Errorf("--probe: %w", err))
		}
	}
	return errs
}
