// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package frontend

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"text/tabwriter"
	"time"

	"github.com/urfave/cli/v3"

	vmv1 "bulkhead/proto/vm/v1"
)

var listCommand = command{
	name: "list", usage: "list the containers of this root",
	description: "Lists the containers that were created with the same --root.",
	flags: func() []cli.Flag {
		return []cli.Flag{
			&cli.StringFlag{Name: "format", Aliases: []string{"f"}, Usage: "`FORMAT`: table or json", Value: "table"},
			&cli.BoolFlag{Name: "quiet", Aliases: []string{"q"}, Usage: "print only ids"},
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
		reply, err := vmv1.ListAll(inv.root, func(req *vmv1.ListRequest) (*vmv1.ListReply, error) {
			return call[vmv1.ListReply](ctx, inv, "list", req)
		})
		if err != nil {
			return err
		}
		states := []state{} // never null
		for _, record := range reply.GetContainers() {
			if record.GetRef().GetRoot() == inv.root {
				states = append(states, newState(record))
			}
		}
		slices.SortFunc(states, func(a, b state) int { return cmp.Compare(a.ID, b.ID) })
		switch {
		case inv.Bool("quiet"):
			for _, s := range states {
				fmt.Fprintln(inv.std.Out, s.ID)
			}
			return nil
		case format == "json":
			return json.NewEncoder(inv.std.Out).Encode(states)
		}
		w := tabwriter.NewWriter(inv.std.Out, 12, 1, 3, ' ', 0)
		fmt.Fprint(w, "ID\tPID\tSTATUS\tBUNDLE\tCREATED\tOWNER\n")
		for _, s := range states {
			fmt.Fprintf(w, "%s\t%d\t%s\t%s\t%s\t%s\n", s.ID, s.PID, s.Status, s.Bundle, s.Created.Format(time.RFC3339Nano), s.Owner)
		}
		return w.Flush()
	},
}
