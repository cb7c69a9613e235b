package pyrunner

import (
	"context"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"testing"
	"time"

	"go.uber.org/goleak"

	"wsgigate/environ"
	"wsgigate/environ/environtest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }


// startPool starts a pool that runs source as its application.
func startPool(t *testing.T, source string, cfg Config) *Pool {
	t.Helper()
	dir := t.TempDir()
	if source != "" {
		if err := os.WriteFile(filepath.Join(dir, "app.py"), []byte(source), 0o600); err != nil {
			t.Fatal(err)
		}
		cfg.App = "app:app"
	}
	cfg.Chdir = dir
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.NewTextHandler(t.Output(), nil))
	}
	p, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		if err := p.Shutdown(ctx); err != nil {
			t.Errorf("shutdown: %v", err)
		}
	})
	if err := p.Start(); err != nil {
		t.Fatal(err)
	}
	return p
}

func get(path string) *environ.Request {
	r := &environ.Request{Transport: "test", ID: environ.NextID(), Body: environ.NoBody}
	r.Environ.Add("REQUEST_METHOD", http.MethodGet)
	r.Environ.Add("PATH_INFO", path)
	r.Environ.Add("SERVER_NAME", "localhost")
	r.Environ.Add("SERVER_PORT", "80")
	r.Environ.Add("SERVER_PROTOCOL", "HTTP/1.1")
	r.Environ.Add("QUERY_STRING", "")
	return r
}

func TestHello(t *testing.T) {
	p := startPool(t, `
def app(environ, start_response):
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [b"hello"]
`, Config{})
	for range 3 {
		w := &environtest.Recorder{}
		p.ServeGateway(w, get("/"))
		if w.Body.String() != "hello" {
			t.Errorf("%+v", w)
		}
	}
}
