// Package httpd is the HTTP adapter: the twin of wsgiref.simple_server, on
// net/http's server.
//
//	client -> guard (framing) -> net/http -> environ.Request -> Handler
//	client <- net/http <- environ.ResponseWriter <- Handler
//
// Sources: RFC 9110, RFC 9112, RFC 3875 for the names of the variables.
//
// net/http forgives what RFC 9112 tells a server to refuse because two parsers
// may read it differently (request smuggling): lines that end in a bare LF,
// folded fields, Content-Length beside Transfer-Encoding. A guard between the
// socket and net/http therefore follows the framing of every request and lets
// net/http answer 400 at the first such byte.
//
// What is different from what the application says, because net/http writes the
// response: the reason phrase of a status that net/http knows is net/http's,
// fields are sorted by name, Content-Type, Content-Length and Date are spelled
// so, and a short body without Content-Length may get one.
//
// As with net/http, a client that shuts its side of the connection down while it
// waits for the answer is taken to be gone.
//
// A connection is kept only if all of the request's body was read before the
// response began; else it is drained, within bounds, and closed.
//
// Not supported: HTTP/2, TLS, CONNECT, Upgrade, trailers (read and dropped).
package httpd
