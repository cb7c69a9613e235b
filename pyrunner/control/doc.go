// Package control is how "wsgigate status", "reload" and "stop" talk to a running
// server: HTTP/1.1 with JSON over a unix socket.
//
//	GET /status   200, a status.Snapshot: what /status.json of the status page has
//	POST /reload  102 at once and every two seconds while the reload runs, then
//	              200 {"took_ns": 412000000, "generation": 3, "workers": 4}
//	              500 {"error": "SENTENCE", "traceback": "LINES"}; the old workers serve on
//	POST /stop    202 {"pid": 4100}; the server lets running requests end, then it
//	              ends and removes the socket
//
// Times are in nanoseconds. Every other answer has a status of 400 or more and
// {"error": "SENTENCE"}: 403 for a peer that may not, 404, 405. A client must
// not mind fields that it does not know. Every answer but 102 has the header
// "Wsgigate-Control: 1", which tells it from other servers'. With curl:
//
//	curl --unix-socket /run/app.control http://control/status
//	curl --unix-socket /run/app.control -X POST http://control/reload
//
// A reload that was asked for is done, whether or not the client that asked stays;
// others may be waiting for the same one. Requests to reload that come while one
// runs share the next.
//
// The socket file has mode 0600. Besides, the server looks who the peer is
// (SO_PEERCRED, unix(7)) and talks to its own user and to root only: a mode can be
// changed by mistake, and a descriptor can be passed on.
//
//	Client -> unix socket -> Handler -> Server (the pool, and what stops the process)
//
// Not supported: HTTP/2, TCP.
package control
