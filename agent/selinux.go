// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"context"
	"errors"
	"fmt"

	"bulkhead/agent/container"
	"bulkhead/agent/guest"
)

// labels is how containers ask for the policy; nil when the guest runs without one.
func labels() func(string) bool {
	if !guest.SELinux() {
		return nil
	}
	return guest.KnowsLabel
}

// mountShare mounts the share of a container's files, with the label of the first container that has it.
func (a *agent) mountShare(ctx context.Context, tag, label string) (string, error) {
	dir, err := a.shares.Mount(ctx, tag, label)
	if errors.Is(err, guest.ErrLabel) {
		return "", fmt.Errorf("%w: linux.mountLabel: %w", container.ErrInvalid, err)
	}
	return dir, err
}
