// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"context"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"

	"bulkhead/bus"
	"bulkhead/bus/link"
	agentv1 "bulkhead/proto/agent/v1"
)

func TestOnlyAGuestWithoutAnIdentityRehearses(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	host, port, err := channel()
	if err != nil {
		t.Fatal(err)
	}
	ctl := link.Listen(port)
	defer ctl.Close()
	a := &agent{log: hclog.NewNullLogger(), sandbox: "vm.1"}
	greeted := make(chan error, 1)
	go func() {
		_, err := a.greeted(ctx, ctl)
		greeted <- err
	}()
	session, err := link.Dial(ctx, host)
	if err != nil {
		t.Fatal(err)
	}
	if r, err := bus.AskRehearsal(session, &agentv1.Rehearsal{}); err != nil || !strings.Contains(r.GetError(), `is "vm.1" already`) || r.GetRounds() != 0 {
		t.Errorf("the guest says %v, %v", r, err)
	}
	if b, err := session.Recv(); err == nil {
		t.Errorf("the session goes on, with %q", b)
	}
	cancel()
	if err := <-greeted; err == nil {
		t.Error("a rehearsal was taken for a greeting")
	}
}
