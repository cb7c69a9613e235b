package status

import (
	"math"
	"testing"
	"time"
)

func TestDuration(t *testing.T) {
	for d, want := range map[time.Duration]string{
		-time.Second: "0s", 0: "0s", 1: "1µs", 999 * time.Microsecond: "999µs", time.Millisecond: "1ms", 2540 * time.Microsecond: "2.5ms",
		9999 * time.Microsecond: "10ms", 999 * time.Millisecond: "999ms", time.Second: "1s", 2349 * time.Millisecond: "2.3s",
		59990 * time.Millisecond: "59.9s", time.Minute: "1m", 61 * time.Second: "1m1s", 599 * time.Second: "9m59s", 660 * time.Second: "11m",
		time.Hour - 1: "59m", time.Hour: "1h", 3*time.Hour + 12*time.Minute: "3h12m", 24 * time.Hour: "1d", 51 * time.Hour: "2d3h",
	} {
		if got := duration(d); got != want {
			t.Errorf("duration(%d) = %q, want %q", d, got, want)
		}
	}
}

func TestNumbers(t *testing.T) {
	for n, want := range map[int64]string{0: "0 B", 1023: "1023 B", 1024: "1 KiB", 1536: "1.5 KiB", 48 << 20: "48 MiB", 1000 << 20: "1 GiB", 5 << 40: "5 TiB", 5000 << 40: "5000 TiB"} {
		if got := size(n); got != want {
			t.Errorf("size(%d) = %q, want %q", n, got, want)
		}
	}
	for n, want := range map[int]string{-5: "0", 0: "0", 999: "999", 1000: "1,000", 1234567: "1,234,567"} {
		if got := count(n); got != want {
			t.Errorf("count(%d) = %q, want %q", n, got, want)
		}
	}
	for f, want := range map[float64]string{0: "0", 0.04: "0", 0.26: "0.3", 12: "12", 99.9: "99.9", 99.96: "100", 1284.6: "1,285", -1: "0", math.Inf(-1): "0"} {
		if got := perSecond(f); got != want {
			t.Errorf("perSecond(%v) = %q, want %q", f, got, want)
		}
	}
}

func TestVisible(t *testing.T) {
	for s, want := range map[string]string{
		"/caf\u00e9?a=b c": "/caf\u00e9?a=b c", "a\x1b[2Jb": `a\x1b[2Jb`, "\xff\xfe": `\xff\xfe`, "\u202eevil": `\u202eevil`,
		"\u0085": `\x85`, "a\nb\tc\r": `a\x0ab\x09c\x0d`, "\ufffd": "\ufffd", "\x7f": `\x7f`,
	} {
		if got := visible(s); got != want {
			t.Errorf("visible(%q) = %q, want %q", s, got, want)
		}
	}
	if got, want := visibleLines("a\n\tb\r\x1b"), "a\n\tb\\x0d\\x1b"; got != want {
		t.Errorf("visibleLines: %q, want %q", got, want)
	}
}

func TestQuantile(t *testing.T) {
	ten := make([]uint64, len(bounds))
	ten[3], ten[4] = 50, 50 // half within 2 to 5 ms, half within 5 to 10 ms
	for q, want := range map[float64]string{0: "2ms", .25: "3.5ms", .5: "5ms", .75: "7.5ms", 1: "10ms"} {
		if got := quantileText(histogram(ten...), q); got != want {
			t.Errorf("of 0.%v: %s, want %s", q, got, want)
		}
	}
	late := make([]uint64, len(bounds))
	late[0], late[len(late)-1] = 90, 10
	if got := quantileText(histogram(late...), .99); got != ">1m" {
		t.Errorf("past the last bound: %s", got)
	}
	if got := quantileText(histogram(), .5) + quantileText(nil, .5); got != "––" {
		t.Errorf("without requests: %s", got)
	}
}
