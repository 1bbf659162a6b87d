// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package bus

import (
	"testing"
	"time"
)

// SetGuestConnectTimeout shortens the wait of tests.
func SetGuestConnectTimeout(t *testing.T, d time.Duration) {
	old := guestConnectTimeout
	guestConnectTimeout = d
	t.Cleanup(func() { guestConnectTimeout = old })
}

// SetGoneLife has it forgotten sooner that records went.
func SetGoneLife(t *testing.T, d time.Duration) {
	old := goneLife
	goneLife = d
	t.Cleanup(func() { goneLife = old })
}
