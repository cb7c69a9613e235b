package main

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strconv"

	"github.com/hashicorp/go-multierror"
	"golang.org/x/sys/unix"

	"wsgigate/environ/wire"
	"wsgigate/fcgi"
	"wsgigate/httpd"
	"wsgigate/scgi"
)

// transport is a server of any gateway protocol on one listener.
type transport struct {
	name     string // of the flag
	listener *wire.Listener
	net      net.Listener // the same socket for package net/http, nil elsewhere
	serve    func() error
	shutdown func(context.Context) error
}

// sockets gives out listening sockets: the predecessor's, those of systemd, or new ones.
// It keeps each for a successor.
type sockets struct {
	up      *upgrader
	systemd *activated
	seen    map[string]int // how many listeners have an address: port 0 may have several
}

func (s *sockets) listen(a wire.Addr) (*wire.Listener, error) {
	s.seen[a.String()]++
	l, err := s.inherit(a)
	switch {
	case l != nil || err != nil:
		return l, err // what is inherited and used is kept
	case a.Systemd:
		l, err = s.activated(a)
	default:
		l, err = wire.Listen(a)
	}
	if err != nil {
		return nil, err
	}
	if err := s.up.keep(s.name(a), l.File()); err != nil {
		_ = l.Close()
		return nil, fmt.Errorf("listen on %s: %w", a, err)
	}
	return l, nil
}

// inherit returns the predecessor's listener, nil if it had none there.
func (s *sockets) inherit(a wire.Addr) (*wire.Listener, error) {
	f, err := s.up.inherited(s.name(a))
	if f == nil {
		return nil, err
	}
	defer f.Close()
	return wire.Inherit(f, a)
}

func (s *sockets) activated(a wire.Addr) (*wire.Listener, error) {
	f, err := s.systemd.take(a.Name)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", a, err)
	}
	defer f.Close()
	l, err := wire.FileListener(f)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", a, err)
	}
	return l, nil
}

// name is a listener's among the files that a successor inherits. That of a unix
// socket names the very file, so that another's is never taken for it.
func (s *sockets) name(a wire.Addr) string {
	name := "listener " + a.String() + " " + strconv.Itoa(s.seen[a.String()])
	var st unix.Stat_t
	if a.Path != "" && unix.Lstat(a.Path, &st) == nil {
		name += fmt.Sprintf(" %d:%d", st.Dev, st.Ino)
	}
	return name
}

// open opens every listener and says all that is wrong.
func (g *gateway) open() error {
	all := g.cfg.listeners()
	s := &sockets{up: g.up, systemd: newActivated(all), seen: map[string]int{}}
	var errs *multierror.Error
	webServers, err := fcgi.ParseWebServerAddrs(os.Getenv("FCGI_WEB_SERVER_ADDRS"))
	if err != nil {
		errs = multierror.Append(errs, err)
	}
	for _, setting := range all {
		if err := g.openOne(s, setting, webServers); err != nil {
			if g.cfg.inherits && !setting.admin {
				err = fmt.Errorf("fcgi: %w; to listen on a socket of its own: wsgigate serve --fastcgi unix:/run/app.sock APP", err)
			} else {
				err = fmt.Errorf("--%s: %w", setting.flag, err)
			}
			errs = multierror.Append(errs, err)
		}
	}
	s.systemd.closeRest(g.log)
	return errs.ErrorOrNil()
}

func (g *gateway) openOne(s *sockets, setting listenerSetting, webServers []netip.Addr) error {
	l, err := s.listen(setting.addr)
	if err != nil {
		return err
	}
	if setting.admin {
		a, err := g.newAdmin(setting.flag, l)
		if err != nil {
			_ = l.Close()
			return err
		}
		g.admin = append(g.admin, a)
		return nil
	}
	t := transport{name: setting.flag, listener: l}
	switch setting.flag {
	case "fastcgi":
		s := &fcgi.Server{Handler: &g.handler, Rules: g.cfg.rules(), Log: g.log, Allow: g.cfg.allow, WebServerAddrs: webServers}
		t.serve, t.shutdown = func() error { return s.Serve(l) }, s.Shutdown
	case "scgi":
		s := &scgi.Server{Handler: &g.handler, Rules: g.cfg.rules(), Log: g.log, Allow: g.cfg.allow}
		t.serve, t.shutdown = func() error { return s.Serve(l) }, s.Shutdown
	case "http":
		s := &httpd.Server{Handler: &g.handler, Rules: g.cfg.rules(), Log: g.log}
		if t.net, err = l.NetListener(); err != nil {
			_ = l.Close()
			return err
		}
		t.serve = func() error { return s.Serve(t.net) }
		t.shutdown = func(ctx context.Context) error {
			defer l.Close()
			return s.Shutdown(ctx)
		}
	}
	g.transports = append(g.transports, t)
	return nil
}

// closeListeners closes listeners that never served. Those of a predecessor go on
// there, so their files stay.
func (g *gateway) closeListeners() {
	if g.up.isSuccessor() {
		g.leaveListeners()
	}
	g.up.stop()
	for _, t := range g.transports {
		if t.net != nil {
			_ = t.net.Close()
		}
		_ = t.listener.Close()
		t.listener.Sweep()
	}
	g.closeAdmin()
}

func (g *gateway) closeAdmin() {
	for _, a := range g.admin {
		a.close()
	}
}

// leaveListeners keeps the socket files, which another process listens on.
func (g *gateway) leaveListeners() {
	for _, t := range g.transports {
		t.listener.Leave()
	}
	for _, a := range g.admin {
		a.listener.Leave()
		_ = a.net.Close() // the other process answers from now on
	}
}
