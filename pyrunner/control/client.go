package control

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"net/http/httptrace"
	"net/textproto"
	"os"
	"os/user"
	"strconv"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"wsgigate/pyrunner/status"
)

// Client talks to the server whose control socket is at Path.
type Client struct {
	Path string

	// Patience is how long Reload waits for a sign of life; 0: DefaultPatience.
	Patience time.Duration
}

// DefaultPatience is that of a Client.
const DefaultPatience = 10 * time.Second

// ErrReloading is in the error of a Reload whose outcome is not known though the server
// has said that it has begun.
var ErrReloading = errors.New("the server has begun to reload")

// ReloadError says why a reload failed. The old workers serve on.
type ReloadError struct {
	Sentence  string
	Traceback string // of the application, if it is to blame; may have several lines
}

// Error returns the sentence.
func (e *ReloadError) Error() string { return e.Sentence }

// Status asks for the server's status.
func (c Client) Status(ctx context.Context) (status.Snapshot, error) {
	var s status.Snapshot
	err := c.call(ctx, http.MethodGet, "/status", &s)
	return s, err
}

// Reload asks for a reload and waits until it is done, which may take long, while the
// server gives signs of life. If it failed, the error is a *ReloadError.
func (c Client) Reload(ctx context.Context) (Reloaded, error) {
	patience := cmp.Or(c.Patience, DefaultPatience)
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	mute := time.AfterFunc(patience, func() { cancel(errMute) })
	defer mute.Stop()
	var begun atomic.Bool
	ctx = httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{Got1xxResponse: func(int, textproto.MIMEHeader) error {
		begun.Store(true)
		mute.Reset(patience)
		return nil
	}})
	var r Reloaded
	err := c.call(ctx, http.MethodPost, "/reload", &r)
	if err != nil && context.Cause(ctx) == errMute {
		err = fmt.Errorf("control: the server at %s has said nothing for %v: it hangs or is suspended", c.Path, patience)
	}
	if _, failed := errors.AsType[*ReloadError](err); err != nil && !failed && begun.Load() {
		err = fmt.Errorf("%w: %w", err, ErrReloading)
	}
	return r, err
}

// errMute is why Reload gives up.
var errMute = errors.New("the server says nothing")

// Stop asks the server to stop. It does not wait; AwaitEnd does.
func (c Client) Stop(ctx context.Context) error {
	return c.call(ctx, http.MethodPost, "/stop", new(stopping))
}

// pollEvery is how often AwaitEnd looks.
const pollEvery = 20 * time.Millisecond

// AwaitEnd returns when nobody listens on the socket any more, or at the end of
// ctx with its error.
func (c Client) AwaitEnd(ctx context.Context) error {
	for {
		conn, err := c.dial(ctx)
		if err == nil {
			_ = conn.Close()
		}
		if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ECONNREFUSED) {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("control: the server still listens on %s: %w", c.Path, ctx.Err())
		case <-time.After(pollEvery):
		}
	}
}

func (c Client) dial(ctx context.Context) (net.Conn, error) {
	return new(net.Dialer).DialContext(ctx, "unix", c.Path)
}

// call makes one request and reads its answer into result.
func (c Client) call(ctx context.Context, method, path string, result any) error {
	transport := &http.Transport{
		DisableKeepAlives: true,
		DialContext:       func(ctx context.Context, _, _ string) (net.Conn, error) { return c.dial(ctx) },
	}
	r, err := http.NewRequestWithContext(ctx, method, "http://control"+path, nil)
	if err != nil {
		return fmt.Errorf("control: %w", err)
	}
	res, err := transport.RoundTrip(r)
	if err != nil {
		return c.explain(err)
	}
	defer res.Body.Close()
	if res.Header.Get("Content-Type") != contentType || res.Header.Get(protocolHeader) != protocol {
		return fmt.Errorf("control: what answers on %s is not the control socket of wsgigate (status %d)", c.Path, res.StatusCode)
	}
	body, err := io.ReadAll(res.Body)
	if err != nil {
		return c.explain(err)
	}
	if res.StatusCode >= http.StatusBadRequest {
		return c.failed(path, res.StatusCode, body)
	}
	if err := json.Unmarshal(body, result); err != nil {
		return fmt.Errorf("control: answer from %s: %w", c.Path, err)
	}
	return nil
}

// failed turns the answer to what did not succeed into an error.
func (c Client) failed(path string, code int, body []byte) error {
	var f failure
	if err := json.Unmarshal(body, &f); err != nil || f.Error == "" {
		return fmt.Errorf("control: the server at %s answered with status %d", c.Path, code)
	}
	if path == "/reload" && code == http.StatusInternalServerError {
		return &ReloadError{f.Error, f.Traceback}
	}
	return fmt.Errorf("control: the server at %s refuses: %s", c.Path, f.Error)
}

// explain says what is wrong with the socket, and what to do.
func (c Client) explain(err error) error {
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return fmt.Errorf("control: there is no socket %s: is the server running with --control unix:%s?", c.Path, c.Path)
	case errors.Is(err, fs.ErrPermission):
		return fmt.Errorf("control: no permission to connect to %s%s", c.Path, c.owner())
	case errors.Is(err, unix.ECONNREFUSED) && !c.isSocket():
		return fmt.Errorf("control: %s is not a socket: is the server running with --control unix:%s?", c.Path, c.Path)
	case errors.Is(err, unix.ECONNREFUSED):
		return fmt.Errorf("control: nobody listens on %s: the server that made it has ended without removing it; start the server again", c.Path)
	case errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, unix.ECONNRESET):
		return fmt.Errorf("control: the server at %s ended before it answered", c.Path)
	case errors.Is(err, context.DeadlineExceeded):
		return fmt.Errorf("control: no answer from the server at %s in time: %w", c.Path, err)
	}
	return fmt.Errorf("control: %s: %w", c.Path, err)
}

// owner says whose socket it is, if that can be seen.
func (c Client) owner() string {
	info, err := os.Stat(c.Path)
	if err != nil {
		return ": its folder is closed to you; run this as the server's user or as root"
	}
	uid := strconv.FormatUint(uint64(info.Sys().(*syscall.Stat_t).Uid), 10)
	name := "user " + uid
	if u, err := user.LookupId(uid); err == nil {
		name = u.Username
	}
	return ", which belongs to " + name + ": run this as that user or as root"
}

func (c Client) isSocket() bool {
	info, err := os.Stat(c.Path)
	return err != nil || info.Mode()&fs.ModeSocket != 0
}
