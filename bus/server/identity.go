// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package server

import (
	"bytes"
	"crypto/subtle"
	"encoding/json"
	"fmt"
	"net"
	"sync"
	"time"

	"github.com/nats-io/nats-server/v2/server"

	"bulkhead/bus"
)

// The accounts. They share no subject but what accountsConfig lets through.
const (
	accountHost   = "HOST"
	accountGuest  = "GUEST"
	accountSystem = "SYS"
)

const (
	maxGuestSubs = 32
	// guestReplyWindow is how long a guest may take to answer a request.
	guestReplyWindow = 10 * time.Minute
	// guestReplies is how many messages may answer one request: one, and some for
	// overlapping subscriptions, on which the server's own check spends its budget.
	guestReplies = 4
)

// accountsConfig separates guests from the host: requests cross to guests, their
// answers and events cross back, and JetStream exists on the host's side only.
var accountsConfig = fmt.Sprintf(`
accounts {
  %[1]s {
    jetstream: enabled
    exports: [ { service: "agent.*.up.>", accounts: [%[2]s], threshold: "%[6]s" } ]
    imports: [
      { service: { account: %[2]s, subject: "agent.*.rpc.>" } }
      { stream: { account: %[2]s, subject: "agent.*.ev.>" } }
    ]
  }
  %[2]s {
    limits { max_subscriptions: %[4]d, max_payload: %[5]d }
    exports: [
      { service: "agent.*.rpc.>", accounts: [%[1]s], threshold: "%[6]s" }
      { stream: "agent.*.ev.>", accounts: [%[1]s] }
    ]
    imports: [ { service: { account: %[1]s, subject: "agent.*.up.>" } } ]
  }
  %[3]s {}
}
system_account: %[3]s
`, accountHost, accountGuest, accountSystem, maxGuestSubs, maxGuestPayload, guestReplyWindow)

// identity is who is at the other end of a connection.
type identity struct {
	name    string
	account string
	perms   *server.Permissions // nil: everything in the account
}

func guestIdentity(sandbox string) identity {
	token := bus.Token(sandbox)
	return identity{
		name:    "guest " + sandbox,
		account: accountGuest,
		perms: &server.Permissions{
			Publish:   &server.SubjectPermission{Allow: []string{"agent." + token + ".ev.>", "agent." + token + ".up.>"}},
			Subscribe: &server.SubjectPermission{Allow: []string{"agent." + token + ".rpc.>", bus.InboxPrefix(sandbox) + ".>"}},
			Response:  &server.ResponsePermission{MaxMsgs: guestReplies, Expires: guestReplyWindow},
		},
	}
}

// identities binds connections to identities by the id that the server gives
// each connection in its INFO line, before the client has said a word. Nothing
// a client says can change it. It is the server's authentication.
type identities struct {
	mu    sync.Mutex // guards all below
	byID  map[uint64]identity
	srv   *server.Server
	token string // the operator's password; empty when there is no listener
}

// Check implements server.Authentication.
func (a *identities) Check(c server.ClientAuthentication) bool {
	a.mu.Lock()
	id, bound := a.byID[c.GetID()]
	srv, token := a.srv, a.token
	a.mu.Unlock()
	if !bound {
		var ok bool
		if id, ok = operatorIdentity(c.GetOpts(), token); !ok {
			return false
		}
	}
	account, err := srv.LookupAccount(id.account)
	if err != nil {
		return false
	}
	c.RegisterUser(&server.User{Username: id.name, Account: account, Permissions: id.perms})
	return true
}

// operatorIdentity checks what came over the TCP listener. The same password
// opens the host's account, and the system account for "nats server" commands.
func operatorIdentity(opts *server.ClientOpts, token string) (identity, bool) {
	if token == "" || subtle.ConstantTimeCompare([]byte(opts.Password), []byte(token)) != 1 {
		return identity{}, false
	}
	switch opts.Username {
	case operatorUser:
		return identity{name: operatorUser, account: accountHost}, true
	case systemUser:
		return identity{name: systemUser, account: accountSystem}, true
	}
	return identity{}, false
}

// open makes a connection inside the process that already has its identity. The
// INFO line, read to learn the connection's id, is returned with it.
func (a *identities) open(id identity) (conn *boundConn, info []byte, err error) {
	raw, err := a.srv.InProcessConn()
	if err != nil {
		return nil, nil, fmt.Errorf("open a connection inside the server: %w", err)
	}
	if info, err = readInfo(raw); err != nil {
		_ = raw.Close()
		return nil, nil, err
	}
	var fields struct {
		ClientID uint64 `json:"client_id"`
	}
	if err := json.Unmarshal(bytes.TrimPrefix(info, []byte("INFO ")), &fields); err != nil || fields.ClientID == 0 {
		_ = raw.Close()
		return nil, nil, fmt.Errorf("the server's INFO names no client id")
	}
	a.mu.Lock()
	a.byID[fields.ClientID] = id
	a.mu.Unlock()
	return &boundConn{Conn: raw, id: fields.ClientID, owner: a}, info, nil
}

func (a *identities) forget(id uint64) {
	a.mu.Lock()
	defer a.mu.Unlock()
	delete(a.byID, id)
}

// boundConn forgets the identity when it is closed.
type boundConn struct {
	net.Conn
	id    uint64
	owner *identities
	once  sync.Once
}

// Close implements net.Conn.
func (c *boundConn) Close() error {
	c.once.Do(func() { c.owner.forget(c.id) })
	return c.Conn.Close()
}

// readInfo reads the first line. The server says nothing more until the client
// has spoken, so there is nothing behind it to lose.
func readInfo(conn net.Conn) ([]byte, error) {
	if err := conn.SetReadDeadline(time.Now().Add(infoTimeout)); err != nil {
		return nil, fmt.Errorf("read the server's INFO: %w", err)
	}
	line := make([]byte, maxInfo)
	for n := 0; n < maxInfo; {
		got, err := conn.Read(line[n:])
		if err != nil {
			return nil, fmt.Errorf("read the server's INFO: %w", err)
		}
		if n += got; line[n-1] == '\n' {
			return line[:n], conn.SetReadDeadline(time.Time{})
		}
	}
	return nil, fmt.Errorf("the server's INFO is longer than %d bytes", maxInfo)
}

const (
	infoTimeout = 5 * time.Second
	maxInfo     = 16 << 10
)

// replay is a connection whose first bytes were already read.
type replay struct {
	net.Conn
	first []byte
}

// Read implements net.Conn.
func (c *replay) Read(p []byte) (int, error) {
	if len(c.first) > 0 {
		n := copy(p, c.first)
		c.first = c.first[n:]
		return n, nil
	}
	return c.Conn.Read(p)
}
