// Package environtest is for the tests of every transport and of every front
// server: fakes of the [environ] interfaces, and the conformance table.
//
// The table (see [Cases]) is a list of requests with what the application must
// have seen and what the client must get back. It runs against an application
// that answers what it saw as JSON. There are two twins of that application:
// [App] is an [environ.Handler] for tests of one transport, and
// integration/testdata/apps/reflect_app.py is for real servers with real workers.
//
//	func TestConformance(t *testing.T) {
//		environtest.Run(t, environtest.Target{Do: environtest.HTTP("tcp", addr)})
//	}
//
// A transport whose wire is not HTTP makes its variables with [FrontEnviron] and
// reads the answer with [ParseCGI]. What a front server does differently is a
// named [Quirks] flag, and quirks.go is the only file that knows them.
package environtest
