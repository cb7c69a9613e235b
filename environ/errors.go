package environ

import (
	"errors"
	"fmt"
	"strconv"
	"time"
)

// Error is an error whose kind carries the HTTP status that the client sees.
// The status is mapped here and nowhere else.
type Error struct {
	Status     int           // HTTP status, 400 to 599
	Err        error         // what happened, for the log; the client never sees it
	RetryAfter time.Duration // of a 503: when to try again; rounded up to seconds, at least 1
}

// Errorf returns an Error with that status and a formatted message (%w wraps).
func Errorf(status int, format string, args ...any) *Error {
	return &Error{Status: status, Err: fmt.Errorf(format, args...)}
}

func (e *Error) Error() string { return e.Err.Error() }

// Unwrap returns the wrapped error.
func (e *Error) Unwrap() error { return e.Err }

// ErrClientGone is the reason of a Cancel when the peer closed its connection;
// ErrAborted when it sent FCGI_ABORT_REQUEST.
var (
	ErrClientGone = errors.New("client closed the connection")
	ErrAborted    = errors.New("web server aborted the request")
)

// StatusOf returns the HTTP status for an error: that of the Error in its chain,
// 500 for any other.
func StatusOf(err error) int {
	if e, ok := errors.AsType[*Error](err); ok {
		return e.Status
	}
	return 500
}

// Fail answers with the error's status and a short text/plain page that gives
// no details. It must be called before WriteHeader.
func Fail(w ResponseWriter, r *Request, err error) {
	status := StatusOf(err)
	page := "wsgigate: " + strconv.Itoa(status) + " " + reasonOf(status) + "\n"
	var h Header
	_ = h.SetStatus(status, reasonOf(status))
	h.add("Content-Type", "text/plain; charset=utf-8")
	_ = h.Add("Content-Length", strconv.Itoa(len(page))) // Add notes it for ContentLength
	if status == 503 {
		h.add("Retry-After", strconv.Itoa(retryAfter(err)))
	}
	if w.WriteHeader(&h) != nil || r.IsHead() {
		return
	}
	_, _ = w.Write([]byte(page))
}

// retryAfter returns the seconds for a Retry-After field (RFC 9110, section 10.2.3).
func retryAfter(err error) int {
	e, ok := errors.AsType[*Error](err)
	if !ok {
		return 1
	}
	return max(1, int((e.RetryAfter+time.Second-1)/time.Second))
}

// reasonOf returns the reason phrase for a status, never empty.
func reasonOf(status int) string {
	if text, ok := reasons[status]; ok {
		return text
	}
	return "Error"
}

// reasons has the statuses that the gateway itself answers with. It is not
// net/http's table because this package must not make a CGI process load
// net/http.
var reasons = map[int]string{
	400: "Bad Request",
	404: "Not Found",
	408: "Request Timeout",
	411: "Length Required",
	413: "Content Too Large",
	431: "Request Header Fields Too Large",
	500: "Internal Server Error",
	501: "Not Implemented",
	502: "Bad Gateway",
	503: "Service Unavailable",
	504: "Gateway Timeout",
	507: "Insufficient Storage",
}
