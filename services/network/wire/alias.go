// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package wire

import (
	"fmt"
	"strings"
	"time"

	"github.com/vishvananda/netlink"

	netv1 "bulkhead/proto/net/v1"
)

// fullAlias is the alias of the devices: whose they are and what was made beside
// them, so that a NIC can be taken back when its record is lost.
func (w *Wire) fullAlias() string {
	n := w.NIC
	mac := n.LinkMac
	if mac == "" {
		mac = "-"
	}
	return fmt.Sprintf("%s %d %d %s %d %t %t %s", w.Alias, w.Attached.UnixNano(), n.LinkIndex, n.Model, n.Queues, n.QdiscFound, n.AllMulticast, mac)
}

// Recover reads a NIC from the alias of its tap or macvtap, which begins with
// prefix.
func Recover(l netlink.Link, prefix string) (sandbox string, attached time.Time, nic *netv1.Nic, ok bool) {
	text, ours := strings.CutPrefix(l.Attrs().Alias, prefix)
	if !ours || l.Type() == "bridge" {
		return "", attached, nil, false
	}
	whose, rest, _ := strings.Cut(text, " ")
	sandbox, link, found := strings.Cut(whose, ":")
	nic = &netv1.Nic{Link: link, Device: l.Attrs().Name}
	var since int64
	n, err := fmt.Sscanf(rest, "%d %d %s %d %t %t %s", &since, &nic.LinkIndex, &nic.Model, &nic.Queues, &nic.QdiscFound, &nic.AllMulticast, &nic.LinkMac)
	if !found || err != nil || n != 7 {
		return "", attached, nil, false
	}
	if nic.LinkMac == "-" {
		nic.LinkMac = ""
	}
	if nic.Model == ModelBridge {
		nic.Bridge = bridgeName(int(nic.LinkIndex))
	}
	return sandbox, time.Unix(0, since), nic, true
}

func tapName(index int) string    { return fmt.Sprintf("bhtap%d", index) }
func bridgeName(index int) string { return fmt.Sprintf("bhbr%d", index) }
