package integration

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"mime/multipart"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

const (
	uploadSize     = 300_001 // over every buffer that a front server keeps in memory
	downloadBlocks = 64
	downloadBlock  = 16 << 10
)

// browser is a client of one site.
type browser struct {
	*http.Client
	t    *testing.T
	site *site
}

// useSite does with a framework's site what its visitors do.
func useSite(t *testing.T, s *site) {
	transport := &http.Transport{}
	t.Cleanup(transport.CloseIdleConnections)
	b := &browser{&http.Client{Transport: transport, Timeout: time.Minute}, t, s}
	t.Run("page", b.at(browser.page))
	t.Run("form", b.at(browser.form))
	t.Run("upload", b.at(browser.upload))
	t.Run("streamed download", b.at(browser.download))
	t.Run("redirect", b.at(browser.redirect))
}

// at returns a step as a test of its own.
func (b *browser) at(step func(browser)) func(*testing.T) {
	return func(t *testing.T) { step(browser{b.Client, t, b.site}) }
}

// page: the site's links begin with its mount.
func (b browser) page() {
	_, body := b.do("GET", "/", "", nil)
	b.contains(body, "Hello from", fmt.Sprintf(`<a href="%s/new?x=1">`, b.site.Mount))
}

func (b browser) form() {
	fields := url.Values{"name": {"J\u00fcrgen & Co"}, "choice": {"1", "2"}, "empty": {""}}
	_, body := b.do("POST", "/form", "application/x-www-form-urlencoded", strings.NewReader(fields.Encode()))
	b.equal(body, map[string]any{"fields": []any{
		[]any{"choice", "1"}, []any{"choice", "2"}, []any{"empty", ""}, []any{"name", "J\u00fcrgen & Co"},
	}})
}

func (b browser) upload() {
	content := bytes.Repeat([]byte("wsgi\x00\r\n"), uploadSize/7+1)[:uploadSize]
	var form bytes.Buffer
	w := multipart.NewWriter(&form)
	file, err := w.CreateFormFile("file", "data.bin")
	if err == nil {
		_, err = file.Write(content)
	}
	if err == nil {
		err = w.WriteField("note", "a note")
	}
	if err == nil {
		err = w.Close()
	}
	if err != nil {
		b.t.Fatal(err)
	}
	_, body := b.do("POST", "/upload", w.FormDataContentType(), &form)
	digest := sha256.Sum256(content)
	b.equal(body, map[string]any{
		"filename": "data.bin", "note": "a note", "size": float64(uploadSize), "sha256": hex.EncodeToString(digest[:]),
	})
}

func (b browser) download() {
	_, body := b.do("GET", fmt.Sprintf("/download?blocks=%d&size=%d", downloadBlocks, downloadBlock), "", nil)
	if len(body) != downloadBlocks*downloadBlock {
		b.t.Fatalf("%d bytes, want %d", len(body), downloadBlocks*downloadBlock)
	}
	for i, got := range body {
		if want := byte(i / downloadBlock); got != want {
			b.t.Fatalf("byte %d is %d, want %d", i, got, want)
		}
	}
}

// redirect: the site says where to go without knowing its own mount.
func (b browser) redirect() {
	resp, body := b.do("GET", "/old", "", nil)
	if path := resp.Request.URL.Path; path != b.site.Mount+"/new" {
		b.t.Errorf("redirected to %s, want %s/new", path, b.site.Mount)
	}
	b.contains(body, "new page, x=1")
}

// do makes a request, follows redirects and wants a 200.
func (b browser) do(method, target, contentType string, body io.Reader) (*http.Response, []byte) {
	b.t.Helper()
	req, err := http.NewRequest(method, b.site.url()+target, body)
	if err != nil {
		b.t.Fatal(err)
	}
	if contentType != "" {
		req.Header.Set("Content-Type", contentType)
	}
	resp, err := b.Do(req)
	if err != nil {
		b.t.Fatal(err)
	}
	defer resp.Body.Close()
	answer, err := io.ReadAll(resp.Body)
	if err != nil {
		b.t.Fatal(err)
	}
	if resp.StatusCode != http.StatusOK {
		b.t.Fatalf("%s: %s\n%.500s", target, resp.Status, answer)
	}
	return resp, answer
}

func (b browser) contains(body []byte, parts ...string) {
	b.t.Helper()
	for _, part := range parts {
		if !bytes.Contains(body, []byte(part)) {
			b.t.Errorf("no %q in %q", part, body)
		}
	}
}

// equal compares an answer in JSON.
func (b browser) equal(body []byte, want any) {
	b.t.Helper()
	var got any
	if err := json.Unmarshal(body, &got); err != nil {
		b.t.Fatalf("%v in %q", err, body)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		b.t.Errorf("answer (-want +got):\n%s", diff)
	}
}
