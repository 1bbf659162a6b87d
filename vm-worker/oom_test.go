// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package vmworker_test

import (
	"strings"
	"testing"

	vmv1 "bulkhead/proto/vm/v1"
	"bulkhead/vm-worker/hypervisor/fake"
)

func TestKillsByTheGuestsKernelAreEvents(t *testing.T) {
	driver := fake.New(fake.Options{})
	h := newBus(t)
	h.driver = &observed{Driver: driver, started: make(chan string, 64)}
	h.serve()
	h.run("c1", "sleep")
	c1 := h.state("c1")
	// A guest that says it again and again is not an event each time.
	for range 50 {
		driver.KillForMemory(c1.Sandbox, c1.Key, 1)
	}
	driver.KillForMemory(c1.Sandbox, "somebody-elses", 1)
	ev := h.await("c1", "oom")
	if ev.Attributes["key"] != c1.Key {
		t.Errorf("the event is %v", ev)
	}
	reply, err := call[vmv1.StatsReply](t.Context(), h, "stats", &vmv1.StatsRequest{Ref: ref("c1")})
	if err != nil || !strings.Contains(reply.GetContainerStats(), `"pids":{"current":1}`) {
		t.Errorf("the statistics are %v, %v", reply, err)
	}
	h.delete("c1", true)
	if n := strings.Count(strings.Join(h.told(), " "), "container.oom"); n != 1 {
		t.Errorf("one kill is %d events", n)
	}
	h.expectNothing()
}
