// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package vmworker_test

import (
	"context"
	"encoding/json"
	"os"
	"path/filepath"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"google.golang.org/protobuf/proto"

	"bulkhead/bus"
	"bulkhead/bus/handover"
	vmv1 "bulkhead/proto/vm/v1"
)

// root is the --root under which the tests name their containers.
const root = "/run/test"

// call asks the vm service, with a new operation id unless ctx has one.
func call[Resp any, P interface {
	*Resp
	proto.Message
}](ctx context.Context, h *host, method string, req proto.Message) (P, error) {
	if bus.OperationFrom(ctx) == "" {
		ctx = bus.WithOperation(ctx, bus.NewOperationID())
	}
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	return bus.Call[Resp, P](ctx, h.conn, h.conn.Subject("vm", method), req)
}

func ref(id string) *vmv1.ContainerRef { return &vmv1.ContainerRef{Root: root, Id: id} }

// bundle is a configuration that the fake guest runs args of.
func (h *host) bundle(id string, args ...string) *specs.Spec {
	return &specs.Spec{
		Version:  specs.Version,
		Process:  &specs.Process{Args: args, Cwd: "/", Env: []string{"FAKE_EXIT=42"}},
		Root:     &specs.Root{Path: "rootfs"},
		Hostname: id,
		Linux:    &specs.Linux{CgroupsPath: h.cgroups + "/" + id},
	}
}

// request is what a frontend asks for, after it has handed the mounts over.
func (h *host) request(ctx context.Context, id string, r *relay, spec *specs.Spec) *vmv1.CreateRequest {
	h.t.Helper()
	dir := h.t.TempDir()
	text, err := json.Marshal(spec)
	if err != nil {
		h.t.Fatal(err)
	}
	mount, err := os.Open(dir)
	if err != nil {
		h.t.Fatal(err)
	}
	defer mount.Close()
	token := bus.OperationFrom(ctx)
	if err := handover.Send(ctx, filepath.Join(h.bus.RunDir, "handover.sock"), token, []*os.File{mount}); err != nil {
		h.t.Fatal(err)
	}
	return &vmv1.CreateRequest{
		Ref: ref(id), Bundle: dir, Rootfs: filepath.Join(dir, "rootfs"), Config: string(text),
		Handover: token, Mounts: []*vmv1.HandedMount{{Index: 0, Destination: "/", IsDir: true}}, Relay: r.identity(),
	}
}

// create makes a container that runs args, and its relay.
func (h *host) create(id string, args ...string) *relay {
	h.t.Helper()
	r := startRelay(h.t, h.bus.RunDir)
	ctx := operation(h.t)
	reply, err := call[vmv1.CreateReply](ctx, h, "create", h.request(ctx, id, r, h.bundle(id, args...)))
	if err != nil {
		h.t.Fatalf("create %s: %v", id, err)
	}
	if s := reply.Container.Status; s != vmv1.ContainerStatus_CONTAINER_STATUS_CREATED {
		h.t.Fatalf("created container %s is %s", id, s)
	}
	r.commit()
	return r
}

// run makes a container and starts it.
func (h *host) run(id string, args ...string) *relay {
	h.t.Helper()
	r := h.create(id, args...)
	h.start(id)
	return r
}

func (h *host) start(id string) {
	h.t.Helper()
	if _, err := call[vmv1.StartReply](h.t.Context(), h, "start", &vmv1.StartRequest{Ref: ref(id)}); err != nil {
		h.t.Fatalf("start %s: %v", id, err)
	}
}

// exec runs args beside a container's init.
func (h *host) exec(id, exec string, args ...string) *relay {
	h.t.Helper()
	r := startRelay(h.t, h.bus.RunDir)
	if _, err := call[vmv1.ExecReply](h.t.Context(), h, "exec", execRequest(id, exec, r, args...)); err != nil {
		h.t.Fatalf("exec %s in %s: %v", exec, id, err)
	}
	r.commit()
	return r
}

func execRequest(id, exec string, r *relay, args ...string) *vmv1.ExecRequest {
	process, _ := json.Marshal(&specs.Process{Args: args, Cwd: "/", Env: []string{"FAKE_EXIT=42"}})
	return &vmv1.ExecRequest{Ref: ref(id), ExecId: exec, Process: string(process), Relay: r.identity()}
}

func (h *host) state(id string) *vmv1.Container {
	h.t.Helper()
	reply, err := call[vmv1.StateReply](h.t.Context(), h, "state", &vmv1.StateRequest{Ref: ref(id)})
	if err != nil {
		h.t.Fatalf("state of %s: %v", id, err)
	}
	return reply.Container
}

func (h *host) expectStatus(id string, want vmv1.ContainerStatus) {
	h.t.Helper()
	if got := h.state(id).Status; got != want {
		h.t.Errorf("%s is %s, want %s", id, got, want)
	}
}

func (h *host) kill(id string, signal int32) {
	h.t.Helper()
	if _, err := call[vmv1.KillReply](h.t.Context(), h, "kill", &vmv1.KillRequest{Ref: ref(id), Signal: signal}); err != nil {
		h.t.Fatalf("kill %s: %v", id, err)
	}
}

func (h *host) delete(id string, force bool) {
	h.t.Helper()
	if _, err := call[vmv1.DeleteReply](h.t.Context(), h, "delete", &vmv1.DeleteRequest{Ref: ref(id), Force: force}); err != nil {
		h.t.Fatalf("delete %s: %v", id, err)
	}
}

func (h *host) list() *vmv1.ListReply {
	h.t.Helper()
	reply, err := call[vmv1.ListReply](h.t.Context(), h, "list", &vmv1.ListRequest{})
	if err != nil {
		h.t.Fatalf("list: %v", err)
	}
	return reply
}

func operation(t *testing.T) context.Context {
	return bus.WithOperation(t.Context(), bus.NewOperationID())
}
