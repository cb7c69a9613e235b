// Package integration has no code of its own: its tests run the whole binary
// behind real front servers (nginx, lighttpd, Apache, spawn-fcgi) and hold the
// rules that concern more than one package.
//
//	HTTP client -> front server -> wsgigate -> worker -> testdata/apps
//
// Every hookup starts servers of its own in a temporary folder, on loopback
// ports and unix sockets. A server that is not installed fails the tests, it
// does not skip them; "scripts/test" installs what they need.
package integration
