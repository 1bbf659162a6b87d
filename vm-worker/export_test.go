// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package vmworker

import (
	"testing"
	"time"
)

// SetTrimEvery has VMs asked more often for what they do not use.
func SetTrimEvery(t *testing.T, d time.Duration) {
	old := trimEvery
	trimEvery = d
	t.Cleanup(func() { trimEvery = old })
}
