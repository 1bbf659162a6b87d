// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"context"
	"errors"

	"bulkhead/agent/container"
	"bulkhead/agent/network"
	"bulkhead/bus"
)

// reasons maps the errors of the containers to those of the bus, once.
var reasons = []struct {
	err    error
	reason bus.Reason
}{
	{container.ErrInvalid, bus.InvalidArgument},
	{container.ErrExists, bus.AlreadyExists},
	{container.ErrNotExist, bus.NotFound},
	{container.ErrNotRunning, bus.FailedPrecondition},
	{container.ErrState, bus.FailedPrecondition},
	{network.ErrInvalid, bus.InvalidArgument},
	{network.ErrOld, bus.FailedPrecondition},
	{context.DeadlineExceeded, bus.DeadlineExceeded},
	{context.Canceled, bus.DeadlineExceeded},
}

// reason gives an error its reason and leaves its text alone: engines read it.
func reason(err error) error {
	if err == nil {
		return nil
	}
	var known *bus.Error
	if errors.As(err, &known) {
		return err
	}
	for _, r := range reasons {
		if errors.Is(err, r.err) {
			return bus.Errorf(r.reason, "%w", err)
		}
	}
	return bus.Errorf(bus.Internal, "%w", err)
}
