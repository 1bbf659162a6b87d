// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package bus

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"path/filepath"
	"strings"
)

// maxToken bounds a token, so that a subject made of several fits in the
// server's control line.
const maxToken = 128

// shortenedMark begins the digest that ends a shortened token. A lone '='
// followed by a lower-case letter cannot come from escaping, which writes
// upper-case hex.
const shortenedMark = "=h"

// Token encodes an id as one subject token and KV key part of
// [A-Za-z0-9_=-]: every other byte, and '=' itself, becomes '=' and two
// upper-case hex digits. Ids whose encoding exceeds 128 bytes are shortened and
// end in a digest of the whole id; those still differ from each other but
// cannot be read back. The empty id becomes "=", which no other id encodes to.
func Token(id string) string {
	if id == "" {
		return "="
	}
	var b strings.Builder
	for i := range len(id) {
		if c := id[i]; plain(c) {
			b.WriteByte(c)
		} else {
			fmt.Fprintf(&b, "=%02X", c)
		}
	}
	token := b.String()
	if len(token) <= maxToken {
		return token
	}
	sum := sha256.Sum256([]byte(id))
	digest := shortenedMark + hex.EncodeToString(sum[:16])
	return token[:maxToken-len(digest)] + digest
}

// Untoken gives the id that Token encoded. It refuses what Token would not
// have written and what was shortened.
func Untoken(token string) (string, error) {
	if token == "=" {
		return "", nil
	}
	var b strings.Builder
	for i := 0; i < len(token); i++ {
		c := token[i]
		switch {
		case plain(c):
			b.WriteByte(c)
		case c == '=' && i+2 < len(token):
			raw, err := hex.DecodeString(token[i+1 : i+3])
			if err != nil {
				return "", Errorf(InvalidArgument, "token %q was shortened or is not one: bad escape at byte %d", token, i)
			}
			b.WriteByte(raw[0])
			i += 2
		default:
			return "", Errorf(InvalidArgument, "%q is not a token: byte %d is not of [A-Za-z0-9_=-]", token, i)
		}
	}
	if id := b.String(); Token(id) == token {
		return id, nil
	}
	return "", Errorf(InvalidArgument, "%q is not a token: it is not written the way Token writes", token)
}

// ContainerKey is the KV key and subject token of a container: ids are unique
// per root, so eight hex digits of the root's digest lead.
func ContainerKey(root, id string) string {
	sum := sha256.Sum256([]byte(filepath.Clean(root)))
	return hex.EncodeToString(sum[:4]) + "-" + Token(id)
}

func plain(c byte) bool {
	return c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || c == '_' || c == '-'
}
