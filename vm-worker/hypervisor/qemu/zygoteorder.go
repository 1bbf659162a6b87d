// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package qemu

import (
	"bytes"
	encoding "encoding/binary"
	"fmt"
	"slices"

	"bulkhead/vm-worker/hypervisor"
	"bulkhead/vm-worker/jail"
	"bulkhead/vm-worker/share"
)

const (
	orderVersion = 2
	orderFiles   = 16
)

// order is what a zygote is told, struct order of preload/zygote/zygote.h.
type order struct {
	Version       uint32
	Mergeable     uint32
	Capabilities  uint64
	FileCount     uint32
	Targets       [orderFiles]int32
	Name, OwnName [80]byte
	Hostname      [64]byte
	Stage, Export [32]byte
	StageOptions  [64]byte
	_             [4]byte // the structure ends at a multiple of 8
}

// newOrder is the order to become the VM of s, with files that replace the descriptors targets.
func newOrder(s hypervisor.Spec, zygoteID string, targets []int32) ([]byte, error) {
	o := order{Version: orderVersion, FileCount: uint32(len(targets))}
	if len(targets) > orderFiles {
		return nil, fmt.Errorf("%d descriptors are more than an order can carry", len(targets))
	}
	copy(o.Targets[:], targets)
	if s.Mergeable {
		o.Mergeable = 1
	}
	for _, c := range capabilities {
		o.Capabilities |= 1 << c
	}
	for _, f := range []struct {
		to   []byte
		text string
	}{
		{o.Name[:], processName(s.ID)}, {o.OwnName[:], processName(zygoteID)}, {o.Hostname[:], jailHostname},
		{o.Stage[:], share.StageDir}, {o.Export[:], share.ExportDir}, {o.StageOptions[:], jail.StageOptions},
	} {
		if len(f.text) >= len(f.to) || slices.Contains([]byte(f.text), 0) {
			return nil, fmt.Errorf("%q does not fit into an order", f.text)
		}
		copy(f.to, f.text)
	}
	var b bytes.Buffer
	if err := encoding.Write(&b, encoding.NativeEndian, o); err != nil {
		return nil, fmt.Errorf("encoding an order: %w", err)
	}
	return b.Bytes(), nil
}
