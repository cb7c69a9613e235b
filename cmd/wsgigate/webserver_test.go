package main

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/urfave/cli/v2"
)

// testCommands are the commands as run has them.
func testCommands() []*cli.Command {
	return []*cli.Command{serveCommand(), fcgiCommand(), cgiCommand(), callCommand(), versionCommand()}
}

func TestFlagsFirst(t *testing.T) {
	flags := append(callCommand().Flags, &cli.BoolFlag{Name: "help", Aliases: []string{"h"}})
	for _, c := range []struct{ args, want string }{
		{"", "--"},
		{"app:app", "-- app:app"},
		{"app:app --workers 2 more", "--workers 2 -- app:app more"},
		{"app:app --workers=2 --debug x", "--workers=2 --debug -- app:app x"},
		{"-d -x -H a:b app", "--data -x --header a:b -- app"},
		{"-d=x -d @y", "--data=x --data @y --"},
		{"-workers 2", "--workers 2 --"},
		{"app - -", "-- app - -"},
		{"a --debug -- --workers b", "--debug -- a --workers b"},
		{"--env -- app", "--env -- -- app"}, // "--" is the value
		{"app --nope x", "--nope -- app x"},
		{"app --workers", "--workers"},
		{"app -d", "--data"},
	} {
		got := flagsFirst(flags, strings.Fields(c.args))
		if strings.Join(got, " ") != c.want {
			t.Errorf("%q: %q, want %q", c.args, got, c.want)
		}
	}
}

func TestCommandLine(t *testing.T) {
	for _, c := range []struct{ args, want string }{
		{"", "serve --"},
		{"app:app", "serve -- app:app"},
		{"--workers 2 app", "serve --workers 2 -- app"},
		{"serve", "serve --"},
		{"serve serve", "serve -- serve"},
		{"call app / -d x", "call --data x -- app /"},
		{"-h", "-h"},
		{"--help", "--help"},
		{"help", "help"},
		{"--version", "version --"},
		{"version", "version --"},
	} {
		got, err := commandLine(append([]string{"wsgigate"}, strings.Fields(c.args)...), nil, testCommands())
		if err != nil || strings.Join(got[1:], " ") != c.want {
			t.Errorf("%q: %q, %v, want %q", c.args, got, err, c.want)
		}
	}
}

// script makes an executable file with that first line.
func script(t testing.TB, name, firstLine string) string {
	path := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(path, []byte(firstLine+"\n# code\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestSplitShebang(t *testing.T) {
	for _, c := range []struct {
		line  string // the script's
		words string // what the kernel makes of it
		want  string // SCRIPT is the script
	}{
		{"#!/usr/bin/wsgigate cgi", "cgi", "cgi SCRIPT"},
		{"#!/usr/bin/wsgigate fcgi  ", "fcgi", "fcgi SCRIPT"},
		{"#! /usr/bin/wsgigate cgi app:app", "cgi app:app", "cgi app:app"},
		{"#!/usr/bin/wsgigate cgi --workers=2", "cgi --workers=2", "cgi --workers=2 SCRIPT"},
		{"#!/usr/bin/wsgigate cgi --workers 2", "cgi --workers 2", "cgi --workers 2 SCRIPT"},
		{"#!/usr/bin/wsgigate cgi --debug app", "cgi --debug app", "cgi --debug app"},
		{"#!/usr/bin/wsgigate cgi\r", "cgi\r", "cgi SCRIPT"},

		// Not a first line of ours: the arguments stay as they are.
		{"#!/usr/bin/wsgigate serve", "serve", ""},
		{"#!/usr/bin/wsgigate cgi app:app", "cgi", ""},
		{"#!/bin/sh", "cgi", ""},
		{"wsgigate cgi", "cgi", ""},
		{"", "cgi", ""},
	} {
		path := script(t, "app.cgi", c.line)
		args := []string{"wsgigate", c.words, path, "word"}
		want := args
		if c.want != "" {
			want = strings.Fields("wsgigate " + strings.ReplaceAll(c.want, "SCRIPT", path))
		}
		if got := splitShebang(args, testCommands()); !slices.Equal(got, want) {
			t.Errorf("%q: %q, want %q", c.line, got, want)
		}
	}
	t.Chdir(filepath.Dir(script(t, "app", "#!/usr/bin/wsgigate cgi")))
	if got := splitShebang([]string{"wsgigate", "cgi", "app"}, testCommands()); got[2] != "./app" {
		t.Errorf("a script beside us became the module %q", got[2])
	}
	if got := splitShebang([]string{"wsgigate", "cgi"}, testCommands()); len(got) != 2 {
		t.Errorf("no script: %q", got)
	}
}

func TestCGICommandLine(t *testing.T) {
	path := script(t, "app.cgi", "#!/usr/bin/wsgigate cgi")
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	link := filepath.Join(t.TempDir(), "site.cgi")
	if err := os.Symlink(self, link); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name, args, query, script string
		want                      string
		err                       error
	}{
		{name: "binary alone", want: "cgi"},
		{name: "binary, query", args: "serve --help", query: "serve+--help", script: self, want: "cgi"},
		{name: "link to the binary", args: "cgi x", query: "cgi+x", script: link, want: "cgi"},
		{name: "binary, unknown to the server", args: "serve --help", query: "serve+--help", err: errQueryWords},

		{name: "exec line", args: "cgi app:app", want: "cgi app:app"},
		{name: "flags", args: "cgi --chdir /srv --debug --env=A=1 app", want: "cgi --chdir /srv --debug --env=A=1 app"},
		{name: "no APP", args: "cgi --debug", want: "cgi --debug"},
		{name: "flag without its value", args: "cgi --chdir", want: "cgi --chdir"},
		{name: "dashes", args: "cgi --debug -- app", want: "cgi --debug -- app"},
		{name: "dashes, no APP", args: "cgi --", want: "cgi --"},
		{name: "fcgi", args: "fcgi app", want: "fcgi app"},
		{name: "a query that is none of the words", args: "cgi app", query: "a=1&b=2", want: "cgi app"},
		{name: "words behind APP", args: "cgi app -d x", query: "-d+x", want: "cgi app"},
		{name: "words behind dashes", args: "cgi -- app -d x", query: "-d+x", want: "cgi -- app"},
		{name: "words that the server does not pass on", args: "cgi app", query: "-d+x", want: "cgi app"},

		{name: "words for APP", args: "cgi other:app", query: "other:app", err: errQueryWords},
		{name: "words for flags and APP", args: "cgi --debug other:app", query: "--debug+other:app", err: errQueryWords},
		{name: "words for a flag's value", args: "cgi --chdir / app", query: "/+app", err: errQueryWords},
		{name: "words for a command", args: "cgi app", query: "cgi+app", err: errQueryWords},
		{name: "escaped words", args: `cgi a\;b`, query: "%61%3Bb", err: errQueryWords},
		{name: "words with a NUL", args: "cgi app", query: "app%00x", err: errQueryWords},
		{name: "no escape", args: "cgi %zz", query: "%zz", err: errQueryWords},
		{name: "first of many words", args: "cgi app", query: "app+and+more", err: errQueryWords},

		{name: "behind APP", args: "cgi app --debug", err: errAfterApp},
		{name: "serve", args: "serve app", err: errNotForCGI},
		{name: "no command", args: "app:app", err: errNotForCGI},
		{name: "help", args: "--help", err: errNotForCGI},

		{name: "first line", args: "cgi SCRIPT", want: "cgi SCRIPT"},
		{name: "first line, words", args: "cgi SCRIPT -d x", query: "-d+x", want: "cgi SCRIPT"},
		{name: "first line, a command for words", args: "cgi SCRIPT cgi other:app", query: "cgi+other:app", want: "cgi SCRIPT"},
		{name: "first line, the script for a word", args: "cgi SCRIPT SCRIPT", query: "SCRIPT", want: "cgi SCRIPT"},
		{name: "words that look like a first line", args: "cgi SCRIPT", query: "cgi+SCRIPT", err: errQueryWords},
	} {
		fill := strings.NewReplacer("SCRIPT", path).Replace
		env := []string{"REQUEST_METHOD=GET", "QUERY_STRING=" + fill(c.query), "SCRIPT_FILENAME=" + c.script}
		got, err := commandLine(append([]string{"wsgigate"}, strings.Fields(fill(c.args))...), env, testCommands())
		want := strings.Fields("wsgigate " + fill(c.want))
		if c.err != nil {
			want = nil
		}
		if !errors.Is(err, c.err) || !slices.Equal(got, want) {
			t.Errorf("%s: %q, %v; want %q, %v", c.name, got, err, want, c.err)
		}
	}
}

// deployments are command lines as scripts of a deployment have them.
var deployments = []string{
	"", "cgi", "cgi app:app", "cgi --debug app:app", "cgi --chdir /srv", "cgi --chdir /srv -- app.py", "fcgi app:app", "SHEBANG", "serve app:app",
}

// FuzzCGICommandLine: whatever the query is, and whether or not the web server
// escapes its words, none of them becomes a command, a flag or APP. The command line
// is the one without the query, or the request is refused.
func FuzzCGICommandLine(f *testing.F) {
	for i := range deployments {
		for _, query := range []string{"-d+x", "--help", "cgi+other:app", "serve", "a=1", "%2d%2dchdir+/", "app:app", "--", "--+x", "%00", "+", "a%3bb", "%", `\`, "cgi+SHEBANG"} {
			f.Add(uint(i), query, i%2 == 0, true)
			f.Add(uint(i), query, i%2 == 1, false)
		}
	}
	path := script(f, "app.cgi", "#!/usr/bin/wsgigate cgi")
	commands := testCommands()
	f.Fuzz(func(t *testing.T, n uint, query string, escapes, passes bool) {
		if strings.Contains(query, "\x00") {
			return // no environment holds it
		}
		own := []string{"wsgigate"}
		for _, word := range strings.Fields(deployments[n%uint(len(deployments))]) {
			if word == "SHEBANG" {
				own = append(own, "cgi", path)
				continue
			}
			own = append(own, word)
		}
		query = strings.ReplaceAll(query, "SHEBANG", path)
		args := own
		if passes && query != "" {
			args = append(slices.Clip(own), apacheWords(query, escapes)...)
		}
		env := []string{"REQUEST_METHOD=GET", "QUERY_STRING=" + query}
		alone, aloneErr := commandLine(own, env[:1], commands)
		got, err := commandLine(args, env, commands)
		switch {
		case err != nil && got == nil: // refused
		case aloneErr != nil:
			t.Errorf("%q, refused without the query, became %q", args, got)
		case !slices.Equal(got, alone):
			t.Errorf("query %q: %q became %q, without the query %q", query, args, got, alone)
		}
	})
}

// apacheWords makes arguments of a query as Apache httpd does: split at "+",
// decoded once, and, if escapes is true, with a backslash before what a shell
// would act on.
func apacheWords(query string, escapes bool) []string {
	var words []string
	for word := range strings.SplitSeq(query, "+") {
		var b strings.Builder
		for i := 0; i < len(word); i++ {
			c := word[i]
			if c == '%' && i+2 < len(word) && ishex(word[i+1]) && ishex(word[i+2]) {
				c = unhex(word[i+1])<<4 | unhex(word[i+2])
				i += 2
			}
			if c == 0 {
				break
			}
			if escapes && strings.IndexByte("&;`'\"|*?~<>^()[]{}$\\\n", c) >= 0 {
				b.WriteByte('\\')
			}
			b.WriteByte(c)
		}
		words = append(words, b.String())
	}
	return words
}

func ishex(c byte) bool { return strings.IndexByte("0123456789abcdefABCDEF", c) >= 0 }

func unhex(c byte) byte {
	return byte(strings.IndexByte("0123456789abcdef", strings.ToLower(string(rune(c)))[0]))
}
