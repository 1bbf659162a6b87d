// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"context"
	"errors"
	"fmt"
	"testing"

	"bulkhead/agent/container"
	"bulkhead/bus"
)

func TestErrorsKeepTheirTextAndGetTheirReason(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		err  error
		want bus.Reason
	}{
		{fmt.Errorf("%w: process.cwd", container.ErrInvalid), bus.InvalidArgument},
		{container.ErrExists, bus.AlreadyExists},
		{container.ErrNotExist, bus.NotFound},
		{container.ErrNotRunning, bus.FailedPrecondition},
		{fmt.Errorf("waiting: %w", context.DeadlineExceeded), bus.DeadlineExceeded},
		{errors.New(`exec: "x": executable file not found in $PATH`), bus.Internal},
		{bus.Errorf(bus.Unavailable, "later"), bus.Unavailable},
	} {
		got := reason(c.err)
		if bus.ReasonOf(got) != c.want || got.Error() != c.err.Error() {
			t.Errorf("%v: got %s, %q; want %s and the same text", c.err, bus.ReasonOf(got), got, c.want)
		}
	}
	if reason(nil) != nil {
		t.Error("success became an error")
	}
}
