// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package vmworker_test

import (
	"testing"
	"time"

	"golang.org/x/sys/unix"

	vmv1 "bulkhead/proto/vm/v1"
	"bulkhead/vm-worker/hypervisor"
	"bulkhead/vm-worker/hypervisor/fake"
)

func TestMountsOfTheHostAreFollowedAlsoByTheNextWorker(t *testing.T) {
	looks := make(chan hypervisor.Followed, 256)
	h := newHost(t, fake.Options{Mirrored: func(f hypervisor.Followed) {
		select {
		case looks <- f:
		default: // other tests mount too
		}
	}})
	want := hypervisor.Followed{Source: "/srv", MountID: 77, Nested: true, ReadOnly: true}
	r := startRelay(t, h.bus.RunDir)
	ctx := operation(t)
	req := h.request(ctx, "volume", r, h.bundle("volume", "sleep"))
	req.Mounts = append(req.Mounts, &vmv1.HandedMount{
		Index: 0, Destination: "/data", IsDir: true, ReadOnly: true, // index 0: the one descriptor that request hands over
		Followed: &vmv1.Followed{Source: "/srv", MountId: 77, Nested: true},
	})
	if _, err := call[vmv1.CreateReply](ctx, h, "create", req); err != nil {
		t.Fatal(err)
	}
	r.commit()
	want.Place = h.state("volume").Key + "/m0"
	looked := func(when string) {
		t.Helper()
		select {
		case got := <-looks:
			if got != want {
				t.Errorf("%s the worker looks for %+v instead of %+v", when, got, want)
			}
		case <-time.After(patience):
			t.Fatalf("%s the worker does not look at the host's mounts", when)
		}
	}
	drain := func() {
		for len(looks) > 0 {
			<-looks
		}
	}
	looked("before the container is there")
	looked("when it is there, for what was mounted meanwhile,")
	h.start("volume")
	drain()
	h.restart()
	looked("after a restart")
	drain()
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, ""); err != nil {
		t.Fatal(err)
	}
	looked("after a mount")
	drain()
	if err := unix.Unmount(dir, 0); err != nil {
		t.Fatal(err)
	}
	looked("after an unmount")
	h.delete("volume", true)
	h.expectNothing()
}
