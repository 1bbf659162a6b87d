// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package qemu

import (
	"context"
	"errors"
	"strconv"
	"strings"
	"testing"
	"time"

	"bulkhead/vm-worker/hypervisor"
)

func TestARunningVMGrowsAndGivesMemoryBack(t *testing.T) {
	t.Parallel()
	const mib = 1 << 20
	s := newSpec(t)
	s.VCPUs, s.MemoryBytes = 1, 160*mib
	s.Max = hypervisor.Size{VCPUs: 3, MemoryBytes: 160*mib + 8<<30}
	v := startVM(t, s)
	c := connect(t, v)
	c.ready()
	total := func() int { // of the guest's memory, in MiB
		t.Helper()
		_, rest, _ := strings.Cut(c.ask("read /proc/meminfo"), "MemTotal:")
		kib, err := strconv.Atoi(strings.Fields(rest)[0])
		if err != nil {
			t.Fatal(err)
		}
		return kib >> 10
	}
	eventually := func(what string, is func() bool) { // the guest tells no event
		t.Helper()
		for limit := time.Now().Add(30 * time.Second); !is(); time.Sleep(50 * time.Millisecond) {
			if time.Now().After(limit) {
				t.Fatalf("no %s: processors %s, %d MiB", what, c.ask("read /sys/devices/system/cpu/present"), total())
			}
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	before := total()
	// Twenty-five times what it has: the descriptors of that memory alone would not fit into what it was started with.
	if err := v.Resize(ctx, hypervisor.Size{VCPUs: 3, MemoryBytes: 160*mib + 4000*mib}); err != nil {
		t.Fatal(err)
	}
	if got := total() - before; got != 4096 { // whole blocks
		t.Errorf("the guest has %d MiB more", got)
	}
	eventually("new processors", func() bool { return c.ask("read /sys/devices/system/cpu/present") == "0-2" })
	for _, cpu := range []string{"1", "2"} {
		if got := c.ask("write /sys/devices/system/cpu/cpu" + cpu + "/online 1"); got != "ok" {
			t.Errorf("processor %s does not come up: %s", cpu, got)
		}
	}
	if got := v.Record(); got.VCPUs != 3 || got.MemoryBytes != 160*mib+4096*mib {
		t.Errorf("the record has %d processors and %d bytes", got.VCPUs, got.MemoryBytes)
	}
	saved, err := hypervisor.LoadRecord(s.Dir)
	if err != nil || saved.VCPUs != 3 || saved.MemoryBytes != 160*mib+4096*mib || saved.BootMemoryBytes != 160*mib {
		t.Errorf("the saved record is %+v, %v", saved, err)
	}
	if err := v.Resize(ctx, hypervisor.Size{VCPUs: 1, MemoryBytes: 160 * mib}); err != nil {
		t.Fatal(err)
	}
	// At least what was for movable pages comes back, three times what the VM was started with.
	if got, has := total()-before, int(v.Record().MemoryBytes/mib)-160; got > 4096-384 || got != has {
		t.Errorf("asked for its memory back, the guest has %d MiB of it, and the record %d", got, has)
	}
	// The wish for less still stands. Whoever needs what the guest kept must not lose it later.
	kept := v.Record().MemoryBytes
	if err := v.Resize(ctx, hypervisor.Size{VCPUs: 1, MemoryBytes: kept}); err != nil {
		t.Fatal(err)
	}
	var asked uint64
	if err := v.(*vm).monitor.execute(ctx, "qom-get", map[string]any{"path": growthPath, "property": "requested-size"}, &asked); err != nil || asked != blocks(kept-160*mib) {
		t.Errorf("the guest is asked to have %d MiB, and kept %d: %v", asked/mib, kept/mib-160, err)
	}
	for _, size := range []hypervisor.Size{{VCPUs: 4, MemoryBytes: 160 * mib}, {VCPUs: 1, MemoryBytes: 9 << 30}} {
		if err := v.Resize(ctx, size); !errors.Is(err, hypervisor.ErrNoRoom) {
			t.Errorf("more than there is room for: %v", err)
		}
	}
	rec := v.Record()
	has := rec.MemoryBytes
	rec.MemoryBytes = 160 * mib // as a worker leaves it that dies before it has written down more
	v.Release()
	next, err := New(Options{}).Adopt(ctx, rec)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { killVM(t, next) })
	if got := next.Record().MemoryBytes; got != has || has == 160*mib {
		t.Errorf("adopted, the VM is said to have %d MiB, and has %d", got/mib, has/mib)
	}
}

func TestAQEMUThatCannotStartIsToldAtOnce(t *testing.T) {
	t.Parallel()
	s := newSpec(t)
	s.Max.MemoryBytes = 1 << 55 // beyond any address
	_, err := New(Options{}).Start(t.Context(), s)
	if err == nil || !strings.Contains(err.Error(), "qemu says") || errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("a machine beyond any address: %v", err)
	}
}
