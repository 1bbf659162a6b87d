// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package frontend

import (
	"context"
	"time"

	"github.com/urfave/cli/v3"
)

var createCommand = command{
	name: "create", usage: "create a container", args: "ID",
	description: "Starts a virtual machine for the bundle and sets the container up in it. Its program runs with \"start\".",
	flags:       createFlags,
	minArgs:     1, maxArgs: 1,
	run: func(ctx context.Context, inv *invocation) error {
		ref, err := inv.ref()
		if err != nil {
			return err
		}
		opts, err := newLaunchOptions(inv)
		if err != nil {
			return err
		}
		ctx, signals := interruptible(ctx)
		defer signals.stop()
		_, err = create(ctx, inv, ref, opts)
		return err
	},
}

func createFlags() []cli.Flag {
	return append([]cli.Flag{
		&cli.StringFlag{Name: "bundle", Aliases: []string{"b"}, Usage: "`DIR` of the bundle (default: the working directory)"},
		&cli.StringFlag{Name: "console-socket", Usage: "unix `SOCKET` that receives the terminal's master"},
		&cli.StringFlag{Name: "pidfd-socket", Usage: "unix `SOCKET` that receives a pidfd of the container's host process"},
		&cli.StringFlag{Name: "pid-file", Usage: "`FILE` for the pid of the container's host process"},
		&cli.IntFlag{Name: "preserve-fds", Usage: "not supported above 0"},
	}, ignoredFlags("no-pivot", "no-new-keyring")...)
}

// createDeadline is twice what a boot may take: half of it for the boot, half
// for the rest. Engines give up on a create after 120 to 240 s.
func createDeadline(boot time.Duration) time.Duration { return 2 * boot }

// ignoredFlags are flags of runc that mean nothing to a virtual machine and
// that engines pass as a matter of course.
func ignoredFlags(names ...string) []cli.Flag {
	var flags []cli.Flag
	for _, name := range names {
		flags = append(flags, &cli.BoolFlag{Name: name, Usage: "ignored: it has no meaning for a virtual machine"})
	}
	return flags
}
