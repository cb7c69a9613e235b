package environtest

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// Target is something that the conformance table runs against.
type Target struct {
	// Do makes one request. It speaks HTTP to a front server, or a transport's
	// own protocol; the Request's Target begins with Mount. It is called by one
	// goroutine at a time.
	Do func(*Request) (*Response, error)

	// Mount is where the application is: "" or a path such as "/sub".
	Mount string

	// RunOnce is the wsgi.run_once that the application must see.
	RunOnce bool

	// Quirks is what this target does differently.
	Quirks Quirks
}

// Case is one row of the conformance table.
type Case struct {
	Name    string
	Request Request

	// Reflect says that the answer is what the application saw. Then the method,
	// paths, query string, body and PEP 3333's duties are always checked, and Seen
	// says what else the environ must have; a row of Seen replaces what is
	// always checked for that name.
	Reflect bool
	Seen    map[string]Match

	// The answer: Status 0 means 200; Refused means any status from 400 to 499 and
	// nothing else. Body is checked if it is not nil, Header's values as a list.
	Status  int
	Refused bool
	Reason  string
	Header  map[string][]string
	Body    []byte

	// Mounted cases make sense only for an application with a mount.
	Mounted bool
}

// Run runs the whole conformance table against t.
func Run(tt *testing.T, t Target) {
	tt.Helper()
	for _, c := range Cases() {
		if c.Mounted && t.Mount == "" {
			continue
		}
		c = t.Quirks.apply(c)
		tt.Run(c.Name, func(tt *testing.T) {
			resp, err := t.Do(c.Request.complete(t.Mount))
			if err != nil {
				tt.Fatal(err)
			}
			if err := t.Check(&c, resp); err != nil {
				tt.Error(err)
			}
		})
	}
}

// Check returns everything that is wrong with the response to a case.
func (t *Target) Check(c *Case, resp *Response) error {
	if c.Refused {
		if resp.Status/100 != 4 {
			return fmt.Errorf("status %d, want a refusal", resp.Status)
		}
		return nil
	}
	want := c.Status
	if want == 0 {
		want = http.StatusOK
	}
	if resp.Status != want {
		return fmt.Errorf("status %d %s, want %d; body %.300q", resp.Status, resp.Reason, want, resp.Body)
	}
	return errors.Join(c.checkAnswer(resp), t.checkSeen(c, resp))
}

func (c *Case) checkAnswer(resp *Response) error {
	var errs []error
	fail := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	if c.Reason != "" && resp.Reason != c.Reason {
		fail("reason %q, want %q", resp.Reason, c.Reason)
	}
	for _, name := range slices.Sorted(maps.Keys(c.Header)) {
		if got := resp.Header.Values(name); !slices.Equal(got, c.Header[name]) {
			fail("%s is %q, want %q", name, got, c.Header[name])
		}
	}
	bodyless := c.Request.Method == "HEAD" || resp.Status == 204 || resp.Status == 304
	if bodyless && len(resp.Body) > 0 {
		fail("body of %d bytes, want none", len(resp.Body))
	}
	if length := resp.Header.Get("Content-Length"); length != "" && !bodyless && length != strconv.Itoa(len(resp.Body)) {
		fail("Content-Length %s, but %d bytes", length, len(resp.Body))
	}
	if c.Body != nil && string(resp.Body) != string(c.Body) {
		fail("body of %d bytes %.100q, want %d bytes %.100q", len(resp.Body), resp.Body, len(c.Body), c.Body)
	}
	if strings.Contains(string(resp.Body), secretText) {
		fail("the body tells the client %q", secretText)
	}
	return errors.Join(errs...)
}

func (t *Target) checkSeen(c *Case, resp *Response) error {
	if !c.Reflect || c.Request.Method == "HEAD" {
		return nil
	}
	seen, err := decodeSeen(resp.Body)
	if err != nil {
		return err
	}
	want := t.always(&c.Request)
	maps.Copy(want, c.Seen)
	var errs []error
	for _, name := range slices.Sorted(maps.Keys(want)) {
		if text := want[name].check(seen, name); text != "" {
			errs = append(errs, errors.New(text))
		}
	}
	for _, fault := range seen.Faults {
		errs = append(errs, errors.New(fault))
	}
	return errors.Join(append(errs, t.checkInput(c, seen))...)
}

// always is what holds for the environ of every request.
func (t *Target) always(r *Request) map[string]Match {
	full := r.complete(t.Mount)
	rawPath, query, _ := strings.Cut(r.Target, "?")
	path, err := url.PathUnescape(rawPath)
	if err != nil {
		panic("environtest: bad target in the table: " + r.Target)
	}
	want := map[string]Match{
		"REQUEST_METHOD":      Is(full.Method),
		"SCRIPT_NAME":         Is(t.Mount),
		"PATH_INFO":           Is(path),
		"QUERY_STRING":        Is(query),
		"REQUEST_URI":         Is(full.Target).Or(Absent),
		"SERVER_PROTOCOL":     Is(full.Proto),
		"SERVER_NAME":         NotEmpty,
		"SERVER_PORT":         Digits,
		"HTTP_CONTENT_TYPE":   Absent,
		"HTTP_CONTENT_LENGTH": Absent,
		"HTTP_PROXY":          Absent,
		"CONTENT_LENGTH":      Is(strconv.Itoa(len(r.Body))),
		"CONTENT_TYPE":        Absent,
	}
	if t.Mount == "" {
		want["SCRIPT_NAME"] = EmptyOrAbsent // PEP 3333: may be empty; wsgiref's validator accepts both
	}
	if len(r.Body) == 0 || r.Chunked {
		want["CONTENT_LENGTH"] = want["CONTENT_LENGTH"].Or(EmptyOrAbsent)
	}
	if contentType, ok := r.Get("Content-Type"); ok {
		want["CONTENT_TYPE"] = Is(contentType)
	}
	return want
}

// checkInput checks the wsgi. keys and wsgi.input.
func (t *Target) checkInput(c *Case, seen *Seen) error {
	var errs []error
	fail := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	if !slices.Equal(seen.WSGI.Version, []int{1, 0}) {
		fail("wsgi.version %v, want (1, 0)", seen.WSGI.Version)
	}
	if seen.WSGI.URLScheme != "http" {
		fail("wsgi.url_scheme %q, want http", seen.WSGI.URLScheme)
	}
	if seen.WSGI.RunOnce != t.RunOnce {
		fail("wsgi.run_once %v, want %v", seen.WSGI.RunOnce, t.RunOnce)
	}
	digest := sha256.Sum256(c.Request.Body)
	switch {
	case seen.Body.Error != "":
		fail("wsgi.input failed after %d bytes: %s", seen.Body.Length, seen.Body.Error)
	case seen.Body.Length != int64(len(c.Request.Body)):
		fail("wsgi.input had %d bytes, want %d", seen.Body.Length, len(c.Request.Body))
	case seen.Body.SHA256 != hex.EncodeToString(digest[:]):
		fail("wsgi.input had other bytes than were sent")
	}
	return errors.Join(errs...)
}
