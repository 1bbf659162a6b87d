// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package frontend

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"
)

// TestAMissingRelayIsNamed installs the command line alone.
func TestAMissingRelayIsNamed(t *testing.T) {
	e := newEngine(t)
	if _, err := os.Stat(filepath.Join(packagedPath, relayName)); err == nil {
		t.Skipf("a package has installed %s", filepath.Join(packagedPath, relayName))
	}
	program, err := os.ReadFile(filepath.Join(programsDir, "bulkhead"))
	if err != nil {
		t.Fatal(err)
	}
	alone := filepath.Join(t.TempDir(), "bulkhead")
	if err := os.WriteFile(alone, program, 0o755); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(alone, "--root", e.root, "--config", e.config, "create", "--bundle", e.bundle(nil), "c1")
	cmd.Env = []string{"PATH=/nowhere"}
	out, err := cmd.CombinedOutput()
	if err == nil || cmd.ProcessState.ExitCode() != 1 || !strings.Contains(string(out), "the program bulkhead-relay is neither beside this one, nor in /usr/libexec/bulkhead, nor in PATH: install it there") {
		t.Errorf("%v: %s", err, out)
	}
	if _, ok := e.record("c1"); ok || len(e.creates) > 0 {
		t.Error("the worker was asked for a container without a relay")
	}
}

func TestListIsForPeopleAndPrograms(t *testing.T) {
	h := newHost(t)
	h.created("b", nil)
	dir := h.created("a", func(s *specs.Spec) { s.Annotations = map[string]string{"k": "v"} })
	lines := strings.Split(strings.TrimSpace(h.run("list").succeeds(t).stdout), "\n")
	if len(lines) != 3 || strings.Join(strings.Fields(lines[0]), " ") != "ID PID STATUS BUNDLE CREATED OWNER" {
		t.Fatalf("the table is %q", lines)
	}
	if row := strings.Fields(lines[1]); row[0] != "a" || row[2] != "created" || row[3] != dir || row[5] != "root" {
		t.Errorf("the first row is %q", row)
	}
	var states []map[string]any
	if err := json.Unmarshal([]byte(h.run("list", "--format", "json").succeeds(t).stdout), &states); err != nil {
		t.Fatal(err)
	}
	if len(states) != 2 || states[0]["id"] != "a" || len(states[0]) != 9 {
		t.Errorf("the JSON is %v", states)
	}
}
