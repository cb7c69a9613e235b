package main

import (
	"errors"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/urfave/cli/v2"
)

// Under CGI the web server may put the words of a query into the arguments
// (RFC 3875, section 4.4), and whoever parses those as options lets the client
// choose them (CVE-2012-1823, CVE-2024-4577). So what is taken from there is what
// the script's own first line or its own exec line says, up to APP, and
// nothing after it. Should the query's words be what was taken, because such a
// line passes them on in place of APP, the request is refused.

// underWebServer reports whether a web server started the process for a request.
func underWebServer(env []string) bool {
	return lookup(env, "REQUEST_METHOD") != "" || lookup(env, "GATEWAY_INTERFACE") != ""
}

func lookup(env []string, name string) string {
	for _, kv := range env {
		if value, ok := strings.CutPrefix(kv, name+"="); ok {
			return value
		}
	}
	return ""
}

// Errors of a deployment's command line; the web server's log shows them.
var (
	errQueryWords = errors.New(`the command line ends with the words of the query: the script must name APP and leave "$@" out, for example: exec wsgigate cgi mysite:application`)
	errAfterApp   = errors.New("under a web server nothing is read behind APP, where the words of a query are: write the flags before it")
	errNotForCGI  = errors.New("a web server can run wsgigate cgi and wsgigate fcgi only: for example: exec wsgigate cgi mysite:application")
)

// cgiCommandLine returns the arguments that are the deployment's own.
func cgiCommandLine(args, env []string, commands []*cli.Command) ([]string, error) {
	if len(args) < 2 || isExecutable(lookup(env, "SCRIPT_FILENAME")) {
		return []string{args[0], "cgi"}, nil // the web server runs the binary itself: all the rest is the query's
	}
	query := lookup(env, "QUERY_STRING")
	shebang := isShebang(args)
	own := args[:min(3, len(args))]
	if !shebang {
		own = ownArguments(args, commands)
	}
	switch {
	case endsWithQuery(args, len(own), query):
		return nil, errQueryWords
	case shebang:
		return splitShebang(own, commands), nil
	case !startedByWebServers(own[1]):
		return nil, errNotForCGI
	case len(own) < len(args) && query == "":
		return nil, errAfterApp
	}
	return own, nil
}

// startedByWebServers reports whether it is a command for scripts.
func startedByWebServers(command string) bool { return command == "cgi" || command == "fcgi" }

// ownArguments returns the arguments up to APP.
func ownArguments(args []string, commands []*cli.Command) []string {
	flags := flagsOf(args[1], commands)
	for i := 2; i < len(args); i++ {
		switch {
		case args[i] == "--":
			return args[:min(i+2, len(args))]
		case !strings.HasPrefix(args[i], "-"):
			return args[:i+1]
		case takesValue(flagOf(flags, strings.TrimLeft(args[i], "-"))):
			i++
		}
	}
	return args
}

func flagsOf(command string, commands []*cli.Command) []cli.Flag {
	for _, c := range commands {
		if c.Name == command {
			return c.Flags
		}
	}
	return nil
}

// endsWithQuery reports whether words of the query are among the first own
// arguments: whether arguments from there to the end are the query's first words.
func endsWithQuery(args []string, own int, query string) bool {
	if query == "" {
		return false
	}
	words := queryWords(query)
	for i := 1; i < own; i++ {
		rest := args[i:]
		if len(rest) <= len(words) && slices.EqualFunc(rest, words[:len(rest)], func(arg, word string) bool {
			return strings.ReplaceAll(arg, `\`, "") == word
		}) {
			return true
		}
	}
	return false
}

// queryWords returns the arguments that a web server makes of a query, without
// backslashes: Apache puts them before what a shell would take as its own. A
// C program's argument ends at a NUL.
func queryWords(query string) []string {
	words := strings.Split(query, "+")
	for i, word := range words {
		word, _, _ = strings.Cut(percentDecoded(word), "\x00")
		words[i] = strings.ReplaceAll(word, `\`, "")
	}
	return words
}

// percentDecoded leaves alone what is no escape, as Apache does.
func percentDecoded(s string) string {
	var b strings.Builder
	for len(s) > 0 {
		if len(s) >= 3 && s[0] == '%' {
			if c, err := url.PathUnescape(s[:3]); err == nil {
				b.WriteString(c)
				s = s[3:]
				continue
			}
		}
		b.WriteByte(s[0])
		s = s[1:]
	}
	return b.String()
}

// splitShebang takes apart what the kernel makes of a script's first line: all
// words after the interpreter are one argument, and the script follows. A line
// without APP means the script itself: "#!/usr/local/bin/wsgigate cgi" over
// Python code is a whole deployment.
func splitShebang(args []string, commands []*cli.Command) []string {
	if !isShebang(args) {
		return args
	}
	words := strings.Fields(args[1])
	split := append([]string{args[0]}, words...)
	if !namesApp(words, commands) {
		split = append(split, asFile(args[2]))
	}
	return split
}

// asFile makes a script's path one that no module's name can be taken for.
func asFile(path string) string {
	if strings.Contains(path, "/") {
		return path
	}
	return "./" + path
}

// isShebang recognises the arguments of a script: the words of its first line,
// which begin with a command for scripts, and the script.
func isShebang(args []string) bool {
	if len(args) < 3 || !exists(args[2]) {
		return false
	}
	words := strings.Fields(args[1])
	return len(words) > 0 && startedByWebServers(words[0]) && firstLineHas(args[2], args[1])
}

// maxShebang is what is read of a script's first line; Linux takes 255 bytes of it.
const maxShebang = 1024

// firstLineHas reports whether the file's first line is "#!" with these words at
// its end: only then are they the script's own.
func firstLineHas(path, words string) bool {
	f, err := os.Open(path)
	if err != nil {
		return false
	}
	defer f.Close()
	buf := make([]byte, maxShebang)
	n, _ := f.Read(buf)
	line, _, _ := strings.Cut(string(buf[:n]), "\n")
	return strings.HasPrefix(line, "#!") && strings.HasSuffix(strings.TrimSpace(line), strings.TrimSpace(words))
}

// namesApp reports whether the words of a first line have an argument besides
// the command, flags and their values.
func namesApp(words []string, commands []*cli.Command) bool {
	flags := flagsOf(words[0], commands)
	for i := 1; i < len(words); i++ {
		switch {
		case !strings.HasPrefix(words[i], "-"):
			return true
		case takesValue(flagOf(flags, strings.TrimLeft(words[i], "-"))):
			i++
		}
	}
	return false
}

// isExecutable reports whether path is this program.
func isExecutable(path string) bool {
	self, err := os.Executable()
	if err != nil || path == "" {
		return false
	}
	path, err = filepath.EvalSymlinks(path)
	if err != nil {
		return false
	}
	self, err = filepath.EvalSymlinks(self)
	return err == nil && path == self
}

// checkPassedOn refuses "--env NAME" where NAME is a header of the CGI request:
// HTTP_PROXY in a worker's environment would be the client's choice of a proxy
// (CVE-2016-5385, "httpoxy").
func (c *config) checkPassedOn() error {
	for _, name := range c.env {
		if strings.HasPrefix(name, "HTTP_") && !strings.Contains(name, "=") {
			return fmt.Errorf("--env %s: under CGI that is a header of the request: write --env %s=value", name, name)
		}
	}
	return nil
}
