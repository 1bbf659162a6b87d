// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package vmworker

import (
	"testing"

	netv1 "bulkhead/proto/net/v1"
)

func TestAPolicyPermitsWhatItNames(t *testing.T) {
	t.Parallel()
	asked := &netv1.Policy{AllowedMacs: []string{"02:00:00:00:00:aa"}, AllowedAddresses: []string{"10.1.2.3/16", "fd00::1/128"}}
	for _, c := range []struct {
		what    string
		inForce *netv1.Policy
		want    bool
	}{
		{"the same, written otherwise", &netv1.Policy{AllowedMacs: []string{"02:00:00:00:00:AA"}, AllowedAddresses: []string{"fd00:0::1/128", "10.1.0.0/16"}}, true},
		{"more", &netv1.Policy{AllowedMacs: []string{"02:00:00:00:00:bb", "02:00:00:00:00:aa"}, AllowedAddresses: []string{"10.1.0.0/16", "fd00::1/128", "::/0"}}, true},
		{"as many others", &netv1.Policy{AllowedMacs: []string{"02:00:00:00:00:bb"}, AllowedAddresses: []string{"10.2.0.0/16", "fd00::1/128"}}, false},
		{"one less", &netv1.Policy{AllowedMacs: []string{"02:00:00:00:00:aa"}, AllowedAddresses: []string{"10.1.0.0/16"}}, false},
		{"everything", &netv1.Policy{AllowSpoofing: true}, true},
		{"nothing", &netv1.Policy{}, false},
	} {
		if got := permits(c.inForce, asked); got != c.want {
			t.Errorf("%s: %v", c.what, got)
		}
	}
}
