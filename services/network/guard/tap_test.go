// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package guard

import (
	"math/rand/v2"
	"net"
	"net/netip"
	"testing"
)

// loaded is the program with rules, attached to nothing.
func loaded(t testing.TB, rules Rules) *Tap {
	t.Helper()
	tap, err := loadTap(nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { tap.Close() })
	if err := tap.Update(rules); err != nil {
		t.Fatal(err)
	}
	return tap
}

// run has the kernel run the program over a frame.
func run(t testing.TB, tap *Tap, frame []byte) verdict {
	t.Helper()
	before, err := tap.Counts()
	if err != nil {
		t.Fatal(err)
	}
	ret, _, err := tap.prog.Test(frame)
	if err != nil {
		t.Fatalf("%x: %v", frame, err)
	}
	after, err := tap.Counts()
	if err != nil {
		t.Fatal(err)
	}
	v := passed
	for r := range reasons {
		switch after[r] - before[r] {
		case 0:
		case 1:
			if v.drop {
				t.Fatalf("%x is counted twice", frame)
			}
			v = dropped(r)
		default:
			t.Fatalf("%x is counted %d times", frame, after[r]-before[r])
		}
	}
	if (int32(ret) == actShot) != v.drop || !v.drop && int32(ret) != actUnspec {
		t.Fatalf("%x: the verdict is %d and the counts say %v", frame, int32(ret), v)
	}
	return v
}

// cases are frames and what becomes of them.
var cases = []struct {
	name  string
	frame []byte
	want  verdict
}{
	{"tcp from its own address", ipv4(own4, other4, protoTCP, 0, make([]byte, 20)), passed},
	{"udp from its own address", ipv4(own4, other4, protoUDP, 0, udp(1000, 53, "hello")), passed},
	{"a later fragment of its own", ipv4(own4, other4, protoUDP, 0x2001, make([]byte, 64)), passed},
	{"its own MAC forged", ether(otherMAC, 0x0800, ipv4(own4, other4, protoTCP, 0, make([]byte, 20))[14:]), dropped(MAC)},
	{"another's IPv4 address", ipv4(other4, own4, protoTCP, 0, make([]byte, 20)), dropped(IPv4)},
	{"another's IPv4 address in a later fragment", ipv4(other4, own4, protoTCP, 0x2001, make([]byte, 64)), dropped(IPv4)},
	{"loopback as source", ipv4(netip.MustParseAddr("127.0.0.1"), own4, protoTCP, 0, make([]byte, 20)), dropped(IPv4)},
	{"no IPv4 address, tcp", ipv4(none4, other4, protoTCP, 0, make([]byte, 20)), dropped(IPv4)},
	{"no IPv4 address, any udp", ipv4(none4, all4, protoUDP, 0, udp(1000, 53, "")), dropped(IPv4)},
	{"no IPv4 address, a later fragment of udp", ipv4(none4, all4, protoUDP, 0x2001, udp(68, 67, "")), dropped(IPv4)},
	{"a DHCP client without address", ipv4(none4, all4, protoUDP, 0, udp(68, 67, "")), passed},
	{"a DHCP server", ipv4(own4, all4, protoUDP, 0, udp(67, 68, "")), dropped(DHCP)},
	{"a DHCP server on another port", ipv4(own4, all4, protoUDP, 0, udp(1067, 68, "")), dropped(DHCP)},
	{"a DHCP server in a first fragment", ipv4(own4, all4, protoUDP, 0x2000, udp(67, 68, "")), dropped(DHCP)},
	{"a UDP header cut by fragmentation", ipv4(own4, all4, protoUDP, 0x2000, []byte{0, 67}), dropped(Short)},
	{"IGMP without address", ipv4(none4, allMulticast, protoIGMP, 0, make([]byte, 8)), passed},
	{"ping", ipv4(own4, other4, protoICMP, 0, icmp(8)), passed},
	{"ICMP redirect", ipv4(own4, other4, protoICMP, 0, icmp(5)), dropped(Router)},
	{"ICMP router advertisement", ipv4(own4, other4, protoICMP, 0, icmp(9)), dropped(Router)},
	{"IPv6 under the type of IPv4", ether(ownMAC, 0x0800, ipv6(own6, other6, protoTCP, make([]byte, 20))[14:]), dropped(Short)},

	{"ARP request", arp(1, ownMAC, own4, other4), passed},
	{"ARP answer", arp(2, ownMAC, own4, other4), passed},
	{"ARP probe for its own", arp(1, ownMAC, none4, own4), passed},
	{"gratuitous ARP", arp(1, ownMAC, own4, own4), passed},
	{"ARP probe for another's", arp(1, ownMAC, none4, other4), dropped(ARP)},
	{"ARP answer without address", arp(2, ownMAC, none4, own4), dropped(ARP)},
	{"ARP as another", arp(2, ownMAC, other4, own4), dropped(ARP)},
	{"ARP with another's MAC", arp(2, otherMAC, own4, own4), dropped(ARP)},
	{"inverse ARP", arp(8, ownMAC, own4, own4), dropped(ARP)},
	{"ARP of a strange hardware", ether(ownMAC, 0x0806, []byte{0, 6, 8, 0, 6, 4}, arp(1, ownMAC, own4, other4)[20:]), dropped(ARP)},

	{"VLAN", ether(ownMAC, 0x8100, u16(5), u16(0x0800), make([]byte, 40)), dropped(VLAN)},
	{"QinQ", ether(ownMAC, 0x88a8, u16(5), u16(0x8100), make([]byte, 40)), dropped(VLAN)},
	{"MPLS", ether(ownMAC, 0x8847, make([]byte, 40)), dropped(EtherType)},
	{"PPPoE", ether(ownMAC, 0x8864, make([]byte, 40)), dropped(EtherType)},
	{"LLDP", ether(ownMAC, 0x88cc, make([]byte, 40)), dropped(EtherType)},
	{"spanning tree (802.3)", ether(ownMAC, 0x0026, []byte{0x42, 0x42, 3}, make([]byte, 40)), dropped(EtherType)},
	{"RARP", ether(ownMAC, 0x8035, arp(1, ownMAC, own4, other4)[14:]), dropped(EtherType)},
	{"a stump", ether(ownMAC, 0x0806, make([]byte, 10)), dropped(Short)},
	{"an ARP packet cut short", arp(2, otherMAC, own4, own4)[:40], dropped(Short)},

	{"tcp over IPv6", ipv6(own6, other6, protoTCP, make([]byte, 20)), passed},
	{"from its link-local address", ipv6(linkLocal(ownMAC), other6, protoTCP, make([]byte, 20)), passed},
	{"from another's link-local address", ipv6(linkLocal(otherMAC), other6, protoTCP, make([]byte, 20)), dropped(IPv6)},
	{"another's IPv6 address", ipv6(other6, own6, protoTCP, make([]byte, 20)), dropped(IPv6)},
	{"no IPv6 address, tcp", ipv6(none6, other6, protoTCP, make([]byte, 20)), dropped(IPv6)},
	{"no IPv6 address, ping", ipv6(none6, other6, protoICMPv6, icmp(128)), dropped(IPv6)},
	{"a DHCPv6 client", ipv6(own6, allNodes, protoUDP, udp(546, 547, "")), passed},
	{"a DHCPv6 server", ipv6(own6, allNodes, protoUDP, udp(547, 546, "")), dropped(DHCP)},
	{"a DHCPv6 server behind options", ipv6(own6, allNodes, protoDstOpts, extension(protoUDP), udp(547, 546, "")), dropped(DHCP)},
	{"a DHCPv6 server in a first fragment", ipv6(own6, allNodes, protoFragment, fragmentHeader(protoUDP, 0, true), udp(547, 546, "")), dropped(DHCP)},
	{"a first fragment without the chain's end", ipv6(own6, allNodes, protoFragment, fragmentHeader(protoDstOpts, 0, true), extension(protoUDP)), dropped(Short)},
	{"a later fragment over IPv6", ipv6(own6, other6, protoFragment, fragmentHeader(protoUDP, 64, false), make([]byte, 16)), passed},
	{"a later fragment without address", ipv6(none6, other6, protoFragment, fragmentHeader(protoUDP, 64, false), make([]byte, 16)), dropped(IPv6)},
	{"a packet of many headers", ipv6(own6, other6, 0, many(9)), dropped(Headers)},

	{"ping6", ipv6(own6, other6, protoICMPv6, icmp(128)), passed},
	{"MLD without address", ipv6(none6, allNodes, 0, extension(protoICMPv6), icmp(143)), passed},
	{"NS", ipv6(own6, allNodes, protoICMPv6, nd(135, other6, lladdr(1, ownMAC))), passed},
	{"NS with a nonce", ipv6(own6, allNodes, protoICMPv6, nd(135, other6, []byte{14, 1, 1, 2, 3, 4, 5, 6}, lladdr(1, ownMAC))), passed},
	{"NS with another's MAC", ipv6(own6, allNodes, protoICMPv6, nd(135, other6, lladdr(1, otherMAC))), dropped(ND)},
	{"NS with another's MAC after a nonce", ipv6(own6, allNodes, protoICMPv6, nd(135, other6, []byte{14, 1, 1, 2, 3, 4, 5, 6}, lladdr(1, otherMAC))), dropped(ND)},
	{"NS with an option of no length", ipv6(own6, allNodes, protoICMPv6, nd(135, other6, []byte{1, 0, 1, 2, 3, 4, 5, 6})), dropped(ND)},
	{"NS with an option cut short", ipv6(own6, allNodes, protoICMPv6, nd(135, other6, []byte{1, 1, 2})), dropped(ND)},
	{"NS with padding behind", append(ipv6(own6, allNodes, protoICMPv6, nd(135, other6)), lladdr(1, otherMAC)...), dropped(ND)},
	{"NS with many options", ipv6(own6, allNodes, protoICMPv6, nd(135, other6, many8(7))), dropped(ND)},
	{"looking whether its own address is free", ipv6(none6, allNodes, protoICMPv6, nd(135, own6)), passed},
	{"looking whether its link-local address is free", ipv6(none6, allNodes, protoICMPv6, nd(135, linkLocal(ownMAC))), passed},
	{"looking whether another's address is free", ipv6(none6, allNodes, protoICMPv6, nd(135, other6)), dropped(ND)},
	{"NA for its own", ipv6(own6, allNodes, protoICMPv6, nd(136, own6, lladdr(2, ownMAC))), passed},
	{"NA for another's", ipv6(own6, allNodes, protoICMPv6, nd(136, other6, lladdr(2, ownMAC))), dropped(ND)},
	{"NA with another's MAC", ipv6(own6, allNodes, protoICMPv6, nd(136, own6, lladdr(2, otherMAC))), dropped(ND)},
	{"NA without address", ipv6(none6, allNodes, protoICMPv6, nd(136, own6)), dropped(ND)},
	{"NA behind options", ipv6(own6, allNodes, protoDstOpts, extension(protoICMPv6), nd(136, other6)), dropped(NDHidden)},
	{"its own NA behind options", ipv6(own6, allNodes, 0, extension(protoICMPv6), nd(136, own6)), dropped(NDHidden)},
	{"NA in a fragment", ipv6(own6, allNodes, protoFragment, fragmentHeader(protoICMPv6, 0, true), nd(136, own6)), dropped(NDHidden)},
	{"NA in a packet of one fragment", ipv6(own6, allNodes, protoFragment, fragmentHeader(protoICMPv6, 0, false), nd(136, own6)), dropped(NDHidden)},
	{"RS", ipv6(own6, allNodes, protoICMPv6, icmp(133, lladdr(1, ownMAC)...)), passed},
	{"RS without address", ipv6(none6, allNodes, protoICMPv6, icmp(133)), passed},
	{"RS with another's MAC", ipv6(own6, allNodes, protoICMPv6, icmp(133, lladdr(1, otherMAC)...)), dropped(ND)},
	{"router advertisement", ipv6(linkLocal(ownMAC), allNodes, protoICMPv6, icmp(134, make([]byte, 8)...)), dropped(Router)},
	{"router advertisement behind options", ipv6(linkLocal(ownMAC), allNodes, 0, extension(protoICMPv6), icmp(134, make([]byte, 8)...)), dropped(Router)},
	{"router advertisement in a fragment", ipv6(linkLocal(ownMAC), allNodes, protoFragment, fragmentHeader(protoICMPv6, 0, true), icmp(134, make([]byte, 8)...)), dropped(Router)},
	{"redirect over IPv6", ipv6(linkLocal(ownMAC), other6, protoICMPv6, icmp(137, make([]byte, 32)...)), dropped(Router)},
}

var allMulticast = netip.MustParseAddr("224.0.0.22")

// many is n extension headers, one after the other, and TCP.
func many(n int) (b []byte) {
	for range n - 1 {
		b = append(b, extension(protoDstOpts)...)
	}
	return append(append(b, extension(protoTCP)...), make([]byte, 20)...)
}

func many8(n int) (b []byte) {
	for range n {
		b = append(b, 14, 1, 0, 0, 0, 0, 0, 0)
	}
	return b
}

func TestAVMSendsAsItselfAlone(t *testing.T) {
	tap := loaded(t, ownRules)
	for _, c := range cases {
		if got := judge(ownRules, c.frame); got != c.want {
			t.Errorf("%s: the model says %v, expected %v", c.name, got, c.want)
		}
		if got := run(t, tap, c.frame); got != c.want {
			t.Errorf("%s: %v, expected %v", c.name, got, c.want)
		}
	}
}

func TestAllowListsAddToTheLinksOwn(t *testing.T) {
	rules := ownRules
	rules.MACs = append([]net.HardwareAddr{ownMAC}, otherMAC)
	rules.Addresses = append([]netip.Prefix{netip.MustParsePrefix("10.0.0.8/29"), netip.MustParsePrefix("fd00::8/125")}, rules.Addresses...)
	tap := loaded(t, rules)
	for name, frame := range map[string][]byte{
		"MAC": ether(otherMAC, 0x0800, ipv4(own4, other4, protoTCP, 0, make([]byte, 20))[14:]), "IPv4": ipv4(other4, own4, protoTCP, 0, make([]byte, 20)),
		"ARP": arp(2, otherMAC, other4, own4), "IPv6": ipv6(other6, own6, protoTCP, make([]byte, 20)),
		"its own": ipv4(own4, other4, protoTCP, 0, make([]byte, 20)), "ND": ipv6(other6, allNodes, protoICMPv6, nd(136, other6, lladdr(2, otherMAC))),
	} {
		if got := run(t, tap, frame); got != passed {
			t.Errorf("%s is on the list: %v", name, got)
		}
	}
	if got := run(t, tap, ipv4(netip.MustParseAddr("10.0.0.16"), own4, protoTCP, 0, make([]byte, 20))); got != dropped(IPv4) {
		t.Errorf("one beside the list: %v", got)
	}
	if err := tap.Update(ownRules); err != nil {
		t.Fatal(err)
	}
	if got := run(t, tap, ipv4(other4, own4, protoTCP, 0, make([]byte, 20))); got != dropped(IPv4) {
		t.Errorf("one that is on the list no more: %v", got)
	}
}

func TestRulesThatMakeNoSenseAreRefused(t *testing.T) {
	for name, r := range map[string]Rules{
		"no MAC":         {Addresses: ownRules.Addresses},
		"group MAC":      {MACs: []net.HardwareAddr{{1, 0, 0x5e, 0, 0, 1}}},
		"infiniband":     {MACs: []net.HardwareAddr{make([]byte, 20)}},
		"mapped address": {MACs: ownRules.MACs, Addresses: []netip.Prefix{netip.MustParsePrefix("::ffff:10.0.0.1/128")}},
		"nothing":        {MACs: ownRules.MACs, Addresses: []netip.Prefix{{}}},
		"too many":       {MACs: ownRules.MACs, Addresses: tooMany()},
	} {
		if _, err := r.keys(); err == nil {
			t.Errorf("%s is taken", name)
		}
	}
}

func tooMany() (out []netip.Prefix) {
	a := netip.MustParseAddr("10.1.0.0")
	for range maxAddresses + 1 {
		out = append(out, netip.PrefixFrom(a, 32))
		a = a.Next()
	}
	return out
}

// FuzzTap changes frames at random: the program and the model agree on each.
func FuzzTap(f *testing.F) {
	for _, c := range cases {
		f.Add(c.frame)
	}
	tap := loaded(f, ownRules)
	f.Fuzz(func(t *testing.T, frame []byte) { agree(t, tap, frame) })
}

func agree(t testing.TB, tap *Tap, frame []byte) {
	t.Helper()
	if !runnable(frame) {
		return
	}
	if got, want := run(t, tap, frame), judge(ownRules, frame); got != want {
		t.Fatalf("%x: %v, by the model %v", frame, got, want)
	}
}

// runnable says whether the kernel runs programs over such a frame when asked: none
// shorter than the header of its type.
func runnable(f []byte) bool {
	if len(f) < 15 || len(f) > 2000 {
		return false
	}
	switch string(f[12:14]) {
	case "\x08\x00":
		return len(f) >= 34
	case "\x86\xdd":
		return len(f) >= 54
	}
	return true
}

// The fuzzer's way without its engine: in every run, forty thousand frames that
// differ in one to four bytes or in length from those of the table.
func TestProgramAndModelAgree(t *testing.T) {
	tap := loaded(t, ownRules)
	random := rand.New(rand.NewPCG(7, 11))
	interesting := []byte{0, 1, 2, 4, 5, 6, 8, 17, 43, 44, 51, 58, 60, 67, 68, 133, 134, 135, 136, 255}
	for range 40_000 {
		frame := append([]byte(nil), cases[random.IntN(len(cases))].frame...)
		for range 1 + random.IntN(4) {
			at := random.IntN(len(frame))
			if random.IntN(2) == 0 {
				frame[at] = interesting[random.IntN(len(interesting))]
			} else {
				frame[at] = byte(random.Uint32())
			}
		}
		if random.IntN(8) == 0 {
			frame = frame[:random.IntN(len(frame))]
		}
		agree(t, tap, frame)
	}
}
