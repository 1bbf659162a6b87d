// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package frontend

import (
	"slices"
	"strings"
	"testing"
	"time"

	"bulkhead/bus"
	busv1 "bulkhead/proto/bus/v1"
)

const statsLine = `{"type":"stats","id":"c1","data":{"cpu":{"usage":{"total":5}},"pids":{"current":1}}}`

func TestEventsOnce(t *testing.T) {
	h := newHost(t)
	h.created("c1", nil)
	if r := h.run("events", "--stats", "c1").succeeds(t); r.stdout != statsLine+"\n" {
		t.Errorf("printed %q", r.stdout)
	}
	h.setStatus("c1", stopped)
	h.run("events", "--stats", "c1").fails(t, 1, "container with id c1 is not running")
	h.run("events", "c1").fails(t, 1, "container with id c1 is not running")
}

func TestEventsFollowUntilTheContainerEnds(t *testing.T) {
	h := newHost(t)
	h.created("c1", nil)
	h.created("c2", nil)
	h.asked = make(chan struct{})
	printed := make(chan result, 1)
	go func() { printed <- h.run("events", "--interval", "10ms", "c1") }()
	receive := func() {
		t.Helper()
		select {
		case <-h.asked:
		case <-time.After(30 * time.Second):
			t.Fatal("no statistics are asked for")
		}
	}
	receive()
	// Another container's kill is not this one's; this one's is told although it ends at once.
	for _, id := range []string{"c2", "c1"} {
		record, _ := h.record(id)
		event := &busv1.Event{Kind: "container", Id: id, Event: "oom", Attributes: map[string]string{"key": record.GetKey()}}
		if err := bus.Publish(t.Context(), h.bus.Conn(), event); err != nil {
			t.Fatal(err)
		}
	}
	if err := h.relays[0].cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	var r result
	select {
	case r = <-printed:
	case <-time.After(30 * time.Second):
		t.Fatal("events do not end with the container")
	}
	r.succeeds(t)
	lines := strings.Split(strings.TrimSpace(r.stdout), "\n")
	if !slices.Contains(lines, statsLine) {
		t.Errorf("no statistics in %q", lines)
	}
	if n := strings.Count(r.stdout, `{"type":"oom","id":"c1"}`); n != 1 || strings.Contains(r.stdout, "c2") {
		t.Errorf("%d kills for want of memory in %q", n, lines)
	}
}
