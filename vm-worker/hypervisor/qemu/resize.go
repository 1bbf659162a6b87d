// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package qemu

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"bulkhead/vm-worker/hypervisor"
)

// growthID is the device by which a VM's memory grows: virtio-mem, virtio 1.2,
// 5.15. The host says how much the guest should have of it, and the guest takes
// and gives back.
const growthID = "growth0"

// Resize implements hypervisor.VM. The worker asks for one size at a time.
func (v *vm) Resize(ctx context.Context, to hypervisor.Size) error {
	return v.wrap(v.resize(ctx, to))
}

func (v *vm) resize(ctx context.Context, to hypervisor.Size) error {
	rec := v.Record()
	growth := uint64(0)
	if to.MemoryBytes > rec.BootMemoryBytes {
		growth = blocks(to.MemoryBytes - rec.BootMemoryBytes)
	}
	switch room := blocks(rec.Max.MemoryBytes - rec.BootMemoryBytes); {
	case to.VCPUs > rec.Max.VCPUs:
		return fmt.Errorf("%d processors, and at most %d: %w", to.VCPUs, rec.Max.VCPUs, hypervisor.ErrNoRoom)
	case growth > room:
		return fmt.Errorf("%d MiB of memory, and at most %d: %w", to.MemoryBytes>>20, (rec.BootMemoryBytes+room)>>20, hypervisor.ErrNoRoom)
	}
	if to.VCPUs > rec.VCPUs {
		if err := v.addProcessors(ctx, int(to.VCPUs)); err != nil {
			return err
		}
		if err := v.saveSize(func(s *hypervisor.Size) { s.VCPUs = to.VCPUs }); err != nil {
			return err
		}
	}
	if rec.Max.MemoryBytes <= rec.BootMemoryBytes {
		return nil // there is no growth device
	}
	has, err := v.setGrowth(ctx, growth)
	return errors.Join(err, v.saveSize(func(s *hypervisor.Size) { s.MemoryBytes = rec.BootMemoryBytes + has }))
}

// hotpluggable is one place for a processor, query-hotpluggable-cpus in
// qapi/machine.json.
type hotpluggable struct {
	Type    string         `json:"type"`
	Props   map[string]int `json:"props"`
	QOMPath string         `json:"qom-path"` // of the processor in it; empty: none
}

// place orders the places as the guest counts its processors.
func (h hotpluggable) place() [4]int {
	return [4]int{h.Props["socket-id"], h.Props["die-id"], h.Props["core-id"], h.Props["thread-id"]}
}

// addProcessors fills places until n are taken. What QEMU says counts: a worker
// may have died between an addition and its record.
func (v *vm) addProcessors(ctx context.Context, n int) error {
	var places []hotpluggable
	if err := v.monitor.execute(ctx, "query-hotpluggable-cpus", nil, &places); err != nil {
		return err
	}
	slices.SortFunc(places, func(a, b hotpluggable) int {
		x, y := a.place(), b.place()
		return slices.Compare(x[:], y[:])
	})
	taken := 0
	for _, p := range places {
		if p.QOMPath != "" {
			taken++
		}
	}
	for i, p := range places {
		if taken >= n {
			return nil
		}
		if p.QOMPath != "" {
			continue
		}
		args := map[string]any{"driver": p.Type, "id": fmt.Sprintf("cpu%d", i)}
		for name, at := range maps.All(p.Props) {
			args[name] = at
		}
		if err := v.monitor.execute(ctx, "device_add", args, nil); err != nil {
			return err
		}
		taken++
	}
	if taken < n {
		return fmt.Errorf("there are places for %d processors, not for %d", taken, n)
	}
	return nil
}

// giveBackTime is how long a guest may take to give memory back. What it then still
// has, it may keep: pages of its kernel do not move.
const giveBackTime = 3 * time.Second

// setGrowth asks the guest to have this much of the growth device instead of what
// it has, and returns what it has when it has followed, or will not. It asks also for what
// the guest has: an earlier wish for less may still stand, and be fulfilled later.
func (v *vm) setGrowth(ctx context.Context, growth uint64) (has uint64, err error) {
	was, err := v.growth(ctx)
	if err != nil {
		return v.Record().MemoryBytes - v.rec.BootMemoryBytes, err
	}
	select { // what an earlier change told
	case <-v.memory:
	default:
	}
	if err := v.askGrowth(ctx, growth); err != nil {
		return v.keepGrowth(ctx, was, err)
	}
	if growth < was {
		patient, cancel := context.WithTimeout(ctx, giveBackTime)
		defer cancel()
		has, err := v.awaitGrowth(patient, was, func(has uint64) bool { return has <= growth })
		if errors.Is(err, context.DeadlineExceeded) && ctx.Err() == nil {
			return v.keepGrowth(ctx, has, nil)
		}
		if err != nil {
			return v.keepGrowth(ctx, has, err)
		}
		return has, nil
	}
	if has, err = v.awaitGrowth(ctx, was, func(has uint64) bool { return has >= growth }); err != nil {
		return v.keepGrowth(ctx, has, fmt.Errorf("adding memory: the guest has taken %d of %d MiB: %w", has>>20, growth>>20, err))
	}
	return has, nil
}

// keepGrowth ends a change that went only so far, for a reason. The guest keeps what it has: its kernel
// and its containers reckon with it from now on, so a wish for less must not be fulfilled later, nor what
// came be taken back.
func (v *vm) keepGrowth(ctx context.Context, has uint64, why error) (uint64, error) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), undoTime)
	defer cancel()
	now, err := v.growth(ctx)
	if err == nil {
		has = now
		err = v.askGrowth(ctx, has)
	}
	return has, errors.Join(why, err)
}

const growthPath = "/machine/peripheral/" + growthID

func (v *vm) askGrowth(ctx context.Context, bytes uint64) error {
	return v.monitor.execute(ctx, "qom-set", map[string]any{"path": growthPath, "property": "requested-size", "value": bytes}, nil)
}

// growth is what the guest has of the growth device.
func (v *vm) growth(ctx context.Context) (has uint64, err error) {
	err = v.monitor.execute(ctx, "qom-get", map[string]any{"path": growthPath, "property": "size"}, &has)
	return has, err
}

// awaitGrowth waits until what the guest has of the growth device, which was known
// to be this much, pleases.
func (v *vm) awaitGrowth(ctx context.Context, was uint64, pleases func(has uint64) bool) (has uint64, err error) {
	for has = was; ; {
		now, err := v.growth(ctx)
		if err != nil {
			return has, err
		}
		if has = now; pleases(has) {
			return has, nil
		}
		select {
		case <-v.memory:
		case <-v.done:
			return has, errors.New("the vm has ended")
		case <-ctx.Done():
			return has, ctx.Err()
		}
	}
}

// saveSize writes down what the VM has from now on.
func (v *vm) saveSize(change func(*hypervisor.Size)) error {
	v.mu.Lock()
	change(&v.size)
	v.mu.Unlock()
	return v.Record().Save()
}
