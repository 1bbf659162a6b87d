// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package frontend

import (
	"context"
	"errors"
	"fmt"

	"github.com/urfave/cli/v3"
)

// The commands that this version refuses. They exist so that a caller gets a
// sentence instead of "unknown command".
var (
	eventsCommand = refusal("events", "not supported: stream of a container's events", "events and statistics are not on this command line yet: watch the bus with \"nats --context bulkhead sub 'ev.>'\"")
)

func refusal(name, usage, reason string) command {
	return command{
		name: name, usage: usage, args: "ID", anyFlags: true, maxArgs: -1,
		run: func(context.Context, *invocation) error {
			return fmt.Errorf("%s: %w", name, errors.New(reason))
		},
	}
}

// ignoredFlags are flags of runc that mean nothing to a virtual machine and
// that engines pass as a matter of course.
func ignoredFlags(names ...string) []cli.Flag {
	var flags []cli.Flag
	for _, name := range names {
		flags = append(flags, &cli.BoolFlag{Name: name, Usage: "ignored: it has no meaning for a virtual machine"})
	}
	return flags
}
