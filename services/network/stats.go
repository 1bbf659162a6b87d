// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package network

import (
	"cmp"
	"context"
	"errors"
	"slices"

	"github.com/vishvananda/netlink"
	"google.golang.org/protobuf/proto"

	"bulkhead/bus"
	netv1 "bulkhead/proto/net/v1"
	"bulkhead/services/network/wire"
)

// stats counts as the VM sees it: what a tap sent, the VM received.
func (s *Service) stats(ctx context.Context, req *netv1.StatsRequest) (*netv1.StatsReply, error) {
	reply := &netv1.StatsReply{}
	if req.Sandbox != "" {
		nics, err := s.statsOf(ctx, req.Sandbox)
		reply.Nics = nics
		return reply, err
	}
	all := s.all()
	slices.SortFunc(all, func(a, b *netv1.Attachment) int { return cmp.Compare(a.Sandbox, b.Sandbox) })
	var part bus.Part
	for _, a := range all {
		if a.Sandbox <= req.After {
			continue
		}
		nics, err := s.statsOf(ctx, a.Sandbox)
		if bus.ReasonOf(err) == bus.NotFound {
			continue // it went meanwhile
		}
		if err != nil {
			return nil, err
		}
		records := make([]proto.Message, len(nics))
		for i, n := range nics {
			records[i] = n
		}
		if !part.Holds(records...) { // what one sandbox has is not torn apart
			reply.Next = reply.Nics[len(reply.Nics)-1].Sandbox
			break
		}
		reply.Nics = append(reply.Nics, nics...)
	}
	return reply, nil
}

func (s *Service) statsOf(ctx context.Context, sandbox string) ([]*netv1.NicStats, error) {
	a, unlock, err := s.attached(ctx, sandbox)
	if err != nil {
		return nil, err
	}
	defer unlock()
	var found []*netv1.NicStats
	for _, nic := range a.record.Nics {
		l, err := a.ns.Netlink().LinkByName(nic.Device)
		var absent netlink.LinkNotFoundError
		if errors.As(err, &absent) {
			continue // taken back as soon as it is noticed
		}
		if err != nil {
			return nil, bus.Errorf(bus.Internal, "count the packets of link %s of sandbox %s: %w", nic.Link, sandbox, err)
		}
		out := &netv1.NicStats{Sandbox: sandbox, Link: nic.Link, Name: a.link(nic.Link).GetName()}
		if c := l.Attrs().Statistics; c != nil {
			out.RxBytes, out.RxPackets, out.RxDropped = c.TxBytes, c.TxPackets, c.TxDropped
			out.TxBytes, out.TxPackets, out.TxDropped = c.RxBytes, c.RxPackets, c.RxDropped
			if nic.Model == wire.ModelMacvtap { // it is the far side of its own queue
				out.RxBytes, out.TxBytes = out.TxBytes, out.RxBytes
				out.RxPackets, out.TxPackets = out.TxPackets, out.RxPackets
				out.RxDropped, out.TxDropped = out.TxDropped, out.RxDropped
			}
		}
		if out.Spoofed, err = s.guard.Spoofed(s.guarded(a, nic)); err != nil {
			return nil, bus.Errorf(bus.Internal, "count the packets that the checks of link %s of sandbox %s dropped: %w", nic.Link, sandbox, err)
		}
		found = append(found, out)
	}
	return found, nil
}
