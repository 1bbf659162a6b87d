// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package frontend

import (
	"context"
	"fmt"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"bulkhead/bus"
	vmv1 "bulkhead/proto/vm/v1"
	"bulkhead/runtime-frontend/hooks"
)

var startCommand = command{
	name: "start", usage: "run the program of a created container", args: "ID",
	minArgs: 1, maxArgs: 1, deadline: commandDeadline,
	run: func(ctx context.Context, inv *invocation) error {
		ref, err := inv.ref()
		if err != nil {
			return err
		}
		return start(ctx, inv, ref)
	},
}

// start runs the program, then the poststart hooks.
func start(ctx context.Context, inv *invocation, ref *vmv1.ContainerRef) error {
	record, err := lookUp(ctx, inv, ref)
	if err != nil {
		return err
	}
	reply, err := call[vmv1.StartReply](ctx, inv, "start", &vmv1.StartRequest{Ref: ref})
	if err != nil {
		return orNotFound(err)
	}
	if reply.GetContainer() != nil {
		record = reply.GetContainer()
	}
	list, err := recordedHooks(inv, record, reply.GetHooks())
	if err != nil || list == nil {
		return nil
	}
	err = hooks.Run(ctx, "poststart", record.GetBundle(), list.Poststart,
		recordState(record, "running", int(record.GetRelay().GetPid())))
	if err == nil {
		return nil
	}
	if !poststartIsFatal(record.GetOciVersion()) {
		inv.reporter().Warn(errorText(err))
		return nil
	}
	_, killErr := call[vmv1.KillReply](context.WithoutCancel(ctx), inv, "kill", &vmv1.KillRequest{Ref: ref, Signal: int32(unix.SIGKILL), All: true})
	if killErr != nil && bus.ReasonOf(killErr) != bus.FailedPrecondition {
		return fmt.Errorf("%w; and the container could not be stopped: %s", err, errorText(killErr))
	}
	return err
}

// poststartIsFatal: from runtime-spec 1.3.0 on (and in 1.0.0 and 1.0.1) a
// poststart hook that fails stops the container; between them it is only warned of.
func poststartIsFatal(version string) bool {
	var numbers [3]int
	core, _, _ := strings.Cut(version, "-")
	for i, part := range strings.SplitN(core, ".", 3) {
		n, err := strconv.Atoi(part)
		if err != nil {
			return true
		}
		numbers[i] = n
	}
	minor, patch := numbers[1], numbers[2]
	return minor >= 3 || minor == 0 && patch < 2
}
