// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package vmworker

import (
	"context"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"testing"
	"time"

	"google.golang.org/protobuf/encoding/protojson"

	agentv1 "bulkhead/proto/agent/v1"
	vmv1 "bulkhead/proto/vm/v1"
)

func TestTheMemoryOfThousandsOfVMsIsToldInParts(t *testing.T) {
	t.Parallel()
	const count = 2000
	all := make([]*vmv1.VMMemory, count)
	for i := range all {
		if i%100 == 7 {
			continue // it has ended meanwhile
		}
		n := uint64(1<<33 + i)
		all[i] = &vmv1.VMMemory{
			Sandbox: fmt.Sprintf("vm-%010d", i), Pid: 1 << 20, Containers: []string{fmt.Sprintf("%064d", i)}, CostBytes: n, RssBytes: n, PssBytes: n,
			PrivateBytes: n, TemplateSharedBytes: n, KsmMergedBytes: n, KsmSavedBytes: n, PageTablesBytes: n, RelaysPssBytes: n,
			GuestTotalBytes: n, GuestAvailableBytes: n, GuestUsedBytes: n, TrustClass: "class", Mergeable: true, AnonymousBytes: n, AnonymousPssBytes: n, ChargedBytes: n,
		}
	}
	parts := 0
	whole, err := vmv1.StatsOfAll(func(req *vmv1.StatsRequest) (*vmv1.StatsReply, error) {
		parts++
		left := all
		for len(left) > 0 && req.After != "" && (left[0] == nil || left[0].Sandbox <= req.After) {
			left = left[1:]
		}
		reply := tellMemory(left, req.After == "")
		if text, err := protojson.Marshal(reply); err != nil || len(text) >= 1<<20 {
			t.Errorf("an answer of %d VMs has %d bytes: %v", len(reply.Vms), len(text), err)
		}
		return reply, nil
	})
	if err != nil || len(whole.Vms) != count-count/100 || parts < 2 {
		t.Fatalf("%d VMs are told of in %d parts: %v", len(whole.Vms), parts, err)
	}
	var sum uint64
	for i, m := range whole.Vms {
		sum += m.CostBytes
		if i > 0 && m.Sandbox <= whole.Vms[i-1].Sandbox {
			t.Errorf("%s comes after %s", m.Sandbox, whole.Vms[i-1].Sandbox)
		}
	}
	if whole.Total.GetCostBytes() != sum || whole.Next != "" {
		t.Errorf("they cost %d, and the sum is said to be %d; the whole goes on after %q", sum, whole.Total.GetCostBytes(), whole.Next)
	}
}

// TestTemplateSharedCountsOnlyGuestMemoryThatIsStillTheTemplates by maps as the kernel writes them.
func TestTemplateSharedCountsOnlyGuestMemoryThatIsStillTheTemplates(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	text := `55d8c0a00000-55d8c0c00000 r--p 00000000 fe:00 1234 /usr/bin/qemu-system-x86_64
Rss:                2048 kB
Anonymous:             0 kB
7f0000000000-7f0008000000 rw-p 00000000 00:01 77 /memfd:template (deleted)
Size:             131072 kB
Rss:               40960 kB
Pss:                2000 kB
Anonymous:         10240 kB
7f0008000000-7f0009400000 rw-p 00000000 fe:00 78 /guest/kernel
Size:              20480 kB
Rss:               15360 kB
Anonymous:             0 kB
7f0010000000-7f0010200000 rw-s 00000000 fe:00 88 /guest/image
Rss:                1024 kB
Anonymous:             0 kB
7f0020000000-7f0020200000 rw-p 00000000 00:00 0
Rss:                1024 kB
Anonymous:          1024 kB
7f0030000000-7f0030200000 rw-p 00000000 fe:00 99 /usr/lib/libc.so.6
Rss:                  16 kB
Anonymous:             8 kB
`
	if err := os.WriteFile(filepath.Join(dir, "smaps"), []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	got, err := templateShared(dir)
	if err != nil || got != (40960-10240)<<10 {
		t.Errorf("%d KiB are said to be the template's: %v", got>>10, err)
	}
}

// A guest that tells of more than there can be must not spoil the sum of all.
func TestAGuestCannotTellOfMoreMemoryThanItMayHave(t *testing.T) {
	t.Parallel()
	s := &sandbox{rec: &vmv1.Sandbox{MemoryBytes: 128 << 20, MemoryLimitBytes: 512 << 20}}
	for _, c := range []struct{ total, available, wantTotal, wantUsed uint64 }{
		{500 << 20, 100 << 20, 500 << 20, 400 << 20},
		{500 << 20, math.MaxUint64, 500 << 20, 0},
		{math.MaxUint64, 0, 640 << 20, 640 << 20},
		{math.MaxUint64, math.MaxUint64, 640 << 20, 0},
	} {
		m := &vmv1.VMMemory{}
		setGuest(m, &agentv1.StatsReply{GuestTotalBytes: c.total, GuestAvailableBytes: c.available}, s.mostMemory())
		if m.GuestTotalBytes != c.wantTotal || m.GuestUsedBytes != c.wantUsed {
			t.Errorf("a guest that has %d bytes, and %d to spare, is told as %d, of which %d are used", c.total, c.available, m.GuestTotalBytes, m.GuestUsedBytes)
		}
	}
}

// With hundreds of guests that hang, what is left must do for the host's part.
func TestGuestsGetHalfOfTheTimeOfACaller(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Hour)
	defer cancel()
	half, release := halfOf(ctx)
	defer release()
	if end, limited := half.Deadline(); !limited || time.Until(end) > time.Hour || time.Until(end) < time.Hour/2 {
		t.Errorf("of two hours guests get until %v", end)
	}
	endless, releaseEndless := halfOf(context.WithoutCancel(ctx))
	defer releaseEndless()
	if end, limited := endless.Deadline(); limited {
		t.Errorf("where nothing limits the caller, guests get until %v", end)
	}
}
