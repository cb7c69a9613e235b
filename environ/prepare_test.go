package environ

import (
	"fmt"
	"strings"
	"testing"
)

func request(vars ...string) *Request {
	return &Request{Environ: *environOf(vars...), Transport: "fastcgi"}
}

// prepared returns the environ after Prepare, as a map.
func prepared(t *testing.T, rules *Rules, vars ...string) map[string]string {
	t.Helper()
	r := request(append([]string{"REQUEST_METHOD=GET"}, vars...)...)
	if err := Prepare(r, rules); err != nil {
		t.Fatal(err)
	}
	return asMap(t, &r.Environ)
}

func asMap(t *testing.T, e *Environ) map[string]string {
	t.Helper()
	m := map[string]string{}
	for name, value := range e.All() {
		if _, twice := m[string(name)]; twice {
			t.Errorf("%s is there twice", name)
		}
		m[string(name)] = string(value)
	}
	return m
}

func TestPrepareNames(t *testing.T) {
	const absent = "\x00absent"
	for _, c := range []struct {
		name string
		vars []string
		key  string
		want string
	}{
		{"repeated header (nginx 1.22)", []string{"HTTP_X_A=1", "HTTP_X_B=b", "HTTP_X_A=2", "HTTP_X_A=3"}, "HTTP_X_A", "1, 2, 3"},
		{"repeated cookie", []string{"HTTP_COOKIE=a=1", "HTTP_COOKIE=b=2"}, "HTTP_COOKIE", "a=1; b=2"},
		{"Host: last wins", []string{"HTTP_HOST=a.test", "HTTP_HOST=b.test"}, "HTTP_HOST", "b.test"},
		{"other name: last wins", []string{"DOCUMENT_ROOT=/a", "DOCUMENT_ROOT=/b"}, "DOCUMENT_ROOT", "/b"},
		{"other name: last wins if empty", []string{"HTTPS=on", "HTTPS="}, "HTTPS", ""},
		{"HTTPS is no HTTP_ name", []string{"HTTPS=off", "HTTPS=on"}, "HTTPS", "on"},
		{"Proxy (httpoxy)", []string{"HTTP_PROXY=http://evil.test"}, "HTTP_PROXY", absent},
		{"Proxy twice", []string{"HTTP_PROXY=a", "HTTP_PROXY=b"}, "HTTP_PROXY", absent},
		{"Proxy-Authorization is another", []string{"HTTP_PROXY_AUTHORIZATION=x"}, "HTTP_PROXY_AUTHORIZATION", "x"},
		{"HTTP_CONTENT_TYPE", []string{"HTTP_CONTENT_TYPE=a/b"}, "HTTP_CONTENT_TYPE", absent},
		{"HTTP_CONTENT_LENGTH", []string{"HTTP_CONTENT_LENGTH=5"}, "HTTP_CONTENT_LENGTH", absent},
		{"no name", []string{"=x"}, "", absent},
		{"wsgi. key", []string{"wsgi.input=x"}, "wsgi.input", absent},
		{"wsgigate. key", []string{"wsgigate.x=x"}, "wsgigate.x", absent},
		{"empty CONTENT_TYPE", []string{"CONTENT_TYPE="}, "CONTENT_TYPE", absent},
		{"CONTENT_TYPE, then empty", []string{"CONTENT_TYPE=a/b", "CONTENT_TYPE=c/d", "CONTENT_TYPE="}, "CONTENT_TYPE", "c/d"},
		{"CONTENT_TYPE", []string{"CONTENT_TYPE=a/b"}, "CONTENT_TYPE", "a/b"},
		{"empty CONTENT_LENGTH", []string{"CONTENT_LENGTH="}, "CONTENT_LENGTH", absent},
		{"letter case counts", []string{"http_proxy=x"}, "http_proxy", "x"},
		{"bytes", []string{"HTTP_X=\xff\xc3\xa9\x00"}, "HTTP_X", "\xff\xc3\xa9\x00"},
	} {
		t.Run(c.name, func(t *testing.T) {
			got, ok := prepared(t, &Rules{}, c.vars...)[c.key]
			if !ok {
				got = absent
			}
			if got != c.want {
				t.Errorf("%s = %q, want %q", c.key, got, c.want)
			}
		})
	}
}

func TestPrepareSupplies(t *testing.T) {
	for _, c := range []struct {
		name string
		vars []string
		key  string
		want string
	}{
		{"no query", nil, "QUERY_STRING", ""},
		{"query of REQUEST_URI", []string{"REQUEST_URI=/a?b?c"}, "QUERY_STRING", "b?c"},
		{"query is kept if empty", []string{"QUERY_STRING=", "REQUEST_URI=/a?b"}, "QUERY_STRING", ""},
		{"no protocol", nil, "SERVER_PROTOCOL", "HTTP/1.0"},
		{"protocol", []string{"SERVER_PROTOCOL=HTTP/2.0"}, "SERVER_PROTOCOL", "HTTP/2.0"},
		{"no name at all", nil, "SERVER_NAME", "localhost"},
		{"empty name (nginx), from Host", []string{"SERVER_NAME=", "HTTP_HOST=h.test:81"}, "SERVER_NAME", "h.test"},
		{"name from the socket", []string{"SERVER_NAME=", "SERVER_ADDR=192.0.2.1"}, "SERVER_NAME", "192.0.2.1"},
		{"name is kept", []string{"SERVER_NAME=s.test", "HTTP_HOST=h.test"}, "SERVER_NAME", "s.test"},
		{"name from an IPv6 Host", []string{"HTTP_HOST=[2001:db8::1]"}, "SERVER_NAME", "[2001:db8::1]"},
		{"name from an IPv6 Host with port", []string{"HTTP_HOST=[2001:db8::1]:81"}, "SERVER_NAME", "[2001:db8::1]"},
		{"port from an IPv6 Host", []string{"HTTP_HOST=[2001:db8::1]:81"}, "SERVER_PORT", "81"},
		{"port not from IPv6 groups", []string{"HTTP_HOST=[2001:db8::1]"}, "SERVER_PORT", "80"},
		{"port from Host", []string{"HTTP_HOST=h.test:8080"}, "SERVER_PORT", "8080"},
		{"port that is none", []string{"HTTP_HOST=h.test:x"}, "SERVER_PORT", "80"},
		{"port too large", []string{"HTTP_HOST=h.test:65536"}, "SERVER_PORT", "80"},
		{"port without digits", []string{"HTTP_HOST=h.test:"}, "SERVER_PORT", "80"},
		{"name before a bad port", []string{"HTTP_HOST=h.test:x"}, "SERVER_NAME", "h.test"},
		{"Host that is only a port", []string{"HTTP_HOST=:81"}, "SERVER_NAME", "localhost"},
		{"port of https", []string{"HTTPS=on"}, "SERVER_PORT", "443"},
		{"port of http", nil, "SERVER_PORT", "80"},
		{"port is kept", []string{"SERVER_PORT=8000", "HTTP_HOST=h.test:81"}, "SERVER_PORT", "8000"},
		{"empty port", []string{"SERVER_PORT=", "HTTP_HOST=h.test:81"}, "SERVER_PORT", "81"},
	} {
		t.Run(c.name, func(t *testing.T) {
			got, ok := prepared(t, &Rules{}, c.vars...)[c.key]
			if !ok || got != c.want {
				t.Errorf("%s = %q, %v, want %q", c.key, got, ok, c.want)
			}
		})
	}
}

func TestPrepareExtra(t *testing.T) {
	rules := &Rules{Extra: [][2]string{{"DEPLOYED", "yes"}, {"HTTPS", "on"}, {"SERVER_NAME", "s.test"}}}
	got := prepared(t, rules, "HTTPS=off", "DEPLOYED=no", "DEPLOYED=never")
	for key, want := range map[string]string{"DEPLOYED": "yes", "HTTPS": "on", "SERVER_NAME": "s.test", "SERVER_PORT": "443"} {
		if got[key] != want {
			t.Errorf("%s = %q, want %q", key, got[key], want)
		}
	}
}

func TestPrepareContentLength(t *testing.T) {
	const limit = 1000
	for _, c := range []struct {
		vars   []string
		want   int64
		status int
	}{
		{nil, -1, 0},
		{[]string{"CONTENT_LENGTH="}, -1, 0},
		{[]string{"CONTENT_LENGTH=0"}, 0, 0},
		{[]string{"CONTENT_LENGTH=000"}, 0, 0},
		{[]string{"CONTENT_LENGTH=5"}, 5, 0},
		{[]string{"CONTENT_LENGTH=" + strings.Repeat("0", 40) + "70"}, 70, 0},
		{[]string{"CONTENT_LENGTH=1000"}, 1000, 0},
		{[]string{"CONTENT_LENGTH=1001"}, 0, 413},
		{[]string{"CONTENT_LENGTH=2147483647"}, 0, 413},
		{[]string{"CONTENT_LENGTH=9223372036854775807"}, 0, 413},
		{[]string{"CONTENT_LENGTH=18446744073709551621"}, 0, 413}, // 5 modulo 2^64
		{[]string{"CONTENT_LENGTH=" + strings.Repeat("9", 200)}, 0, 413},
		{[]string{"CONTENT_LENGTH=+5"}, 0, 400},
		{[]string{"CONTENT_LENGTH=-5"}, 0, 400},
		{[]string{"CONTENT_LENGTH=0x5"}, 0, 400},
		{[]string{"CONTENT_LENGTH=5 "}, 0, 400},
		{[]string{"CONTENT_LENGTH= 5"}, 0, 400},
		{[]string{"CONTENT_LENGTH=5,5"}, 0, 400},
		{[]string{"CONTENT_LENGTH=5.0"}, 0, 400},
		{[]string{"CONTENT_LENGTH=1_0"}, 0, 400},
		{[]string{"CONTENT_LENGTH=\xef\xbc\x95"}, 0, 400}, // a full-width 5
		{[]string{"CONTENT_LENGTH=5", "CONTENT_LENGTH=5"}, 0, 400},
		{[]string{"CONTENT_LENGTH=5", "CONTENT_LENGTH=6"}, 0, 400},
		{[]string{"CONTENT_LENGTH=", "CONTENT_LENGTH=5"}, 0, 400},
		{[]string{"CONTENT_LENGTH=5", "CONTENT_LENGTH="}, 0, 400},
		{[]string{"CONTENT_LENGTH=", "CONTENT_LENGTH="}, 0, 400},
		{[]string{"CONTENT_LENGTH=5", "HTTP_CONTENT_LENGTH=6"}, 5, 0},
	} {
		t.Run(fmt.Sprintf("%.60q", c.vars), func(t *testing.T) {
			r := request(append(c.vars, "REQUEST_METHOD=POST")...)
			err := Prepare(r, &Rules{Limits: Limits{MaxBody: limit}})
			if c.status != 0 {
				if err == nil || StatusOf(err) != c.status {
					t.Errorf("error %v, want status %d", err, c.status)
				}
				return
			}
			if err != nil || r.ContentLength != c.want {
				t.Errorf("length %d, %v, want %d", r.ContentLength, err, c.want)
			}
		})
	}
}

func TestPrepareZeroLimitIsTheDefault(t *testing.T) {
	for length, ok := range map[string]bool{"1073741824": true, "1073741825": false} {
		if err := Prepare(request("REQUEST_METHOD=POST", "CONTENT_LENGTH="+length), &Rules{}); (err == nil) != ok {
			t.Errorf("%s: %v", length, err)
		}
	}
}

func TestPrepareWantsAMethod(t *testing.T) {
	for _, vars := range [][]string{nil, {"REQUEST_METHOD="}, {"REQUEST_METHOD=GET", "REQUEST_METHOD="}} {
		if err := Prepare(request(vars...), &Rules{}); err == nil || StatusOf(err) != 400 {
			t.Errorf("%q: %v, want a 400", vars, err)
		}
	}
}

// TestPrepareRepeatedIsLinear: joining the values takes memory of their size, not
// of its square.
func TestPrepareRepeatedIsLinear(t *testing.T) {
	r := request("REQUEST_METHOD=GET")
	value := strings.Repeat("v", 50)
	for range 500 {
		r.Environ.Add("HTTP_A", value)
		r.Environ.Add("HTTP_B", value)
	}
	size := r.Environ.Size()
	if err := Prepare(r, &Rules{}); err != nil {
		t.Fatal(err)
	}
	want := strings.Repeat(value+", ", 499) + value
	if r.Environ.Text("HTTP_A") != want || r.Environ.Text("HTTP_B") != want {
		t.Error("the values are not joined")
	}
	if grown := len(r.Environ.buf); grown > 3*size {
		t.Errorf("%d bytes for %d", grown, size)
	}
}

// TestPrepareManyNames: more names than the table on the stack has room for.
func TestPrepareManyNames(t *testing.T) {
	for _, n := range []int{120, 121, 122, 128, 1000} {
		vars := []string{}
		for i := range n {
			vars = append(vars, fmt.Sprintf("HTTP_X_%d=%d", i, i), fmt.Sprintf("HTTP_X_%d=again", i))
		}
		got := prepared(t, &Rules{}, vars...)
		for i := range n {
			if v := got[fmt.Sprintf("HTTP_X_%d", i)]; v != fmt.Sprintf("%d, again", i) {
				t.Fatalf("%d names: HTTP_X_%d = %q", n, i, v)
			}
		}
	}
}

func TestScheme(t *testing.T) {
	for vars, want := range map[string]string{
		"": "http", "HTTPS=": "http", "HTTPS=off": "http", "HTTPS=0": "http", "HTTPS=no": "http", "HTTPS=true": "http",
		"HTTPS=on": "https", "HTTPS=ON": "https", "HTTPS=On": "https", "HTTPS=yes": "https", "HTTPS=YES": "https", "HTTPS=1": "https",
		"HTTPS=11": "http", "HTTPS=onn": "http", "REQUEST_SCHEME=https": "https", "REQUEST_SCHEME=HTTPS": "https",
		"REQUEST_SCHEME=http": "http", "REQUEST_SCHEME=httpss": "http", "HTTP_X_FORWARDED_PROTO=https": "http",
	} {
		if got := Scheme(environOf(vars)); got != want {
			t.Errorf("%q: %s, want %s", vars, got, want)
		}
	}
	if got := Scheme(environOf("HTTPS=off", "REQUEST_SCHEME=https")); got != "https" {
		t.Errorf("HTTPS=off with REQUEST_SCHEME=https: %s", got)
	}
}
