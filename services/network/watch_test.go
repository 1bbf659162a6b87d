// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package network

import (
	"context"
	"fmt"
	"testing"
	"time"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/types/known/timestamppb"

	netv1 "bulkhead/proto/net/v1"
)

// unspoofed is a guard whose checks drop nothing.
type unspoofed struct{ Guard }

func (unspoofed) Spoofed(Guarded) (uint64, error) { return 0, nil }

// The bus takes a MiB, and a host may have more VMs than that tells of.
func TestWhatThousandsOfVMsHaveIsToldInParts(t *testing.T) {
	t.Parallel()
	const count = 3000
	s := &Service{attachments: map[string]*attachment{}, feed: newFeed(), guard: unspoofed{}}
	ns := newSpace(t).open()
	for i := range count {
		id := fmt.Sprintf("vm-%064d", i)
		network := &netv1.Network{}
		for n := range 2 {
			network.Links = append(network.Links, &netv1.Link{
				Id: fmt.Sprintf("nic%d", n), Index: int32(n), Name: fmt.Sprintf("eth%d", n), Kind: "veth", Mac: "02:42:ac:11:00:02", Mtu: 1500, Up: true,
				Addresses: []*netv1.Address{{Prefix: "172.17.0.2/16", Broadcast: "172.17.255.255", Scope: "global"}, {Prefix: "fd21::77/64", Scope: "global"}},
			})
			network.Routes = append(network.Routes, &netv1.Route{Destination: "0.0.0.0/0", Gateway: "172.17.0.1", Link: fmt.Sprintf("nic%d", n), Scope: "global", Type: "unicast", Protocol: "boot", Table: 254})
		}
		record := &netv1.Attachment{
			Sandbox: id, Network: network, State: stateAttached, Attached: timestamppb.New(time.Unix(int64(i), 0)),
			Nics: []*netv1.Nic{{Link: "nic0", Device: "lo"}}, // which every namespace has
		}
		s.attachments[id] = &attachment{sandbox: id, op: make(chan struct{}, 1), ns: ns, record: record, shown: record}
		s.feed.changed(id)
	}
	fits := func(reply interface{ GetAttachments() []*netv1.Attachment }, text []byte, err error) {
		t.Helper()
		if err != nil || len(text) >= 1<<20 || len(reply.GetAttachments()) == 0 {
			t.Fatalf("an answer of %d attachments has %d bytes: %v", len(reply.GetAttachments()), len(text), err)
		}
	}
	seen := map[string]bool{}
	watch := &netv1.WatchRequest{}
	for more := true; more; {
		reply, err := s.watch(context.Background(), watch)
		if err != nil {
			t.Fatal(err)
		}
		text, err := protojson.Marshal(reply)
		fits(reply, text, err)
		for _, a := range reply.Attachments {
			if seen[a.Sandbox] {
				t.Fatalf("%s is told twice", a.Sandbox)
			}
			seen[a.Sandbox] = true
		}
		more, watch = reply.More, &netv1.WatchRequest{Epoch: reply.Epoch, After: reply.Revision}
	}
	if len(seen) != count || watch.After != s.feed.revision {
		t.Errorf("%d of %d are told, up to revision %d of %d", len(seen), count, watch.After, s.feed.revision)
	}
	listed := 0
	list := &netv1.ListRequest{}
	for more := true; more; {
		reply, err := s.list(context.Background(), list)
		if err != nil {
			t.Fatal(err)
		}
		text, err := protojson.Marshal(reply)
		fits(reply, text, err)
		for _, a := range reply.Attachments {
			if want := fmt.Sprintf("vm-%064d", listed); a.Sandbox != want {
				t.Fatalf("listed is %s instead of %s", a.Sandbox, want)
			}
			listed++
		}
		more, list.After = reply.Next != "", reply.Next
	}
	if listed != count {
		t.Errorf("%d of %d are listed", listed, count)
	}
	counted := 0
	for ask, more := (&netv1.StatsRequest{}), true; more; {
		reply, err := s.stats(context.Background(), ask)
		if err != nil {
			t.Fatal(err)
		}
		text, err := protojson.Marshal(reply)
		if err != nil || len(text) >= 1<<20 || len(reply.Nics) == 0 {
			t.Fatalf("an answer of %d cards has %d bytes: %v", len(reply.Nics), len(text), err)
		}
		for _, n := range reply.Nics {
			if want := fmt.Sprintf("vm-%064d", counted); n.Sandbox != want {
				t.Fatalf("counted is %s instead of %s", n.Sandbox, want)
			}
			counted++
		}
		more, ask.After = reply.Next != "", reply.Next
	}
	if counted != count {
		t.Errorf("the packets of %d of %d are counted", counted, count)
	}
}
