// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package vmtest_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"google.golang.org/protobuf/proto"

	"bulkhead/agent/vmtest"
	"bulkhead/bus"
	agentv1 "bulkhead/proto/agent/v1"
	netv1 "bulkhead/proto/net/v1"
)

// bridged is a machine into which network cards can be plugged. Two of its cards are on one
// wire, each with its own end of QEMU's hub; nothing of the host is.
var bridged = vmtest.Machine{Options: []string{
	"-device", "pci-bridge,id=hotplug,chassis_nr=1", "-device", "virtio-rng-pci,bus=hotplug,addr=1,disable-legacy=on", "-smp", "2",
}}

// card is the n-th card and its link.
func card(n int) *agentv1.GuestNic {
	return &agentv1.GuestNic{Link: fmt.Sprintf("n%d", n), Mac: fmt.Sprintf("02:00:00:00:00:%02x", n)}
}

func plug(t *testing.T, vm *vmtest.VM, n int) {
	t.Helper()
	for _, command := range []string{
		fmt.Sprintf("netdev_add hubport,id=h%d,hubid=0", n),
		fmt.Sprintf("device_add virtio-net-pci,id=n%d,bus=hotplug,disable-legacy=on,romfile=,netdev=h%d,mac=%s", n, n, card(n).Mac),
	} {
		if err := vm.Monitor(command); err != nil {
			t.Fatal(err)
		}
	}
}

func guestLink(n int, name string, addresses ...string) *netv1.Link {
	l := &netv1.Link{Id: card(n).Link, Name: name, Mac: card(n).Mac, Mtu: 1500, Up: true}
	for _, a := range addresses {
		l.Addresses = append(l.Addresses, &netv1.Address{Prefix: a, Scope: "global"})
	}
	return l
}

func route(destination, gateway, link string) *netv1.Route {
	return &netv1.Route{Destination: destination, Gateway: gateway, Link: link, Scope: "global", Type: "unicast", Protocol: "boot", Table: 254}
}

// networkOf is a request with a card for each link.
func networkOf(revision uint64, n *netv1.Network) *agentv1.NetworkRequest {
	req := &agentv1.NetworkRequest{Revision: revision, Network: n}
	for _, l := range n.Links {
		var i int
		fmt.Sscanf(l.Id, "n%d", &i)
		req.Nics = append(req.Nics, card(i))
	}
	return req
}

// accepted gives the guest a network and expects to read the same back from its kernel.
func accepted(t *testing.T, vm *vmtest.VM, req *agentv1.NetworkRequest) {
	t.Helper()
	reply := call[agentv1.NetworkReply](t, vm, "network", req)
	if len(reply.Problems) > 0 {
		t.Errorf("problems: %q", reply.Problems)
	}
	got, want := proto.CloneOf(reply.Network), proto.CloneOf(req.Network)
	for i, l := range got.Links {
		l.Index, l.Kind = 0, ""
		for _, a := range l.Addresses {
			if a.Label == l.Name {
				a.Label = ""
			}
		}
		// The kernel lists the addresses of one family after those of the other.
		for _, list := range [][]*netv1.Address{l.Addresses, want.Links[min(i, len(want.Links)-1)].Addresses} {
			slices.SortFunc(list, func(a, b *netv1.Address) int { return strings.Compare(a.Prefix, b.Prefix) })
		}
	}
	for _, list := range [][]*netv1.Route{got.Routes, want.Routes} {
		for _, r := range list {
			r.Metric = max(r.Metric, 1024*uint32(strings.Count(r.Destination, "::")/1)) * uint32(min(1, strings.Count(r.Destination, ":"))) // IPv6 has a metric always
		}
		slices.SortFunc(list, func(a, b *netv1.Route) int { return strings.Compare(a.String(), b.String()) })
	}
	if !proto.Equal(got, want) {
		t.Errorf("the guest's kernel has\n%v\nwant\n%v", got, want)
	}
}

// What a namespace has is what the guest has, whole, also when it changes; what a
// container made itself stays.
func TestTheGuestHasTheNetworkItIsGiven(t *testing.T) {
	t.Parallel()
	vm := vmtest.BootMachine(t, bridged)
	call[agentv1.ConfigureReply](t, vm, "configure", &agentv1.ConfigureRequest{Vm: vmtest.Sandbox, Vcpus: 2})
	plug(t, vm, 2)
	plug(t, vm, 3)

	// The kernel has called them eth0 and eth1, one way or the other.
	first := &netv1.Network{
		Links: []*netv1.Link{
			{
				Id: "n2", Name: "eth1", Mac: card(2).Mac, Mtu: 1400, Up: true, Addresses: []*netv1.Address{
					{Prefix: "10.1.0.2/24", Scope: "global", Broadcast: "10.1.0.255"},
					{Prefix: "10.1.0.3/24", Scope: "global", Label: "eth1:x"},
					{Prefix: "fd00:1::2/64", Scope: "global"},
					{Prefix: "fe80::2/64", Scope: "link"},
				},
			},
			{Id: "n3", Name: "eth0", Mac: "02:00:00:00:aa:03", Mtu: 1500, Up: true, Addresses: []*netv1.Address{{Prefix: "192.0.2.1/32", Peer: "192.0.2.9/32", Scope: "global"}}},
		},
		Routes: []*netv1.Route{
			route("10.9.0.0/16", "10.8.0.1", "n2"), // needs the next one
			{Destination: "10.8.0.0/24", Link: "n2", Scope: "link", Type: "unicast", Protocol: "static", Table: 254, Source: "10.1.0.3", Mtu: 1300, Metrics: map[string]uint32{"advmss": 1200, "initcwnd": 20}},
			{Destination: "0.0.0.0/0", Gateway: "10.1.0.1", Link: "n2", Scope: "global", Type: "unicast", Protocol: "static", Table: 100},
			{Destination: "0.0.0.0/0", Gateway: "203.0.113.1", Link: "n3", Scope: "global", Type: "unicast", Protocol: "boot", Table: 254, Onlink: true},
			{Destination: "10.7.0.0/16", Scope: "global", Type: "blackhole", Protocol: "static", Table: 254},
			{Destination: "10.6.0.0/16", Scope: "global", Type: "unicast", Protocol: "static", Table: 254, NextHops: []*netv1.NextHop{
				{Gateway: "10.1.0.5", Link: "n2", Weight: 1}, {Gateway: "203.0.113.6", Link: "n3", Weight: 3, Onlink: true},
			}},
			route("::/0", "fd00:1::1", "n2"),
		},
		Rules: []*netv1.Rule{
			{Priority: 50, Source: "10.1.0.3/32", Table: 100},
			{Priority: 60, Mark: 7, MarkMask: 15, OutLink: "n3", Table: 100, Invert: true},
			{Priority: 50, Ipv6: true, Destination: "fd00:2::/64", InLink: "n2", Table: 100},
		},
		Neighbours: []*netv1.Neighbour{{Address: "10.1.0.77", Mac: "02:00:00:00:00:77", Link: "n2"}, {Address: "fd00:1::77", Mac: "02:00:00:00:00:77", Link: "n2"}},
	}
	first.Links[1].Addresses[0].Prefix = "192.0.2.1/32"
	accepted(t, vm, networkOf(5, first))
	accepted(t, vm, networkOf(5, first)) // said again, it changes nothing

	caps := func(s *specs.Spec) {
		for _, set := range []*[]string{&s.Process.Capabilities.Bounding, &s.Process.Capabilities.Effective, &s.Process.Capabilities.Permitted} {
			*set = append(*set, "CAP_NET_ADMIN", "CAP_NET_RAW")
		}
		s.Linux.Sysctl = map[string]string{"net.ipv4.conf.eth1.forwarding": "1"}
	}
	ct := create(t, vm, "net", sh("cat /proc/sys/net/ipv4/conf/eth1/forwarding /proc/sys/net/ipv6/conf/eth0/disable_ipv6 /proc/sys/net/ipv6/conf/eth1/accept_ra;"+
		"ip addr add 198.51.100.1/24 dev eth1 && ip link add br0 type bridge && ip route add 198.18.0.0/15 via 10.1.0.9 && echo made; read x; "+
		"ip addr show; ip route show; ip rule; ip link show br0"), caps)
	ct.start(t)
	if err := ct.Until(within(t), "1\n1\n0\nmade\n"); err != nil {
		t.Fatalf("the container says %q: %v", ct.Output(), err)
	}

	// A link goes, another takes its name, addresses and routes come and go.
	plug(t, vm, 4)
	second := &netv1.Network{
		Links: []*netv1.Link{guestLink(2, "eth1", "10.1.0.3/24", "fd00:1::2/64"), guestLink(4, "eth0", "10.4.0.4/24")},
		Routes: []*netv1.Route{
			route("0.0.0.0/0", "10.4.0.1", "n4"),
			{Destination: "10.7.0.0/16", Scope: "global", Type: "blackhole", Protocol: "static", Table: 254},
		},
		Rules: []*netv1.Rule{{Priority: 70, Source: "10.4.0.4/32", Table: 200}},
	}
	reply := call[agentv1.NetworkReply](t, vm, "network", networkOf(6, second))
	if len(reply.Problems) > 0 {
		t.Errorf("problems: %q", reply.Problems)
	}
	if err := vm.Monitor("device_del n3"); err != nil {
		t.Fatal(err)
	}
	ct.Input("\n")
	if code := exit(t, ct.Relay); code != 0 {
		t.Errorf("exit code %d", code)
	}
	said := ct.Output()
	for what, want := range map[string]bool{
		"198.51.100.1/24": true, "198.18.0.0/15": true, "br0": true, "10.1.0.3/24": true, "10.4.0.4/24": true, "default via 10.4.0.1": true,
		"10.1.0.2/24": false, "192.0.2.1": false, "203.0.113.1": false, "10.9.0.0": false, "from 10.1.0.3 lookup": false, "lookup 200": true, "10.8.0.0": false,
	} {
		if strings.Contains(said, what) != want {
			t.Errorf("after the change it is %v that the container sees %s; it sees\n%s", !want, what, said)
		}
	}
	_, err := ask[agentv1.NetworkReply](t, vm, "network", networkOf(4, first))
	if bus.ReasonOf(err) != bus.FailedPrecondition {
		t.Errorf("an older network gives %v", err)
	}
	reply = call[agentv1.NetworkReply](t, vm, "network", networkOf(7, &netv1.Network{
		Links:  []*netv1.Link{guestLink(2, "eth1", "10.1.0.3/24")},
		Routes: []*netv1.Route{route("10.10.0.0/16", "10.99.0.1", "n2"), route("10.11.0.0/16", "10.1.0.1", "n2")},
	}))
	if len(reply.Problems) != 1 || !strings.Contains(reply.Problems[0], "10.10.0.0/16") || len(reply.Network.Routes) < 1 {
		t.Errorf("a route over a gateway that cannot be reached gives %v", reply)
	}
}

// A container in a user namespace gets the network into a namespace that is its
// own; one that only shares the machine has none; cards of one wire reach each other.
func TestTheNetworkIsTheContainersAlsoInAUserNamespace(t *testing.T) {
	t.Parallel()
	vm := vmtest.BootMachine(t, bridged)
	call[agentv1.ConfigureReply](t, vm, "configure", &agentv1.ConfigureRequest{Vm: vmtest.Sandbox, Vcpus: 2})
	plug(t, vm, 2)
	network := &netv1.Network{Links: []*netv1.Link{guestLink(2, "eth0", "10.1.0.2/24", "fd00:1::2/64")}, Routes: []*netv1.Route{route("0.0.0.0/0", "10.1.0.1", "n2")}}
	call[agentv1.NetworkReply](t, vm, "network", networkOf(1, network))
	ct := create(t, vm, "mapped", sh("cat /proc/sys/net/ipv4/conf/eth0/forwarding /proc/sys/net/ipv4/conf/all/rp_filter; ip -o addr show dev eth0; ip route; nc -l -p 80 -e true & sleep 0.1; ip link add br0 type bridge && echo made; read x; ip -o addr show dev eth0; ip -o addr show dev eth1"), func(s *specs.Spec) {
		s.Linux.Namespaces = append(s.Linux.Namespaces, specs.LinuxNamespace{Type: specs.UserNamespace})
		mapping := []specs.LinuxIDMapping{{ContainerID: 0, HostID: 100000, Size: 65536}}
		s.Linux.UIDMappings, s.Linux.GIDMappings = mapping, mapping
		s.Linux.Sysctl = map[string]string{"net.ipv4.conf.eth0.forwarding": "1", "net.ipv4.ip_forward": "0", "net/ipv4/conf/all/rp_filter": "2"}
		for _, set := range []*[]string{&s.Process.Capabilities.Bounding, &s.Process.Capabilities.Effective, &s.Process.Capabilities.Permitted} {
			*set = append(*set, "CAP_NET_ADMIN")
		}
	})
	ct.start(t)
	if err := ct.Until(within(t), "made\n"); err != nil {
		t.Fatalf("the container says %q: %v", ct.Output(), err)
	}
	if !strings.HasPrefix(ct.Output(), "1\n2\n") {
		t.Errorf("kernel parameters: %q", ct.Output())
	}
	for _, want := range []string{"10.1.0.2/24", "fd00:1::2/64", "default via 10.1.0.1"} {
		if !strings.Contains(ct.Output(), want) {
			t.Errorf("the container does not see %s: %q", want, ct.Output())
		}
	}
	// What comes later comes there, too.
	plug(t, vm, 3)
	network.Links = append(network.Links, guestLink(3, "eth1", "10.3.0.2/24"))
	if reply := call[agentv1.NetworkReply](t, vm, "network", networkOf(2, network)); len(reply.Problems) > 0 {
		t.Errorf("problems: %q", reply.Problems)
	}
	stats := call[agentv1.StatsReply](t, vm, "stats", &agentv1.StatsRequest{Container: "mapped"})
	if !strings.Contains(stats.Stats, `"eth0"`) || !strings.Contains(stats.Stats, `"eth1"`) {
		t.Errorf("the statistics are of other interfaces: %s", stats.Stats)
	}
	ct.Input("\n")
	if code := exit(t, ct.Relay); code != 0 || !strings.Contains(ct.Output(), "10.3.0.2/24") {
		t.Errorf("with a second card, the container says %q and ends with %d", ct.Output(), code)
	}

	alone := vm.NewRelay()
	call[agentv1.CreateReply](t, vm, "create", &agentv1.CreateRequest{
		Container: "alone", Config: marshal(t, dockerSpec(t, sh("ip -o link"))), Channel: alone.Channel, Rootfs: busyboxRootfs(t, vm, "alone"), OwnNetwork: true,
	})
	call[agentv1.StartReply](t, vm, "start", &agentv1.StartRequest{Container: "alone"})
	if exit(t, alone); strings.Count(alone.Output(), "\n") != 1 || !strings.Contains(alone.Output(), "lo:") {
		t.Errorf("a container without part in the network sees %q", alone.Output())
	}
}
