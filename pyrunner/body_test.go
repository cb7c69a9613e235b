package pyrunner

import (
	"crypto/sha256"
	"encoding/hex"
)

// digest returns the SHA-256 of all parts, as hexlify gives it.
func digest(parts ...[]byte) string {
	h := sha256.New()
	for _, part := range parts {
		h.Write(part)
	}
	return hex.EncodeToString(h.Sum(nil))
}
