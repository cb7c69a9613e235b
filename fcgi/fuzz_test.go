package fcgi

import (
	"io"
	"log/slog"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"wsgigate/environ"
)

// FuzzServer sends arbitrary bytes in two pieces: the server neither panics nor
// hangs, and whatever it answers is a sequence of whole records in which no
// request that was not begun occurs, and none ends twice without a new begin.
func FuzzServer(f *testing.F) {
	for _, request := range golden {
		f.Add(request, len(request)/2)
	}
	f.Add(append(ask{id: 1, keep: true}.bytes(), end(typeAbortRequest, 1)...), 10)
	f.Add(append(ask{id: 1, keep: true}.opening(), ask{id: 2}.bytes()...), 500)
	f.Add(append(appendRecord(nil, typeGetValues, 0, 17, 0), appendPair(nil, mpxsName, "")...), 3)
	f.Add([]byte("\x01\x04\x00\x01\xff\xff\xff\xff\xff\xff\xff\xff"), 1)

	h := header(f)
	s := &Server{
		Log: slog.New(slog.DiscardHandler),
		Rules: environ.Rules{Limits: environ.Limits{
			MaxHeaders: 4 << 10, MaxBody: 16 << 10, ReadAhead: 1 << 10, MaxRequestsPerConn: 4, HeaderTimeout: time.Second, BodyTimeout: time.Second,
		}},
		Handler: environ.HandlerFunc(func(w environ.ResponseWriter, r *environ.Request) {
			if _, err := io.Copy(io.Discard, r.Body); err != nil {
				w.Abort(err)
				return
			}
			_ = w.WriteHeader(h)
			_, _ = w.Write(r.Environ.Get("PATH_INFO"))
		}),
	}
	f.Fuzz(func(t *testing.T, input []byte, split int) {
		fd, done := pair(t, s, unix.SOCK_STREAM)
		defer unix.Close(fd)
		tv := unix.NsecToTimeval(int64(patience))
		if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &tv); err != nil {
			t.Fatal(err)
		}
		split = max(0, min(split, len(input)))
		go func() { // ends at the latest when the server closes its end
			for _, piece := range [][]byte{input[:split], input[split:]} {
				for len(piece) > 0 {
					n, err := unix.SendmsgN(fd, piece, nil, nil, unix.MSG_NOSIGNAL)
					if err != nil {
						return
					}
					piece = piece[n:]
				}
			}
			_ = unix.Shutdown(fd, unix.SHUT_WR)
		}()
		var out []byte
		buf := make([]byte, 32<<10)
		for {
			n, err := unix.Read(fd, buf)
			if err == unix.EAGAIN {
				t.Fatal("the server hangs")
			}
			if n <= 0 {
				break
			}
			out = append(out, buf[:n]...)
		}
		<-done
		checkAnswers(t, input, out)
	})
}

// checkAnswers walks through the records of an answer. The last one may be cut
// only if the connection was lost.
func checkAnswers(t *testing.T, input, out []byte) {
	begun := map[uint16]int{}
	for b := input; len(b) >= headerLen; {
		rec, err := parseRecord(b)
		if err != nil {
			break
		}
		if rec.kind == typeBeginRequest {
			begun[rec.id]++
		}
		b = b[min(len(b), headerLen+int(rec.content)+int(rec.padding)):]
	}
	for len(out) >= headerLen {
		rec, err := parseRecord(out)
		if err != nil || rec.padding > 7 || len(out) < headerLen+int(rec.content)+int(rec.padding) {
			t.Fatalf("bad record %+v: %v", rec, err)
		}
		switch rec.kind {
		case typeStdout, typeStderr:
			if begun[rec.id] == 0 {
				t.Fatalf("output of a request that is not open: %+v", rec)
			}
		case typeEndRequest:
			if begun[rec.id]--; begun[rec.id] < 0 {
				t.Fatalf("end of a request that is not open: %+v", rec)
			}
		case typeGetValuesResult, typeUnknownType:
		default:
			t.Fatalf("record %+v", rec)
		}
		out = out[headerLen+int(rec.content)+int(rec.padding):]
	}
}
