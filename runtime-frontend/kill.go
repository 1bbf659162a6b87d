// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package frontend

import (
	"context"
	"fmt"
	"strconv"
	"strings"

	"github.com/urfave/cli/v3"
	"golang.org/x/sys/unix"

	"bulkhead/bus"
	vmv1 "bulkhead/proto/vm/v1"
)

var killCommand = command{
	name: "kill", usage: "send a signal to a container", args: "ID [SIGNAL=TERM]",
	description: "Sends the signal to the container's init process, or with --all to every process in it.",
	flags: func() []cli.Flag {
		return []cli.Flag{&cli.BoolFlag{Name: "all", Aliases: []string{"a"}, Usage: "signal every process of the container"}}
	},
	minArgs: 1, maxArgs: 2, deadline: killDeadline,
	run: func(ctx context.Context, inv *invocation) error {
		ref, err := inv.ref()
		if err != nil {
			return err
		}
		signal, err := parseSignal(inv.Args().Get(1))
		if err != nil {
			return err
		}
		_, err = call[vmv1.KillReply](ctx, inv, "kill", &vmv1.KillRequest{Ref: ref, Signal: int32(signal), All: inv.Bool("all")})
		switch bus.ReasonOf(err) {
		case bus.NotFound:
			return errNotFound
		case bus.FailedPrecondition:
			// containerd sends "--all 9" after the end of a container that shares a
			// PID namespace, and takes a failure for its own.
			if record, lookErr := lookUp(ctx, inv, ref); inv.Bool("all") && lookErr == nil && newState(record).Status == "stopped" {
				return nil
			}
		}
		return err
	},
}

// maxSignal is the last real-time signal of Linux.
const maxSignal = 64

// parseSignal reads 9, 0, KILL, SIGKILL and the RTMIN+n and RTMAX-n forms.
func parseSignal(text string) (unix.Signal, error) {
	if text == "" {
		return unix.SIGTERM, nil
	}
	if n, err := strconv.Atoi(text); err == nil {
		if n < 0 || n > maxSignal { // 0 asks whether there is a process to signal, as in kill(2)
			return 0, fmt.Errorf("unknown signal %q: numbers are 1 to %d", text, maxSignal)
		}
		return unix.Signal(n), nil
	}
	name := "SIG" + strings.TrimPrefix(strings.ToUpper(text), "SIG")
	if signal := unix.SignalNum(name); signal != 0 {
		return signal, nil
	}
	// glibc's names for the real-time signals; the first two belong to its threads.
	const first, last = 34, maxSignal
	for _, form := range []struct {
		prefix string
		base   int
	}{{"SIGRTMIN", first}, {"SIGRTMAX", last}} {
		offset, ok := strings.CutPrefix(name, form.prefix)
		if !ok {
			continue
		}
		n, err := 0, error(nil)
		if offset != "" {
			n, err = strconv.Atoi(offset)
		}
		if signal := form.base + n; err == nil && signal >= first && signal <= last {
			return unix.Signal(signal), nil
		}
	}
	return 0, fmt.Errorf("unknown signal %q", text)
}
