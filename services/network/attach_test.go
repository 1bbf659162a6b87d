// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package network

import (
	"fmt"
	"os"
	"strings"
	"testing"

	"bulkhead/bus"
	netv1 "bulkhead/proto/net/v1"
)

func TestFramesPassBothWaysAndDetachLeavesNothing(t *testing.T) {
	t.Parallel()
	r := newRig(t).start()
	inside, outside := newSpace(t), newSpace(t)
	inside.veth("eth0", outside, "out0")
	inside.run("ip link set eth0 mtu 1400 address 02:00:00:00:00:01 up; ip addr add 10.9.0.2/24 dev eth0; ip route add default via 10.9.0.1")
	inside.settle("eth0")
	before := inside.state()

	a := r.attach("box", inside)
	if len(a.Nics) != 1 || len(a.Network.Links) != 1 {
		t.Fatalf("attached: %v", a)
	}
	link := a.Network.Links[0]
	if link.Name != "eth0" || link.Mac != "02:00:00:00:00:01" || link.Mtu != 1400 || link.Kind != "veth" || !link.Up {
		t.Errorf("link %v", link)
	}
	if rt := a.Network.Routes; len(rt) != 1 || rt[0].Gateway != "10.9.0.1" || rt[0].Destination != "0.0.0.0/0" || rt[0].Link != link.Id {
		t.Errorf("routes %v", rt)
	}
	tap := r.open("box", link.Id)[0]
	wireEnd := outside.packets("out0")
	pass(t, wireEnd, tap, frame(link.Mac, "02:00:00:00:00:99", "10.9.0.1", "10.9.0.2", "goes to the guest"))
	forged := frame("02:00:00:00:00:99", link.Mac, "10.9.0.77", "10.9.0.1", "is forged by the guest")
	if _, err := tap.Write(withHeader(forged)); err != nil {
		t.Fatal(err)
	}
	pass(t, tap, wireEnd, withHeader(frame("02:00:00:00:00:99", link.Mac, "10.9.0.2", "10.9.0.1", "comes from the guest")))
	stats := call[netv1.StatsReply](r, "stats", &netv1.StatsRequest{})
	if len(stats.Nics) != 1 || stats.Nics[0].Spoofed != 1 || stats.Nics[0].TxPackets < 2 || stats.Nics[0].RxPackets < 1 || stats.Nics[0].Name != "eth0" {
		t.Errorf("counted as the VM sees it: %v", stats.Nics)
	}

	r.detach("box")
	if after := inside.state(); after != before {
		t.Errorf("the namespace is not as before:%s", unlike(before, after))
	}
	r.detach("box") // that nothing is there is no error
	if list := call[netv1.ListReply](r, "list", &netv1.ListRequest{}); len(list.Attachments) != 0 {
		t.Errorf("still listed: %v", list)
	}
}

func TestTheHostsOwnNetworkIsRefused(t *testing.T) {
	t.Parallel()
	r := newRig(t).start()
	_, err := ask[netv1.AttachReply](r, "attach", &netv1.AttachRequest{Sandbox: "box", Namespace: &netv1.Namespace{Pid: 1}})
	if bus.ReasonOf(err) != bus.FailedPrecondition || !strings.Contains(err.Error(), "--net=host") {
		t.Errorf("attached to the host: %v", err)
	}
}

func TestEveryModelHandsOverItsQueuesOnce(t *testing.T) {
	t.Parallel()
	r := newRig(t).start()
	for _, model := range models {
		for _, queues := range []uint32{1, 3} {
			name := fmt.Sprint(model, queues)
			inside, before := faultGround(t)
			a := call[netv1.AttachReply](r, "attach", &netv1.AttachRequest{
				Sandbox: name, Namespace: &netv1.Namespace{Pid: inside.pid()}, Policy: &netv1.Policy{Model: model, Queues: queues},
			}).Attachment
			if nic := a.Nics[0]; nic.Queues != queues || nic.Model != model || nic.Vhost != hasVhost() {
				t.Errorf("%s: NIC %v", name, nic)
			}
			files := r.open(name, a.Nics[0].Link)
			want := int(queues)
			if hasVhost() {
				want *= 2
			}
			if len(files) != want {
				t.Errorf("%s: %d descriptors, want %d", name, len(files), want)
			}
			if model == "macvtap" { // which does not tell whether it is open
				r.detach(name)
				continue
			}
			_, err := ask[netv1.OpenReply](r, "open", &netv1.OpenRequest{Sandbox: name, Link: a.Nics[0].Link, Token: "t2"})
			if bus.ReasonOf(err) != bus.FailedPrecondition || !strings.Contains(err.Error(), "open already") {
				t.Errorf("%s: opened while it is open: %v", name, err)
			}
			for _, f := range files {
				f.Close()
			}
			r.detach(name)
			if after := inside.state(); after != before {
				t.Errorf("%s: the namespace is not as before:%s", name, unlike(before, after))
			}
		}
	}
	_, err := ask[netv1.OpenReply](r, "open", &netv1.OpenRequest{Sandbox: "tc1", Link: "nic2", Token: "t"})
	if bus.ReasonOf(err) != bus.NotFound {
		t.Errorf("open of what is not attached: %v", err)
	}
}

func hasVhost() bool {
	_, err := os.Stat("/dev/vhost-net")
	return err == nil
}

// It runs before the tests that run in parallel, so no other thread comes.
func TestManyNamespacesNeedNoThreads(t *testing.T) {
	r := newRig(t).start()
	spaces := make([]*space, 60)
	for i := range spaces {
		spaces[i] = newSpace(t)
	}
	threads := func() int {
		entries, err := os.ReadDir("/proc/self/task")
		if err != nil {
			t.Fatal(err)
		}
		return len(entries)
	}
	before := threads()
	for i, s := range spaces {
		r.attach(fmt.Sprint("box", i), s)
	}
	if more := threads() - before; more > 20 {
		t.Errorf("%d namespaces take %d threads", len(spaces), more)
	}
	if list := call[netv1.ListReply](r, "list", &netv1.ListRequest{}); len(list.Attachments) != len(spaces) {
		t.Errorf("%d of %d are listed", len(list.Attachments), len(spaces))
	}
}

func TestWhatWasThereStays(t *testing.T) {
	t.Parallel()
	r := newRig(t).start()
	inside, outside := newSpace(t), newSpace(t)
	inside.veth("eth0", outside, "out0")
	inside.veth("eth1", outside, "out1")
	inside.veth("port", outside, "out2")
	outside.run("ip link set out1 up; ip link add mv0 link out1 type macvlan mode bridge; ip link set mv0 netns " + fmt.Sprint(inside.pid()))
	// Disciplines and filters of somebody's own, on both sides, and a bridge.
	inside.run(`
ip link set eth0 up; ip addr add 10.9.0.2/24 dev eth0
tc qdisc add dev eth0 clsact
tc filter add dev eth0 ingress protocol ip prio 7 u32 match u32 0 0 action mirred egress mirror dev lo
tc filter add dev eth0 egress protocol ip prio 8 u32 match u32 0 0 flowid 1:1
ip link set eth1 up; tc qdisc add dev eth1 ingress; tc qdisc add dev eth1 root tbf rate 10mbit burst 10k latency 50ms
ip link add br0 type bridge; ip link set br0 up; ip link set port up master br0
ip link set mv0 up`)
	inside.settle("eth0", "eth1", "port", "mv0", "br0")
	before := inside.state()
	if !strings.Contains(before, "clsact") || !strings.Contains(before, "Mirror to device lo") || !strings.Contains(before, "qdisc ingress") || !strings.Contains(before, "tbf") {
		t.Fatalf("what is looked at shows nothing:\n%s", before)
	}
	a := r.attach("box", inside)
	if len(a.Nics) != 4 {
		t.Errorf("NICs %v, problems %q", a.Nics, a.Problems)
	}
	if s := inside.run("ip link show mv0"); !strings.Contains(s, "ALLMULTI") {
		t.Errorf("a macvlan passes only the groups that its namespace joined: %s", s)
	}
	r.detach("box")
	if after := inside.state(); after != before {
		t.Errorf("the namespace is not as before:%s", unlike(before, after))
	}
}
