// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package vmworker_test

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/encoding/protojson"

	"bulkhead/bus"
	"bulkhead/bus/config"
	vmv1 "bulkhead/proto/vm/v1"
	"bulkhead/vm-worker/hypervisor"
	"bulkhead/vm-worker/hypervisor/fake"
)

// inPod makes spec that of a further container of the pod whose sandbox is host.
func inPod(spec *specs.Spec, host string) *specs.Spec {
	spec.Annotations = map[string]string{"io.kubernetes.cri.container-type": "container", "io.kubernetes.cri.sandbox-id": host}
	return spec
}

func (h *host) join(id, host string, args ...string) (*relay, error) {
	h.t.Helper()
	return h.joinWith(nil, id, host, args...)
}

// joinWith hands block devices over too; their descriptor is the root's, at which a fake VM does not look.
func (h *host) joinWith(devices []*vmv1.HandedDevice, id, host string, args ...string) (*relay, error) {
	h.t.Helper()
	r := startRelay(h.t, h.bus.RunDir)
	ctx := operation(h.t)
	req := h.request(ctx, id, r, inPod(h.bundle(id, args...), host))
	req.Devices = devices
	_, err := call[vmv1.CreateReply](ctx, h, "create", req)
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

// Each container of a pod has its own disks in the VM, and they go when it ends,
// fails to be made, or has ended under another worker.
func TestDisksBelongToTheirContainer(t *testing.T) {
	refuse := false
	h := newHost(t, fake.Options{DiskError: func(d hypervisor.Disk) error {
		if refuse && strings.HasSuffix(d.ID, "-1") {
			return errors.New("broken for the test")
		}
		return nil
	}})
	h.run("pause", "sleep")
	vm := h.state("pause").Sandbox
	disks := func() map[string]bool { return h.driver.Driver.(*fake.Driver).Disks(vm) }
	two := []*vmv1.HandedDevice{{Major: 7}, {Major: 7, Minor: 1, ReadOnly: true}}
	app, err := h.joinWith(two, "app", "pause", "cat")
	if err != nil {
		t.Fatal(err)
	}
	h.start("app")
	readOnly := 0
	for id, ro := range disks() {
		if len(id) > 20 {
			t.Errorf("the serial number %q is longer than a disk's can be", id)
		}
		if ro {
			readOnly++
		}
	}
	if len(disks()) != 2 || readOnly != 1 {
		t.Errorf("the VM's disks are %v", disks())
	}
	refuse = true
	if _, err := h.joinWith(two, "bad", "pause", "true"); err == nil || !strings.Contains(err.Error(), "block device 7:1") {
		t.Errorf("a member whose disk fails: %v", err)
	}
	if len(disks()) != 2 {
		t.Errorf("after a failed create the VM's disks are %v", disks())
	}
	many := make([]*vmv1.HandedDevice, hypervisor.MaxDisks+1)
	for i := range many {
		many[i] = &vmv1.HandedDevice{Major: 7, Minor: int64(i)}
	}
	late, err := h.joinWith(many, "many", "pause", "true")
	refused(t, "more disks than a VM has room for", err, bus.InvalidArgument, "room for 30")
	late.discard()
	h.restart()
	app.stdin.Close()
	app.expectCode(42)
	h.await("app", "exited")
	h.delete("app", false)
	if len(disks()) != 0 {
		t.Errorf("after the member's end the VM's disks are %v", disks())
	}
	h.delete("pause", true)
	h.expectNothing()
}

// TestAnEndThatAWorkerHasOnlyWrittenDownIsFinishedByTheNext: what the container had of a VM
// in which others live would stay, and be in the way of the next one of its name.
func TestAnEndThatAWorkerHasOnlyWrittenDownIsFinishedByTheNext(t *testing.T) {
	h := newHost(t, fake.Options{})
	h.run("pause", "sleep")
	app, err := h.joinWith([]*vmv1.HandedDevice{{Major: 7}}, "app", "pause", "sleep")
	if err != nil {
		t.Fatal(err)
	}
	h.start("app")
	rec := h.state("app")
	h.stop()
	_ = unix.Kill(app.process.PID, unix.SIGKILL)
	rec.Status, rec.Exit = stopped, &vmv1.Exit{Code: 137}
	text, err := protojson.Marshal(rec)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(h.bus.RunDir, "vm", rec.Sandbox, "container-"+rec.Key+".json"), text, 0o600); err != nil {
		t.Fatal(err)
	}
	h.serve()
	h.delete("app", false)
	if left := h.driver.Driver.(*fake.Driver).Disks(rec.Sandbox); len(left) != 0 {
		t.Errorf("the VM still has the disks %v", left)
	}
	if _, err := h.joinWith([]*vmv1.HandedDevice{{Major: 7}}, "app", "pause", "sleep"); err != nil {
		t.Errorf("another container of that name: %v", err)
	}
	h.delete("app", true)
	h.delete("pause", true)
	h.expectNothing()
}

// TestAPodOutlivesItsFirstContainer: the VM was booted in that one's cgroup, which
// its delete must remove.
func TestAPodOutlivesItsFirstContainer(t *testing.T) {
	h := newHost(t, fake.Options{})
	h.run("pause", "sleep")
	app, err := h.join("app", "pause", "cat")
	if err != nil {
		t.Fatal(err)
	}
	h.start("app")
	sandbox := h.state("app").Sandbox
	h.delete("pause", true)
	h.expectStatus("app", running)
	h.expectRecordsAgree()
	where, err := os.ReadFile("/proc/" + strconv.Itoa(h.vms()[0]) + "/cgroup")
	if err != nil || !strings.Contains(string(where), h.cgroups+"/bulkhead-"+sandbox+"\n") {
		t.Errorf("the VM is in the cgroups %s, %v", where, err)
	}
	h.restart() // the next worker finds it there

	late, err := h.join("late", "pause", "true") // the pod is still known by its members
	if err != nil {
		t.Fatal(err)
	}
	if got := h.state("late").Sandbox; got != sandbox {
		t.Errorf("a late member is in the VM %s instead of %s", got, sandbox)
	}
	h.start("late")
	late.expectCode(0)
	app.stdin.Close()
	app.expectCode(42)
	for _, id := range []string{"app", "late"} {
		h.await(id, "exited")
		h.delete(id, false)
	}
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

// TestLabelsOfAPodAreThoseItsVMCanGive: a VM was started with SELinux or without, and has eight labels for the host's files.
func TestLabelsOfAPodAreThoseItsVMCanGive(t *testing.T) {
	h := newHost(t, fake.Options{}, func(vm *config.VM) { vm.SELinux = true })
	const process, files = "system_u:system_r:container_t:s0:c1", "system_u:object_r:container_file_t:s0"
	label := func(spec *specs.Spec, process, files string) *specs.Spec {
		spec.Process.SelinuxLabel, spec.Linux.MountLabel = process, files
		return spec
	}
	create := func(id string, spec *specs.Spec) error {
		r := startRelay(t, h.bus.RunDir)
		ctx := operation(t)
		_, err := call[vmv1.CreateReply](ctx, h, "create", h.request(ctx, id, r, spec))
		if err == nil {
			r.commit()
		}
		return err
	}
	if err := errors.Join(
		create("labelled", label(h.bundle("labelled", "sleep"), process, files)),
		create("plain", h.bundle("plain", "sleep")),
	); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct{ pod, process, files, says string }{
		{"labelled", "system_u:system_r:container_t:s0:c2", files, ""},
		{"labelled", "", "", ""},
		{"plain", process, "", "runs without SELinux"},
	} {
		err := create("member", label(inPod(h.bundle("member", "sleep"), c.pod), c.process, c.files))
		if (err == nil) != (c.says == "") || err != nil && !strings.Contains(err.Error(), c.says) {
			t.Errorf("a member of %s with %q and %q: %v, want %q", c.pod, c.process, c.files, err, c.says)
		}
		if err == nil {
			h.delete("member", true)
		}
	}
	const maxLabels = 8
	for i := range maxLabels {
		err := create("member", label(inPod(h.bundle("member", "sleep"), "labelled"), process, fmt.Sprint(files, ":c", i)))
		if (err == nil) != (i < maxLabels-1) || err != nil && !strings.Contains(err.Error(), "8 other labels") {
			t.Errorf("label %d beside the first: %v", i+1, err)
		}
		if err == nil {
			h.delete("member", true)
		}
	}
	if rec := h.state("labelled"); rec.GetSelinuxLabel() != process {
		t.Errorf("the record says label %q", rec.GetSelinuxLabel())
	}
	for _, sb := range h.list().Sandboxes {
		if labelled := sb.GetId() == h.state("labelled").Sandbox; sb.GetSelinux() != labelled || labelled && len(sb.GetMountLabels()) != maxLabels {
			t.Errorf("the record of a VM says SELinux %v, %q", sb.GetSelinux(), sb.GetMountLabels())
		}
	}
	h.start("plain")
	r := startRelay(t, h.bus.RunDir)
	ctx := operation(t)
	_, err := call[vmv1.ExecReply](ctx, h, "exec", &vmv1.ExecRequest{
		Ref: h.state("plain").Ref, ExecId: "e", Process: `{"args":["true"],"cwd":"/","selinuxLabel":"` + process + `"}`, Relay: r.identity(),
	})
	if err == nil || !strings.Contains(err.Error(), "runs without SELinux") {
		t.Errorf("an exec with a label in a VM without SELinux: %v", err)
	}
	h.delete("plain", true)
	h.delete("labelled", true)
}
