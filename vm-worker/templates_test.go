// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package vmworker

import (
	"errors"
	"testing"
	"time"
)

// TestATemplateThatIsNoBetterTheNextTimeIsMadeEverMoreRarely: what a host's QEMU lacks, it lacks each time.
func TestATemplateThatIsNoBetterTheNextTimeIsMadeEverMoreRarely(t *testing.T) {
	t.Parallel()
	templates := &templates{pauses: map[kind]time.Duration{}, retry: templateRetry}
	for i, want := range []time.Duration{templateRetry, 2 * templateRetry, 4 * templateRetry} {
		if got := templates.pauseLocked(plainKind, errors.New("it does not fork")); got != want {
			t.Errorf("after %d worn templates the pause is %s, want %s", i+1, got, want)
		}
	}
	for range 20 {
		templates.pauseLocked(plainKind, errors.New("it does not fork"))
	}
	if got := templates.pauseLocked(plainKind, errors.New("it does not fork")); got != longestRetry {
		t.Errorf("the longest pause is %s, want %s", got, longestRetry)
	}
	if got := templates.pauseLocked(selinuxKind, errors.New("it does not fork")); got != templateRetry {
		t.Errorf("the pause of another kind is %s, want %s", got, templateRetry)
	}
	templates.pauseLocked(plainKind, nil)
	if got := templates.pauseLocked(plainKind, errors.New("it does not fork")); got != templateRetry {
		t.Errorf("after one that was good the pause is %s, want %s", got, templateRetry)
	}
}
