// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package wire

import (
	"fmt"
	"os"

	"github.com/vishvananda/netlink"
)

// VhostPath is where the kernel that moves packets itself is asked to.
const VhostPath = "/dev/vhost-net"

// Open opens the queues of the NIC.
func (w *Wire) Open() ([]*os.File, error) {
	queues := int(w.NIC.Queues)
	if w.NIC.Model == ModelMacvtap {
		return w.openMacvtap(queues)
	}
	l, err := w.device()
	if err != nil {
		return nil, err // opening would make another one
	}
	// A tap spreads what it receives over all queues that anybody has open: beside
	// a VM's own, others would swallow it.
	if tap, ok := l.(*netlink.Tuntap); ok && tap.Queues > 0 {
		return nil, fmt.Errorf("the tap %s is open already, with %d queues", w.NIC.Device, tap.Queues)
	}
	return several(queues, w.openTap)
}

// OpenVhost opens vhost-net as often as the NIC has queues.
func (w *Wire) OpenVhost() ([]*os.File, error) {
	return several(int(w.NIC.Queues), func() (*os.File, error) { return os.OpenFile(VhostPath, os.O_RDWR, 0) })
}

// several opens n files or none.
func several(n int, open func() (*os.File, error)) ([]*os.File, error) {
	var files []*os.File
	for range n {
		f, err := open()
		if err != nil {
			for _, f := range files {
				f.Close()
			}
			return nil, err
		}
		files = append(files, f)
	}
	return files, nil
}
