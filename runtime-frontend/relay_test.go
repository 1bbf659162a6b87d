// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package frontend

import (
	"context"
	"os/exec"
	"sync"
	"syscall"

	"bulkhead/bus"
	vmv1 "bulkhead/proto/vm/v1"
	"bulkhead/runtime-frontend/shadow"
)

// testRelay is a process in a network namespace of its own that does nothing.
type testRelay struct {
	h         *host
	cmd       *exec.Cmd
	spec      shadow.Spec
	committed bool
	killed    bool
	once      sync.Once
}

func (h *host) startRelay(_ context.Context, spec shadow.Spec) (hostProcess, error) {
	cmd := exec.Command("sleep", "600")
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if h.netns == "" {
		cmd.SysProcAttr.Cloneflags = syscall.CLONE_NEWNET
	}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	r := &testRelay{h: h, cmd: cmd, spec: spec}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.relays = append(h.relays, r)
	h.specs = append(h.specs, spec)
	if spec.BeforeRoot != nil {
		if err := spec.BeforeRoot(cmd.Process.Pid); err != nil {
			r.Kill()
			return nil, err
		}
	}
	return r, nil
}

func (r *testRelay) Identity() *vmv1.Relay {
	return &vmv1.Relay{Pid: int32(r.cmd.Process.Pid), Socket: "/relay.sock"}
}
func (r *testRelay) SendConsole() error                { return r.h.console }
func (r *testRelay) Commit() error                     { r.committed = true; return nil }
func (r *testRelay) Wait(context.Context) (int, error) { return r.h.exit, nil }
func (r *testRelay) Kill() error {
	r.once.Do(func() {
		r.killed = true
		r.cmd.Process.Kill()
		r.cmd.Wait()
	})
	return nil
}

func (h *host) lastRelay() *testRelay { return h.relays[len(h.relays)-1] }
func (h *host) record(id string) (*vmv1.Container, bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	record, ok := h.records[bus.ContainerKey(h.root, id)]
	return record, ok
}
