// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package vmworker_test

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	vmv1 "bulkhead/proto/vm/v1"
	"bulkhead/vm-worker/hypervisor/fake"
)

func TestUpdateChangesHostAndGuestOrNeither(t *testing.T) {
	var broken error
	driver := fake.New(fake.Options{UpdateError: func(resources string) error {
		if strings.Contains(resources, `"pids":{"limit":30}`) {
			return broken
		}
		return nil
	}})
	h := newBus(t)
	h.driver = &observed{Driver: driver, started: make(chan string, 64)}
	h.serve()
	r := startRelay(t, h.bus.RunDir)
	ctx := operation(t)
	spec := h.bundle("c1", "sleep")
	spec.Linux.Resources = &specs.LinuxResources{Pids: &specs.LinuxPids{Limit: new(int64(10))}}
	if _, err := call[vmv1.CreateReply](ctx, h, "create", h.request(ctx, "c1", r, spec)); err != nil {
		t.Fatal(err)
	}
	r.commit()
	h.expectRecordsAgree()
	c1 := h.state("c1")
	update := func(resources string) error {
		t.Helper()
		_, err := call[vmv1.UpdateReply](operation(t), h, "update", &vmv1.UpdateRequest{Ref: ref("c1"), Resources: resources})
		return err
	}
	expect := func(recorded, inGuest string) {
		t.Helper()
		if got := h.state("c1").Resources; got != recorded {
			t.Errorf("recorded is %s, want %s", got, recorded)
		}
		if got := driver.Limits(c1.Sandbox, c1.Key); got != inGuest {
			t.Errorf("the guest was told %s, want %s", got, inGuest)
		}
	}
	expect(`{"pids":{"limit":10}}`, "")
	hostPids := func(want string) {
		t.Helper()
		files, err := filepath.Glob("/sys/fs/cgroup/*" + h.cgroups + "/c1/pids.max")
		if len(files) == 0 {
			files = []string{"/sys/fs/cgroup" + h.cgroups + "/c1/pids.max"}
		}
		got, readErr := os.ReadFile(files[0])
		if err != nil || readErr != nil || strings.TrimSpace(string(got)) != want {
			t.Errorf("the host allows %s processes, %v, %v, want %s", got, err, readErr, want)
		}
	}

	for _, state := range []func(){
		func() {}, // created
		func() { h.start("c1") },
		func() {
			if _, err := call[vmv1.PauseReply](t.Context(), h, "pause", &vmv1.PauseRequest{Ref: ref("c1")}); err != nil {
				t.Fatal(err)
			}
		},
	} {
		state()
		if err := update(`{"pids":{"limit":20},"cpu":{"shares":0}}`); err != nil {
			t.Errorf("update while %s: %v", h.state("c1").Status, err)
		}
		expect(`{"cpu":{},"pids":{"limit":20}}`, `{"cpu":{},"pids":{"limit":20}}`)
	}
	h.await("c1", "updated")
	hostPids("1044") // with the room of the VM

	broken = errors.New("broken for the test")
	if err := update(`{"pids":{"limit":30},"memory":{"limit":67108864}}`); err == nil || !strings.Contains(err.Error(), "broken for the test") {
		t.Errorf("an update that the guest refuses: %v", err)
	}
	expect(`{"cpu":{},"pids":{"limit":20}}`, `{"memory":{"limit":-1},"cpu":{},"pids":{"limit":20}}`)

	hostPids("1044")

	h.restart() // what holds is written down
	if err := update(`{"memory":{"limit":134217728}}`); err != nil {
		t.Fatal(err)
	}
	expect(`{"memory":{"limit":134217728},"cpu":{},"pids":{"limit":20}}`, `{"memory":{"limit":134217728},"cpu":{},"pids":{"limit":20}}`)
	h.expectRecordsAgree()
	h.delete("c1", true)
	h.expectNothing()
}
