// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package frontend

import (
	"context"

	vmv1 "bulkhead/proto/vm/v1"
	"bulkhead/runtime-frontend/bundle"
)

// joinedNamespaces are the namespaces given by path, in the words of the worker.
func joinedNamespaces(b *bundle.Bundle) []*vmv1.JoinedNamespace {
	list := make([]*vmv1.JoinedNamespace, 0, len(b.Joined))
	for _, ns := range b.Joined {
		list = append(list, &vmv1.JoinedNamespace{Type: ns.Type, Path: ns.Path, Device: ns.Device, Inode: ns.Inode, Pid: int32(ns.PID)})
	}
	return list
}

// checkJoined asks the worker whether the namespaces given by path are those of
// containers with which this one can share a VM: create would refuse them as well,
// but only after hooks have run.
func checkJoined(ctx context.Context, inv *invocation, ref *vmv1.ContainerRef, b *bundle.Bundle) error {
	if len(b.Joined) == 0 {
		return nil
	}
	_, err := call[vmv1.LocateReply](ctx, inv, "locate", &vmv1.LocateRequest{
		Ref: ref, Annotations: b.Spec.Annotations, Joined: joinedNamespaces(b),
	})
	return err
}
