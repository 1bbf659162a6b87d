// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package vmworker_test

import (
	"errors"
	"strings"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"bulkhead/bus"
	"bulkhead/bus/config"
	vmv1 "bulkhead/proto/vm/v1"
	"bulkhead/vm-worker/hypervisor/fake"
)

// inPod makes spec that of a further container of the pod whose sandbox is host.
func inPod(spec *specs.Spec, host string) *specs.Spec {
	spec.Annotations = map[string]string{"io.kubernetes.cri.container-type": "container", "io.kubernetes.cri.sandbox-id": host}
	return spec
}

func (h *host) join(id, host string, args ...string) (*relay, error) {
	h.t.Helper()
	r := startRelay(h.t, h.bus.RunDir)
	ctx := operation(h.t)
	_, err := call[vmv1.CreateReply](ctx, h, "create", h.request(ctx, id, r, inPod(h.bundle(id, args...), host)))
	if err == nil {
		r.commit()
	}
	return r, err
}

func TestContainersOfAPodShareAVM(t *testing.T) {
	broken := false
	h := newHost(t, fake.Options{AttachError: func(path string) error {
		if broken {
			return errors.New("broken for the test")
		}
		return nil
	}}, func(vm *config.VM) { vm.MaxVMs = 1 })
	pause := h.run("pause", "sleep")
	app, err := h.join("app", "pause", "cat")
	if err != nil {
		t.Fatal(err)
	}
	h.start("app")
	if a, b := h.state("pause").Sandbox, h.state("app").Sandbox; a != b {
		t.Errorf("the pod is in the VMs %s and %s", a, b)
	}
	if got := h.list().Sandboxes; len(got) != 1 || len(got[0].Containers) != 2 {
		t.Errorf("the VMs are %v", got)
	}

	broken = true // a member that fails leaves the others alone
	if _, err := h.join("bad", "pause", "true"); err == nil || !strings.Contains(err.Error(), "broken for the test") {
		t.Errorf("a member whose mount fails: %v", err)
	}
	broken = false
	h.expectStatus("pause", running)
	h.expectStatus("app", running)

	app.stdin.Close()
	app.expectCode(42)
	h.await("app", "exited")
	h.delete("app", false)
	if got := h.list().Sandboxes; len(got) != 1 || len(got[0].Containers) != 1 || len(h.vms()) != 1 {
		t.Errorf("after the member's end the VMs are %v", got)
	}
	h.expectRecordsAgree()

	h.kill("pause", 9)
	pause.expectCode(137)
	h.await("pause", "exited")
	late, err := h.join("late", "pause", "true")
	refused(t, "joining a pod that is over", err, bus.FailedPrecondition, "belongs to a pod whose VM has ended")
	late.discard()
	h.delete("pause", false)
	h.expectNothing()
}

// Engines may end a pod's sandbox before its containers.
func TestAPodsSandboxMayBeDeletedFirst(t *testing.T) {
	h := newHost(t, fake.Options{})
	h.run("pause", "sleep")
	app, err := h.join("app", "pause", "cat")
	if err != nil {
		t.Fatal(err)
	}
	h.start("app")
	h.delete("pause", true)
	app.expectCode(137)
	h.await("app", "exited")
	h.delete("app", false)
	h.expectNothing()
}

func TestAPodSurvivesAStopOfTheWorker(t *testing.T) {
	h := newHost(t, fake.Options{})
	h.run("pause", "sleep")
	app, err := h.join("app", "pause", "cat")
	if err != nil {
		t.Fatal(err)
	}
	h.start("app")
	h.restart()
	more, err := h.join("more", "pause", "exit", "4")
	if err != nil {
		t.Fatal(err)
	}
	h.start("more")
	more.expectCode(4)
	app.stdin.Close()
	app.expectCode(42)
	for _, id := range []string{"app", "more"} {
		h.await(id, "exited")
		h.delete(id, false)
	}
	h.expectRecordsAgree()
	h.delete("pause", true)
	h.expectNothing()
}
