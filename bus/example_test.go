// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package bus_test

import (
	"context"
	"errors"
	"fmt"

	"bulkhead/bus"
	vmv1 "bulkhead/proto/vm/v1"
)

// A service answers requests, and a program calls it.
func Example() {
	ctx := context.Background()
	c, err := bus.Dial(ctx, "/run/example-without-a-daemon", "example")
	if errors.Is(err, bus.ErrNoDaemon) {
		fmt.Println(bus.ReasonOf(err))
		return
	}
	defer c.Close()

	svc, err := bus.NewService(ctx, c, bus.ServiceConfig{Name: "vm", Version: "1.0.0"})
	if err != nil {
		return
	}
	defer svc.Stop(ctx)
	_ = bus.Handle(svc, "state", func(_ context.Context, req *vmv1.StateRequest) (*vmv1.StateReply, error) {
		return nil, bus.Errorf(bus.NotFound, "no container %q", req.GetRef().GetId())
	})

	_, err = bus.Call[vmv1.StateReply](ctx, c, c.Subject("vm", "state"), &vmv1.StateRequest{})
	fmt.Println(bus.ReasonOf(err))
	// Output: UNAVAILABLE
}
