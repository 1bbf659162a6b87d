// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package network

import (
	"context"
	"os"
	"path/filepath"
	"time"

	"bulkhead/bus"
	"bulkhead/bus/handover"
	netv1 "bulkhead/proto/net/v1"
	"bulkhead/services/network/scan"
)

// open hands the queues of a NIC over. The service keeps none of them.
func (s *Service) open(ctx context.Context, req *netv1.OpenRequest) (*netv1.OpenReply, error) {
	a, unlock, err := s.attached(ctx, req.Sandbox)
	if err != nil {
		return nil, err
	}
	defer unlock()
	nic := a.nic(req.Link)
	if nic == nil {
		return nil, bus.Errorf(bus.NotFound, "sandbox %s has no link %q", req.Sandbox, req.Link)
	}
	w := s.wireOf(a, nic)
	files, err := w.Open()
	if err != nil {
		return nil, bus.Errorf(bus.FailedPrecondition, "open link %s of sandbox %s: %w", req.Link, req.Sandbox, err)
	}
	reply := &netv1.OpenReply{Queues: uint32(len(files))}
	if nic.Vhost {
		more, err := w.OpenVhost()
		if err != nil {
			s.log.Warn("a NIC is without vhost-net", "sandbox", req.Sandbox, "link", req.Link, "error", err)
		} else {
			reply.Vhost = true
			files = append(files, more...)
		}
	}
	if err := s.handOver(ctx, req.Token, files); err != nil {
		return nil, err
	}
	return reply, nil
}

// seekEvery is how often a dial to where nothing listens has the namespace looked at.
const seekEvery = 250 * time.Millisecond

// dial hands over a socket that is connected to what listens in the namespace.
func (s *Service) dial(ctx context.Context, req *netv1.DialRequest) (*netv1.DialReply, error) {
	a, unlock, err := s.attached(ctx, req.Sandbox)
	if err != nil {
		return nil, err
	}
	to := req.GetTo()
	// It may be younger than the last look. What asks is a guest, which may ask for
	// anything as often as it likes.
	if !a.listens(to) && time.Since(a.sought) >= seekEvery {
		err = s.refreshListeners(ctx, a)
		a.sought = time.Now()
	}
	if err == nil && !a.listens(to) {
		err = bus.Errorf(bus.NotFound, "nothing in the network namespace of sandbox %s listens on %s port %d (%s)", req.Sandbox, to.GetAddress(), to.GetPort(), to.GetProtocol())
	}
	if err != nil {
		unlock()
		return nil, err
	}
	dialing, err := scan.Dial(a.ns, to)
	unlock() // a listener whose queue is full lets a connection wait
	var socket *os.File
	if err == nil {
		socket, err = dialing.Wait()
	}
	if err != nil {
		return nil, bus.Errorf(bus.Unavailable, "sandbox %s: %w", req.Sandbox, err)
	}
	if err := s.handOver(ctx, req.Token, []*os.File{socket}); err != nil {
		return nil, err
	}
	return &netv1.DialReply{}, nil
}

// handOver gives descriptors to vm-worker under a token of its choice, and
// closes them.
func (s *Service) handOver(ctx context.Context, token string, files []*os.File) error {
	defer func() {
		for _, f := range files {
			f.Close()
		}
	}()
	if err := s.step("hand-over"); err != nil {
		return err
	}
	if !handover.ValidToken(token) {
		return bus.Errorf(bus.InvalidArgument, "%q is no token for a handover", token)
	}
	if err := handover.Send(ctx, filepath.Join(s.runDir, "handover.sock"), token, files); err != nil {
		return bus.Errorf(bus.Unavailable, "%w", err)
	}
	return nil
}

// listens tells whether a listener is among those last read.
func (a *attachment) listens(to *netv1.Listener) bool {
	for _, l := range a.record.Network.Listeners {
		if l.Protocol == to.GetProtocol() && l.Address == to.GetAddress() && l.Port == to.GetPort() {
			return true
		}
	}
	return false
}
