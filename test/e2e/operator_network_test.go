// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	netv1 "bulkhead/proto/net/v1"
)

func TestAnOperatorSeesTheNetworksOfVMs(t *testing.T) {
	t.Parallel()
	d := newDocker(t)
	o := newOperator(t, sharedHost(t))
	events := o.follow("sub", "ev.e2e.net.>")
	if err := events.Until(within(t, commandTime), "Subscribing"); err != nil {
		t.Fatal(err)
	}
	first, second := d.network("--subnet", "10.222.0.0/24"), d.network("--subnet", "10.223.0.0/24")
	name := d.serveOn(runtimeUnderTest(), first, "--ip", "10.222.0.22")

	of := func() *netv1.Attachment {
		t.Helper()
		list := &netv1.ListReply{}
		unmarshal(t, o.do("req", "e2e.net.list", "{}", "--raw"), list)
		i := slices.IndexFunc(list.Attachments, func(a *netv1.Attachment) bool {
			return slices.ContainsFunc(a.Network.GetLinks(), func(l *netv1.Link) bool {
				return slices.ContainsFunc(l.Addresses, func(a *netv1.Address) bool { return a.Prefix == "10.222.0.22/24" })
			})
		})
		if i < 0 {
			t.Fatalf("no attachment has the container's address: %s", o.do("req", "e2e.net.list", "{}", "--raw"))
		}
		return list.Attachments[i]
	}
	a := of()
	expect(t, "the number of links", len(a.Network.Links), 1)
	link := a.Network.Links[0]
	expect(t, "the link", link.Name+" "+link.Kind+" "+link.Mac, "eth0 veth "+d.endpoint(name, first, "MacAddress"))
	expect(t, "the model", a.Nics[0].Model, "tc")
	expect(t, "what the VM cannot have", strings.Join(a.Problems, "; "), "")
	o.says(o.do("kv", "get", "networks", a.Sandbox, "--raw"), "10.222.0.22/24", `"model"`)
	if err := events.Until(within(t, commandTime), "ev.e2e.net."+a.Sandbox+".attached"); err != nil {
		t.Error(err)
	}

	d.probe(name, "-bytes", "1000000", "upload", "127.0.0.1:7000")
	reaches(t, d.engine.Net, "10.222.0.22:7000")
	stats := &netv1.StatsReply{}
	unmarshal(t, o.do("req", "e2e.net.stats", fmt.Sprintf(`{"sandbox":%q}`, a.Sandbox), "--raw"), stats)
	if len(stats.Nics) != 1 || stats.Nics[0].RxPackets == 0 || stats.Nics[0].TxPackets == 0 {
		t.Errorf("the statistics are %v", stats)
	}

	d.do("network", "connect", second, name)
	d.do("network", "disconnect", first, name)
	for _, event := range []string{"link_added", "link_removed"} {
		if err := events.Until(within(t, commandTime), "ev.e2e.net."+a.Sandbox+"."+event); err != nil {
			t.Error(err)
		}
	}
	d.remove(name)
	if err := events.Until(within(t, commandTime), "ev.e2e.net."+a.Sandbox+".detached"); err != nil {
		t.Error(err)
	}
	must(t, cleanTime, func() error {
		if r := o.try("kv", "get", "networks", a.Sandbox, "--raw"); r.Code == 0 {
			return fmt.Errorf("the record is still there: %s", r.Stdout)
		}
		return nil
	})
}
