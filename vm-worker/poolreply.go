// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package vmworker

import (
	"cmp"
	"context"
	"slices"
	"strings"

	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"bulkhead/bus"
	vmv1 "bulkhead/proto/vm/v1"
)

// describe answers vm.pool.
func (w *Worker) describePool(_ context.Context, req *vmv1.PoolRequest) (*vmv1.PoolReply, error) {
	k := w.stock
	k.mu.Lock()
	reply := &vmv1.PoolReply{
		Target: uint32(w.cfg.Pool), Ready: uint32(len(k.pool)), Waiting: k.waiting, Taken: k.taken, Missed: k.missed,
	}
	pool := slices.Clone(k.pool)
	k.mu.Unlock()
	if reply.Waiting == "" && k.templates.driver == nil {
		reply.Waiting = k.templates.why
	}
	reply.Templates = k.templates.describe()
	slices.SortFunc(pool, func(a, b *sandbox) int { return strings.Compare(a.id, b.id) })
	var part bus.Part
	for _, s := range pool {
		if s.id <= req.After {
			continue
		}
		rec := s.record()
		if !part.Holds(rec) {
			reply.Next = reply.Sandboxes[len(reply.Sandboxes)-1].Id
			break
		}
		reply.Sandboxes = append(reply.Sandboxes, rec)
	}
	return reply, nil
}

// describe tells a person what there is.
func (t *templates) describe() []*vmv1.Template {
	t.mu.Lock()
	defer t.mu.Unlock()
	var all []*vmv1.Template
	for _, m := range t.byKind {
		d := &vmv1.Template{Kind: string(m.kind), State: "making", Clones: m.clones}
		switch {
		case m.err != nil:
			d.State, d.Error, d.Again = "failed", m.err.Error(), timestamppb.New(m.again)
		case m.template != nil:
			d.State, d.Key, d.Bytes = "ready", m.template.Key(), uint64(m.template.Bytes())
			d.Pid = int32(m.template.Process())
			if lacks := m.lacks(); lacks != nil {
				d.Worn, d.Again = lacks.Error(), timestamppb.New(m.again)
			}
			d.Made, d.Took = timestamppb.New(m.made), durationpb.New(m.took)
		}
		all = append(all, d)
	}
	slices.SortFunc(all, func(a, b *vmv1.Template) int { return cmp.Compare(a.Kind, b.Kind) })
	return all
}
