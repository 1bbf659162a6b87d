// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package vmworker

import (
	"context"
	"strings"

	"golang.org/x/sys/unix"

	"bulkhead/bus"
	agentv1 "bulkhead/proto/agent/v1"
	vmv1 "bulkhead/proto/vm/v1"
)

// A container that shares a namespace with another one runs in that one's VM, as
// only one kernel can hold both. Engines say so in two ways: by a path to a
// namespace in which the other's relay stands, or, in pods, by annotations.

// pod is what the annotations of a container say; the zero value is none.
type pod struct {
	root    string
	sandbox string // id of its first container, which may never have been made by us
}

func podOf(ref *vmv1.ContainerRef, annotations map[string]string) pod {
	for _, a := range vmv1.PodAnnotations() {
		if annotations[a.Kind] == vmv1.PodMember && annotations[a.Sandbox] != "" {
			return pod{ref.GetRoot(), annotations[a.Sandbox]}
		}
	}
	return pod{}
}

// ofPod tells whether a container is one of a pod, also its first.
func ofPod(annotations map[string]string) bool {
	for _, a := range vmv1.PodAnnotations() {
		if kind := annotations[a.Kind]; kind == vmv1.PodMember || kind == podFirst {
			return true
		}
	}
	return false
}

// podFirst is what annotations call the first container of a pod, whose id is that of the sandbox.
const podFirst = "sandbox"

// place is where a container goes.
type place struct {
	sb    *sandbox // nil: a VM of its own
	joins []*agentv1.NamespaceJoin
}

// locate tells where a container would go, or why it can go nowhere.
func (w *Worker) locate(_ context.Context, req *vmv1.LocateRequest) (*vmv1.LocateReply, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	at, err := w.placeLocked(req.Ref, req.Annotations, req.Joined)
	if err != nil || at.sb == nil {
		return &vmv1.LocateReply{}, err
	}
	return &vmv1.LocateReply{Sandbox: at.sb.id}, nil
}

// placeLocked finds the VM whose namespaces a container joins. The caller holds
// w.mu.
func (w *Worker) placeLocked(ref *vmv1.ContainerRef, annotations map[string]string, joined []*vmv1.JoinedNamespace) (place, error) {
	var at place
	var first *vmv1.JoinedNamespace // what decided about the VM
	for _, ns := range joined {
		owner, err := w.ownerLocked(ns)
		switch {
		case err != nil:
			return place{}, err
		case owner == nil && (ns.Type == "network" || ns.Pid == 0 && ofPod(annotations)):
			// The engine has made it for this container or for its pod, as CRI-O pins those of pods: there is nobody yet
			// to share it with.
			continue
		case owner == nil:
			return place{}, refuseNamespace(ns, "it is the namespace of no container that bulkhead runs, and a virtual machine cannot share those of other processes")
		case at.sb != nil && at.sb != owner.sb:
			return place{}, refuseNamespace(ns, "it is the namespace of a container in another virtual machine than that of "+first.Path+", and nothing can share with both")
		}
		if at.sb == nil {
			at.sb, first = owner.sb, ns
		}
		at.joins = append(at.joins, &agentv1.NamespaceJoin{Type: ns.Type, Container: owner.key})
	}
	host := w.podHostLocked(podOf(ref, annotations))
	switch {
	case host == nil:
	case !closed(host.created):
		return place{}, errStillCreated(ref, host)
	case at.sb == nil:
		at.sb = host.sb
	case at.sb != host.sb:
		return place{}, refuseNamespace(first, "it is the namespace of a container outside the pod that the annotations name")
	}
	if at.sb != nil && !at.sb.alive() {
		return place{}, errPodOver(ref)
	}
	return at, nil
}

// ownerLocked finds the container whose relay stands in a namespace; of several
// that share it, the oldest. Others that are being made to join it, which engines
// start at the same time, do not count. It is nil when there is none. The caller holds w.mu.
func (w *Worker) ownerLocked(ns *vmv1.JoinedNamespace) (*container, error) {
	var owner *container
	coming := false
	for _, c := range w.containers {
		switch {
		case !c.standsIn(ns):
			continue
		case !closed(c.created):
			coming = true
			continue
		case owner != nil && owner.sb != c.sb:
			return nil, refuseNamespace(ns, "containers in different virtual machines stand in it")
		}
		if owner == nil || c.rec.Created.AsTime().Before(owner.rec.Created.AsTime()) {
			owner = c
		}
	}
	if owner == nil && coming {
		return nil, bus.Errorf(bus.FailedPrecondition, "linux.namespaces: %s: the container of %q is still being created", ns.Type, ns.Path)
	}
	return owner, nil
}

// namespaceFiles are the names of the namespaces in /proc/<pid>/ns.
var namespaceFiles = map[string]string{
	"pid": "pid", "network": "net", "mount": "mnt", "ipc": "ipc", "uts": "uts", "cgroup": "cgroup", "user": "user", "time": "time",
}

// standsIn tells whether the container lives and its relay stands in the
// namespace. User and time namespaces exist in the guest alone, where a path
// means them by the relay that it names.
func (c *container) standsIn(ns *vmv1.JoinedNamespace) bool {
	c.mu.Lock()
	pid := c.rec.Relay.GetPid()
	over := c.rec.Status == vmv1.ContainerStatus_CONTAINER_STATUS_STOPPED
	relay := c.relay // nil while it is being created, and for one that had ended before this worker began
	c.mu.Unlock()
	if over {
		return false
	}
	if ns.Type == "user" || ns.Type == "time" {
		return pid == ns.Pid && (relay == nil || !relay.ended())
	}
	var st unix.Stat_t
	if unix.Stat("/proc/"+itoa(pid)+"/ns/"+namespaceFiles[ns.Type], &st) != nil || st.Dev != ns.Device || st.Ino != ns.Inode {
		return false
	}
	return relay == nil || !relay.ended() // its pid may be another's by now
}

// podHostLocked finds a container of the pod: its first one, else any member, one
// that is not still being made if there is one. It is nil for none. The caller holds w.mu.
func (w *Worker) podHostLocked(member pod) *container {
	if member.sandbox == "" {
		return nil
	}
	if first, ok := w.containers[bus.ContainerKey(member.root, member.sandbox)]; ok {
		return first
	}
	var coming *container
	for _, c := range w.containers {
		switch {
		case podOf(c.rec.Ref, c.rec.Annotations) != member:
		case !closed(c.created):
			coming = c
		case c.sb.alive():
			return c
		}
	}
	return coming
}

func refuseNamespace(ns *vmv1.JoinedNamespace, why string) error {
	return bus.Errorf(bus.FailedPrecondition, "linux.namespaces: %s: %q cannot be joined: %s", ns.Type, strings.ToValidUTF8(ns.Path, "?"), why)
}

func errStillCreated(ref *vmv1.ContainerRef, host *container) error {
	return bus.Errorf(bus.FailedPrecondition, "container %s belongs to a pod of which container %s is still being created", ref.Id, host.rec.Ref.Id)
}

func errPodOver(ref *vmv1.ContainerRef) error {
	return bus.Errorf(bus.FailedPrecondition, "container %s belongs to a pod whose VM has ended; create the pod's sandbox anew", ref.Id)
}
