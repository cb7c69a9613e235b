package pyrunner

import (
	"slices"
	"strings"
)

// inheritedEnv has what a worker inherits of the gateway's environment: what a
// program needs to find its files, its language and its interpreter. Anything
// else, secrets of the service manager and variables of a request among it
// (under CGI they are the environment), an administrator passes on by name.
var inheritedEnv = []string{
	"PATH", "HOME", "USER", "LOGNAME", "SHELL", "TZ", "TMPDIR", "LANG", "LANGUAGE", "LC_*",
	"VIRTUAL_ENV", "PYTHON*", "LD_LIBRARY_PATH", "SSL_CERT_FILE", "SSL_CERT_DIR", "XDG_*",
}

// workerEnv returns the environment of the workers: the allowed part of the
// gateway's, then extra: "K=V" sets a variable, "K" passes the gateway's own on.
func workerEnv(gateway, extra []string) []string {
	var env []string
	for _, kv := range gateway {
		name, _, _ := strings.Cut(kv, "=")
		if slices.ContainsFunc(inheritedEnv, func(pattern string) bool { return matches(pattern, name) }) {
			env = append(env, kv)
		}
	}
	for _, kv := range extra {
		if strings.Contains(kv, "=") {
			env = append(env, kv)
			continue
		}
		for _, own := range gateway {
			if strings.HasPrefix(own, kv+"=") {
				env = append(env, own)
			}
		}
	}
	return env
}

// matches reports whether name is pattern, whose last character may be a "*".
func matches(pattern, name string) bool {
	if prefix, ok := strings.CutSuffix(pattern, "*"); ok {
		return strings.HasPrefix(name, prefix)
	}
	return name == pattern
}
