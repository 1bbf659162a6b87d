// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package qemu

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"strings"

	"bulkhead/vm-worker/hypervisor"
)

// nicPrefix begins the id of a card's device, netPrefix that of the other end of
// its queues, which QEMU calls a netdev.
const (
	nicPrefix = "nic-"
	netPrefix = "net-"
)

// fdKind is what a descriptor is that QEMU is given for a card.
type fdKind string

const (
	queueFD fdKind = "q"
	vhostFD fdKind = "v"
)

func fdName(id string, kind fdKind, i int) string {
	return fmt.Sprintf("%s%s-%s%d", netPrefix, id, kind, i)
}

// maxQueues is the most queue pairs of a card: its interrupts and registers must
// fit into what the bridge has for it.
const maxQueues = 8

// AttachNIC implements hypervisor.VM. QEMU gets the queues open, so it needs no
// right over any network and its jail stays as it is.
//
// The card has no MTU of its own (host_mtu): the guest is told the link's, which
// can change while it runs, and a card's cannot. It has no option ROM, as nobody
// boots from it.
func (v *vm) AttachNIC(ctx context.Context, n hypervisor.NIC) error {
	if err := v.attachNIC(ctx, n); err != nil {
		return v.wrap(fmt.Errorf("network card %s: %w", n.ID, err))
	}
	return nil
}

func (v *vm) attachNIC(ctx context.Context, n hypervisor.NIC) (err error) {
	mac, macErr := net.ParseMAC(n.MAC)
	switch queues := len(n.Queues); {
	case !validDeviceID(n.ID):
		return fmt.Errorf("its id %q is not a letter and up to 19 letters, digits and '-'", n.ID)
	case macErr != nil || len(mac) != 6:
		return fmt.Errorf("%q is no MAC address", n.MAC)
	case queues < 1 || queues > maxQueues:
		return fmt.Errorf("it has %d queues: a card has 1 to %d", queues, maxQueues)
	case len(n.VHost) != 0 && len(n.VHost) != queues:
		return fmt.Errorf("it has %d queues and %d descriptors of vhost-net", queues, len(n.VHost))
	}
	late, cancel := context.WithTimeout(context.WithoutCancel(ctx), undoTime)
	defer cancel()
	var given []string // names of descriptors that QEMU still holds for us
	defer func() {
		if err == nil {
			return
		}
		for _, name := range given { // those that the failed command took are not found
			_ = v.monitor.execute(late, "closefd", map[string]string{"fdname": name}, nil)
		}
	}()
	give := func(kind fdKind, files []*os.File) (string, error) {
		var names []string
		for i, f := range files {
			name := fdName(n.ID, kind, i)
			if err := v.monitor.executeWith(ctx, "getfd", map[string]string{"fdname": name}, nil, f); err != nil {
				return "", err
			}
			given, names = append(given, name), append(names, name)
		}
		return strings.Join(names, ":"), nil
	}
	netdev := map[string]any{"type": "tap", "id": netPrefix + n.ID}
	if netdev["fds"], err = give(queueFD, n.Queues); err != nil {
		return err
	}
	if len(n.VHost) > 0 {
		netdev["vhost"] = true
		if netdev["vhostfds"], err = give(vhostFD, n.VHost); err != nil {
			return err
		}
	}
	if err := v.monitor.execute(ctx, "netdev_add", netdev, nil); err != nil {
		return err
	}
	given = nil // the netdev's now
	device := map[string]any{
		"driver": "virtio-net-pci", "id": nicPrefix + n.ID, "bus": hotplugBus, "disable-legacy": "on",
		"netdev": netPrefix + n.ID, "mac": mac.String(), "romfile": "",
		"mq": len(n.Queues) > 1, "vectors": 2*len(n.Queues) + 2, // for each direction of each queue, for control, for changes
	}
	if err := v.monitor.execute(ctx, "device_add", device, nil); err != nil {
		return errors.Join(err, v.monitor.execute(late, "netdev_del", map[string]string{"id": netPrefix + n.ID}, nil))
	}
	return nil
}

// DetachNIC implements hypervisor.VM.
func (v *vm) DetachNIC(ctx context.Context, id string) error {
	err := v.detachNIC(ctx, id)
	if err == nil || v.gone() {
		return nil // it went with its process
	}
	return v.wrap(fmt.Errorf("network card %s: %w", id, err))
}

func (v *vm) detachNIC(ctx context.Context, id string) error {
	err := v.unplug(ctx, nicPrefix+id)
	if isAbsent(err) {
		err = nil
	}
	late, cancel := context.WithTimeout(context.WithoutCancel(ctx), undoTime)
	defer cancel()
	// Also of a device that stays: then it has nothing behind it.
	cutErr := v.monitor.execute(late, "netdev_del", map[string]string{"id": netPrefix + id}, nil)
	if isAbsent(cutErr) {
		cutErr = nil
	}
	return errors.Join(err, cutErr, v.closeLeft(late, id))
}

// closeLeft closes the descriptors that QEMU holds for a card whose making was cut
// short. They were given one after the other.
func (v *vm) closeLeft(ctx context.Context, id string) error {
	for _, kind := range []fdKind{queueFD, vhostFD} {
		for i := range maxQueues {
			err := v.monitor.execute(ctx, "closefd", map[string]string{"fdname": fdName(id, kind, i)}, nil)
			if isAbsent(err) {
				break
			}
			if err != nil {
				return err
			}
		}
	}
	return nil
}

// isAbsent tells whether QEMU refused because there is no such thing.
func isAbsent(err error) bool {
	var refused *qmpError
	return errors.As(err, &refused) && (refused.Class == "DeviceNotFound" || strings.HasSuffix(refused.Desc, "not found"))
}

// NICs implements hypervisor.VM. QEMU is asked, so an adopted VM needs no record of them.
func (v *vm) NICs(ctx context.Context) ([]hypervisor.PluggedNIC, error) {
	var devices []struct{ Name, Type string }
	if err := v.monitor.execute(ctx, "qom-list", map[string]string{"path": "/machine/peripheral"}, &devices); err != nil {
		return nil, v.wrap(err)
	}
	var nics []hypervisor.PluggedNIC
	for _, d := range devices {
		id, ours := strings.CutPrefix(d.Name, nicPrefix)
		if !ours || d.Type != "child<virtio-net-pci>" {
			continue
		}
		var mac string
		err := v.monitor.execute(ctx, "qom-get", map[string]string{"path": "/machine/peripheral/" + d.Name, "property": "mac"}, &mac)
		if isAbsent(err) {
			continue // the guest has let go of it just now
		}
		if err != nil {
			return nil, v.wrap(fmt.Errorf("network card %s: %w", id, err))
		}
		nics = append(nics, hypervisor.PluggedNIC{ID: id, MAC: mac})
	}
	return nics, nil
}
