// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package hooks

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/opencontainers/runtime-spec/specs-go"
)

// script makes a hook of a shell script and gives its directory.
func script(t *testing.T, text string) (string, specs.Hook) {
	t.Helper()
	dir := t.TempDir()
	path := filepath.Join(dir, "hook")
	if err := os.WriteFile(path, []byte("#!/bin/sh\n"+text), 0o755); err != nil {
		t.Fatal(err)
	}
	return dir, specs.Hook{Path: path}
}

func testState() State {
	s := State{Rootfs: "/rootfs"}
	s.Version, s.ID, s.Status, s.Pid, s.Bundle = "1.0.2", "c1", "creating", 4711, "/bundle"
	return s
}

func TestHookReadsTheStateOnStdin(t *testing.T) {
	dir, hook := script(t, "cat > state.json")
	if err := Run(context.Background(), "prestart", dir, []specs.Hook{hook}, testState()); err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(filepath.Join(dir, "state.json"))
	if err != nil {
		t.Fatal(err)
	}
	var got map[string]any
	if err := json.Unmarshal(text, &got); err != nil {
		t.Fatalf("%s: %v", text, err)
	}
	for key, want := range map[string]any{"ociVersion": "1.0.2", "id": "c1", "status": "creating", "pid": 4711.0, "bundle": "/bundle", "rootfs": "/rootfs"} {
		if got[key] != want {
			t.Errorf("%s = %v, want %v", key, got[key], want)
		}
	}
}

func TestHookGetsExactlyItsArgumentsAndEnvironment(t *testing.T) {
	t.Setenv("LEAKED", "yes")
	dir, hook := script(t, `tr '\0' '\n' < /proc/$$/cmdline > args; tr '\0' '\n' < /proc/$$/environ > env; /bin/pwd > cwd`)
	hook.Args = []string{"renamed", "-a", "b c"}
	hook.Env = []string{"PATH=/usr/bin:/bin", "KEY=value"}
	if err := Run(context.Background(), "createRuntime", dir, []specs.Hook{hook}, testState()); err != nil {
		t.Fatal(err)
	}
	read := func(name string) string {
		text, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		return strings.TrimSpace(string(text))
	}
	if got, want := read("env"), "PATH=/usr/bin:/bin\nKEY=value"; got != want {
		t.Errorf("environment %q, want %q", got, want)
	}
	// The kernel replaces args[0] of a script by its interpreter's line; the rest is the hook's.
	if got := read("args"); !strings.HasSuffix(got, "-a\nb c") {
		t.Errorf("arguments %q", got)
	}
	if got := read("cwd"); got != dir {
		t.Errorf("working directory %q, want %q", got, dir)
	}
}

func TestHookWithoutEnvironmentGetsNone(t *testing.T) {
	t.Setenv("LEAKED", "yes")
	dir, hook := script(t, `/bin/cat /proc/self/environ > env`)
	if err := Run(context.Background(), "prestart", dir, []specs.Hook{hook}, testState()); err != nil {
		t.Fatal(err)
	}
	text, _ := os.ReadFile(filepath.Join(dir, "env"))
	if strings.Contains(string(text), "LEAKED") {
		t.Errorf("the hook sees the caller's environment: %q", text)
	}
}

func TestFailingHookTellsItsOutputAndEndsTheList(t *testing.T) {
	dir, bad := script(t, "echo one; echo two >&2; exit 3")
	_, next := script(t, "touch "+filepath.Join(dir, "ran"))
	err := Run(context.Background(), "prestart", dir, []specs.Hook{bad, next}, testState())
	if err == nil {
		t.Fatal("no error")
	}
	for _, want := range []string{"prestart hook #0", bad.Path, "exit status 3", "one; two"} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("%q lacks %q", err, want)
		}
	}
	if _, err := os.Stat(filepath.Join(dir, "ran")); err == nil {
		t.Error("the hook after the failing one ran")
	}
}

func TestPoststopRunsTheRestAfterAFailure(t *testing.T) {
	dir, bad := script(t, "exit 1")
	_, next := script(t, "touch "+filepath.Join(dir, "ran"))
	if err := RunAll(context.Background(), "poststop", dir, []specs.Hook{bad, next}, testState()); err == nil {
		t.Error("the failure is not told")
	}
	if _, err := os.Stat(filepath.Join(dir, "ran")); err != nil {
		t.Error("the hook after the failing one did not run")
	}
}

func TestTimeoutKillsTheProcessGroup(t *testing.T) {
	dir, hook := script(t, "sleep 60 & echo $! > child; wait")
	timeout := 1
	hook.Timeout = &timeout
	hook.Env = []string{"PATH=/usr/bin:/bin"}
	begin := time.Now()
	err := Run(context.Background(), "prestart", dir, []specs.Hook{hook}, testState())
	if err == nil || !strings.Contains(err.Error(), "timeout of 1 s") {
		t.Fatalf("error %v", err)
	}
	if took := time.Since(begin); took > 25*time.Second {
		t.Errorf("took %v", took)
	}
	text, readErr := os.ReadFile(filepath.Join(dir, "child"))
	if readErr != nil {
		t.Fatal(readErr)
	}
	pid, _ := strconv.Atoi(strings.TrimSpace(string(text)))
	if running(pid) {
		syscall.Kill(pid, syscall.SIGKILL)
		t.Errorf("the hook's child %d lives on", pid)
	}
}

// running tells a live process from a zombie that nobody has reaped yet. The group was killed
// before Run returned; the child may still be on its way out.
func running(pid int) bool {
	for range 200 {
		text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		if err != nil {
			return false
		}
		if fields := strings.Fields(string(text[strings.LastIndexByte(string(text), ')')+1:])); fields[0] == "Z" || fields[0] == "X" {
			return false
		}
		time.Sleep(10 * time.Millisecond)
	}
	return true
}

func TestDaemonOfAHookDoesNotHoldUs(t *testing.T) {
	dir, hook := script(t, "sleep 60 & echo $! > child")
	hook.Env = []string{"PATH=/usr/bin:/bin"}
	begin := time.Now()
	if err := Run(context.Background(), "poststart", dir, []specs.Hook{hook}, testState()); err != nil {
		t.Fatal(err)
	}
	if took := time.Since(begin); took > 15*time.Second {
		t.Errorf("took %v", took)
	}
	text, _ := os.ReadFile(filepath.Join(dir, "child"))
	if pid, err := strconv.Atoi(strings.TrimSpace(string(text))); err == nil {
		syscall.Kill(pid, syscall.SIGKILL)
	}
}

func TestHookThatIgnoresStdinSucceeds(t *testing.T) {
	dir, hook := script(t, "exit 0")
	state := testState()
	state.Annotations = map[string]string{"big": strings.Repeat("x", 1<<20)}
	if err := Run(context.Background(), "prestart", dir, []specs.Hook{hook}, state); err != nil {
		t.Fatal(err)
	}
}
