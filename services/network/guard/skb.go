// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package guard

import (
	"fmt"
	"sync"

	"github.com/cilium/ebpf/btf"
)

// skbLayout is where this kernel's sk_buff has what a VM may ask for in the header
// that travels before its packet (virtio 1.2, 5.1.6): that a checksum be written,
// and where. No program of the traffic control is told by the packet itself.
type skbLayout struct {
	summed      int32 // offset of the byte that holds ip_summed
	summedShift int32
	start       int32 // csum_start, csum_offset, mac_header: 16 bits each
	offset      int32
	mac         int32
}

// checksumPartial is CHECKSUM_PARTIAL of include/linux/skbuff.h.
const checksumPartial = 3

// layout reads the running kernel's description of its types once. Kernels without
// one (CONFIG_DEBUG_INFO_BTF) have no such check.
var layout = sync.OnceValues(func() (skbLayout, error) {
	defer btf.FlushKernelSpec() // tens of megabytes, for five numbers
	spec, err := btf.LoadKernelSpec()
	if err != nil {
		return skbLayout{}, fmt.Errorf("this kernel does not describe its types: %w", err)
	}
	var skb *btf.Struct
	if err := spec.TypeByName("sk_buff", &skb); err != nil {
		return skbLayout{}, err
	}
	var l skbLayout
	for name, to := range map[string]*int32{"csum_start": &l.start, "csum_offset": &l.offset, "mac_header": &l.mac} {
		m, at, ok := member(skb.Members, name)
		if !ok || m.BitfieldSize != 0 {
			return skbLayout{}, fmt.Errorf("this kernel's sk_buff has no %s", name)
		}
		*to = int32(at.Bytes())
	}
	m, at, ok := member(skb.Members, "ip_summed")
	if !ok || m.BitfieldSize != 2 || at%8 > 6 {
		return skbLayout{}, fmt.Errorf("this kernel's sk_buff has no ip_summed of two bits")
	}
	l.summed, l.summedShift = int32(at/8), int32(at%8)
	return l, nil
})

// member finds a field, also in structures without a name.
func member(members []btf.Member, name string) (btf.Member, btf.Bits, bool) {
	for _, m := range members {
		if m.Name == name {
			return m, m.Offset, true
		}
		if m.Name != "" {
			continue
		}
		var inner []btf.Member
		switch t := btf.UnderlyingType(m.Type).(type) {
		case *btf.Struct:
			inner = t.Members
		case *btf.Union:
			inner = t.Members
		}
		if found, at, ok := member(inner, name); ok {
			return found, m.Offset + at, true
		}
	}
	return btf.Member{}, 0, false
}
