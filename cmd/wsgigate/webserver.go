package main

import (
	"os"
	"path/filepath"
	"strings"
)

// Under CGI the web server may put the words of a query into the arguments
// (RFC 3875, section 4.4), and whoever parses those as options lets the client
// choose them (CVE-2012-1823, CVE-2024-4577). So what is taken from there is what
// the script's own first line or its own exec line says, up to APP, and
// nothing after it.

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

// splitShebang takes apart what the kernel makes of a script's first line: all
// words after the interpreter are one argument, and the script follows. A line
// without APP means the script itself: "#!/usr/local/bin/wsgigate cgi" over
// Python code is a whole deployment.
func splitShebang(args []string) []string {
	if !isShebang(args) {
		return args
	}
	words := strings.Fields(args[1])
	split := append([]string{args[0]}, words...)
	if !namesApp(words) {
		split = append(split, args[2])
	}
	return split
}

// isShebang recognises the arguments of a script: the words of its first line,
// which begin with a command for scripts, and the script.
func isShebang(args []string) bool {
	if len(args) < 3 || !exists(args[2]) {
		return false
	}
	words := strings.Fields(args[1])
	return len(words) > 0 && (words[0] == "cgi" || words[0] == "fcgi") && firstLineHas(args[2], args[1])
}

// firstLineHas reports whether the file's first line is "#!" with these words at
// its end: only then are they the script's own.
func firstLineHas(path, words string) bool {
	f, err := os.Open(path)
	if err != nil {
		return false
	}
	defer f.Close()
	buf := make([]byte, 1024)
	n, _ := f.Read(buf)
	line, _, _ := strings.Cut(string(buf[:n]), "\n")
	return strings.HasPrefix(line, "#!") && strings.HasSuffix(strings.TrimSpace(line), strings.TrimSpace(words))
}

// namesApp reports whether the words of a first line have an argument besides
// the command and flags. Flags are written --name=value there.
func namesApp(words []string) bool {
	for _, word := range words[1:] {
		if !strings.HasPrefix(word, "-") {
			return true
		}
	}
	return false
}

// cgiCommandLine returns the arguments that are the deployment's own.
func cgiCommandLine(args, env []string) []string {
	switch {
	case isShebang(args):
		return splitShebang(args[:3])
	case len(args) < 2 || isExecutable(lookup(env, "SCRIPT_FILENAME")):
		return []string{args[0], "cgi"} // the web server runs the binary itself: all the rest is the query's
	}
	own := []string{args[0]}
	for i, arg := range args[1:] {
		own = append(own, arg)
		if i > 0 && !strings.HasPrefix(arg, "-") {
			break // APP
		}
	}
	return own
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
