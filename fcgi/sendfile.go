package fcgi

import (
	"io"
	"os"
	"sync"
)

// fileBlock is how much of a file is read and sent at once.
const fileBlock = 4 * alignedContent

var blockPool = sync.Pool{New: func() any { return new([fileBlock]byte) }}

// SendFile sends a part of a file as the next bytes of the body.
func (w *response) SendFile(f *os.File, off, n int64) (int64, error) {
	if w.noBody && w.err == nil {
		return n, nil
	}
	block := blockPool.Get().(*[fileBlock]byte)
	defer blockPool.Put(block)
	done := int64(0)
	for done < n {
		got, err := f.ReadAt(block[:min(n-done, fileBlock)], off+done)
		if got > 0 {
			sent, err := w.Write(block[:got])
			done += int64(sent)
			if err != nil {
				return done, err
			}
			continue
		}
		if err == io.EOF {
			err = io.ErrUnexpectedEOF
		}
		return done, err
	}
	return done, nil
}
