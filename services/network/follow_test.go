// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package network

import (
	"fmt"
	"os"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"bulkhead/bus"
	busv1 "bulkhead/proto/bus/v1"
	netv1 "bulkhead/proto/net/v1"
)

// watchUntil watches a sandbox as vm-worker does until it is as wanted.
func (r *rig) watchUntil(sandbox string, wanted func(*netv1.Attachment) bool) *netv1.Attachment {
	r.t.Helper()
	req := &netv1.WatchRequest{Sandbox: sandbox}
	for {
		reply := call[netv1.WatchReply](r, "watch", req)
		if len(reply.Attachments)+len(reply.Detached) == 0 {
			r.t.Fatalf("nothing changed for %v", deadline)
		}
		for _, a := range reply.Attachments {
			if wanted(a) {
				return a
			}
		}
		req.Epoch, req.After = reply.Epoch, reply.Revision
	}
}

func TestWhatChangesInTheNamespaceIsFollowed(t *testing.T) {
	t.Parallel()
	r := newRig(t).start()
	told := make(chan string, 64)
	sub, err := bus.OnEvent(r.bus.Conn(), "net", func(e *busv1.Event) {
		told <- e.Id + " " + e.Event + " " + e.Attributes["name"]
	})
	if err != nil {
		t.Fatal(err)
	}
	defer sub.Unsubscribe()
	inside, outside := newSpace(t), newSpace(t)
	if a := r.attach("box", inside); len(a.Network.Links) != 0 || len(a.Problems) != 0 {
		t.Fatalf("an empty namespace has %v", a)
	}
	before := inside.state()
	ids := map[string]bool{}
	for round := range 2 { // as "docker network connect" and "disconnect"
		inside.run("ip link add tmp7 index 77 type veth peer name out0 netns " + fmt.Sprint(outside.pid()))
		inside.run("ip link set tmp7 name eth0; ip addr add 10.9.0.2/24 dev eth0; ip link set eth0 up; ip route add default via 10.9.0.1")
		outside.run("ip link set out0 up")
		a := r.watchUntil("box", func(a *netv1.Attachment) bool {
			n := a.Network
			return len(n.Links) == 1 && n.Links[0].Up && n.Links[0].Name == "eth0" && len(n.Links[0].Addresses) >= 1 && len(n.Routes) == 1
		})
		link := a.Network.Links[0]
		if ids[link.Id] {
			t.Errorf("the id %s of a link that went is used again", link.Id)
		}
		ids[link.Id] = true
		tap := r.open("box", link.Id)[0]
		far := outside.packets("out0")
		pass(t, far, tap, frame(link.Mac, "02:00:00:00:00:99", "10.9.0.1", "10.9.0.2", fmt.Sprint("to the guest in round ", round)))

		inside.run("ip link set eth0 mtu 1300 name eth1; ip addr add 10.9.0.3/24 dev eth1; ip neigh add 10.9.0.9 lladdr 02:00:00:00:00:99 dev eth1 nud permanent")
		r.watchUntil("box", func(a *netv1.Attachment) bool {
			n := a.Network
			return len(n.Links) == 1 && n.Links[0].Mtu == 1300 && n.Links[0].Name == "eth1" && hasAddress(n.Links[0], "10.9.0.3/24") && len(n.Neighbours) == 1
		})
		if s := inside.run("ip link show " + a.Nics[0].Device); !strings.Contains(s, "mtu 1300") {
			t.Errorf("the tap has not the link's MTU: %s", s)
		}
		// The checks know the new address.
		pass(t, tap, far, withHeader(frame("02:00:00:00:00:99", link.Mac, "10.9.0.3", "10.9.0.1", fmt.Sprint("from the guest in round ", round))))

		inside.run("ip link del eth1")
		r.watchUntil("box", func(a *netv1.Attachment) bool { return len(a.Network.Links) == 0 && len(a.Nics) == 0 })
		if after := inside.state(); after != before {
			t.Errorf("after the link went: the namespace is not as before:%s", unlike(before, after))
		}
	}
	r.detach("box")
	var events []string
	for !slices.Contains(events, "box detached ") {
		select {
		case e := <-told:
			events = append(events, e)
		case <-time.After(deadline):
			t.Fatalf("no event of the detach; there were %q", events)
		}
	}
	for _, want := range []string{"box attached ", "box link_added ", "box changed ", "box link_removed "} {
		if !slices.ContainsFunc(events, func(e string) bool { return strings.HasPrefix(e, want) }) {
			t.Errorf("no event %q in %q", want, events)
		}
	}
}

// TestADisconnectIsToldBeforeItsTapIsTakenBack: while the first step of that stands still, whoever watches knows.
func TestADisconnectIsToldBeforeItsTapIsTakenBack(t *testing.T) {
	t.Parallel()
	taking, proceed := make(chan struct{}, 8), make(chan struct{})
	r := newRig(t, func(d *Deps) {
		d.Failpoint = func(step string) error {
			if step == "take-tap-down" {
				taking <- struct{}{}
				<-proceed
			}
			return nil
		}
	}).start()
	inside, outside := newSpace(t), newSpace(t)
	for i := range 2 {
		inside.run(fmt.Sprintf("ip link add eth%d type veth peer name out%d netns %d; ip link set eth%d up", i, i, outside.pid(), i))
	}
	a := r.attach("box", inside)
	if len(a.Network.Links) != 2 || len(a.Nics) != 2 {
		t.Fatalf("the namespace has %v", a)
	}
	before := inside.run("ip -o link show eth1")
	inside.run("ip link del eth0")
	select {
	case <-taking:
	case <-time.After(deadline):
		t.Fatal("nothing is taken back")
	}
	told := r.watchUntil("box", func(a *netv1.Attachment) bool { return len(a.Network.Links) == 1 })
	if told.Network.Links[0].Name != "eth1" || len(told.Nics) != 2 {
		t.Errorf("while a tap is being taken back, %v is told", told)
	}
	close(proceed)
	r.watchUntil("box", func(a *netv1.Attachment) bool { return len(a.Network.Links) == 1 && len(a.Nics) == 1 })
	if after := inside.run("ip -o link show eth1"); after != before {
		t.Errorf("the link that stayed was %s, and is %s", before, after)
	}
	r.detach("box")
}

func TestATapThatSomebodyRemovesIsMadeAnew(t *testing.T) {
	t.Parallel()
	for _, model := range models {
		t.Run(model, func(t *testing.T) {
			t.Parallel()
			r := newRig(t, func(d *Deps) { d.Config.Model = model; d.Log = nil }).start()
			inside, outside := newSpace(t), newSpace(t)
			inside.veth("eth0", outside, "out0")
			inside.run("ip link set eth0 up; ip addr add 10.9.0.2/24 dev eth0")
			inside.settle("eth0")
			before := inside.state()
			first := r.attach("box", inside)
			inside.run("ip link del " + first.Nics[0].Device)
			again := r.watchUntil("box", func(a *netv1.Attachment) bool {
				return len(a.Network.Links) == 1 && a.Network.Links[0].Id != first.Network.Links[0].Id
			})
			link := again.Network.Links[0]
			if link.Mac != first.Network.Links[0].Mac || len(again.Nics) != 1 {
				t.Errorf("made anew: %v", again)
			}
			tap := r.open("box", link.Id)[0]
			pass(t, outside.packets("out0"), tap, frame(link.Mac, "02:00:00:00:00:99", "10.9.0.1", "10.9.0.2", "to the guest once more"))
			r.detach("box")
			if after := inside.state(); after != before {
				t.Errorf("the namespace is not as before:%s", unlike(before, after))
			}
		})
	}
}

func TestWatchTellsOnlyWhatIsNews(t *testing.T) {
	t.Parallel()
	r := newRig(t).start()
	one, two := newSpace(t), newSpace(t)
	r.attach("one", one)
	all := call[netv1.WatchReply](r, "watch", &netv1.WatchRequest{})
	if len(all.Attachments) != 1 || all.Epoch == "" {
		t.Fatalf("the first watch tells %v", all)
	}
	r.attach("two", two)
	news := call[netv1.WatchReply](r, "watch", &netv1.WatchRequest{Epoch: all.Epoch, After: all.Revision})
	if len(news.Attachments) != 1 || news.Attachments[0].Sandbox != "two" {
		t.Errorf("after an attach it tells %v", news)
	}
	r.detach("one")
	news = call[netv1.WatchReply](r, "watch", &netv1.WatchRequest{Epoch: news.Epoch, After: news.Revision})
	if len(news.Attachments) != 0 || !slices.Equal(news.Detached, []string{"one"}) {
		t.Errorf("after a detach it tells %v", news)
	}
	other := call[netv1.WatchReply](r, "watch", &netv1.WatchRequest{Epoch: "of an earlier run", After: 99, Sandbox: "one"})
	if !slices.Equal(other.Detached, []string{"one"}) {
		t.Errorf("to one who knows an earlier run it tells %v", other)
	}
	// A service that ends answers those that wait.
	done := make(chan error, 1)
	go func() {
		_, err := ask[netv1.WatchReply](r, "watch", &netv1.WatchRequest{Epoch: news.Epoch, After: news.Revision})
		done <- err
	}()
	r.stop()
	select {
	case <-done:
	case <-time.After(deadline):
		t.Error("a watch hangs when the service has ended")
	}
}

func TestANamespaceThatEverybodyLeftIsDetached(t *testing.T) {
	t.Parallel()
	r := newRig(t).start()
	inside, outside := newSpace(t), newSpace(t)
	inside.veth("eth0", outside, "out0")
	inside.run("ip link set eth0 up; ip addr add 10.9.0.2/24 dev eth0")
	a := r.attach("box", inside)

	// Another process in it takes the place of the first, for instance of a pod.
	second := inside.join()
	inside.end()
	moved := r.watchUntil("box", func(a *netv1.Attachment) bool { return a.Namespace.Pid == second.pid() })
	if moved.Network.Links[0].Id != a.Network.Links[0].Id {
		t.Errorf("the links are others now: %v", moved)
	}
	// A VM that has a tap open keeps it, too.
	tap := r.open("box", a.Network.Links[0].Id)[0]
	pass(t, outside.packets("out0"), tap, frame(a.Network.Links[0].Mac, "02:00:00:00:00:99", "10.9.0.1", "10.9.0.2", "is the tap open?"))
	second.end()
	if again := call[netv1.InspectReply](r, "inspect", &netv1.InspectRequest{Sandbox: "box"}); len(again.Attachment.Nics) != 1 {
		t.Errorf("a VM lost its NIC: %v", again)
	}
	tap.Close()
	reply := call[netv1.WatchReply](r, "watch", &netv1.WatchRequest{Sandbox: "box"})
	for len(reply.Detached) == 0 {
		reply = call[netv1.WatchReply](r, "watch", &netv1.WatchRequest{Sandbox: "box", Epoch: reply.Epoch, After: reply.Revision})
	}
	if keys := r.records(); len(keys) != 0 {
		t.Errorf("records are left: %v", keys)
	}
	// Nothing of the service holds the namespace: the kernel ends it, and with it
	// the other end of the link.
	for end := time.Now().Add(deadline); strings.Contains(outside.run("ip link"), "out0"); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("the namespace is still there")
		}
	}
}

func TestANamespaceBelongsToOneSandbox(t *testing.T) {
	t.Parallel()
	r := newRig(t).start()
	one, two := newSpace(t), newSpace(t)
	first := r.attach("one", one)
	if again := r.attach("one", one); again.Attached.AsTime() != first.Attached.AsTime() {
		t.Errorf("attached again: %v", again)
	}
	for _, c := range []struct {
		what string
		req  *netv1.AttachRequest
		want string
	}{
		{"a second sandbox", &netv1.AttachRequest{Sandbox: "two", Namespace: &netv1.Namespace{Pid: one.pid()}}, "belongs to sandbox one"},
		{"another namespace", &netv1.AttachRequest{Sandbox: "one", Namespace: &netv1.Namespace{Pid: two.pid()}}, "attached to another network namespace"},
		{"a process that was", &netv1.AttachRequest{Sandbox: "three", Namespace: &netv1.Namespace{Pid: two.pid(), StartTime: 1}}, "the process has ended"},
		{"no sandbox", &netv1.AttachRequest{Namespace: &netv1.Namespace{Pid: two.pid()}}, "needs the id of a sandbox"},
		{"no process", &netv1.AttachRequest{Sandbox: "three"}, "a process id is more than 0"},
		{"no model", &netv1.AttachRequest{Sandbox: "three", Namespace: &netv1.Namespace{Pid: two.pid()}, Policy: &netv1.Policy{Model: "nat"}}, "use tc, macvtap, bridge or none"},
		{"no MAC", &netv1.AttachRequest{Sandbox: "three", Namespace: &netv1.Namespace{Pid: two.pid()}, Policy: &netv1.Policy{AllowedMacs: []string{"x"}}}, "not an Ethernet address"},
		{"no address", &netv1.AttachRequest{Sandbox: "three", Namespace: &netv1.Namespace{Pid: two.pid()}, Policy: &netv1.Policy{AllowedAddresses: []string{"x"}}}, "neither an address nor a prefix"},
	} {
		if _, err := ask[netv1.AttachReply](r, "attach", c.req); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %q", c.what, err, c.want)
		}
	}
}

// It runs before the tests that run in parallel, so nothing else opens anything.
func TestNothingIsHeldAfterADetach(t *testing.T) {
	r := newRig(t).start()
	inside, outside := newSpace(t), newSpace(t)
	inside.veth("eth0", outside, "out0")
	inside.run("ip link set eth0 up; ip addr add 10.9.0.2/24 dev eth0")
	held := func() (descriptors, goroutines int) {
		entries, err := os.ReadDir("/proc/self/fd")
		if err != nil {
			t.Fatal(err)
		}
		return len(entries), runtime.NumGoroutine()
	}
	round := func() {
		a := r.attach("box", inside)
		for _, f := range r.open("box", a.Network.Links[0].Id) {
			f.Close()
		}
		call[netv1.StatsReply](r, "stats", &netv1.StatsRequest{})
		r.detach("box")
	}
	round()
	descriptors, goroutines := held()
	for range 10 {
		round()
	}
	// What ends by itself may take a moment; what leaks does so ten times.
	for end := time.Now().Add(deadline); ; time.Sleep(10 * time.Millisecond) {
		d, g := held()
		if d < descriptors+5 && g < goroutines+5 {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("10 attachments hold %d descriptors and %d goroutines", d-descriptors, g-goroutines)
		}
	}
}

func TestModelNoneGivesTheVMNoNIC(t *testing.T) {
	t.Parallel()
	r := newRig(t, func(d *Deps) { d.Config.Model = "none" }).start()
	inside, before := faultGround(t)
	listen(t, inside, "tcp", "127.0.0.1:8080")
	a := r.attach("box", inside)
	if len(a.Nics) != 0 || len(a.Network.Links) != 0 || len(a.Network.Listeners) != 1 || a.Policy.Model != "none" {
		t.Errorf("attached: %v", a)
	}
	if after := inside.state(); after != before {
		t.Errorf("the namespace is not as before:%s", unlike(before, after))
	}
}
