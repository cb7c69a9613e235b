package status

import (
	"fmt"
	"math"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"
)

// duration writes a length of time as people read it: two figures at most.
func duration(d time.Duration) string {
	switch {
	case d <= 0:
		return "0s"
	case d < time.Millisecond:
		return fmt.Sprintf("%dµs", max(1, d.Microseconds()))
	case d < 10*time.Millisecond:
		return short(float64(d)/float64(time.Millisecond)) + "ms"
	case d < time.Second:
		return fmt.Sprintf("%dms", d.Milliseconds())
	case d < time.Minute:
		return short(math.Floor(d.Seconds()*10)/10) + "s"
	case d < 10*time.Minute:
		return two(d, time.Minute, "m", time.Second, "s")
	case d < time.Hour:
		return fmt.Sprintf("%dm", d/time.Minute)
	case d < 24*time.Hour:
		return two(d, time.Hour, "h", time.Minute, "m")
	}
	return two(d, 24*time.Hour, "d", time.Hour, "h")
}

// two writes a length of time in a unit and the rest in a smaller one.
func two(d, unit time.Duration, name string, smaller time.Duration, itsName string) string {
	text := fmt.Sprintf("%d%s", d/unit, name)
	if rest := d % unit / smaller; rest > 0 {
		text += fmt.Sprintf("%d%s", rest, itsName)
	}
	return text
}

// short writes one decimal, unless it is a zero.
func short(f float64) string { return strings.TrimSuffix(strconv.FormatFloat(f, 'f', 1, 64), ".0") }

// size writes a number of bytes in powers of 1024.
func size(n int64) string {
	if n < 1<<10 {
		return fmt.Sprintf("%d B", n)
	}
	f, unit := float64(n)/(1<<10), 0
	units := [...]string{"KiB", "MiB", "GiB", "TiB"}
	for f >= 999.5 && unit < len(units)-1 {
		f, unit = f/(1<<10), unit+1
	}
	if f < 9.95 {
		return short(f) + " " + units[unit]
	}
	return strconv.FormatFloat(f, 'f', 0, 64) + " " + units[unit]
}

// count writes a number with its thousands apart.
func count[N int | uint64](n N) string {
	digits := strconv.FormatUint(uint64(max(n, 0)), 10)
	for i := len(digits) - 3; i > 0; i -= 3 {
		digits = digits[:i] + "," + digits[i:]
	}
	return digits
}

// perSecond writes a rate.
func perSecond(f float64) string {
	switch {
	case math.IsNaN(f) || f < 0:
		return "0"
	case f < 99.95:
		return short(f)
	}
	return count(uint64(math.Round(f)))
}

// visible escapes what does not print. What clients and applications say neither
// drives a terminal nor turns the direction of the text around it.
func visible(s string) string { return escape(s, "") }

// visibleLines is visible for text of several lines.
func visibleLines(s string) string { return escape(s, "\n\t") }

func escape(s, keep string) string {
	var b strings.Builder
	for i := 0; i < len(s); {
		r, n := utf8.DecodeRuneInString(s[i:])
		switch {
		case r == utf8.RuneError && n == 1:
			fmt.Fprintf(&b, `\x%02x`, s[i])
		case unicode.IsPrint(r) || strings.ContainsRune(keep, r):
			b.WriteRune(r)
		case r < 0x100:
			fmt.Fprintf(&b, `\x%02x`, r)
		default:
			fmt.Fprintf(&b, `\u%04x`, r)
		}
		i += n
	}
	return b.String()
}

// cut shortens a text to so many characters.
func cut(s string, most int) string {
	if utf8.RuneCountInString(s) <= most {
		return s
	}
	return string([]rune(s)[:most-1]) + "…"
}

// firstLine is the sentence of an error that may have a traceback.
func firstLine(s string) string {
	line, _, _ := strings.Cut(s, "\n")
	return line
}

// otherLines is the traceback.
func otherLines(s string) string {
	_, rest, _ := strings.Cut(s, "\n")
	return strings.TrimRight(rest, "\n")
}
