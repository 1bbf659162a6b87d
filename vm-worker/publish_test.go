// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package vmworker_test

import (
	"context"
	"testing"

	"bulkhead/bus"
	"bulkhead/bus/bustest"
	"bulkhead/bus/server"
	vmv1 "bulkhead/proto/vm/v1"
	"bulkhead/vm-worker/hypervisor/fake"
)

// The bus may be away while the worker, a process of its own, lives on: what
// happened meanwhile is published when it is back.
func TestWhatHappensWithoutABusIsPublishedLater(t *testing.T) {
	h := newHost(t, fake.Options{})
	r := h.run("c1", "cat")
	kept := h.state("c1")
	if err := h.bus.Server.Close(); err != nil {
		t.Fatal(err)
	}
	r.stdin.Close()
	r.expectCode(42) // the streams need no bus

	h.bus = bustest.Start(t, bustest.With(func(o *server.Options) { o.RunDir = h.bus.RunDir }))
	h.conn = h.bus.Conn()
	records, err := bus.OpenBucket[*vmv1.Container](t.Context(), h.conn, bus.BucketContainers)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	published := false
	err = records.Watch(ctx, kept.Key, func(e bus.Entry[*vmv1.Container]) {
		if !e.Deleted && e.Value.Status == stopped && e.Value.Exit.GetCode() == 42 {
			published = true
			cancel()
		}
	})
	if err != nil || !published {
		t.Fatalf("the end of the container was not published: %v", err)
	}
	h.expectRecordsAgree()
	h.delete("c1", false)
	h.expectNothing()
	h.stop() // before the second bus goes, as the host's daemon would have it
}
