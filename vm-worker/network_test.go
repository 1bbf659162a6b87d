// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package vmworker_test

import (
	"errors"
	"maps"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	"bulkhead/bus"
	agentv1 "bulkhead/proto/agent/v1"
	netv1 "bulkhead/proto/net/v1"
	vmv1 "bulkhead/proto/vm/v1"
	"bulkhead/vm-worker/hypervisor/fake"
)

// eventually waits for what no event tells of.
func eventually(t *testing.T, what string, is func() bool) {
	t.Helper()
	for limit := time.Now().Add(patience); !is(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(limit) {
			t.Fatalf("it does not come about that %s", what)
		}
	}
}

// fakeDriver is the fake beneath the host's driver.
func (h *host) fake() *fake.Driver { return h.driver.Driver.(*fake.Driver) }

// hasLinks tells whether the VM has cards for exactly these links, and its guest has been told of them.
func (h *host) hasLinks(id string, links ...*netv1.Link) bool {
	cards, told := h.fake().NICs(id), h.fake().Network(id).GetNetwork().GetLinks()
	for _, l := range links {
		maps.DeleteFunc(cards, func(card, _ string) bool { return strings.HasPrefix(card, l.Id+"-") })
	}
	return len(cards) == 0 && len(h.fake().NICs(id)) == len(links) && slices.EqualFunc(told, links, func(a, b *netv1.Link) bool { return proto.Equal(a, b) })
}

func TestAContainerStartsWithTheNetworkOfItsNamespace(t *testing.T) {
	h := newHost(t, fake.Options{})
	net := h.newNet(link(2), link(3))
	r := startRelay(t, h.bus.RunDir)
	ctx := operation(t)
	spec := h.bundle("c1", "sleep")
	spec.Annotations = map[string]string{netv1.AnnotationPrefix + "spoofing": "allow"}
	reply, err := call[vmv1.CreateReply](ctx, h, "create", h.request(ctx, "c1", r, spec))
	if err != nil {
		t.Fatal(err)
	}
	r.commit()
	id := reply.Sandbox.Id
	if !h.hasLinks(id, link(2), link(3)) {
		t.Errorf("the VM has %v and its guest %v", h.fake().NICs(id), h.fake().Network(id))
	}
	asked := net.requests[id]
	if asked.Namespace.GetPid() != r.identity().Pid || asked.Namespace.GetStartTime() != r.identity().StartTime || asked.Namespace.GetInode() == 0 {
		t.Errorf("the namespace is named by %v, and the relay is %v", asked.Namespace, r.identity())
	}
	if !asked.Policy.GetAllowSpoofing() || asked.Policy.GetQueues() != 1 {
		t.Errorf("the policy is %v", asked.Policy)
	}
	// From Docker 28 on links come between create and start, and need not have been told of yet.
	net.change(false, link(2), link(3), link(4))
	if _, err := call[vmv1.StartReply](operation(t), h, "start", &vmv1.StartRequest{Ref: ref("c1")}); err != nil {
		t.Fatal(err)
	}
	if !h.hasLinks(id, link(2), link(3), link(4)) {
		t.Errorf("at its start the VM has %v and its guest %v", h.fake().NICs(id), h.fake().Network(id))
	}
	// A service that has lost its record knows no policy but what is configured.
	net.stop()
	net.mu.Lock()
	net.attachments[id].Policy = &netv1.Policy{Model: "tc", Queues: 1}
	net.mu.Unlock()
	net.serve()
	eventually(t, "the service knows again what the VM may send", func() bool {
		net.mu.Lock()
		defer net.mu.Unlock()
		return net.attachments[id].GetPolicy().GetAllowSpoofing()
	})
	h.kill("c1", 9)
	r.expectCode(137)
	h.await("c1", "exited")
	net.expectDetached(t) // with the VM, before the container is deleted
	h.delete("c1", false)
	h.expectNothing()
}

func TestAVMFollowsItsNamespaceThroughRestarts(t *testing.T) {
	h := newHost(t, fake.Options{})
	net := h.newNet(link(2))
	r := h.run("c1", "sleep")
	id := h.state("c1").Sandbox
	expect := func(links ...*netv1.Link) {
		t.Helper()
		eventually(t, "the VM has what its namespace has", func() bool { return h.hasLinks(id, links...) })
	}
	expect(link(2))
	net.change(true, link(2), link(3))
	expect(link(2), link(3))
	net.change(true, link(3))
	expect(link(3))
	h.stop() // what happens while no worker runs
	net.change(true, link(3), link(4))
	h.serve()
	expect(link(3), link(4))
	net.stop() // what happens while the service is away, and one that forgot everything
	net.change(true, link(5))
	net.serve()
	expect(link(5))
	net.stop()
	net.mu.Lock()
	clear(net.attachments)
	net.mu.Unlock()
	net.change(false, link(5), link(6))
	net.serve()
	expect(link(5), link(6))
	if net.attached() != 1 {
		t.Errorf("%d sandboxes are attached", net.attached())
	}
	r.kill()
	h.await("c1", "exited")
	net.expectDetached(t)
	h.delete("c1", false)
	h.expectNothing()
}

// The deaths that nobody could tell the net service are told when it is there again.
func TestADeadVMIsDetachedHoweverItDied(t *testing.T) {
	h := newHost(t, fake.Options{})
	net := h.newNet(link(2))
	r := h.run("c1", "sleep")
	net.stop()
	r.kill()
	h.await("c1", "exited")
	h.delete("c1", false)
	if net.attached() != 1 {
		t.Fatalf("%d sandboxes are attached to a service that is away", net.attached())
	}
	net.serve()
	net.expectDetached(t)

	r = h.run("c2", "sleep")
	h.stop()
	for _, pid := range h.vms() {
		kill9(t, pid)
	}
	h.serve()
	h.await("c2", "exited")
	net.expectDetached(t)
	r.kill()
	h.delete("c2", true)
	h.expectNothing()
}

func TestACreateWithoutItsNetworkIsUndone(t *testing.T) {
	broken := errors.New("broken for the test")
	failing := func(method string) func(string) error {
		return func(m string) error {
			if m == method {
				return bus.Errorf(bus.FailedPrecondition, "%w", broken)
			}
			return nil
		}
	}
	for _, c := range []struct {
		name     string
		options  fake.Options
		fail     func(method string) error
		problems []string
		says     string
	}{
		{name: "not attached", fail: failing("attach"), says: broken.Error()},
		{name: "queues not handed over", fail: failing("open"), says: "give the VM"},
		{name: "card not plugged in", options: fake.Options{NICError: func(string) error { return broken }}, says: "interface eth2"},
		{name: "guest refuses", options: fake.Options{NetworkError: func(*agentv1.NetworkRequest) error { return broken }}, says: broken.Error()},
		{name: "what the VM cannot have", problems: []string{"link wg0 cannot be had"}, says: "link wg0 cannot be had"},
		{name: "VM does not start", options: fake.Options{AttachError: func(string) error { return broken }}, says: broken.Error()},
	} {
		t.Run(c.name, func(t *testing.T) {
			h := newHost(t, c.options)
			net := h.newNet(link(2))
			net.fail, net.problems = c.fail, c.problems
			r := startRelay(t, h.bus.RunDir)
			ctx := operation(t)
			_, err := call[vmv1.CreateReply](ctx, h, "create", h.request(ctx, "c1", r, h.bundle("c1", "true")))
			if err == nil || !strings.Contains(err.Error(), c.says) {
				t.Errorf("create gives %v, want %q", err, c.says)
			}
			h.await("c1", "create_failed")
			r.expectEnded()
			net.expectDetached(t)
			h.expectNothing()
		})
	}
}

// What a worker leaves that is killed while it plugs a card in goes before the next attempt.
func TestACardThatIsHalfThereIsMadeAnew(t *testing.T) {
	var tries atomic.Int32
	h := newHost(t, fake.Options{NICError: func(string) error {
		if tries.Add(1) == 1 {
			return errors.New("Duplicate ID 'net-n2' for netdev")
		}
		return nil
	}})
	net := h.newNet(link(2))
	r := h.run("c1", "sleep")
	if id := h.state("c1").Sandbox; !h.hasLinks(id, link(2)) {
		t.Errorf("the VM has %v", h.fake().NICs(id))
	}
	r.kill()
	h.await("c1", "exited")
	net.expectDetached(t)
	h.delete("c1", false)
	h.expectNothing()
}

func TestWithoutTheNetServiceOnlyContainersWithoutNetworkRun(t *testing.T) {
	h := newHost(t, fake.Options{})
	r := h.run("c1", "sleep")
	id := h.state("c1").Sandbox
	busy := startRelay(t, h.bus.RunDir)
	addLink(t, busy)
	ctx := operation(t)
	_, err := call[vmv1.CreateReply](ctx, h, "create", h.request(ctx, "c2", busy, h.bundle("c2", "true")))
	refused(t, "a container with a network", err, bus.Unavailable, `the interface "veth`)
	busy.expectEnded()
	net := h.newNet(link(2)) // it comes later, and the container gets its network
	eventually(t, "the VM has a network", func() bool { return h.hasLinks(id, link(2)) })
	r.kill()
	h.await("c1", "exited")
	net.expectDetached(t)
	h.delete("c1", false)
	h.expectNothing()
}

// A VM has one network: a container that joins it without that network has none, or is refused.
func TestAContainerThatSharesOnlyTheVMHasNoPartInItsNetwork(t *testing.T) {
	h := newHost(t, fake.Options{})
	net := h.newNet(link(2))
	first := h.run("pod", "sleep")
	join := func(id string, prepare func(*relay)) error {
		r := startRelay(t, h.bus.RunDir)
		if prepare != nil {
			prepare(r)
		}
		ctx := operation(t)
		spec := h.bundle(id, "sleep")
		spec.Annotations = map[string]string{"io.kubernetes.cri.container-type": "container", "io.kubernetes.cri.sandbox-id": "pod"}
		_, err := call[vmv1.CreateReply](ctx, h, "create", h.request(ctx, id, r, spec))
		r.commit()
		return err
	}
	if err := join("alone", nil); err != nil {
		t.Fatal(err)
	}
	refused(t, "a second network", join("busy", func(r *relay) { addLink(t, r) }), bus.FailedPrecondition, "a VM has one network")
	for _, id := range []string{"alone", "pod"} {
		h.delete(id, true)
	}
	first.expectEnded()
	net.expectDetached(t)
	h.expectNothing()
}

func TestMalformedNetworkAnnotationsAreRefused(t *testing.T) {
	h := newHost(t, fake.Options{})
	r := startRelay(t, h.bus.RunDir)
	ctx := operation(t)
	spec := h.bundle("c1", "true")
	spec.Annotations = map[string]string{netv1.AnnotationPrefix + "model": "slirp"}
	_, err := call[vmv1.CreateReply](ctx, h, "create", h.request(ctx, "c1", r, spec))
	refused(t, "an unknown model", err, bus.InvalidArgument, "unknown model")
	r.kill()
	r.expectEnded()
	os.Remove(r.socket)
	h.expectNothing()
}

// addLink puts one end of a veth pair into the relay's network namespace; both go with it.
func addLink(t *testing.T, r *relay) {
	t.Helper()
	pid := strconv.Itoa(r.process.PID)
	out, err := exec.Command("nsenter", "--net=/proc/"+pid+"/ns/net", "ip", "link", "add", "veth0", "type", "veth", "peer", "name", "veth1").CombinedOutput()
	if err != nil {
		t.Fatalf("adding a link: %v: %s", err, out)
	}
}
