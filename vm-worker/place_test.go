// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package vmworker_test

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"bulkhead/bus"
	vmv1 "bulkhead/proto/vm/v1"
	"bulkhead/vm-worker/hypervisor/fake"
)

// namespaceOf is a namespace in which a process stands, as a bundle gives it.
func namespaceOf(t *testing.T, pid int, kind, file string) *vmv1.JoinedNamespace {
	t.Helper()
	path := fmt.Sprintf("/proc/%d/ns/%s", pid, file)
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		t.Fatal(err)
	}
	return &vmv1.JoinedNamespace{Type: kind, Path: path, Device: st.Dev, Inode: st.Ino, Pid: int32(pid)}
}

// runIn runs a container whose relay has an IPC and a network namespace of its own.
func (h *host) runIn(id string) *relay {
	h.t.Helper()
	r := startRelay(h.t, h.bus.RunDir, unix.CLONE_NEWIPC, unix.CLONE_NEWNET)
	ctx := operation(h.t)
	if _, err := call[vmv1.CreateReply](ctx, h, "create", h.request(ctx, id, r, h.bundle(id, "cat"))); err != nil {
		h.t.Fatal(err)
	}
	r.commit()
	h.start(id)
	return r
}

func (h *host) joinNamespaces(id string, edit func(*vmv1.CreateRequest), joined ...*vmv1.JoinedNamespace) (*relay, error) {
	h.t.Helper()
	r := startRelay(h.t, h.bus.RunDir)
	ctx := operation(h.t)
	req := h.request(ctx, id, r, h.bundle(id, "cat"))
	req.Joined = joined
	if edit != nil {
		edit(req)
	}
	located, locateErr := call[vmv1.LocateReply](operation(h.t), h, "locate", &vmv1.LocateRequest{Ref: req.Ref, Joined: joined})
	reply, err := call[vmv1.CreateReply](ctx, h, "create", req)
	if edit == nil && ((err == nil) != (locateErr == nil) || err == nil && located.Sandbox != "" && located.Sandbox != reply.Sandbox.Id) {
		h.t.Errorf("locate says %v, %v; create %v, %v", located, locateErr, reply, err)
	}
	if err != nil {
		r.discard()
		return nil, err
	}
	r.commit()
	return r, nil
}

// TestAContainerRunsInTheVMWhoseNamespacesItJoins: engines give another container's
// namespace by a path in which its relay stands, or by a mount of that.
func TestAContainerRunsInTheVMWhoseNamespacesItJoins(t *testing.T) {
	h := newHost(t, fake.Options{})
	one, two := h.runIn("one"), h.runIn("two")
	ipc := namespaceOf(t, one.process.PID, "ipc", "ipc")
	net := namespaceOf(t, one.process.PID, "network", "net")
	pinned := &vmv1.JoinedNamespace{Type: "ipc", Path: "/run/pinned/ipc", Device: ipc.Device, Inode: ipc.Inode}
	user := &vmv1.JoinedNamespace{Type: "user", Path: "/proc/x/ns/user", Pid: int32(one.process.PID)}
	for name, ns := range map[string]*vmv1.JoinedNamespace{"ipc": ipc, "net": net, "pinned": pinned, "user": user} {
		if _, err := h.joinNamespaces(name, nil, ns); err != nil {
			t.Errorf("%s: %v", name, err)
		} else if got, want := h.state(name).Sandbox, h.state("one").Sandbox; got != want {
			t.Errorf("the container with %v is in the VM %s instead of %s", ns, got, want)
		}
	}

	stranger := exec.Command("sleep", "60")
	stranger.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWIPC | unix.CLONE_NEWNET, Pdeathsig: syscall.SIGKILL}
	if err := stranger.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = stranger.Process.Kill(); _ = stranger.Wait() }()
	foreign := namespaceOf(t, stranger.Process.Pid, "ipc", "ipc")
	_, err := h.joinNamespaces("bad", nil, foreign)
	refused(t, "a foreign IPC namespace", err, bus.FailedPrecondition, "the namespace of no container that bulkhead runs")
	_, err = h.joinNamespaces("bad", nil, ipc, namespaceOf(t, two.process.PID, "network", "net"))
	refused(t, "namespaces of two VMs", err, bus.FailedPrecondition, "in another virtual machine than that of "+ipc.Path)
	if _, err = h.joinNamespaces("netns", nil, namespaceOf(t, stranger.Process.Pid, "network", "net")); err != nil {
		t.Errorf("a network namespace that an engine has made: %v", err)
	}
	if got := h.state("netns").Sandbox; got == h.state("one").Sandbox || got == h.state("two").Sandbox {
		t.Error("a container with an engine's network namespace is in another's VM")
	}

	// CRI-O pins the namespaces of a pod, which may have no container of its own.
	as := func(kind, pod string) func(*vmv1.CreateRequest) {
		return func(req *vmv1.CreateRequest) {
			req.Config = strings.Replace(req.Config, `"ociVersion"`, fmt.Sprintf(
				`"annotations":{"io.kubernetes.cri-o.ContainerType":%q,"io.kubernetes.cri-o.SandboxID":%q},"ociVersion"`, kind, pod), 1)
		}
	}
	foreign.Pid = 0
	for _, id := range []string{"first", "second"} {
		if _, err := h.joinNamespaces(id, as("container", "pod"), foreign); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := h.joinNamespaces("infra", as("sandbox", "infra"), &vmv1.JoinedNamespace{Type: "uts", Path: "/run/utsns/x", Device: 1, Inode: 1}); err != nil {
		t.Errorf("the first container of a pod, in namespaces that are pinned for it: %v", err)
	}
	if a, b := h.state("first").Sandbox, h.state("second").Sandbox; a != b {
		t.Errorf("the members of a pod are in the VMs %s and %s", a, b)
	}

	h.kill("one", 9)
	one.expectCode(137)
	h.await("one", "exited")
	_, err = h.joinNamespaces("late", nil, pinned)
	refused(t, "the namespace of a dead container", err, bus.FailedPrecondition, "the namespace of no container that bulkhead runs")
	for _, id := range []string{"one", "two", "ipc", "net", "pinned", "user", "netns", "first", "second", "infra"} {
		h.delete(id, true)
	}
	h.expectNothing()
}

// TestContainersThatJoinAtTheSameTimeDoNotWaitForEachOther: the relay of each stands in
// the namespace, as that of the one whose it is does.
func TestContainersThatJoinAtTheSameTimeDoNotWaitForEachOther(t *testing.T) {
	begun, goOn := make(chan struct{}), make(chan struct{})
	h := newHost(t, fake.Options{AttachError: func(path string) error {
		if strings.Contains(path, "slow") {
			close(begun)
			<-goOn
		}
		return nil
	}})
	h.run("one", "sleep")
	ipc := namespaceOf(t, os.Getpid(), "ipc", "ipc")
	slow := make(chan error, 1)
	go func() {
		r := startRelay(t, h.bus.RunDir)
		ctx := operation(t)
		req := h.request(ctx, "slow", r, h.bundle("slow", "sleep"))
		req.Joined = []*vmv1.JoinedNamespace{ipc}
		_, err := call[vmv1.CreateReply](ctx, h, "create", req)
		r.commit()
		slow <- err
	}()
	<-begun
	_, err := h.joinNamespaces("quick", nil, ipc)
	close(goOn)
	if err := errors.Join(err, <-slow); err != nil {
		t.Fatal(err)
	}
	if got := h.list().Sandboxes; len(got) != 1 {
		t.Errorf("the VMs are %v", got)
	}
	for _, id := range []string{"quick", "slow", "one"} {
		h.delete(id, true)
	}
	h.expectNothing()
}
