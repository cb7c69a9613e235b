package environtest

import (
	"fmt"
	"slices"
	"strings"
)

// Match says what a variable must be.
type Match struct {
	want string
	ok   func(value string, present bool) bool
}

// Is wants exactly these bytes.
func Is(want string) Match {
	return Match{fmt.Sprintf("%.200q", want), func(v string, present bool) bool { return present && v == want }}
}

// OneOf wants one of these.
func OneOf(want ...string) Match {
	return Match{fmt.Sprintf("one of %.200q", want), func(v string, present bool) bool {
		return present && slices.Contains(want, v)
	}}
}

// List wants the values of a repeated field, joined with commas (RFC 9110,
// section 5.3: white space around them means nothing).
func List(want ...string) Match {
	return Match{fmt.Sprintf("the list %q", want), func(v string, _ bool) bool {
		got := strings.Split(v, ",")
		for i := range got {
			got[i] = strings.TrimSpace(got[i])
		}
		return slices.Equal(got, want)
	}}
}

// ListWith wants a list that has at least this member.
func ListWith(member string) Match {
	return Match{fmt.Sprintf("a list with %q", member), func(v string, _ bool) bool {
		for part := range strings.SplitSeq(v, ",") {
			if strings.TrimSpace(part) == member {
				return true
			}
		}
		return false
	}}
}

// Absent wants no such variable.
var Absent = Match{"no such variable", func(_ string, present bool) bool { return !present }}

// EmptyOrAbsent wants no value.
var EmptyOrAbsent = Match{"nothing", func(v string, _ bool) bool { return v == "" }}

// NotEmpty wants any value.
var NotEmpty = Match{"any value", func(v string, _ bool) bool { return v != "" }}

// Digits wants a number.
var Digits = Match{"digits", func(v string, _ bool) bool {
	return v != "" && strings.Trim(v, "0123456789") == ""
}}

// Or wants either of two things.
func (m Match) Or(other Match) Match {
	return Match{m.want + " or " + other.want, func(v string, present bool) bool {
		return m.ok(v, present) || other.ok(v, present)
	}}
}

// check returns what is wrong with a variable, or "".
func (m Match) check(seen *Seen, name string) string {
	value, present := seen.Var(name)
	switch {
	case m.ok(value, present):
		return ""
	case present:
		return fmt.Sprintf("%s = %.200q, want %s", name, value, m.want)
	default:
		return fmt.Sprintf("%s is absent, want %s", name, m.want)
	}
}
