// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package network

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/vishvananda/netlink"
	"google.golang.org/protobuf/proto"

	netv1 "bulkhead/proto/net/v1"
	"bulkhead/services/network/scan"
	"bulkhead/services/network/wire"
)

// conform reads the namespace and makes the NICs agree with it: links that came
// get one, those of links that went are taken back, and the others follow their
// link. What will be made is on record before. The caller holds a.op and saves
// the record afterwards.
//
// strict is for a fresh attachment, which is whole or not at all; later, a link
// that cannot be joined is a problem in a sentence, and is tried again.
func (s *Service) conform(ctx context.Context, a *attachment, strict bool) error {
	if err := s.step("scan"); err != nil {
		return err
	}
	if err := s.dropBroken(a); err != nil {
		return err
	}
	found, err := scan.Scan(a.ns, scan.Options{ID: a.idOf, MAC: a.macOf})
	if err != nil {
		return err
	}
	problems := found.Problems
	before := a.record.Network
	if a.record.Policy.Model == wire.ModelNone {
		found.Network = &netv1.Network{Listeners: found.Network.Listeners}
		found.Links = nil
	}
	a.record.Network = found.Network

	s.tellAbsent(a, before)
	if err := s.dropAbsent(a); err != nil {
		return err
	}
	for id := range a.unmade {
		if a.link(id) == nil {
			delete(a.unmade, id)
		}
	}
	var fresh []*netv1.Nic
	for i, l := range found.Links {
		link := found.Network.Links[i]
		if _, note := wire.Model(l, a.record.Policy.Model); note != "" {
			problems = append(problems, note)
		}
		if u := a.unmade[link.Id]; u != nil && !strict && u.waits(link) {
			problems = append(problems, u.problem)
			continue
		}
		if nic := a.nic(link.Id); nic != nil {
			if a.unjoined[nic] { // an earlier look did not come so far
				fresh = append(fresh, nic)
			}
			continue
		}
		nic, err := wire.Plan(a.ns, l, link.Id, a.record.Policy.Model, a.record.Policy.Queues)
		if err != nil && strict {
			return err
		}
		if err != nil {
			problems = append(problems, err.Error())
			continue
		}
		nic.Vhost = s.vhost()
		fresh = append(fresh, nic)
		a.record.Nics = append(a.record.Nics, nic)
		a.unjoined[nic] = true
	}
	if len(fresh) > 0 {
		if err := s.save(ctx, a, "record"); err != nil {
			return err
		}
	}
	for _, nic := range fresh {
		if err := ctx.Err(); err != nil {
			return fmt.Errorf("attaching sandbox %s: %w", a.sandbox, err)
		}
		err := s.wireOf(a, nic).Join()
		if err != nil && strict {
			return err
		}
		if err != nil {
			problem := fmt.Sprintf("the VM does not have %v", err)
			problems = append(problems, problem)
			wait := a.notMade(a.link(nic.Link), problem)
			s.log.Warn("link not joined", "sandbox", a.sandbox, "error", err, "again_in", wait)
			if err := s.take(a, nic); err != nil {
				return err
			}
			continue
		}
		delete(a.unmade, nic.Link)
		delete(a.unjoined, nic)
	}
	if err := s.followLinks(a, before, fresh); err != nil {
		problems = append(problems, err.Error())
		s.log.Warn("a change of a link is not followed", "sandbox", a.sandbox, "error", err)
	}
	for _, nic := range a.record.Nics {
		for _, sentence := range s.guard.Problems(s.guarded(a, nic)) {
			if !slices.Contains(problems, sentence) {
				problems = append(problems, sentence)
			}
		}
	}
	a.record.Problems = problems
	return nil
}

// tellAbsent tells whoever watches that links went, before their NICs are taken back, which takes
// a while on a busy host: a guest must not send by a card that leads nowhere. What came is told when it is joined.
func (s *Service) tellAbsent(a *attachment, before *netv1.Network) {
	if !slices.ContainsFunc(a.record.Nics, func(nic *netv1.Nic) bool { return a.link(nic.Link) == nil }) {
		return
	}
	a.record.Revision++
	told := proto.CloneOf(a.record)
	told.Network = proto.CloneOf(before)
	told.Network.Links = slices.DeleteFunc(told.Network.Links, func(l *netv1.Link) bool { return a.link(l.Id) == nil })
	s.mu.Lock()
	a.shown = told
	s.mu.Unlock()
	s.feed.changed(a.sandbox)
}

// dropAbsent takes back the NICs of links that went. Their ids are not used
// again.
func (s *Service) dropAbsent(a *attachment) error {
	for _, nic := range slices.Clone(a.record.Nics) {
		if a.link(nic.Link) != nil {
			continue
		}
		if err := s.take(a, nic); err != nil {
			return err
		}
		a.record.Retired = append(a.record.Retired, nic.LinkIndex)
	}
	return nil
}

// dropBroken takes back the rest of NICs whose device somebody else removed. The
// card of a VM leads nowhere then; the link comes back by another id, so that the
// VM gets a card anew.
func (s *Service) dropBroken(a *attachment) error {
	for _, nic := range slices.Clone(a.record.Nics) {
		var absent netlink.LinkNotFoundError
		if _, err := a.ns.Netlink().LinkByName(nic.Device); a.unjoined[nic] || !errors.As(err, &absent) {
			continue
		}
		s.log.Warn("the device of a NIC was removed by somebody else; it is made anew", "sandbox", a.sandbox, "link", nic.Link, "device", nic.Device)
		if err := s.take(a, nic); err != nil {
			return err
		}
		a.record.Retired = append(a.record.Retired, nic.LinkIndex)
	}
	return nil
}

// take takes a NIC back and out of the record.
func (s *Service) take(a *attachment, nic *netv1.Nic) error {
	if err := s.wireOf(a, nic).Leave(); err != nil {
		return fmt.Errorf("taking back what was made for %w", err)
	}
	delete(a.unjoined, nic)
	a.record.Nics = slices.DeleteFunc(a.record.Nics, func(n *netv1.Nic) bool { return n == nic })
	return nil
}

// followLinks gives changed MTUs to the taps and changed addresses to the guard.
func (s *Service) followLinks(a *attachment, before *netv1.Network, fresh []*netv1.Nic) error {
	for _, nic := range a.record.Nics {
		now := a.link(nic.Link)
		if now == nil || slices.Contains(fresh, nic) {
			continue
		}
		i := slices.IndexFunc(before.Links, func(l *netv1.Link) bool { return l.Id == nic.Link })
		if i >= 0 && sameForNIC(before.Links[i], now) {
			continue
		}
		w := s.wireOf(a, nic)
		if err := w.SetMTU(); err != nil {
			return err
		}
		if err := s.guard.Update(s.guarded(a, nic)); err != nil {
			return fmt.Errorf("the checks of link %s do not know its addresses of now: %w", now.Name, err)
		}
	}
	return nil
}

// wireOf is the host's side of a NIC, with the guard on it.
func (s *Service) wireOf(a *attachment, nic *netv1.Nic) *wire.Wire {
	w := &wire.Wire{
		NS: a.ns, NIC: nic, Alias: s.alias(a.sandbox, nic.Link), Attached: a.record.Attached.AsTime(), Step: s.step,
		Guard:   func() error { return s.guard.Attach(s.guarded(a, nic)) },
		Unguard: func() error { return s.guard.Detach(s.guarded(a, nic)) },
	}
	if l := a.link(nic.Link); l != nil {
		w.MTU = l.Mtu
	}
	return w
}

func (s *Service) guarded(a *attachment, nic *netv1.Nic) Guarded {
	g := Guarded{NS: a.ns, Device: nic.Device, Model: nic.Model, Policy: a.record.Policy, Facts: a.link(nic.Link)}
	if g.Facts == nil {
		g.Facts = &netv1.Link{Id: nic.Link, Index: nic.LinkIndex}
	}
	if nic.Model == wire.ModelTC {
		g.Link = g.Facts.Name
	}
	return g
}

// idOf is the id of the link with an index: another one when the index was a
// former link's.
func (a *attachment) idOf(index int) string {
	former := 0
	for _, r := range a.record.Retired {
		if int(r) == index {
			former++
		}
	}
	if former > 0 {
		return fmt.Sprintf("nic%d-%d", index, former+1)
	}
	return fmt.Sprintf("nic%d", index)
}

// macOf is what the link with an index had before it was changed.
func (a *attachment) macOf(index int) string {
	for _, nic := range a.record.Nics {
		if int(nic.LinkIndex) == index {
			return nic.LinkMac
		}
	}
	return ""
}

func (a *attachment) nic(id string) *netv1.Nic {
	for _, nic := range a.record.Nics {
		if nic.Link == id {
			return nic
		}
	}
	return nil
}

func (a *attachment) link(id string) *netv1.Link {
	for _, l := range a.record.Network.GetLinks() {
		if l.Id == id {
			return l
		}
	}
	return nil
}

// sameForNIC tells whether nothing changed that the host's side depends on.
func sameForNIC(a, b *netv1.Link) bool {
	return a.Mac == b.Mac && a.Mtu == b.Mtu && a.Name == b.Name &&
		slices.EqualFunc(a.Addresses, b.Addresses, func(x, y *netv1.Address) bool { return proto.Equal(x, y) })
}
