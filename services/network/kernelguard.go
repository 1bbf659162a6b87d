// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package network

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"

	"bulkhead/services/network/guard"
	"bulkhead/services/network/netspace"
	"bulkhead/services/network/wire"
)

// kernelGuard checks by the kernel's eBPF classifiers (package guard).
type kernelGuard struct {
	mu   sync.Mutex              // guards taps
	taps map[guardKey]*guard.Tap // those whose rules and counts are at hand
}

type guardKey struct {
	ns     netspace.ID
	device string
}

func newKernelGuard() *kernelGuard {
	return &kernelGuard{taps: map[guardKey]*guard.Tap{}}
}

func (k *kernelGuard) Attach(g Guarded) error {
	nl := g.NS.Netlink()
	device, err := nl.LinkByName(g.Device)
	if err != nil {
		return fmt.Errorf("find the device to guard: %w", err)
	}
	if !g.Policy.AllowSpoofing {
		rules, err := rulesOf(g)
		if err != nil {
			return err
		}
		tap, err := guard.AttachTap(nl, device, hookOf(g), rules)
		if errors.Is(err, guard.ErrUnsupported) {
			return fmt.Errorf("%w; without checks a VM starts only when [network] spoof_protection is false", err)
		}
		if err != nil {
			return err
		}
		k.keep(g, tap)
	}
	if g.Model != wire.ModelTC {
		return nil
	}
	link, err := nl.LinkByIndex(int(g.Facts.Index))
	if err != nil {
		return fmt.Errorf("find the link to guard: %w", err)
	}
	err = guard.AttachLink(nl, link, device)
	if errors.Is(err, guard.ErrUnsupported) {
		return nil // the VM has all it needs; Problems says what is missing
	}
	return err
}

func (k *kernelGuard) Update(g Guarded) error {
	if g.Policy.AllowSpoofing {
		if k.tap(g) == nil {
			return nil
		}
		// It was checked until now.
		device, err := g.NS.Netlink().LinkByName(g.Device)
		if err == nil {
			err = guard.DetachTap(g.NS.Netlink(), device, hookOf(g))
		}
		if err == nil {
			k.keep(g, nil)
		}
		return err
	}
	rules, err := rulesOf(g)
	if err != nil {
		return err
	}
	if tap := k.tap(g); tap != nil {
		return tap.Update(rules)
	}
	return k.Attach(g)
}

func (k *kernelGuard) Detach(g Guarded) error {
	k.keep(g, nil)
	nl := g.NS.Netlink()
	var errs []error
	device, err := nl.LinkByName(g.Device)
	if err == nil {
		errs = append(errs, guard.DetachTap(nl, device, hookOf(g)))
	}
	if g.Model == wire.ModelTC {
		link, err := nl.LinkByIndex(int(g.Facts.Index))
		if err == nil {
			errs = append(errs, guard.DetachLink(nl, link))
		}
	}
	return errors.Join(errs...)
}

func (k *kernelGuard) Spoofed(g Guarded) (uint64, error) {
	tap := k.tap(g)
	if tap == nil {
		return 0, nil
	}
	counts, err := tap.Counts()
	return counts.Total(), err
}

func (k *kernelGuard) Problems(g Guarded) (sentences []string) {
	if err := guard.Supported(); err != nil && g.Model == wire.ModelTC {
		sentences = append(sentences, fmt.Sprintf("sockets of the namespace itself, an engine's resolver for one, hear no answers from outside: %v", err))
	}
	if err := guard.ChecksumsChecked(); err != nil && !g.Policy.AllowSpoofing {
		sentences = append(sentences, fmt.Sprintf("a VM that has the host write checksums over its addresses is not seen: %v", err))
	}
	return sentences
}

// Close gives up the descriptors; the checks go on.
func (k *kernelGuard) Close() {
	k.mu.Lock()
	defer k.mu.Unlock()
	for key, tap := range k.taps {
		_ = tap.Close()
		delete(k.taps, key)
	}
}

func (k *kernelGuard) tap(g Guarded) *guard.Tap {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.taps[guardKey{g.NS.ID, g.Device}]
}

// keep holds the checks of a device at hand, or with nil no more.
func (k *kernelGuard) keep(g Guarded, tap *guard.Tap) {
	k.mu.Lock()
	defer k.mu.Unlock()
	key := guardKey{g.NS.ID, g.Device}
	if old := k.taps[key]; old != nil {
		_ = old.Close()
	}
	if tap == nil {
		delete(k.taps, key)
		return
	}
	k.taps[key] = tap
}

// hookOf is where what the VM sends passes: a macvtap is the far end of its
// queue, so it goes out by it.
func hookOf(g Guarded) guard.Hook {
	if g.Model == wire.ModelMacvtap {
		return guard.Egress
	}
	return guard.Ingress
}

// rulesOf are the addresses that the link has, and those allowed beside.
func rulesOf(g Guarded) (guard.Rules, error) {
	var r guard.Rules
	for _, text := range append([]string{g.Facts.Mac}, g.Policy.AllowedMacs...) {
		mac, err := net.ParseMAC(text)
		if err != nil {
			return r, fmt.Errorf("guarding link %s: %w", g.Facts.Name, err)
		}
		r.MACs = append(r.MACs, mac)
	}
	for _, a := range g.Facts.Addresses {
		prefix, err := netip.ParsePrefix(a.Prefix)
		if err != nil {
			return r, fmt.Errorf("guarding link %s: %w", g.Facts.Name, err)
		}
		r.Addresses = append(r.Addresses, netip.PrefixFrom(prefix.Addr(), prefix.Addr().BitLen()))
	}
	for _, text := range g.Policy.AllowedAddresses {
		prefix, err := netip.ParsePrefix(text)
		if err != nil {
			return r, fmt.Errorf("guarding link %s: %w", g.Facts.Name, err)
		}
		r.Addresses = append(r.Addresses, prefix)
	}
	return r, nil
}
