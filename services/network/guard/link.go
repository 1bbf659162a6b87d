// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package guard

import (
	"github.com/cilium/ebpf"
	"github.com/vishvananda/netlink"
)

const linkName = "bulkhead_link"

// AttachLink has packets that arrive on link stay in the namespace when a connected
// socket there waits for them; answers of ARP and neighbour discovery and errors go
// to both. All else is left to the filter below, which redirects to tap. link has the
// queueing discipline clsact. It is for the model tc: with a bridge or a macvtap
// upon it, the namespace's own stack has the link no more.
func AttachLink(h *netlink.Handle, link, tap netlink.Link) error {
	raiseMemlock()
	prog, err := ebpf.NewProgram(&ebpf.ProgramSpec{
		Name: linkName, Type: ebpf.SchedCLS, License: "GPL",
		Instructions: linkProgram(tap.Attrs().Index),
	})
	if err != nil {
		return unsupported(err)
	}
	defer prog.Close()
	old, err := attached(h, link, Ingress, linkName)
	if err != nil {
		return err
	}
	if old != nil {
		defer old.Close()
	}
	return attach(h, link, Ingress, linkName, prog, old)
}

// DetachLink has everything go to the VM again. That nothing is there is no error.
func DetachLink(h *netlink.Handle, link netlink.Link) error {
	return detach(h, link, Ingress, linkName)
}
