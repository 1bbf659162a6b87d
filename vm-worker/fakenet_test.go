// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package vmworker_test

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"bulkhead/bus"
	"bulkhead/bus/bustest"
	"bulkhead/bus/handover"
	netv1 "bulkhead/proto/net/v1"
)

// fakeNet is a net service on the real bus that wires nothing: its taps are
// pipes, and what a namespace has is what the test says.
type fakeNet struct {
	h *host

	fail func(method string) error // nil: nothing fails
	stop func()

	mu          sync.Mutex                   // guards all below
	epoch       string                       // of this run
	revision    uint64                       // of the service
	changed     chan struct{}                // closed at the next change
	network     *netv1.Network               // of every namespace
	problems    []string                     // likewise
	attachments map[string]*netv1.Attachment // what survives a restart
	changedAt   map[string]uint64
	requests    map[string]*netv1.AttachRequest
	open        int // NICs whose queues were handed over
}

// newNet is a fakeNet that serves until stop or the test's end.
func (h *host) newNet(links ...*netv1.Link) *fakeNet {
	h.t.Helper()
	n := &fakeNet{h: h, attachments: map[string]*netv1.Attachment{}, changed: make(chan struct{}), changedAt: map[string]uint64{},
		requests: map[string]*netv1.AttachRequest{}, network: &netv1.Network{Links: links}}
	n.serve()
	return n
}

func link(index int) *netv1.Link {
	return &netv1.Link{
		Id: fmt.Sprintf("n%d", index), Index: int32(index), Name: fmt.Sprintf("eth%d", index), Kind: "veth", Mtu: 1500, Up: true,
		Mac: fmt.Sprintf("02:42:ac:11:00:%02x", index), Addresses: []*netv1.Address{{Prefix: fmt.Sprintf("172.17.%d.2/16", index), Scope: "global"}},
	}
}

// serve is a run of the service.
func (n *fakeNet) serve() {
	t := n.h.t
	t.Helper()
	n.mu.Lock()
	n.epoch, n.revision = bus.NewOperationID(), 1
	for id := range n.attachments {
		n.changedAt[id] = 1
	}
	n.mu.Unlock()
	svc, err := bus.NewService(t.Context(), n.h.bus.Dial("net"), bus.ServiceConfig{Name: "net", Version: "0.0.1", Description: "for tests", Log: bustest.Log(t)})
	if err == nil {
		err = n.register(svc)
	}
	if err == nil {
		svc.Announced(t.Context())
	}
	if err != nil {
		t.Fatal(err)
	}
	n.stop = sync.OnceFunc(func() {
		n.mu.Lock()
		n.epoch = "" // ends those who wait
		close(n.changed)
		n.changed = make(chan struct{})
		n.mu.Unlock()
		if err := svc.Stop(context.Background()); err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(n.stop)
}

func (n *fakeNet) register(svc *bus.Service) error {
	for _, err := range []error{
		bus.Handle(svc, "attach", judged(n, "attach", n.attach)), bus.Handle(svc, "open", judged(n, "open", n.handOver)),
		bus.Handle(svc, "inspect", judged(n, "inspect", n.inspect)), bus.Handle(svc, "detach", judged(n, "detach", n.detach)),
		bus.Handle(svc, "watch", n.watch),
	} {
		if err != nil {
			return err
		}
	}
	return nil
}

func judged[Req, Resp proto.Message](n *fakeNet, method string, fn func(context.Context, Req) (Resp, error)) func(context.Context, Req) (Resp, error) {
	return func(ctx context.Context, req Req) (Resp, error) {
		if n.fail != nil {
			if err := n.fail(method); err != nil {
				var none Resp
				return none, err
			}
		}
		return fn(ctx, req)
	}
}

// touch records a change. The caller holds n.mu.
func (n *fakeNet) touch(id string) {
	n.revision++
	n.changedAt[id] = n.revision
	close(n.changed)
	n.changed = make(chan struct{})
}

func (n *fakeNet) attach(_ context.Context, req *netv1.AttachRequest) (*netv1.AttachReply, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	a := n.attachments[req.Sandbox]
	if a == nil {
		a = &netv1.Attachment{Sandbox: req.Sandbox, Namespace: req.Namespace, Policy: req.Policy, Attached: timestamppb.Now()}
		n.requests[req.Sandbox] = req
		n.attachments[req.Sandbox] = a
		n.fill(a)
		n.touch(req.Sandbox)
	}
	a.Policy = req.Policy
	return &netv1.AttachReply{Attachment: proto.CloneOf(a)}, nil
}

// fill gives an attachment what namespaces have now. The caller holds n.mu.
func (n *fakeNet) fill(a *netv1.Attachment) {
	a.Revision++
	a.Network, a.Nics, a.Problems = proto.CloneOf(n.network), nil, n.problems
	for _, l := range n.network.Links {
		a.Nics = append(a.Nics, &netv1.Nic{Link: l.Id, Device: "tap" + l.Id, Model: "tc", Queues: 2})
	}
}

// change makes every namespace have these links, and tells if told is set.
func (n *fakeNet) change(told bool, links ...*netv1.Link) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.network = &netv1.Network{Links: links}
	if !told {
		return
	}
	for id, a := range n.attachments {
		n.fill(a)
		n.touch(id)
	}
}

func (n *fakeNet) handOver(ctx context.Context, req *netv1.OpenRequest) (*netv1.OpenReply, error) {
	var files []*os.File
	for range 2 {
		f, err := os.Open(os.DevNull)
		if err != nil {
			return nil, err
		}
		defer f.Close()
		files = append(files, f)
	}
	if err := handover.Send(ctx, filepath.Join(n.h.bus.RunDir, "handover.sock"), req.Token, files); err != nil {
		return nil, err
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	n.open++
	return &netv1.OpenReply{Queues: 2}, nil
}

func (n *fakeNet) inspect(_ context.Context, req *netv1.InspectRequest) (*netv1.InspectReply, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	a := n.attachments[req.Sandbox]
	if a == nil {
		return nil, bus.Errorf(bus.NotFound, "sandbox %s is not attached", req.Sandbox)
	}
	if !proto.Equal(a.Network, n.network) {
		n.fill(a)
		n.touch(req.Sandbox)
	}
	return &netv1.InspectReply{Attachment: proto.CloneOf(a)}, nil
}

func (n *fakeNet) detach(_ context.Context, req *netv1.DetachRequest) (*netv1.DetachReply, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	delete(n.attachments, req.Sandbox)
	n.touch(req.Sandbox)
	return &netv1.DetachReply{}, nil
}

func (n *fakeNet) watch(ctx context.Context, req *netv1.WatchRequest) (*netv1.WatchReply, error) {
	for {
		n.mu.Lock()
		reply := &netv1.WatchReply{Epoch: n.epoch, Revision: n.revision}
		after := req.After
		if req.Epoch != n.epoch {
			after = 0
		}
		for _, id := range slices.SortedFunc(maps.Keys(n.changedAt), func(a, b string) int { return cmp.Compare(n.changedAt[a], n.changedAt[b]) }) {
			at := n.changedAt[id]
			if at <= after {
				continue
			}
			if len(reply.Attachments) > 0 && at > reply.Revision { // one at a time
				reply.More = true
				break
			}
			reply.Revision = at
			if a := n.attachments[id]; a != nil {
				reply.Attachments = append(reply.Attachments, proto.CloneOf(a))
			} else {
				reply.Detached = append(reply.Detached, id)
			}
		}
		changed := n.changed
		n.mu.Unlock()
		if reply.Epoch == "" {
			return nil, bus.Errorf(bus.Unavailable, "the service ends")
		}
		if req.Epoch != reply.Epoch || len(reply.Attachments)+len(reply.Detached) > 0 {
			return reply, nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return reply, nil
		}
	}
}

func (n *fakeNet) attached() int {
	n.mu.Lock()
	defer n.mu.Unlock()
	return len(n.attachments)
}

// expectDetached checks that nothing is attached any more.
func (n *fakeNet) expectDetached(t *testing.T) {
	t.Helper()
	eventually(t, "every sandbox is detached", func() bool { return n.attached() == 0 })
}
