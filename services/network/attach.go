// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package network

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"bulkhead/bus"
	netv1 "bulkhead/proto/net/v1"
	"bulkhead/services/network/netspace"
	"bulkhead/services/network/scan"
	"bulkhead/services/network/wire"
)

// attach wires a sandbox to the namespace of a process. Repeated, it looks at
// the namespace anew and answers with what is there.
func (s *Service) attach(ctx context.Context, req *netv1.AttachRequest) (*netv1.AttachReply, error) {
	if req.Sandbox == "" {
		return nil, bus.Errorf(bus.InvalidArgument, "an attachment needs the id of a sandbox")
	}
	policy, err := s.policy(req.Policy)
	if err != nil {
		return nil, err
	}
	ns, err := netspace.Open(req.Namespace.GetPid(), req.Namespace.GetStartTime())
	if err != nil {
		return nil, namespaceError(req.Sandbox, err)
	}
	a, unlock, err := s.lock(ctx, req.Sandbox)
	if err != nil {
		ns.Close()
		return nil, err
	}
	defer unlock()
	if err := s.attachLocked(ctx, a, ns, policy, req.Policy != nil); err != nil {
		return nil, err
	}
	return &netv1.AttachReply{Attachment: proto.CloneOf(a.record)}, nil
}

// attachLocked attaches, or looks at what is attached anew. asked tells whether the
// policy is the caller's, and not only as configured. It takes ns over.
func (s *Service) attachLocked(ctx context.Context, a *attachment, ns *netspace.Namespace, policy *netv1.Policy, asked bool) error {
	if err := s.recall(ctx, a); err != nil {
		ns.Close()
		return err
	}
	if a.record != nil && a.record.State != stateAttached { // a detach that failed
		if err := s.dismantle(ctx, a); err != nil {
			ns.Close()
			return err
		}
	}
	if a.record != nil {
		if a.ns.ID != ns.ID {
			ns.Close()
			return bus.Errorf(bus.FailedPrecondition, "sandbox %s is attached to another network namespace than that of process %d; detach it first", a.sandbox, ns.PID)
		}
		if a.ns.PID == ns.PID && a.ns.StartTime == ns.StartTime {
			ns.Close()
		} else if err := s.reanchor(a, ns); err != nil {
			return err
		}
		return errors.Join(s.permit(a, policy, asked), s.refresh(ctx, a))
	}
	if err := s.claim(ns.ID, a.sandbox); err != nil {
		ns.Close()
		return err
	}
	a.ns = ns
	return s.attachFresh(ctx, a, policy)
}

// attachFresh makes the attachment or leaves nothing of it.
func (s *Service) attachFresh(ctx context.Context, a *attachment, policy *netv1.Policy) (err error) {
	a.record = &netv1.Attachment{
		Sandbox:   a.sandbox,
		Namespace: named(a.ns),
		Policy:    policy, Attached: timestamppb.Now(), State: stateAttaching, Network: &netv1.Network{},
	}
	defer func() {
		if err == nil {
			return
		}
		undo, cancel := undoContext(ctx)
		defer cancel()
		if undoErr := s.dismantle(undo, a); undoErr != nil {
			s.log.Error("a network that could not be attached is not taken back whole", "sandbox", a.sandbox, "error", undoErr)
		}
	}()
	// Before the first look, so that nothing is missed between it and the next.
	if a.events, err = a.ns.Subscribe(); err != nil {
		return err
	}
	if err := s.conform(ctx, a, true); err != nil {
		return err
	}
	a.record.State = stateAttached
	a.record.Revision = 1
	if err := s.save(ctx, a, "attached-record"); err != nil {
		return err
	}
	s.show(a)
	s.feed.changed(a.sandbox)
	s.startFollowing(a)
	s.event(ctx, a.sandbox, "attached", attachedAttributes(a.record))
	s.log.Info("network attached", "sandbox", a.sandbox, "links", len(a.record.Network.Links), "nics", len(a.record.Nics))
	return nil
}

// permit puts into force what a repeated attach says that the VM may send: an
// attachment whose record was lost has what is configured. The model and the queues
// are what was made. The caller holds a.op.
func (s *Service) permit(a *attachment, policy *netv1.Policy, asked bool) error {
	now := a.record.Policy
	if !asked || now.AllowSpoofing == policy.AllowSpoofing &&
		slices.Equal(now.AllowedMacs, policy.AllowedMacs) && slices.Equal(now.AllowedAddresses, policy.AllowedAddresses) {
		return nil
	}
	before := proto.CloneOf(now)
	now.AllowSpoofing, now.DenySpoofing = policy.AllowSpoofing, policy.DenySpoofing
	now.AllowedMacs, now.AllowedAddresses = policy.AllowedMacs, policy.AllowedAddresses
	a.behind = true
	for _, nic := range a.record.Nics {
		if a.unjoined[nic] || a.link(nic.Link) == nil {
			continue // it gets the policy when it is joined
		}
		if err := s.guard.Update(s.guarded(a, nic)); err != nil {
			a.record.Policy = before
			return fmt.Errorf("the checks of link %s are not changed: %w", nic.Link, err)
		}
	}
	s.show(a)
	return nil
}

// named is how a record names a namespace.
func named(ns *netspace.Namespace) *netv1.Namespace {
	return &netv1.Namespace{Pid: ns.PID, StartTime: ns.StartTime, Device: ns.ID.Device, Inode: ns.ID.Inode}
}

// reanchor has an attachment live by another process in its namespace. It takes
// ns over. The caller holds a.op.
func (s *Service) reanchor(a *attachment, ns *netspace.Namespace) error {
	events, err := ns.Subscribe()
	if err != nil {
		ns.Close()
		return err
	}
	a.stopFollowing()
	a.ns.Close()
	a.ns, a.events, a.record.Namespace = ns, events, named(ns)
	s.startFollowing(a)
	return nil
}

// undoTime bounds what is taken back after a failure, also when the request was
// given up.
const undoTime = 10 * time.Second

func undoContext(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithTimeout(context.WithoutCancel(ctx), undoTime)
}

// policy completes and checks a request's policy.
func (s *Service) policy(asked *netv1.Policy) (*netv1.Policy, error) {
	p := &netv1.Policy{}
	if asked != nil {
		p = proto.CloneOf(asked)
	}
	if p.Model == "" {
		p.Model = s.cfg.Model
	}
	switch p.Model {
	case wire.ModelTC, wire.ModelMacvtap, wire.ModelBridge, wire.ModelNone:
	default:
		return nil, bus.Errorf(bus.InvalidArgument, "network model %q is not known; use tc, macvtap, bridge or none", p.Model)
	}
	p.Queues = min(max(p.Queues, 1), uint32(s.cfg.Queues))
	if p.AllowSpoofing && p.DenySpoofing {
		return nil, bus.Errorf(bus.InvalidArgument, "the policy both allows and denies spoofing; choose one")
	}
	p.AllowSpoofing = p.AllowSpoofing || !s.cfg.SpoofProtection && !p.DenySpoofing
	p.DenySpoofing = !p.AllowSpoofing
	for _, mac := range p.AllowedMacs {
		if hw, err := net.ParseMAC(mac); err != nil || len(hw) != 6 {
			return nil, bus.Errorf(bus.InvalidArgument, "allowed MAC %q is not an Ethernet address", mac)
		}
	}
	for i, address := range p.AllowedAddresses {
		prefix, err := netip.ParsePrefix(address)
		if ip, ipErr := netip.ParseAddr(address); err != nil && ipErr == nil {
			prefix, err = ip.Prefix(ip.BitLen())
		}
		if err != nil {
			return nil, bus.Errorf(bus.InvalidArgument, "allowed address %q is neither an address nor a prefix", address)
		}
		p.AllowedAddresses[i] = prefix.Masked().String()
	}
	return p, nil
}

// vhost tells whether NICs get vhost-net.
func (s *Service) vhost() bool {
	if !s.cfg.Vhost {
		return false
	}
	_, err := os.Stat(wire.VhostPath)
	return err == nil
}

// namespaceError says what is wrong with the namespace that a request named.
func namespaceError(sandbox string, err error) error {
	switch {
	case errors.Is(err, netspace.ErrHost):
		return bus.Errorf(bus.FailedPrecondition, "sandbox %s cannot have the host's network (--net=host): a VM has a kernel of its own, and the host's interfaces are never touched: %w", sandbox, err)
	case errors.Is(err, netspace.ErrProcessGone), errors.Is(err, netspace.ErrGone):
		return bus.Errorf(bus.FailedPrecondition, "sandbox %s: %w", sandbox, err)
	}
	return bus.Errorf(bus.ReasonOf(err), "sandbox %s: %w", sandbox, err)
}

// alias is what the devices of a NIC are called beside their names.
func (s *Service) alias(sandbox, link string) string {
	return s.aliasPrefix() + bus.Token(sandbox) + ":" + link
}

// aliasPrefix begins the aliases of this host's devices: another daemon on the
// same machine has another run directory.
func (s *Service) aliasPrefix() string { return scan.OwnAlias + s.owner + ":" }
