// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"context"
	"errors"
	"fmt"
	"net"
	"time"

	"bulkhead/agent/guest"
	"bulkhead/bus"
	"bulkhead/bus/link"
	agentv1 "bulkhead/proto/agent/v1"
)

// greeted waits for a session whose host says whose machine this is, and returns
// what follows of it. The first greeting makes the guest what it is: until then
// it may be one of many that continue from one template, and draws no random number
// that matters.
func (a *agent) greeted(ctx context.Context, ctl *link.Listener) (net.Conn, error) {
	for {
		session, err := ctl.Accept(ctx)
		if err != nil {
			return nil, err
		}
		stop := context.AfterFunc(ctx, func() { session.Close() })
		greeting, err := bus.Greeted(session)
		switch {
		case err != nil:
		case greeting.GetRehearse() != nil:
			if err = a.rehearse(ctx, session, greeting.GetRehearse()); err == nil {
				err = errRehearsed
			}
		default:
			err = a.become(greeting)
		}
		stop()
		if err == nil {
			return session.NetConn(), nil
		}
		a.log.Debug("session without a greeting", "error", err)
		_ = session.Close() // it may have ended already
	}
}

// errRehearsed ends a session that was for that alone.
var errRehearsed = errors.New("the guest has rehearsed")

// become gives the guest its randomness and clock, and its name once.
func (a *agent) become(g *agentv1.Greeting) error {
	if a.sandbox != "" && a.sandbox != g.GetVm() {
		return fmt.Errorf("this guest is %q already and cannot become %q", a.sandbox, g.GetVm())
	}
	if err := guest.AddEntropy(g.GetEntropy()); err != nil {
		return err
	}
	if a.sandbox == "" && g.GetUnixNanos() > 0 {
		if err := guest.SetClock(time.Unix(0, g.GetUnixNanos())); err != nil {
			return err
		}
	}
	a.sandbox = g.GetVm()
	return nil
}
