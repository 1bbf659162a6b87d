// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package vmworker

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"os"
	"strings"

	"bulkhead/bus"
	netv1 "bulkhead/proto/net/v1"
	"bulkhead/vm-worker/hypervisor"
)

// cardID names the card of a link. It follows from the attachment too: one that was taken
// back and made again has other taps, and the cards of the first lead nowhere.
func cardID(a *netv1.Attachment, link string) string {
	sum := sha256.Sum256([]byte(a.GetAttached().AsTime().String()))
	return link + "-" + hex.EncodeToString(sum[:3])
}

// plug gives the VM the cards that it lacks, and returns the addresses of all that it has, by id.
// The caller has the turn.
func (n *network) plug(ctx context.Context, a *netv1.Attachment) (cards map[string]string, err error) {
	vm := n.s.living()
	if vm == nil {
		return nil, errVMEnded(n.s.id)
	}
	have, err := vm.NICs(ctx)
	if err != nil {
		return nil, err
	}
	cards, taken := map[string]string{}, map[string]bool{}
	for _, nic := range have {
		cards[nic.ID] = nic.MAC
		taken[nic.MAC] = true
	}
	for _, nic := range a.GetNics() {
		link := linkOf(a, nic.GetLink())
		if link == nil {
			continue
		}
		id := cardID(a, link.GetId())
		if cards[id] != "" {
			continue
		}
		for old, mac := range cards { // of the same link, before its host side was made anew: it may hold the queues
			if !strings.HasPrefix(old, link.GetId()+"-") {
				continue
			}
			if err := vm.DetachNIC(ctx, old); err != nil {
				n.s.w.log.Warn("network card not taken out of the VM; it leads nowhere", "sandbox", n.s.id, "card", old, "error", err)
				continue // its address stays taken
			}
			delete(cards, old)
			delete(taken, mac)
		}
		mac := n.cardMAC(link, taken)
		if err := n.plugOne(ctx, vm, id, link, mac); err != nil {
			return nil, fmt.Errorf("give the VM %s the interface %s: %w", n.s.id, link.GetName(), err)
		}
		cards[id] = mac
		taken[mac] = true
	}
	return cards, nil
}

// cardMAC is the address of a card: the link's, so that nothing has to be changed
// in the guest, unless it has none or, as links of one ipvlan, the same as another.
func (n *network) cardMAC(link *netv1.Link, taken map[string]bool) string {
	if mac, err := net.ParseMAC(link.GetMac()); err == nil && len(mac) == 6 && !taken[mac.String()] {
		return mac.String()
	}
	sum := sha256.Sum256([]byte(n.s.id + " " + link.GetId()))
	mac := net.HardwareAddr(sum[:6])
	mac[0] = mac[0]&^1 | 2 // of one device, given locally
	return mac.String()
}

// plugOne gives the VM a card. A worker before this one may have been killed with half
// of it done: what QEMU has of the card then keeps its queues, and goes before a second
// attempt.
func (n *network) plugOne(ctx context.Context, vm hypervisor.VM, id string, link *netv1.Link, mac string) error {
	err := n.tryPlug(ctx, vm, id, link, mac)
	if reason := bus.ReasonOf(err); reason == "" || reason == bus.Unavailable || reason == bus.NotFound || ctx.Err() != nil {
		return err
	}
	if cutErr := vm.DetachNIC(ctx, id); cutErr != nil {
		return errors.Join(err, cutErr)
	}
	return n.tryPlug(ctx, vm, id, link, mac)
}

// tryPlug has the queues of a link handed over and gives them to the VM.
func (n *network) tryPlug(ctx context.Context, vm hypervisor.VM, id string, link *netv1.Link, mac string) error {
	token := bus.NewOperationID()
	reply, err := callNet[netv1.OpenReply](ctx, n.s.w, "open", &netv1.OpenRequest{Sandbox: n.s.id, Link: link.GetId(), Token: token})
	files, claimErr := n.s.w.handover.Claim(token) // also when the answer was lost: they are ours to close
	defer closeAll(files)
	if err := errors.Join(err, claimErr); err != nil {
		return err
	}
	queues := int(reply.GetQueues())
	want := queues
	if reply.GetVhost() {
		want *= 2
	}
	if queues < 1 || len(files) != want {
		return fmt.Errorf("the net service handed over %d descriptors for %d queues", len(files), queues)
	}
	var vhost []*os.File
	if reply.GetVhost() {
		vhost = files[queues:]
	}
	return vm.AttachNIC(ctx, hypervisor.NIC{ID: id, MAC: mac, Queues: files[:queues], VHost: vhost})
}
