// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package guard

// Reason is why a packet of a VM was dropped.
type Reason uint32

const (
	Short     Reason = iota // shorter than its headers say
	VLAN                    // tagged, once or twice
	MAC                     // an Ethernet source that is not the link's
	EtherType               // neither IPv4, IPv6 nor ARP
	ARP                     // a sender that is not the link's, or no request or answer for IPv4 over Ethernet
	IPv4                    // an IPv4 source that is not the link's
	IPv6                    // an IPv6 source that is not the link's
	ND                      // neighbour discovery for an address or a MAC that is not the link's
	NDHidden                // neighbour discovery behind extension headers or in fragments (RFC 6980)
	Router                  // router advertisements and redirects of either family
	DHCP                    // what only DHCP servers send
	Headers                 // more IPv6 extension headers than anybody needs
	Checksum                // asks for a checksum to be written over what was checked
	reasons
)

var reasonNames = [reasons]string{"short", "vlan", "mac", "ethertype", "arp", "ipv4", "ipv6", "nd", "nd-hidden", "router", "dhcp", "headers", "checksum"}

func (r Reason) String() string {
	if r < reasons {
		return reasonNames[r]
	}
	return "unknown"
}

// Counts are the packets dropped, by reason.
type Counts [reasons]uint64

// Total is the number of packets dropped for whatever reason.
func (c Counts) Total() (n uint64) {
	for _, v := range c {
		n += v
	}
	return n
}
