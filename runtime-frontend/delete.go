// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package frontend

import (
	"context"
	"fmt"

	"github.com/opencontainers/runtime-spec/specs-go"
	"github.com/urfave/cli/v3"

	"bulkhead/bus"
	vmv1 "bulkhead/proto/vm/v1"
	"bulkhead/runtime-frontend/bundle"
	"bulkhead/runtime-frontend/hooks"
)

var deleteCommand = command{
	name: "delete", usage: "remove a container that has ended", args: "ID",
	flags: func() []cli.Flag {
		return []cli.Flag{&cli.BoolFlag{Name: "force", Aliases: []string{"f"}, Usage: "kill it first if it runs; an unknown container is not an error"}}
	},
	minArgs: 1, maxArgs: 1, deadline: commandDeadline,
	run: func(ctx context.Context, inv *invocation) error {
		ref, err := inv.ref()
		if err != nil {
			return err
		}
		return remove(ctx, inv, ref, inv.Bool("force"))
	},
}

// remove deletes a container and then runs its poststop hooks, whose failures
// are told but change nothing (runtime-spec, runtime.md#lifecycle).
func remove(ctx context.Context, inv *invocation, ref *vmv1.ContainerRef, force bool) error {
	reply, err := call[vmv1.DeleteReply](ctx, inv, "delete", &vmv1.DeleteRequest{Ref: ref, Force: force})
	switch {
	case bus.ReasonOf(err) == bus.NotFound && force:
		return nil // engines force a delete after every end of a container, also after a delete
	case err != nil:
		return orNotFound(err)
	case !reply.GetExisted() && !force:
		return errNotFound
	case !reply.GetExisted() || reply.GetContainer() == nil:
		return nil
	}
	record := reply.GetContainer()
	list, err := recordedHooks(inv, record, reply.GetHooks())
	if err != nil || list == nil {
		return nil
	}
	if err := hooks.RunAll(ctx, "poststop", record.GetBundle(), list.Poststop, recordState(record, "stopped", 0)); err != nil {
		inv.reporter().Warn(errorText(err))
	}
	return nil
}

// recordedHooks reads the hooks a container was created with, as the worker kept
// them: what has become of the bundle since does not matter.
func recordedHooks(inv *invocation, record *vmv1.Container, text string) (*specs.Hooks, error) {
	list, err := bundle.ReadHooks(text)
	if err != nil {
		inv.reporter().Warn(fmt.Sprintf("the hooks of %q are not run: %s", record.GetRef().GetId(), errorText(err)))
	}
	return list, err
}

// recordState is what hooks after the create read.
func recordState(record *vmv1.Container, status specs.ContainerState, pid int) hooks.State {
	state := hooks.State{Rootfs: record.GetRootfs()}
	state.Version = record.GetOciVersion()
	state.ID = record.GetRef().GetId()
	state.Status = status
	state.Pid = pid
	state.Bundle = record.GetBundle()
	state.Annotations = record.GetAnnotations()
	return state
}
