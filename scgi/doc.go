// Package scgi is the SCGI adapter: a server for the Simple Common Gateway
// Interface, https://python.ca/scgi/protocol.txt (2008).
//
//	web server -> netstring of variables, body -> environ.Request -> Handler
//	web server <- CGI response, end of the connection <- environ.ResponseWriter
//
// One connection is one request. Where the peers in use do not keep to the
// protocol, and how that is read: nginx before 1.23 repeats the variable of a
// field that the client repeated, and lighttpd that of one that was spelled twice,
// so HTTP_ names may occur more than once (their values are joined); any other
// repeated name is refused.
//
// A peer that shuts its side of the connection down while it waits for the answer
// is taken to be gone.
package scgi
