// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package guard

import (
	"errors"
	"fmt"
	"sync"

	"github.com/cilium/ebpf"
	"github.com/vishvananda/netlink"
)

// Tap checks what a VM sends through one device. Its methods may be called from
// one goroutine at a time; the checks go on when it is closed, and when its
// process dies.
type Tap struct {
	prog   *ebpf.Program
	macs   *ebpf.Map
	v4, v6 *ebpf.Map
	counts *ebpf.Map
}

const tapName = "bulkhead_tap"

// AttachTap has everything that comes out of the VM by dev checked by rules, at a
// hook where that passes: the ingress of a tap, the egress of a macvtap. dev has the
// queueing discipline clsact. Checks that are there already, of this process or of an
// earlier one, go on with the new rules, and their counts with them.
func AttachTap(h *netlink.Handle, dev netlink.Link, hook Hook, rules Rules) (*Tap, error) {
	k, err := rules.keys()
	if err != nil {
		return nil, fmt.Errorf("guarding %s: %w", dev.Attrs().Name, err)
	}
	old, err := attached(h, dev, hook, tapName)
	if err != nil {
		return nil, err
	}
	if old != nil {
		defer old.Close()
	}
	t, err := loadTap(old)
	if err != nil {
		return nil, err
	}
	// The first rules are there before the first packet.
	if err := t.fill(k); err != nil {
		return nil, errors.Join(err, t.Close())
	}
	if err := attach(h, dev, hook, tapName, t.prog, old); err != nil {
		return nil, errors.Join(err, t.Close())
	}
	return t, nil
}

// DetachTap ends the checks of dev. That there are none is no error.
func DetachTap(h *netlink.Handle, dev netlink.Link, hook Hook) error {
	return detach(h, dev, hook, tapName)
}

// loadTap loads the program, with the maps of an earlier one if there is one.
func loadTap(old *ebpf.Program) (_ *Tap, err error) {
	raiseMemlock()
	t := &Tap{}
	defer func() {
		if err != nil {
			err = errors.Join(err, t.Close())
		}
	}()
	specs := []struct {
		to   **ebpf.Map
		spec ebpf.MapSpec
	}{
		{&t.macs, ebpf.MapSpec{Name: "bh_macs", Type: ebpf.Hash, KeySize: 8, ValueSize: 1, MaxEntries: 2 * maxMACs}},
		{&t.v4, ebpf.MapSpec{Name: "bh_v4", Type: ebpf.LPMTrie, KeySize: 8, ValueSize: 1, MaxEntries: 2 * maxAddresses, Flags: noPrealloc}},
		{&t.v6, ebpf.MapSpec{Name: "bh_v6", Type: ebpf.LPMTrie, KeySize: 20, ValueSize: 1, MaxEntries: 2 * maxAddresses, Flags: noPrealloc}},
		{&t.counts, ebpf.MapSpec{Name: "bh_counts", Type: ebpf.PerCPUArray, KeySize: 4, ValueSize: 8, MaxEntries: uint32(reasons)}},
	}
	for _, s := range specs {
		if *s.to, err = mapOf(old, &s.spec); err != nil {
			return nil, unsupported(err)
		}
	}
	var l *skbLayout
	if found, err := layout(); err == nil {
		l = &found
	}
	t.prog, err = ebpf.NewProgram(&ebpf.ProgramSpec{
		Name: tapName, Type: ebpf.SchedCLS, License: "GPL",
		Instructions: tapProgram(tapMaps{macs: t.macs.FD(), v4: t.v4.FD(), v6: t.v6.FD(), counts: t.counts.FD()}, l),
	})
	if err != nil {
		return nil, unsupported(err)
	}
	return t, nil
}

const noPrealloc = 1 // BPF_F_NO_PREALLOC: what a trie needs

// mapOf takes a map of an earlier program over if it is what is needed now.
func mapOf(old *ebpf.Program, spec *ebpf.MapSpec) (*ebpf.Map, error) {
	if old != nil {
		info, err := old.Info()
		if err != nil {
			return nil, err
		}
		ids, _ := info.MapIDs()
		for _, id := range ids {
			m, err := ebpf.NewMapFromID(id)
			if err != nil {
				return nil, err
			}
			if is, err := m.Info(); err == nil && is.Name == spec.Name && spec.Compatible(m) == nil {
				return m, nil
			}
			m.Close()
		}
	}
	return ebpf.NewMap(spec)
}

// Update puts other rules into force. What is both old and new stays allowed
// throughout.
func (t *Tap) Update(rules Rules) error {
	k, err := rules.keys()
	if err != nil {
		return err
	}
	return t.fill(k)
}

func (t *Tap) fill(k keys) error {
	return errors.Join(replace(t.macs, k.macs), replace(t.v4, k.v4), replace(t.v6, k.v6))
}

// replace adds what is missing and then removes what is too much.
func replace[K comparable](m *ebpf.Map, want map[K]bool) error {
	for key := range want {
		if err := m.Put(key, uint8(1)); err != nil {
			return fmt.Errorf("allowing an address: %w", err)
		}
	}
	var key K
	var value uint8
	var drop []K
	for have := m.Iterate(); have.Next(&key, &value); {
		if !want[key] {
			drop = append(drop, key)
		}
	}
	for _, key := range drop {
		if err := m.Delete(key); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
			return fmt.Errorf("no longer allowing an address: %w", err)
		}
	}
	return nil
}

// Counts are the packets dropped since the device was first guarded.
func (t *Tap) Counts() (c Counts, err error) {
	for r := range reasons {
		var perCPU []uint64
		if err := t.counts.Lookup(uint32(r), &perCPU); err != nil {
			return c, fmt.Errorf("reading the count of dropped packets: %w", err)
		}
		for _, n := range perCPU {
			c[r] += n
		}
	}
	return c, nil
}

// Close gives up the descriptors; the checks go on.
func (t *Tap) Close() error {
	var errs []error
	for _, m := range []*ebpf.Map{t.macs, t.v4, t.v6, t.counts} {
		if m != nil {
			errs = append(errs, m.Close())
		}
	}
	if t.prog != nil {
		errs = append(errs, t.prog.Close())
	}
	return errors.Join(errs...)
}

// Supported says whether this kernel can guard taps, and if not, why: asked once.
var Supported = sync.OnceValue(func() error {
	t, err := loadTap(nil)
	if err != nil {
		return err
	}
	return t.Close()
})

// ChecksumsChecked says whether this kernel lets the guard see that a packet asks
// for its checked part to be overwritten by a checksum, and if not, why.
func ChecksumsChecked() error {
	_, err := layout()
	return err
}
