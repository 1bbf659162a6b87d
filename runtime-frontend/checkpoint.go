// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package frontend

import (
	"context"
	"errors"

	"github.com/urfave/cli/v3"
)

// A checkpoint is refused, and with it a restore. Both commands know runc's flags all the same: a
// caller that mistypes one hears of that, and "checkpoint --help" ends well, which podman asks before it offers checkpoints at all.
var (
	checkpointCommand = command{
		name: "checkpoint", usage: "not supported: save the state of a container", args: "ID",
		description: "Ends with an error: the state of a virtual machine cannot be saved yet.",
		flags: func() []cli.Flag {
			return append(imageFlags(),
				&cli.StringFlag{Name: "parent-path", Usage: unsupported},
				&cli.BoolFlag{Name: "leave-running", Usage: unsupported},
				&cli.IntFlag{Name: "status-fd", Usage: unsupported},
				&cli.StringFlag{Name: "page-server", Usage: unsupported},
				&cli.BoolFlag{Name: "pre-dump", Usage: unsupported},
			)
		},
		minArgs: 1, maxArgs: 1, deadline: commandDeadline,
		run: func(ctx context.Context, inv *invocation) error {
			ref, err := inv.ref()
			if err != nil {
				return err
			}
			if _, err := lookUp(ctx, inv, ref); err != nil {
				return err
			}
			return errors.New("checkpoint: the state of a container in a virtual machine cannot be saved yet: it runs on as it was")
		},
	}
	restoreCommand = command{
		name: "restore", usage: "not supported: make a container from a saved state", args: "ID",
		description: "Ends with an error: there are no saved states of virtual machines yet, and one that runc saved is of another kind.",
		flags: func() []cli.Flag {
			return append(imageFlags(),
				&cli.StringFlag{Name: "console-socket", Usage: unsupported},
				&cli.StringFlag{Name: "bundle", Aliases: []string{"b"}, Usage: unsupported},
				&cli.BoolFlag{Name: "detach", Aliases: []string{"d"}, Usage: unsupported},
				&cli.StringFlag{Name: "pid-file", Usage: unsupported},
				&cli.BoolFlag{Name: "no-subreaper", Usage: unsupported},
				&cli.BoolFlag{Name: "no-pivot", Usage: unsupported},
				&cli.StringFlag{Name: "lsm-profile", Usage: unsupported},
				&cli.StringFlag{Name: "lsm-mount-context", Usage: unsupported},
			)
		},
		minArgs: 1, maxArgs: 1,
		run: func(_ context.Context, inv *invocation) error {
			if _, err := inv.ref(); err != nil {
				return err
			}
			return errors.New("restore: a container in a virtual machine cannot be made from a saved state yet: create it anew")
		},
	}
)

// unsupported is what the help says of every flag.
const unsupported = "as with runc; the command is not supported"

// imageFlags are those of both commands.
func imageFlags() []cli.Flag {
	return []cli.Flag{
		&cli.StringFlag{Name: "image-path", Usage: unsupported},
		&cli.StringFlag{Name: "work-path", Usage: unsupported},
		&cli.BoolFlag{Name: "tcp-established", Usage: unsupported},
		&cli.BoolFlag{Name: "tcp-skip-in-flight", Usage: unsupported},
		&cli.BoolFlag{Name: "tcp-close", Usage: unsupported},
		&cli.BoolFlag{Name: "link-remap", Usage: unsupported},
		&cli.BoolFlag{Name: "ext-unix-sk", Usage: unsupported},
		&cli.BoolFlag{Name: "shell-job", Usage: unsupported},
		&cli.BoolFlag{Name: "lazy-pages", Usage: unsupported},
		&cli.BoolFlag{Name: "file-locks", Usage: unsupported},
		&cli.StringFlag{Name: "manage-cgroups-mode", Usage: unsupported},
		&cli.StringSliceFlag{Name: "empty-ns", Usage: unsupported},
		&cli.BoolFlag{Name: "auto-dedup", Usage: unsupported},
	}
}
