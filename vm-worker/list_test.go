// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package vmworker_test

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"bulkhead/bus"
	vmv1 "bulkhead/proto/vm/v1"
	"bulkhead/vm-worker/hypervisor/fake"
)

// record writes what an earlier worker left.
func (h *host) record(file string, m proto.Message) {
	h.t.Helper()
	text, err := protojson.Marshal(m)
	if err == nil {
		err = os.MkdirAll(filepath.Dir(file), 0o700)
	}
	if err == nil {
		err = os.WriteFile(file, text, 0o600)
	}
	if err != nil {
		h.t.Fatal(err)
	}
}

// One answer of the bus holds some hundreds of containers.
func TestThousandsOfContainersAreListedInParts(t *testing.T) {
	const count = 2000
	h := newBus(t)
	id := func(i int) string { return fmt.Sprintf("c%04d", i) }
	for i := range count {
		// Two of each VM, so that a VM is in two parts where one ends between them. Half of the
		// containers were made in the same moment.
		sandbox := fmt.Sprintf("vm-%04d", i/2)
		key := bus.ContainerKey(root, id(i))
		dir := filepath.Join(h.bus.RunDir, "vm", sandbox)
		made := timestamppb.New(time.Unix(int64(max(i, count/2)), 5))
		h.record(filepath.Join(dir, "sandbox.json"), &vmv1.Sandbox{
			Id: sandbox, State: "stopped", Hypervisor: fake.Name, EndReason: "its last container ended", Created: made,
		})
		h.record(filepath.Join(dir, "config-"+key+".json"), &vmv1.Container{}) // no hooks
		h.record(filepath.Join(dir, "container-"+key+".json"), &vmv1.Container{
			Ref: ref(id(i)), Key: key, Sandbox: sandbox, Status: stopped, Bundle: "/run/bundles/" + id(i), Created: made, Started: made,
			Relay: &vmv1.Relay{Pid: 1 << 21, StartTime: 1}, Exit: &vmv1.Exit{Reason: "test", Time: made},
			Annotations: map[string]string{"io.kubernetes.cri.sandbox-name": strings.Repeat("n", 1000)}, Resources: strings.Repeat(`{"a":1}`, 20),
		})
	}
	h.driver = &observed{Driver: fake.New(fake.Options{}), started: make(chan string, 64)}
	h.serve()

	// As a person asks.
	msg, err := h.conn.NATS().RequestWithContext(t.Context(), h.conn.Subject("vm", "list"), []byte("{}"))
	if err != nil {
		t.Fatal(err)
	}
	first := &vmv1.ListReply{}
	if err := protojson.Unmarshal(msg.Data, first); err != nil || first.Next == "" || len(first.Containers) < 100 {
		t.Fatalf("the first part has %d containers, goes on after %q: %v", len(first.Containers), first.Next, err)
	}
	// The one after which the list goes on may go meanwhile.
	last := first.Containers[len(first.Containers)-1]
	if _, err := call[vmv1.DeleteReply](t.Context(), h, "delete", &vmv1.DeleteRequest{Ref: last.Ref}); err != nil {
		t.Fatal(err)
	}
	parts := 0
	rest, err := vmv1.ListAll(root, func(req *vmv1.ListRequest) (*vmv1.ListReply, error) {
		if parts++; parts == 1 {
			req.After = first.Next
		}
		return call[vmv1.ListReply](t.Context(), h, "list", req)
	})
	if err != nil || parts < 2 {
		t.Fatalf("the rest came in %d parts: %v", parts, err)
	}
	all := append(first.Containers, rest.Containers...)
	if len(all) != count {
		t.Fatalf("%d of %d are listed", len(all), count)
	}
	seen := map[string]bool{}
	for i, c := range all {
		if i > 0 && c.Created.AsTime().Before(all[i-1].Created.AsTime()) {
			t.Errorf("%s comes after %s, which is younger", c.Ref.Id, all[i-1].Ref.Id)
		}
		seen[c.Key] = true
	}
	sandboxes := map[string]bool{}
	for _, s := range rest.Sandboxes {
		if sandboxes[s.Id] {
			t.Errorf("VM %s is listed twice", s.Id)
		}
		sandboxes[s.Id] = true
	}
	for _, c := range rest.Containers {
		if !sandboxes[c.Sandbox] {
			t.Errorf("the VM of %s is not listed", c.Ref.Id)
		}
	}
	if len(seen) != count {
		t.Errorf("%d of %d are listed, some twice", len(seen), count)
	}
	none, err := call[vmv1.ListReply](t.Context(), h, "list", &vmv1.ListRequest{Root: "/other"})
	if err != nil || len(none.Containers)+len(none.Sandboxes) != 0 || none.Next != "" {
		t.Errorf("another root has %v: %v", none, err)
	}
	_, err = call[vmv1.ListReply](t.Context(), h, "list", &vmv1.ListRequest{After: "c0007"})
	refused(t, "a list that goes on after a name", err, bus.InvalidArgument, "give what the answer before named as next")
}
