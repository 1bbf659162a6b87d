// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package guard

import (
	"errors"
	"fmt"
	"sync"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/rlimit"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Hook is where at a device with the queueing discipline clsact a program is asked.
type Hook uint32

const (
	Ingress Hook = netlink.HANDLE_MIN_INGRESS
	Egress  Hook = netlink.HANDLE_MIN_EGRESS
)

// Priority is that of the guards: filters that redirect have a higher number.
const Priority = 1

const handle = 1

// attached returns the program of this name at the hook, nil if there is none.
func attached(h *netlink.Handle, dev netlink.Link, hook Hook, name string) (*ebpf.Program, error) {
	filters, err := h.FilterList(dev, uint32(hook))
	if err != nil {
		return nil, fmt.Errorf("listing the filters of %s: %w", dev.Attrs().Name, err)
	}
	for _, f := range filters {
		b, ok := f.(*netlink.BpfFilter)
		if !ok || b.Name != name || b.Attrs().Priority != Priority {
			continue
		}
		p, err := ebpf.NewProgramFromID(ebpf.ProgramID(b.Id))
		if err != nil {
			return nil, fmt.Errorf("opening the program %s of %s: %w", name, dev.Attrs().Name, err)
		}
		return p, nil
	}
	return nil, nil
}

// attach puts prog at the hook in the place of old, in one step; one that is the
// same already stays.
func attach(h *netlink.Handle, dev netlink.Link, hook Hook, name string, prog, old *ebpf.Program) error {
	if old != nil && same(old, prog) {
		return nil
	}
	err := h.FilterReplace(&netlink.BpfFilter{
		FilterAttrs:  attrs(dev, hook),
		Fd:           prog.FD(),
		Name:         name,
		DirectAction: true,
	})
	if err != nil {
		return fmt.Errorf("attaching the program %s to %s: %w", name, dev.Attrs().Name, err)
	}
	return nil
}

func detach(h *netlink.Handle, dev netlink.Link, hook Hook, name string) error {
	old, err := attached(h, dev, hook, name)
	if err != nil || old == nil {
		return err
	}
	defer old.Close()
	err = h.FilterDel(&netlink.BpfFilter{FilterAttrs: attrs(dev, hook)})
	if err != nil && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("detaching the program %s from %s: %w", name, dev.Attrs().Name, err)
	}
	return nil
}

func attrs(dev netlink.Link, hook Hook) netlink.FilterAttrs {
	return netlink.FilterAttrs{
		LinkIndex: dev.Attrs().Index, Parent: uint32(hook), Handle: handle,
		Protocol: unix.ETH_P_ALL, Priority: Priority,
	}
}

// same says whether two programs are the same instructions with the same maps.
func same(a, b *ebpf.Program) bool {
	ia, err := a.Info()
	if err != nil {
		return false
	}
	ib, err := b.Info()
	if err != nil || ia.Tag != ib.Tag {
		return false
	}
	ma, _ := ia.MapIDs()
	mb, _ := ib.MapIDs()
	if len(ma) != len(mb) {
		return false
	}
	for i := range ma {
		if ma[i] != mb[i] {
			return false
		}
	}
	return true
}

// raiseMemlock is for kernels before 5.11, which count maps as locked memory. What
// it cannot do shows when the map is made.
var raiseMemlock = sync.OnceFunc(func() { _ = rlimit.RemoveMemlock() })

// ErrUnsupported says that the kernel, or what this process may do, has no room for
// the guard.
var ErrUnsupported = errors.New("this kernel cannot check packets for Bulkhead (eBPF classifiers: CONFIG_BPF_SYSCALL, CONFIG_NET_CLS_BPF, CAP_BPF or CAP_SYS_ADMIN)")

func unsupported(err error) error { return fmt.Errorf("%w: %w", ErrUnsupported, err) }
