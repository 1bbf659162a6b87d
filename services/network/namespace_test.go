// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package network

import (
	"fmt"
	"net"
	"strings"
	"testing"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	"bulkhead/bus"
	netv1 "bulkhead/proto/net/v1"
)

func TestTheVMIsToldAllThatTheNamespaceHas(t *testing.T) {
	t.Parallel()
	r := newRig(t).start()
	inside, outside := newSpace(t), newSpace(t)
	inside.veth("eth0", outside, "out0")
	inside.veth("port", outside, "out1")
	inside.veth("down0", outside, "out2")
	inside.veth("base", outside, "out3")
	outside.run("ip link add mv0 link out3 type macvlan mode bridge; ip link set mv0 netns " + fmt.Sprint(inside.pid()))
	inside.run(`
ip link set eth0 address 02:00:00:00:00:01 mtu 9000 up
ip addr add 10.9.0.2/24 brd 10.9.0.255 dev eth0 label eth0:one
ip addr add 10.9.1.2 peer 10.9.1.1/32 dev eth0
ip addr add 2001:db8::2/64 dev eth0 noprefixroute nodad
ip link add br0 type bridge
ip link set br0 address 02:00:00:00:00:0b up; ip link set port up master br0; ip addr add 10.8.0.2/24 dev br0
ip tuntap add dev tap7 mode tap; ip link set tap7 address 02:00:00:00:00:07
ip tuntap add dev tun7 mode tun; ip link set tun7 up; ip addr add 10.77.0.1/24 dev tun7; ip route add 10.78.0.0/16 dev tun7
ip link set mv0 address 02:00:00:00:00:0c up
ip link add link eth0 name up0 type macvlan; ip link set up0 up
ip route add default via 10.9.0.1 dev eth0 metric 50 src 10.9.0.2 mtu 1400 advmss 1000 initcwnd 20
ip route add 10.20.0.0/16 via 192.0.2.1 dev eth0 onlink
ip route add 10.21.0.0/16 nexthop via 10.9.0.5 weight 3 nexthop via 10.8.0.5 dev br0
ip route add 10.22.0.0/16 dev eth0 scope link table 100
ip route add blackhole 10.23.0.0/16
ip route add unreachable 10.24.0.0/16
ip route add prohibit 2001:db8:9::/48
ip -6 route add default via fe80::1 dev eth0 metric 7
ip neigh add 10.9.0.9 lladdr 02:00:00:00:00:99 dev eth0 nud permanent
ip neigh add 2001:db8::9 lladdr 02:00:00:00:00:99 dev eth0 nud permanent
ip neigh add 10.9.0.10 lladdr 02:00:00:00:00:98 dev eth0 nud reachable
ip rule add from 10.9.0.2 fwmark 0x10/0xff table 100 priority 500
`)
	listen(t, inside, "tcp", "127.0.0.1:8080")
	listen(t, inside, "udp", "[::1]:5353")
	listen(t, inside, "tcp", "10.9.0.2:8081") // no loopback address: the guest's own
	a := r.attach("box", inside)

	byName := map[string]*netv1.Link{}
	var names []string
	for _, l := range a.Network.Links {
		byName[l.Name] = l
		names = append(names, l.Name)
	}
	for _, want := range []string{"eth0", "down0", "base", "br0", "tap7", "mv0"} {
		if byName[want] == nil {
			t.Fatalf("link %s is missing from %v; problems: %q", want, names, a.Problems)
		}
	}
	if len(names) != 6 {
		t.Errorf("links are %v", names)
	}
	eth0 := byName["eth0"]
	for _, c := range []struct {
		what      string
		got, want any
	}{
		{"MTU", eth0.Mtu, uint32(9000)},
		{"kind of the bridge", byName["br0"].Kind, "bridge"},
		{"kind of the macvlan", byName["mv0"].Kind, "macvlan"},
		{"a link that is down", byName["down0"].Up, false},
		{"a link that is up", eth0.Up, true},
		{"NICs", len(a.Nics), 6},
	} {
		if c.got != c.want {
			t.Errorf("%s: %v, want %v", c.what, c.got, c.want)
		}
	}
	for _, want := range []string{
		`{"prefix":"10.9.0.2/24","broadcast":"10.9.0.255","scope":"global","label":"eth0:one"}`,
		`{"prefix":"10.9.1.2/32","peer":"10.9.1.1/32","scope":"global"}`,
		`{"prefix":"2001:db8::2/64","scope":"global","noPrefixRoute":true}`,
		`{"prefix":"fe80::ff:fe00:1/64","scope":"link"}`,
	} {
		has(t, eth0.Addresses, want)
	}
	id, br := eth0.Id, byName["br0"].Id
	for _, want := range []string{
		`{"destination":"0.0.0.0/0","gateway":"10.9.0.1","link":"` + id + `","source":"10.9.0.2","scope":"global","type":"unicast","protocol":"boot","metric":50,"table":254,"mtu":1400,"metrics":{"advmss":1000,"initcwnd":20}}`,
		`{"destination":"10.20.0.0/16","gateway":"192.0.2.1","link":"` + id + `","scope":"global","type":"unicast","protocol":"boot","table":254,"onlink":true}`,
		`{"destination":"10.21.0.0/16","scope":"global","type":"unicast","protocol":"boot","table":254,"nextHops":[{"gateway":"10.9.0.5","link":"` + id + `","weight":3},{"gateway":"10.8.0.5","link":"` + br + `","weight":1}]}`,
		`{"destination":"10.22.0.0/16","link":"` + id + `","scope":"link","type":"unicast","protocol":"boot","table":100}`,
		`{"destination":"10.23.0.0/16","scope":"global","type":"blackhole","protocol":"boot","table":254}`,
		`{"destination":"10.24.0.0/16","scope":"global","type":"unreachable","protocol":"boot","table":254}`,
		`{"destination":"2001:db8:9::/48","scope":"global","type":"prohibit","protocol":"boot","metric":1024,"table":254}`,
		`{"destination":"::/0","gateway":"fe80::1","link":"` + id + `","scope":"global","type":"unicast","protocol":"boot","metric":7,"table":254}`,
	} {
		has(t, a.Network.Routes, want)
	}
	if len(a.Network.Routes) != 8 {
		t.Errorf("%d routes; those that addresses bring do not count: %v", len(a.Network.Routes), a.Network.Routes)
	}
	has(t, a.Network.Neighbours, `{"address":"10.9.0.9","mac":"02:00:00:00:00:99","link":"`+id+`"}`)
	has(t, a.Network.Neighbours, `{"address":"2001:db8::9","mac":"02:00:00:00:00:99","link":"`+id+`"}`)
	if len(a.Network.Neighbours) != 2 {
		t.Errorf("neighbours that nobody set: %v", a.Network.Neighbours)
	}
	has(t, a.Network.Rules, `{"priority":500,"source":"10.9.0.2/32","table":100,"mark":16,"markMask":255}`)
	has(t, a.Network.Listeners, `{"protocol":"tcp","address":"127.0.0.1","port":8080}`)
	has(t, a.Network.Listeners, `{"protocol":"udp","address":"::1","port":5353}`)
	if len(a.Network.Rules) != 1 || len(a.Network.Listeners) != 2 {
		t.Errorf("rules %v, listeners %v", a.Network.Rules, a.Network.Listeners)
	}
	problems := strings.Join(a.Problems, "\n")
	for _, want := range []string{"link tun7 of kind tun has no Ethernet frames", "link up0 stands on link eth0", "route 10.78.0.0/16 goes out by link tun7"} {
		if !strings.Contains(problems, want) {
			t.Errorf("no word of %q in %q", want, a.Problems)
		}
	}
}

// has looks for a message by its JSON.
func has[M proto.Message](t *testing.T, all []M, want string) {
	t.Helper()
	for _, m := range all {
		wanted := m.ProtoReflect().New().Interface()
		if err := protojson.Unmarshal([]byte(want), wanted); err != nil {
			t.Fatal(err)
		}
		if proto.Equal(m, wanted) {
			return
		}
	}
	t.Errorf("missing %s in %v", want, all)
}

// listen listens in a namespace until the test ends, and answers each connection
// or datagram with what it gets.
func listen(t *testing.T, s *space, network, address string) {
	t.Helper()
	err := s.open().Do(func() error {
		if network == "udp" {
			c, err := net.ListenPacket("udp", address)
			if err == nil {
				t.Cleanup(func() { c.Close() })
				go func() {
					buf := make([]byte, 2048)
					for {
						n, from, err := c.ReadFrom(buf)
						if err != nil {
							return
						}
						_, _ = c.WriteTo(buf[:n], from)
					}
				}()
			}
			return err
		}
		l, err := net.Listen("tcp", address)
		if err != nil {
			return err
		}
		t.Cleanup(func() { l.Close() })
		go func() {
			for {
				c, err := l.Accept()
				if err != nil {
					return
				}
				go func() {
					defer c.Close()
					buf := make([]byte, 2048)
					n, _ := c.Read(buf)
					_, _ = c.Write(buf[:n])
				}()
			}
		}()
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

func TestAResolverBehindARedirectionIsReached(t *testing.T) {
	t.Parallel()
	r := newRig(t).start()
	inside := newSpace(t)
	r.attach("box", inside)
	// As Docker does: a resolver on ports of its own choice at 127.0.0.11, after the
	// attachment, and rules that lead port 53 there.
	listen(t, inside, "udp", "127.0.0.11:40053")
	listen(t, inside, "tcp", "127.0.0.11:40054")
	listen(t, inside, "tcp", "127.0.0.1:9000") // for one protocol: nothing is tried there
	inside.run(`
iptables-legacy -w -t nat -A OUTPUT -d 127.0.0.11 -p udp --dport 53 -j DNAT --to-destination 127.0.0.11:40053
iptables-legacy -w -t nat -A OUTPUT -d 127.0.0.11 -p tcp --dport 53 -j DNAT --to-destination 127.0.0.11:40054`)
	seen := r.watchUntil("box", func(a *netv1.Attachment) bool { return len(a.Network.Listeners) == 5 })
	has(t, seen.Network.Listeners, `{"protocol":"udp","address":"127.0.0.11","port":53}`)
	has(t, seen.Network.Listeners, `{"protocol":"tcp","address":"127.0.0.11","port":53}`)
	for _, protocol := range []string{"udp", "tcp"} {
		call[netv1.DialReply](r, "dial", &netv1.DialRequest{
			Sandbox: "box", Token: "d", To: &netv1.Listener{Protocol: protocol, Address: "127.0.0.11", Port: 53},
		})
		p := <-r.parcel
		c, err := net.FileConn(p.files[0])
		p.files[0].Close()
		if err != nil {
			t.Fatal(err)
		}
		if _, err := c.Write([]byte("who is there?")); err != nil {
			t.Fatal(err)
		}
		buf := make([]byte, 64)
		n, err := c.Read(buf)
		c.Close()
		if err != nil || string(buf[:n]) != "who is there?" {
			t.Errorf("%s: the resolver answers %q, %v", protocol, buf[:n], err)
		}
	}
}

func TestOnlyWhatListensOnLoopbackIsDialled(t *testing.T) {
	t.Parallel()
	r := newRig(t).start()
	inside, outside := newSpace(t), newSpace(t)
	inside.veth("eth0", outside, "out0")
	inside.run("ip link set eth0 up; ip addr add 10.9.0.2/24 dev eth0")
	listen(t, inside, "tcp", "10.9.0.2:8081")
	listen(t, inside, "tcp", "0.0.0.0:8082")
	r.attach("box", inside)
	for _, to := range []*netv1.Listener{
		{Protocol: "tcp", Address: "127.0.0.1", Port: 1}, // nothing listens
		{Protocol: "tcp", Address: "10.9.0.2", Port: 8081},
		{Protocol: "tcp", Address: "0.0.0.0", Port: 8082},
		{Protocol: "sctp", Address: "127.0.0.1", Port: 8082},
		{Protocol: "tcp", Address: "localhost", Port: 8082},
		nil,
	} {
		_, err := ask[netv1.DialReply](r, "dial", &netv1.DialRequest{Sandbox: "box", Token: "d", To: to})
		if bus.ReasonOf(err) != bus.NotFound {
			t.Errorf("dial %v: %v", to, err)
		}
	}
	if len(r.parcel) != 0 {
		t.Error("a socket was handed over")
	}
}
