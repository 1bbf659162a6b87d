// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package frontend

import (
	"context"

	vmv1 "bulkhead/proto/vm/v1"
)

var resumeCommand = command{
	name: "resume", usage: "let a paused container run on", args: "ID",
	minArgs: 1, maxArgs: 1, deadline: commandDeadline,
	run: func(ctx context.Context, inv *invocation) error {
		ref, err := inv.ref()
		if err != nil {
			return err
		}
		_, err = call[vmv1.ResumeReply](ctx, inv, "resume", &vmv1.ResumeRequest{Ref: ref})
		return orNotFound(err)
	},
}
