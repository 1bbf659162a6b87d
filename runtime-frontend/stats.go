// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package frontend

import (
	"context"
	"fmt"
	"strings"
	"text/tabwriter"

	"github.com/urfave/cli/v3"
	"google.golang.org/protobuf/encoding/protojson"

	vmv1 "bulkhead/proto/vm/v1"
)

var statsCommand = command{
	name: "stats", usage: "print what every virtual machine costs its host in memory",
	description: "Prints the memory of all virtual machines of this host, of every root, once. COST is what goes when the machine goes:\n" +
		"its part of all pages that it has (PSS), its page tables and its relays. PRIVATE is nobody else's, TEMPLATE is still shared\n" +
		"with the template it came from, KSM SAVED is what merging equal pages saves. USED and OF are the guest's own words. What machines are made from is in the last lines.",
	flags: func() []cli.Flag {
		return []cli.Flag{
			&cli.StringFlag{Name: "format", Aliases: []string{"f"}, Usage: "`FORMAT`: table or json", Value: "table"},
		}
	},
	deadline: commandDeadline,
	run: func(ctx context.Context, inv *invocation) error {
		if err := inv.check(); err != nil {
			return err
		}
		format, err := inv.format()
		if err != nil {
			return err
		}
		reply, err := vmv1.StatsOfAll(func(req *vmv1.StatsRequest) (*vmv1.StatsReply, error) {
			return call[vmv1.StatsReply](ctx, inv, "stats", req)
		})
		if err != nil {
			return err
		}
		if format == "json" {
			text, err := protojson.Marshal(reply)
			if err != nil {
				return err
			}
			_, err = fmt.Fprintln(inv.std.Out, string(text))
			return err
		}
		w := tabwriter.NewWriter(inv.std.Out, 0, 1, 2, ' ', tabwriter.AlignRight)
		fmt.Fprintln(w, "VM\tCOST\tRSS\tPSS\tPRIVATE\tTEMPLATE\tKSM SAVED\tRELAYS\tUSED\tOF\t  CONTAINERS")
		for _, m := range append(reply.GetVms(), reply.GetTotal()) {
			fmt.Fprint(w, m.GetSandbox())
			for _, n := range []uint64{m.GetCostBytes(), m.GetRssBytes(), m.GetPssBytes(), m.GetPrivateBytes(), m.GetTemplateSharedBytes(),
				m.GetKsmSavedBytes(), m.GetRelaysPssBytes(), m.GetGuestUsedBytes(), m.GetGuestTotalBytes()} {
				fmt.Fprintf(w, "\t%.1f", float64(n)/(1<<20))
			}
			fmt.Fprintf(w, "\t  %s\n", strings.Join(m.GetContainers(), " "))
		}
		if err := w.Flush(); err != nil {
			return err
		}
		stock := reply.GetStock()
		fmt.Fprintf(inv.std.Out, "\nbeside them, for all: %.1f in templates, %.1f in processes that fork VMs", float64(stock.GetTemplatesBytes())/(1<<20), float64(stock.GetZygotesPssBytes())/(1<<20))
		fmt.Fprintf(inv.std.Out, "\nMiB; the host has %.0f, of which %.0f can be had\n", float64(reply.GetHostTotalBytes())/(1<<20), float64(reply.GetHostAvailableBytes())/(1<<20))
		return nil
	},
}
