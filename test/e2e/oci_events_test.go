// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	vmv1 "bulkhead/proto/vm/v1"
)

func TestOCIEvents(t *testing.T) {
	o := newOCI(t, sharedHost(t))
	id := newID("events")
	limit := int64(64 << 20)
	spec := newSpec("sh", "-c", "trap 'exit 3' TERM; echo up; while :; do sleep 0.1; done")
	spec.Linux.Resources = &specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: &limit, Swap: &limit}, Pids: &specs.LinuxPids{Limit: new(int64(20))}}
	m := o.launch(id, spec)
	until(t, m, "up\n")

	var once struct {
		Type, ID string
		Data     vmv1.ContainerStats
	}
	text := o.do("events", "--stats", id)
	if err := json.Unmarshal([]byte(text), &once); err != nil || strings.Count(text, "\n") != 1 {
		t.Fatalf("%v: %q", err, text)
	}
	s := once.Data
	if once.Type != "stats" || once.ID != id || s.Memory.Usage.Limit != uint64(limit) || s.Pids.Limit != 20 || s.Pids.Current < 1 || s.Pids.Current > 5 ||
		s.CPU.Usage.Total == 0 || s.Memory.Usage.Usage == 0 || s.Memory.Usage.Usage > uint64(limit) || s.Memory.Raw["anon"] == 0 {
		t.Errorf("the statistics are %s", text)
	}

	// What is told as it comes, to a kill for want of memory and the container's end.
	log, err := os.Create(filepath.Join(o.dir, "events"))
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	args := o.host.Args(o.root, "events", "--interval", "200ms", id)
	events := exec.CommandContext(within(t, launchTime), args[0], args[1:]...)
	events.Stdout, events.Stderr = log, log
	if err := events.Start(); err != nil {
		t.Fatal(err)
	}
	says := func(what string) {
		t.Helper()
		must(t, commandTime, func() error {
			told, err := os.ReadFile(log.Name())
			if err == nil && !strings.Contains(string(told), what) {
				err = fmt.Errorf("events says %.600q without %s", told, what)
			}
			return err
		})
	}
	says(`"type":"stats"`)
	expect(t, "the code of a program that is killed", o.cli("exec", id, "dd", "if=/dev/zero", "of=/dev/null", "bs=200M", "count=1").Code, 137)
	says(`{"type":"oom","id":"` + id + `"}`)
	expect(t, "the status after the kill", o.status(id), "running")
	o.do("kill", id, "TERM")
	exits(t, m, 3)
	if err := events.Wait(); err != nil {
		t.Errorf("events ended with %v", err)
	}
	o.fails(1, "is not running", "events", "--stats", id)
}
