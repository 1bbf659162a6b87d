// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package netv1_test

import (
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"

	netv1 "bulkhead/proto/net/v1"
)

func TestAnnotationsSayHowAVMIsJoinedToItsNetwork(t *testing.T) {
	t.Parallel()
	got, err := netv1.PolicyOf(map[string]string{
		"io.kubernetes.cri.container-type":      "sandbox",
		"io.bulkhead.network.model":             "macvtap",
		"io.bulkhead.network.queues":            "4",
		"io.bulkhead.network.spoofing":          "deny",
		"io.bulkhead.network.allowed-macs":      "02:42:AC:11:00:02, 02:00:00:00:00:01",
		"io.bulkhead.network.allowed-addresses": "10.1.2.3,10.2.0.9/16,fd00::1",
	})
	want := &netv1.Policy{
		Model: "macvtap", Queues: 4, DenySpoofing: true,
		AllowedMacs:      []string{"02:42:ac:11:00:02", "02:00:00:00:00:01"},
		AllowedAddresses: []string{"10.1.2.3/32", "10.2.0.0/16", "fd00::1/128"},
	}
	if err != nil || !proto.Equal(got, want) {
		t.Errorf("the policy is %v, %v; want %v", got, err, want)
	}
	if got, err := netv1.PolicyOf(nil); err != nil || !proto.Equal(got, &netv1.Policy{}) {
		t.Errorf("without annotations the policy is %v, %v", got, err)
	}
}

func TestMalformedAnnotationsAreRefusedByName(t *testing.T) {
	t.Parallel()
	for name, value := range map[string]string{
		"model": "vhost", "queues": "9", "spoofing": "yes", "allowed-macs": "01:00:5e:00:00:01",
		"allowed-addresses": "10.0.0.0/33", "allowed-names": "02:00:00:00:00:01",
	} {
		_, err := netv1.PolicyOf(map[string]string{netv1.AnnotationPrefix + name: value})
		if err == nil || !strings.Contains(err.Error(), netv1.AnnotationPrefix+name) {
			t.Errorf("%s=%q gives %v", name, value, err)
		}
	}
}
