package main

import "fmt"

// announce says where the application answers, and what to try next.
func announce(cfg *config, transports []transport) {
	app := cfg.app
	if app == "" {
		app = "the built-in demo application"
	}
	for _, t := range transports {
		addr := t.listener.Addr().String()
		if addr == "" {
			addr = "inherited socket"
		}
		if t.name == "http" && t.listener.Addr().Network() == "tcp" {
			addr = "http://" + addr
		}
		fmt.Fprintf(stderrLog, "wsgigate: %s is answered by %s on %s (%s)\n", t.name, app, addr, cfg.capacity())
	}
	if cfg.app != "" {
		return
	}
	for _, t := range transports {
		if t.name == "http" && t.listener.Addr().Network() == "tcp" {
			fmt.Fprintf(stderrLog, "wsgigate: try it:     curl http://%s/\nwsgigate: your own:   wsgigate serve mysite:application\nwsgigate: to nginx:   wsgigate serve --fastcgi unix:/run/app.sock,mode=0660,group=www-data mysite:application\n", t.listener.Addr())
			return
		}
	}
}

// capacity says how many requests can run at once.
func (c *config) capacity() string {
	text := counted(c.workers, "worker")
	switch {
	case c.minWorkers < 0:
		text = "up to " + text
	case c.minWorkers > 0 && c.minWorkers < c.workers:
		text = fmt.Sprintf("%d to %s", c.minWorkers, text)
	}
	if c.threads > 1 {
		text += " of " + counted(c.threads, "thread")
	}
	return text
}

func counted(n int, thing string) string {
	if n != 1 {
		thing += "s"
	}
	return fmt.Sprintf("%d %s", n, thing)
}
