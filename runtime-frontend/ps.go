// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package frontend

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os/exec"
	"slices"
	"strconv"
	"strings"

	"github.com/urfave/cli/v3"

	vmv1 "bulkhead/proto/vm/v1"
)

var psCommand = command{
	name: "ps", usage: "list the host processes that stand for a container's", args: "ID [PS OPTIONS]",
	description: "Lists the relays of a container: one process on the host for its init and for each exec.\n" +
		"The processes inside of the virtual machine are not the host's and cannot be listed by it.",
	flags: func() []cli.Flag {
		return []cli.Flag{&cli.StringFlag{Name: "format", Aliases: []string{"f"}, Usage: "`FORMAT`: table or json", Value: "table"}}
	},
	minArgs: 1, maxArgs: -1, freeArgs: true, deadline: commandDeadline,
	run: func(ctx context.Context, inv *invocation) error {
		ref, err := inv.ref()
		if err != nil {
			return err
		}
		format, err := inv.format()
		if err != nil {
			return err
		}
		reply, err := call[vmv1.ProcessesReply](ctx, inv, "processes", &vmv1.ProcessesRequest{Ref: ref})
		if err != nil {
			return orNotFound(err)
		}
		pids := append([]int32{}, reply.GetPids()...) // never null
		if format == "json" {
			return json.NewEncoder(inv.std.Out).Encode(pids)
		}
		options := inv.Args().Tail()
		if len(options) == 0 {
			options = []string{"-ef"}
		}
		return psTable(ctx, inv.std.Out, pids, options)
	},
}

// psTable prints what ps(1) says about some pids, its header first.
func psTable(ctx context.Context, w io.Writer, pids []int32, options []string) error {
	cmd := exec.CommandContext(ctx, "ps", options...)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return fmt.Errorf("running ps %s: %w: %s", strings.Join(options, " "), err, bytes.TrimSpace(stderr.Bytes()))
	}
	lines := bufio.NewScanner(bytes.NewReader(out))
	lines.Buffer(nil, 1<<20)
	column := -1
	for lines.Scan() {
		fields := strings.Fields(lines.Text())
		if column < 0 {
			if column = slices.Index(fields, "PID"); column < 0 {
				return errors.New("the output of ps has no column PID: choose options that print one")
			}
			fmt.Fprintln(w, lines.Text())
			continue
		}
		if column >= len(fields) {
			continue
		}
		if pid, err := strconv.ParseInt(fields[column], 10, 32); err == nil && slices.Contains(pids, int32(pid)) {
			fmt.Fprintln(w, lines.Text())
		}
	}
	return lines.Err()
}
