// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package vmworker

import (
	"cmp"
	"context"
	"slices"
	"strings"
	"time"

	"google.golang.org/protobuf/proto"

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
	after, err := parsePosition(req.After)
	if err != nil {
		return nil, err
	}
	type row struct {
		place position
		rec   *vmv1.Container
		sb    *sandbox
	}
	var rows []row
	for _, c := range w.containerList() {
		rec := c.snapshot()
		if at := positionOf(rec); (req.Root == "" || rec.Ref.Root == req.Root) && at.compare(after) > 0 {
			rows = append(rows, row{at, rec, c.sb})
		}
	}
	slices.SortFunc(rows, func(a, b row) int { return a.place.compare(b.place) })
	reply, part := &vmv1.ListReply{}, bus.Part{}
	told := map[*sandbox]bool{}
	for i, r := range rows {
		records := []proto.Message{r.rec}
		var sb *vmv1.Sandbox
		if !told[r.sb] {
			sb = r.sb.record()
			records = append(records, sb)
		}
		if !part.Holds(records...) {
			reply.Next = rows[i-1].place.String()
			break
		}
		reply.Containers = append(reply.Containers, r.rec)
		if sb != nil {
			told[r.sb] = true
			reply.Sandboxes = append(reply.Sandboxes, sb)
		}
	}
	slices.SortFunc(reply.Sandboxes, func(a, b *vmv1.Sandbox) int {
		return cmp.Or(a.Created.AsTime().Compare(b.Created.AsTime()), cmp.Compare(a.Id, b.Id))
	})
	return reply, nil
}

// position is where a container stands in the list, also when it is there no more: the oldest
// is first.
type position struct {
	created time.Time
	key     string
}

func positionOf(rec *vmv1.Container) position { return position{rec.Created.AsTime(), rec.Key} }

func (p position) compare(q position) int {
	return cmp.Or(p.created.Compare(q.created), cmp.Compare(p.key, q.key))
}

// String is what a caller brings back to have the list go on.
func (p position) String() string { return p.created.UTC().Format(time.RFC3339Nano) + "/" + p.key }

func parsePosition(text string) (position, error) {
	if text == "" {
		return position{}, nil // before all others
	}
	created, key, _ := strings.Cut(text, "/")
	at, err := time.Parse(time.RFC3339Nano, created)
	if err != nil || key == "" {
		return position{}, bus.Errorf(bus.InvalidArgument, "the list cannot go on after %q: give what the answer before named as next, or nothing", text)
	}
	return position{at, key}, nil
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
