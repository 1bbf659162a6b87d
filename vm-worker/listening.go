// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package vmworker

import (
	"context"
	"errors"
	"net"

	"bulkhead/bus/link"
	"bulkhead/vm-worker/hypervisor"
)

// awaitListening waits until the guest answers on both channels, and leaves it
// without having said whose it is.
func awaitListening(ctx context.Context, vm hypervisor.VM) error {
	for _, dial := range []func(context.Context) (net.Conn, error){vm.DialIO, vm.DialCtl} {
		if err := inSession(ctx, dial, func(*link.Session) error { return nil }); err != nil {
			return err
		}
	}
	return nil
}

// inSession opens a session with the guest for as long as fn needs it.
func inSession(ctx context.Context, dial func(context.Context) (net.Conn, error), fn func(*link.Session) error) error {
	conn, err := dial(ctx)
	if err != nil {
		return err
	}
	defer context.AfterFunc(ctx, func() { conn.Close() })()
	session, err := link.Dial(ctx, conn)
	if err != nil {
		return err
	}
	err = fn(session)
	return errors.Join(err, session.Close())
}
