package scgi

import (
	"io"
	"net"
	"testing"
	"time"

	"wsgigate/environ/environtest"
)

// scgiClient returns a Do that speaks SCGI.
func scgiClient(addr net.Addr, mount string) func(*environtest.Request) (*environtest.Response, error) {
	return func(r *environtest.Request) (*environtest.Response, error) {
		c, err := net.Dial(addr.Network(), addr.String())
		if err != nil {
			return nil, err
		}
		defer c.Close()
		if err := c.SetDeadline(time.Now().Add(10 * time.Second)); err != nil {
			return nil, err
		}
		var pairs []string
		for _, kv := range environtest.FrontEnviron(r, mount) {
			pairs = append(pairs, kv[0], kv[1])
		}
		if _, err := io.WriteString(c, netstring(append(pairs, "SCGI", "1")...)); err != nil {
			return nil, err
		}
		if _, err := c.Write(r.Body); err != nil {
			return nil, err
		}
		answer, err := io.ReadAll(c)
		if err != nil {
			return nil, err
		}
		return environtest.ParseCGI(answer)
	}
}

func TestConformance(t *testing.T) {
	addr := start(t, &Server{Handler: environtest.App()}, "")
	for _, mount := range []string{"", "/sub"} {
		target := environtest.Target{
			Do:     scgiClient(addr, mount),
			Mount:  mount,
			Quirks: environtest.ChunkedIs411 | environtest.NulRefused, // neither has a place in SCGI
		}
		t.Run("mount "+mount, func(t *testing.T) { environtest.Run(t, target) })
	}
}
