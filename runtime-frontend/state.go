// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package frontend

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	"golang.org/x/sys/unix"

	"bulkhead/bus/procstat"
	vmv1 "bulkhead/proto/vm/v1"
)

var stateCommand = command{
	name: "state", usage: "print the state of a container as JSON", args: "ID",
	minArgs: 1, maxArgs: 1, deadline: commandDeadline,
	run: func(ctx context.Context, inv *invocation) error {
		ref, err := inv.ref()
		if err != nil {
			return err
		}
		record, err := lookUp(ctx, inv, ref)
		if err != nil {
			return err
		}
		text, err := json.MarshalIndent(newState(record), "", "  ")
		if err != nil {
			return fmt.Errorf("writing the state of %q: %w", ref.GetId(), err)
		}
		_, err = fmt.Fprintf(inv.std.Out, "%s\n", text)
		return err
	},
}

// state is what "state" and "list" print: the runtime-spec's state and the
// properties that runc adds. No others: CRI-O decodes it over a struct of its own, in which
// further names would mean something.
type state struct {
	Version     string            `json:"ociVersion"`
	ID          string            `json:"id"`
	PID         int               `json:"pid"`
	Status      string            `json:"status"`
	Bundle      string            `json:"bundle"`
	Rootfs      string            `json:"rootfs"`
	Created     time.Time         `json:"created"`
	Annotations map[string]string `json:"annotations"`
	Owner       string            `json:"owner"`
}

// selinuxAnnotation tells the SELinux label that the guest enforces on the container's process. It is an annotation
// because the state may have no further keys; a container without a label has none.
const selinuxAnnotation = "io.bulkhead.selinux"

// newState reads a record. The relay is the container on the host, so when
// it is gone the container is stopped, even if the worker has not written that down yet.
func newState(c *vmv1.Container) state {
	s := state{
		Version:     c.GetOciVersion(),
		ID:          c.GetRef().GetId(),
		PID:         int(c.GetRelay().GetPid()),
		Status:      c.GetStatus().Word(),
		Bundle:      c.GetBundle(),
		Rootfs:      c.GetRootfs(),
		Created:     c.GetCreated().AsTime(),
		Annotations: c.GetAnnotations(),
		Owner:       c.GetOwner(),
	}
	if s.Annotations == nil {
		s.Annotations = map[string]string{}
	}
	if c.GetSelinuxLabel() != "" {
		s.Annotations[selinuxAnnotation] = c.GetSelinuxLabel()
	}
	if s.Status == "stopped" || !alive(c.GetRelay()) {
		s.Status, s.PID = "stopped", 0
	}
	return s
}

// alive says whether a relay still runs: the process of that pid started when the relay did
// (proc(5), /proc/pid/stat) and has not ended with all its threads. Its state there is "zombie"
// already when the first of them has; the worker, who goes by the pidfd too, would refuse then
// to delete what we have called stopped.
func alive(relay *vmv1.Relay) bool {
	if relay.GetPid() <= 0 {
		return false
	}
	fd, err := unix.PidfdOpen(int(relay.GetPid()), 0)
	if err != nil {
		return false
	}
	defer unix.Close(fd)
	stat, err := procstat.Read("/proc", int(relay.GetPid())) // of the process that the descriptor holds, or of none
	if err != nil || relay.GetStartTime() != 0 && stat.Start != relay.GetStartTime() {
		return false
	}
	return !pidfdEnded(fd)
}

// pidfdEnded says whether the process of a pidfd has ended with all its threads, reaped or not.
func pidfdEnded(pidfd int) bool {
	n, err := unix.Poll([]unix.PollFd{{Fd: int32(pidfd), Events: unix.POLLIN}}, 0)
	return err == nil && n > 0
}
