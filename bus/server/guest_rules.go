// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package server

import (
	"bytes"
	"encoding/json"
	"strings"
)

// guestRules are what the gate checks of each operation before the server sees
// it: the rules that the server's own permissions do not have.
type guestRules struct {
	inbox     string // the only prefix of reply subjects, "_INBOX.<token>."
	connected bool
}

// guestConnect replaces whatever the guest said of itself: its identity comes
// from its connection.
const guestConnect = `{"verbose":false,"pedantic":false,"tls_required":false,"name":"guest","lang":"go","version":"1","protocol":1,"echo":true,"headers":true,"no_responders":true}`

// check refuses an operation or makes it fit to forward.
func (g *guestRules) check(op *operation) error {
	if (op.verb == verbConnect) == g.connected {
		if g.connected {
			return malformed("a second CONNECT")
		}
		return malformed("%s before CONNECT", op.verb)
	}
	switch op.verb {
	case verbConnect:
		if !json.Valid(op.connect) || op.connect[0] != '{' {
			return malformed("a CONNECT that is not a JSON object")
		}
		g.connected = true
		op.connect = []byte(guestConnect)
	case verbPub, verbHPub:
		// The server publishes replies with the rights of who replies, so a foreign
		// reply subject would borrow the host's.
		if op.reply != "" && !strings.HasPrefix(op.reply, g.inbox) {
			return malformed("a message whose reply subject %.64q is not its own inbox", op.reply)
		}
		if op.verb == verbHPub {
			return checkHeader(op.header)
		}
	}
	return nil
}

// checkHeader refuses what is not a plain header block, and every Nats-*
// header: they are commands to the server (roll up, expire, trace, deduplicate).
func checkHeader(block []byte) error {
	rest, ok := bytes.CutPrefix(block, []byte("NATS/1.0\r\n"))
	if !ok {
		return malformed("headers without the NATS/1.0 line")
	}
	for {
		line, after, ok := bytes.Cut(rest, []byte("\r\n"))
		if !ok {
			return malformed("headers without an end")
		}
		rest = after
		if len(line) == 0 {
			break
		}
		name, value, ok := bytes.Cut(line, []byte(":"))
		if !ok || !headerName(name) || bytes.ContainsAny(value, "\r\n\x00") {
			return malformed("a malformed header")
		}
		if len(name) >= 5 && strings.EqualFold(string(name[:5]), "nats-") {
			return malformed("the header %.64q, which is reserved", name)
		}
	}
	if len(rest) != 0 {
		return malformed("bytes after the end of its headers")
	}
	return nil
}

func headerName(name []byte) bool {
	for _, c := range name {
		if !(c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || c == '-' || c == '_') {
			return false
		}
	}
	return len(name) > 0
}
