// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package agent

import (
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

// mountShare mounts the host's share for the first container, with the label of that one.
func (a *agent) mountShare(label string) error {
	err := a.share.Mount(label)
	if errors.Is(err, guest.ErrLabel) {
		return fmt.Errorf("%w: linux.mountLabel: %w", container.ErrInvalid, err)
	}
	return err
}
