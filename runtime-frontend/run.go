// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package frontend

import (
	"context"
	"fmt"
	"os"

	"github.com/urfave/cli/v3"
	"golang.org/x/sys/unix"

	"bulkhead/bus"
)

var runCommand = command{
	name: "run", usage: "create a container, start it and wait for its end", args: "ID",
	description: "Ends with the exit status of the container's program, and removes the container, unless --detach or --keep say otherwise.",
	flags: func() []cli.Flag {
		return append(createFlags(), append([]cli.Flag{
			&cli.BoolFlag{Name: "detach", Aliases: []string{"d"}, Usage: "return when the program runs"},
			&cli.BoolFlag{Name: "keep", Usage: "do not remove the container when it ended"},
		}, ignoredFlags("no-subreaper")...)...)
	},
	minArgs: 1, maxArgs: 1,
	run: runContainer,
}

func runContainer(ctx context.Context, inv *invocation) error {
	ref, err := inv.ref()
	if err != nil {
		return err
	}
	opts, err := newLaunchOptions(inv)
	if err != nil {
		return err
	}
	opts.foreground = !inv.Bool("detach")
	createCtx, signals := interruptible(ctx)
	defer signals.stop()
	relay, err := create(createCtx, inv, ref, opts)
	if err != nil {
		return err
	}
	startCtx, cancel := context.WithTimeout(createCtx, commandDeadline)
	defer cancel()
	if err := start(startCtx, inv, ref); err != nil {
		// Nobody else knows of this container: it must not stay behind.
		undoCtx, cancel := context.WithTimeout(context.WithoutCancel(ctx), undoTime)
		defer cancel()
		if removeErr := remove(undoCtx, inv, ref, true); removeErr != nil {
			_ = relay.Kill() // then at least the worker takes notice
			inv.reporter().Debug("removing the container: %s", errorText(removeErr))
		}
		if opts.pidFile != "" {
			os.Remove(opts.pidFile)
		}
		return interrupted(createCtx, err)
	}
	if !opts.foreground {
		return nil
	}
	status, err := waitForeground(ctx, relay, signals)
	if !inv.Bool("keep") {
		removeCtx, cancel := context.WithTimeout(context.WithoutCancel(ctx), commandDeadline)
		defer cancel()
		if removeErr := remove(removeCtx, inv, ref, true); removeErr != nil && bus.ReasonOf(removeErr) != bus.NotFound {
			inv.reporter().Warn(fmt.Sprintf("the container %q is not removed: %s", ref.GetId(), errorText(removeErr)))
		}
	}
	if err != nil {
		return fmt.Errorf("waiting for the end of %q: %w", ref.GetId(), err)
	}
	if status != 0 {
		return exitStatus(status)
	}
	return nil
}

// waitForeground passes the signals that this command gets on to the relay,
// which is the container on the host, until it ends.
func waitForeground(ctx context.Context, relay hostProcess, signals *interrupts) (int, error) {
	pid := int(relay.Identity().GetPid())
	signals.forwardTo(func(sig unix.Signal) { _ = unix.Kill(pid, sig) })
	return relay.Wait(ctx)
}
