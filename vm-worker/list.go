// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package vmworker

import (
	"cmp"
	"context"
	"slices"

	"bulkhead/bus"
	vmv1 "bulkhead/proto/vm/v1"
)

// state and list read records and never touch a VM: a guest that hangs cannot
// make them wait.

func (w *Worker) state(_ context.Context, req *vmv1.StateRequest) (*vmv1.StateReply, error) {
	c, err := w.find(req.Ref)
	if err != nil {
		return nil, err
	}
	return &vmv1.StateReply{Container: c.snapshot()}, nil
}

func (w *Worker) list(_ context.Context, req *vmv1.ListRequest) (*vmv1.ListReply, error) {
	w.mu.Lock()
	containers := make([]*container, 0, len(w.containers))
	for _, c := range w.containers {
		containers = append(containers, c)
	}
	w.mu.Unlock()
	reply := &vmv1.ListReply{}
	seen := map[*sandbox]bool{}
	for _, c := range containers {
		rec := c.snapshot()
		if req.Root != "" && rec.Ref.Root != req.Root {
			continue
		}
		reply.Containers = append(reply.Containers, rec)
		if !seen[c.sb] {
			seen[c.sb] = true
			reply.Sandboxes = append(reply.Sandboxes, c.sb.record())
		}
	}
	slices.SortFunc(reply.Containers, func(a, b *vmv1.Container) int {
		return cmp.Or(a.Created.AsTime().Compare(b.Created.AsTime()), cmp.Compare(a.Key, b.Key))
	})
	slices.SortFunc(reply.Sandboxes, func(a, b *vmv1.Sandbox) int {
		return cmp.Or(a.Created.AsTime().Compare(b.Created.AsTime()), cmp.Compare(a.Id, b.Id))
	})
	return reply, nil
}

// processes names the relays of a container, init first.
func (w *Worker) processes(_ context.Context, req *vmv1.ProcessesRequest) (*vmv1.ProcessesReply, error) {
	c, err := w.find(req.Ref)
	if err != nil {
		return nil, err
	}
	rec := c.snapshot()
	reply := &vmv1.ProcessesReply{}
	if !live(rec.Status) {
		return reply, nil
	}
	reply.Pids = append(reply.Pids, rec.Relay.Pid)
	for _, e := range rec.Execs {
		reply.Pids = append(reply.Pids, e.Relay.Pid)
	}
	return reply, nil
}

// find returns the container a reference names.
func (w *Worker) find(ref *vmv1.ContainerRef) (*container, error) {
	if ref.GetId() == "" {
		return nil, bus.Errorf(bus.InvalidArgument, "the request names no container: give ref.root and ref.id")
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	c, ok := w.containers[bus.ContainerKey(ref.Root, ref.Id)]
	if !ok {
		return nil, bus.Errorf(bus.NotFound, "container does not exist: %s", ref.Id)
	}
	return c, nil
}

// forgotten tells whether c is no longer the container of its key.
func (w *Worker) forgotten(c *container) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.containers[c.key] != c
}
