// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package frontend

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/urfave/cli/v3"

	"bulkhead/bus"
	vmv1 "bulkhead/proto/vm/v1"
)

var execCommand = command{
	name: "exec", usage: "run a further program in a container", args: "ID [PROGRAM [ARG...]]",
	description: "Runs the program with the environment of the container's own process, or, with --process, the process of a file.\n" +
		"Ends with the program's exit status, or 255 when it could not be run.",
	flags:   execFlags,
	minArgs: 1, maxArgs: -1, freeArgs: true, failure: execFailureStatus,
	run: func(ctx context.Context, inv *invocation) error {
		status, err := execute(ctx, inv)
		switch {
		case errors.Is(err, errNotFound):
			return errNotFound
		case err != nil:
			return fmt.Errorf("exec failed: %w", err)
		case status != 0:
			return exitStatus(status)
		}
		return nil
	},
}

func execFlags() []cli.Flag {
	return []cli.Flag{
		&cli.StringFlag{Name: "process", Aliases: []string{"p"}, Usage: "`FILE` with a process of the OCI runtime-spec"},
		&cli.BoolFlag{Name: "detach", Aliases: []string{"d"}, Usage: "return when the program runs"},
		&cli.StringFlag{Name: "pid-file", Usage: "`FILE` for the pid of the program's host process"},
		&cli.StringFlag{Name: "console-socket", Usage: "unix `SOCKET` that receives the terminal's master"},
		&cli.StringFlag{Name: "pidfd-socket", Usage: "unix `SOCKET` that receives a pidfd of the program's host process"},
		&cli.BoolFlag{Name: "tty", Aliases: []string{"t"}, Usage: "give the program a terminal"},
		&cli.StringSliceFlag{Name: "env", Aliases: []string{"e"}, Usage: "add an environment variable, `NAME=VALUE`"},
		&cli.StringFlag{Name: "user", Aliases: []string{"u"}, Usage: "`UID[:GID]` of the program"},
		&cli.Int64SliceFlag{Name: "additional-gids", Aliases: []string{"g"}, Usage: "add a supplementary `GID`"},
		&cli.StringFlag{Name: "cwd", Usage: "working `DIR` in the container"},
		&cli.StringFlag{Name: "process-label", Usage: "SELinux `LABEL`"},
		&cli.StringFlag{Name: "apparmor", Usage: "AppArmor `PROFILE`"},
		&cli.BoolFlag{Name: "no-new-privs", Usage: "forbid the program to gain privileges"},
		&cli.StringSliceFlag{Name: "cap", Aliases: []string{"c"}, Usage: "add a `CAPABILITY`"},
		&cli.IntFlag{Name: "preserve-fds", Usage: "not supported above 0"},
		&cli.StringSliceFlag{Name: "cgroup", Usage: "not supported"},
		&cli.BoolFlag{Name: "ignore-paused", Usage: "also in a paused container"},
	}
}

func execute(ctx context.Context, inv *invocation) (_ int, retErr error) {
	ref, err := inv.ref()
	if err != nil {
		return 0, err
	}
	opts, err := newLaunchOptions(inv)
	if err != nil {
		return 0, err
	}
	opts.foreground = !inv.Bool("detach")
	opts.dieWithCaller = opts.foreground
	if len(inv.StringSlice("cgroup")) > 0 {
		return 0, errors.New("--cgroup: sub-cgroups of a container cannot be chosen for its programs")
	}
	signalCtx, signals := interruptible(ctx)
	defer signals.stop()
	setUp, cancel := context.WithTimeout(signalCtx, commandDeadline)
	defer cancel()
	operation := bus.NewOperationID()
	setUp = bus.WithOperation(setUp, operation)

	record, err := lookUp(setUp, inv, ref)
	if err != nil {
		return 0, err
	}
	ignorePaused := inv.Bool("ignore-paused")
	switch status := newState(record).Status; {
	case status == "stopped":
		return 0, errors.New("cannot exec in a stopped container")
	case status == "creating":
		return 0, errors.New("cannot exec in a container that is being created")
	case status == "paused" && !ignorePaused:
		return 0, errors.New("cannot exec in a paused container (use --ignore-paused to override)")
	}
	process, err := execProcess(setUp, inv, ref)
	if err != nil {
		return 0, err
	}
	if err := opts.checkTerminal(process.Terminal); err != nil {
		return 0, err
	}
	text, err := json.Marshal(process)
	if err != nil {
		return 0, fmt.Errorf("writing the process: %w", err)
	}
	cfg, err := inv.settings()
	if err != nil {
		return 0, err
	}

	undo := undoList{warn: inv.reporter().Debug}
	defer func() {
		if retErr != nil {
			undo.run(ctx)
		}
	}()
	relay, err := inv.startRelay(setUp, execSpec(inv, cfg.Host.RunDir, operation, process, record.GetRelay(), opts))
	if err != nil {
		return 0, fmt.Errorf("starting the program's host process: %w", err)
	}
	// The worker ends the program in the guest when its relay is gone.
	undo.add(func(context.Context) error { return relay.Kill() })
	_, err = call[vmv1.ExecReply](setUp, inv, "exec", &vmv1.ExecRequest{
		Ref: ref, ExecId: operation, Process: string(text), Relay: relay.Identity(), IgnorePaused: ignorePaused,
	})
	if err != nil {
		return 0, interrupted(signalCtx, orNotFound(err))
	}
	if err := finish(relay, opts); err != nil {
		return 0, err
	}
	if !opts.foreground {
		return 0, nil
	}
	return waitForeground(ctx, relay, signals)
}
