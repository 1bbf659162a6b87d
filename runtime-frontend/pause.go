// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package frontend

import (
	"context"

	vmv1 "bulkhead/proto/vm/v1"
)

var pauseCommand = command{
	name: "pause", usage: "freeze the processes of a container", args: "ID",
	minArgs: 1, maxArgs: 1, deadline: commandDeadline,
	run: func(ctx context.Context, inv *invocation) error {
		ref, err := inv.ref()
		if err != nil {
			return err
		}
		_, err = call[vmv1.PauseReply](ctx, inv, "pause", &vmv1.PauseRequest{Ref: ref})
		return orNotFound(err)
	},
}
