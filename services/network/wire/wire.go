// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

// Package wire makes the host's side of a NIC in a network namespace, and takes
// it back: a tap or macvtap that is joined to a link there.
//
// It imports proto and services/network/netspace. The invariant to remember:
// Leave takes back exactly what Join made, from whatever step of Join or Leave
// on, as often as it is called.
package wire

import (
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	netv1 "bulkhead/proto/net/v1"
	"bulkhead/services/network/netspace"
)

// The models.
const (
	ModelTC      = "tc"
	ModelMacvtap = "macvtap"
	ModelBridge  = "bridge"
	ModelNone    = "none"
)

// Wire is a NIC's host side to be made or taken back.
type Wire struct {
	NS       *netspace.Namespace
	NIC      *netv1.Nic // what is made; Plan fills it
	Alias    string     // begins that of the devices, and says whose they are
	Attached time.Time  // when the sandbox was, which is in the alias too
	MTU      uint32
	// Step is called before each step with its name; an error of it is the
	// step's. Tests fail and end the process there.
	Step func(step string) error
	// Guard is called when the device stands and nothing is joined yet. Unguard,
	// after nothing is joined any more, also where Guard was never called.
	Guard   func() error
	Unguard func() error
}

// step is one thing to do.
type step struct {
	name string
	do   func() error
}

// Plan decides how a link is joined. It looks at the link and makes nothing;
// with what it returns on record, all that Join makes can be found again.
func Plan(ns *netspace.Namespace, link netlink.Link, id, model string, queues uint32) (nic *netv1.Nic, err error) {
	a := link.Attrs()
	model, _ = Model(link, model)
	nic = &netv1.Nic{Link: id, LinkIndex: int32(a.Index), Model: model, Queues: queues, Device: tapName(a.Index)}
	for _, name := range []string{nic.Device, bridgeName(a.Index)} {
		if l, err := ns.Netlink().LinkByName(name); err == nil {
			return nil, fmt.Errorf("link %s cannot be joined: a device %s (%s, alias %q) is in the network namespace already", a.Name, name, l.Type(), l.Attrs().Alias)
		} else if !absent(err) {
			return nil, err
		}
	}
	switch model {
	case ModelTC:
		if nic.QdiscFound, err = hasIngress(ns.Netlink(), link); err != nil {
			return nil, err
		}
		// A macvlan passes on only the multicast groups that its own namespace has
		// joined, and the guest joins its own.
		nic.AllMulticast = link.Type() == "macvlan" && a.Allmulti == 0
	case ModelBridge:
		nic.Bridge = bridgeName(a.Index)
		nic.LinkMac = a.HardwareAddr.String()
	}
	return nic, nil
}

// Model is how a link is joined when a model is asked for. note says why it is
// another one.
func Model(link netlink.Link, asked string) (model, note string) {
	if asked == ModelTC {
		return asked, ""
	}
	if why := unfit(asked, link); why != "" {
		return ModelTC, fmt.Sprintf("link %s is joined by model tc instead of %s: %s", link.Attrs().Name, asked, why)
	}
	return asked, ""
}

// unfit tells why a link cannot be joined by a model that replaces what the
// kernel does with its frames.
func unfit(model string, link netlink.Link) string {
	switch link.Type() {
	case "veth", "tuntap", "dummy":
		return ""
	case "macvlan", "macvtap", "ipvlan", "ipvtap":
		if model == ModelMacvtap {
			return "a macvtap on it would stand on the device beneath it, which is the host's"
		}
		return "it passes no frames to another address than its own"
	}
	return fmt.Sprintf("a link of kind %s has a receiver of its own", link.Type())
}

// Join makes the NIC. On an error the caller calls Leave.
func (w *Wire) Join() error {
	switch w.NIC.Model {
	case ModelTC:
		return w.run([]step{
			{"tap", w.makeTap},
			{"tap-up", w.deviceUp},
			{"link-qdisc", w.linkQdisc},
			{"tap-qdisc", w.deviceQdisc},
			{"multicast", w.allMulticast},
			{"guard", w.Guard},
			{"tap-filter", func() error { return w.redirect(w.device, w.link) }},
			{"link-filter", func() error { return w.redirect(w.link, w.device) }},
		})
	case ModelMacvtap:
		return w.run([]step{
			{"macvtap", w.makeMacvtap},
			{"tap-qdisc", w.deviceQdisc},
			{"guard", w.Guard},
			{"tap-up", w.deviceUp},
		})
	case ModelBridge:
		return w.run([]step{
			{"tap", w.makeTap},
			{"tap-qdisc", w.deviceQdisc},
			{"guard", w.Guard},
			{"bridge", w.makeBridge},
			{"link-mac", w.changeMAC},
			{"enslave", w.enslave},
			{"tap-up", w.deviceUp},
		})
	}
	return fmt.Errorf("joining link %s: %q is no model", w.NIC.Link, w.NIC.Model)
}

// Leave takes the NIC back. It goes on after an error; what is not there is
// none. A link that is gone took its own half along.
func (w *Wire) Leave() error {
	// A VM may have the tap open still, and a tap that is down takes nothing from it:
	// no frame passes between the end of the guard and that of the tap, which goes last
	// as its alias tells what was made.
	steps := []step{{"take-tap-down", w.deviceDown}, {"take-link-filter", w.dropRedirect}, {"take-unguard", w.Unguard}}
	switch w.NIC.Model {
	case ModelTC:
		steps = append(steps, step{"take-multicast", w.dropAllMulticast}, step{"take-link-qdisc", w.dropLinkQdisc})
	case ModelBridge:
		steps = append(steps, step{"take-bridge", w.dropBridge}, step{"take-link-mac", w.restoreMAC})
	}
	steps = append(steps, step{"take-tap", w.dropDevice})
	var errs []error
	for _, s := range steps {
		errs = append(errs, w.run([]step{s}))
	}
	return errors.Join(errs...)
}

func (w *Wire) run(steps []step) error {
	for _, s := range steps {
		err := w.Step(s.name)
		if err == nil && s.do != nil {
			err = s.do()
		}
		if err != nil {
			return fmt.Errorf("link %s, step %s: %w", w.NIC.Link, s.name, err)
		}
	}
	return nil
}

// link is the namespace's link.
func (w *Wire) link() (netlink.Link, error) { return w.NS.Netlink().LinkByIndex(int(w.NIC.LinkIndex)) }

// device is the tap or macvtap. One of that name that the service did not make
// is none.
func (w *Wire) device() (netlink.Link, error) { return w.own(w.NIC.Device) }

func (w *Wire) own(name string) (netlink.Link, error) {
	l, err := w.NS.Netlink().LinkByName(name)
	if err != nil {
		return nil, err
	}
	if !strings.HasPrefix(l.Attrs().Alias, w.Alias+" ") {
		return nil, fmt.Errorf("device %s in the network namespace is not Bulkhead's", name)
	}
	return l, nil
}

// absent tells whether an error says that a link is not there.
func absent(err error) bool {
	var not netlink.LinkNotFoundError
	return errors.As(err, &not) || errors.Is(err, unix.ENODEV)
}

// deviceUp gives the device the link's MTU and sets it up. It gets no IPv6
// address of its own: it is a cable, and the kernel does not speak on it.
func (w *Wire) deviceUp() error {
	l, err := w.device()
	if err != nil {
		return err
	}
	if err := w.quiet(l); err != nil {
		return err
	}
	if err := w.setMTU(l); err != nil {
		return err
	}
	return w.NS.Netlink().LinkSetUp(l)
}

// deviceDown sets the device down, which nothing passes then. One that is another's
// stays as it is.
func (w *Wire) deviceDown() error {
	l, err := w.NS.Netlink().LinkByName(w.NIC.Device)
	if absent(err) || err == nil && !strings.HasPrefix(l.Attrs().Alias, w.Alias+" ") {
		return nil
	}
	if err == nil {
		err = w.NS.Netlink().LinkSetDown(l)
	}
	if absent(err) {
		return nil
	}
	return err
}

// quiet keeps the kernel from giving a device a link-local address. A kernel
// without IPv6 needs no telling.
func (w *Wire) quiet(l netlink.Link) error {
	const addrGenModeNone = 1 // IN6_ADDR_GEN_MODE_NONE
	err := w.NS.Netlink().LinkSetIP6AddrGenMode(l, addrGenModeNone)
	if errors.Is(err, unix.EAFNOSUPPORT) || errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.EINVAL) {
		return nil
	}
	return err
}

// SetMTU follows the link's MTU.
func (w *Wire) SetMTU() error {
	for _, name := range []string{w.NIC.Device, w.NIC.Bridge} {
		if name == "" {
			continue
		}
		l, err := w.own(name)
		if err == nil {
			err = w.setMTU(l)
		}
		if err != nil {
			return fmt.Errorf("set the MTU of %s: %w", name, err)
		}
	}
	return nil
}

func (w *Wire) setMTU(l netlink.Link) error {
	if l.Attrs().MTU == int(w.MTU) {
		return nil
	}
	return w.NS.Netlink().LinkSetMTU(l, int(w.MTU))
}

// dropDevice removes the tap or macvtap, whoever has it open.
func (w *Wire) dropDevice() error { return w.drop(w.NIC.Device) }

func (w *Wire) drop(name string) error {
	l, err := w.NS.Netlink().LinkByName(name)
	if absent(err) {
		return nil
	}
	if err != nil {
		return err
	}
	// Plan saw that the name was free: a device without an alias is one whose
	// making was cut short.
	if alias := l.Attrs().Alias; alias != "" && !strings.HasPrefix(alias, w.Alias+" ") {
		return nil
	}
	if err := w.NS.Netlink().LinkDel(l); !absent(err) {
		return err
	}
	return nil
}
