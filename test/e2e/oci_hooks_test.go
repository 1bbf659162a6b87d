// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// hook makes a hook of a shell script, whose standard input is the state.
func hook(shell, script string, args ...string) []specs.Hook {
	return []specs.Hook{{
		Path: shell, Args: append([]string{"sh", "-c", script, "hook"}, args...), Env: []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin", "MARK=set by the bundle"},
	}}
}

// TestOCIHooksRunInOrderAndInTheirNamespaces: each hook notes the state it read, its
// environment and its mount namespace, and whether it can see the container's files.
func TestOCIHooksRunInOrderAndInTheirNamespaces(t *testing.T) {
	o := newOCI(t, sharedHost(t))
	id := newID("hooks")
	notes := t.TempDir()
	volume := t.TempDir()
	if err := os.WriteFile(filepath.Join(volume, "file"), []byte("volume"), 0o644); err != nil {
		t.Fatal(err)
	}
	// One line each: name, mount namespace, host name, environment, the volume below the root, state.
	const script = `state=$(cat); root=$(echo "$state" | sed 's/.*"rootfs":"\([^"]*\)".*/\1/'); ` +
		`echo "$1|$(readlink /proc/self/ns/mnt)|$(hostname)|$MARK|$(cat "$root/volume/file" 2>/dev/null)|$(echo "$state" | tr -d '\n')" >> "$2"`
	file := filepath.Join(notes, "host")
	host := func(kind string) []specs.Hook { return hook("/bin/sh", script, kind, file) }
	spec := newSpec("sh", "-c", "cat /hooked; sleep 1000")
	spec.Hostname = "inside"
	spec.Annotations = map[string]string{"org.example.mark": "kept"}
	spec.Mounts = append(spec.Mounts, specs.Mount{Destination: "/volume", Type: "bind", Source: volume, Options: []string{"rbind"}})
	spec.Hooks = &specs.Hooks{
		Prestart: host("prestart"), CreateRuntime: host("createRuntime"), CreateContainer: host("createContainer"),
		StartContainer: hook("/bin/sh", `cat > /hooked; echo "|$(hostname)|$MARK|$PPID" >> /hooked`),
		Poststart:      host("poststart"), Poststop: append(hook("/bin/sh", "exit 3"), host("poststop")...),
	}
	// The image has a place for the volume, as an engine would see to.
	bundle := o.bundle(spec)
	if err := os.Mkdir(filepath.Join(bundle, "rootfs/volume"), 0o755); err != nil {
		t.Fatal(err)
	}
	m := o.createIn(id, bundle)
	relayMounts, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/mnt", m.PID))
	if err != nil {
		t.Fatal(err)
	}
	o.do("start", id)
	until(t, m, "|inside|set by the bundle|1\n")
	var inside specs.State
	text, _, _ := strings.Cut(m.Stdout.String(), "|")
	if err := json.Unmarshal([]byte(text), &inside); err != nil {
		t.Fatalf("%q: %v", text, err)
	}
	if inside.ID != id || inside.Status != specs.StateCreated || inside.Bundle != bundle || inside.Annotations["org.example.mark"] != "kept" || inside.Version == "" {
		t.Errorf("the state that startContainer reads is %+v", inside)
	}
	o.do("kill", id, "KILL")
	exits(t, m, 137)
	if r := o.cli("delete", id); r.Code != 0 || !strings.Contains(r.Stderr, "poststop hook #0") {
		t.Errorf("delete with a poststop hook that fails ends with %d and says %q", r.Code, r.Stderr)
	}

	all, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	own, err := os.Readlink("/proc/self/ns/mnt")
	if err != nil {
		t.Fatal(err)
	}
	hostname, err := os.Hostname()
	if err != nil {
		t.Fatal(err)
	}
	want := []struct {
		kind, mounts, hostname, volume string
		status                         specs.ContainerState
		pid                            int
	}{
		{"prestart", own, hostname, "", "creating", m.PID},
		{"createRuntime", own, hostname, "", "creating", m.PID},
		{"createContainer", relayMounts, "inside", "volume", "creating", m.PID},
		{"poststart", own, hostname, "", "running", m.PID},
		{"poststop", own, hostname, "", "stopped", 0},
	}
	lines := strings.Split(strings.TrimSpace(string(all)), "\n")
	if len(lines) != len(want) {
		t.Fatalf("the hooks noted:\n%s", all)
	}
	for i, w := range want {
		got := strings.SplitN(lines[i], "|", 6)
		expect(t, "what "+w.kind+" notes", fmt.Sprintf("%q", got[:5]), fmt.Sprintf("%q", []string{w.kind, w.mounts, w.hostname, "set by the bundle", w.volume}))
		var s specs.State
		if err := json.Unmarshal([]byte(got[5]), &s); err != nil {
			t.Fatalf("%s reads %q: %v", w.kind, got[5], err)
		}
		if s.ID != id || s.Status != w.status || s.Pid != w.pid || s.Bundle != bundle || s.Version != "1.0.2" || s.Annotations["org.example.mark"] != "kept" {
			t.Errorf("the state that %s reads is %+v", w.kind, s)
		}
	}
}

// TestOCIAHookThatFailsOrHangsUndoesTheCreate, and poststop still runs.
func TestOCIAHookThatFailsOrHangsUndoesTheCreate(t *testing.T) {
	o := newOCI(t, sharedHost(t))
	idle := newIdle(t, o.host)
	timeout := 1
	for says, hooks := range map[string]specs.Hooks{
		"running createRuntime hook #0":                           {CreateRuntime: hook("/bin/sh", "echo wrong here >&2; exit 7")},
		"running createContainer hook #0":                         {CreateContainer: hook("/bin/sh", "exit 7")},
		"it did not end within its timeout of 1 s and was killed": {CreateContainer: []specs.Hook{{Path: "/bin/sleep", Args: []string{"sleep", "1000"}, Timeout: &timeout}}},
	} {
		id := newID("bad")
		file := filepath.Join(t.TempDir(), "poststop")
		hooks.Poststop = hook("/bin/sh", `cat > "$1"`, file)
		spec := newSpec("true")
		spec.Hooks = &hooks
		o.fails(1, says, "create", "--bundle", o.bundle(spec), id)
		o.fails(1, "container does not exist", "state", id)
		if text, err := os.ReadFile(file); err != nil || !strings.Contains(string(text), `"status":"stopped"`) {
			t.Errorf("poststop after %q read %q, %v", says, text, err)
		}
	}
	// The guest's hook runs when start has been answered, as with runc.
	id := newID("late")
	spec := newSpec("sh", "-c", "echo ran")
	spec.Hooks = &specs.Hooks{StartContainer: []specs.Hook{{Path: "/bin/sleep", Args: []string{"sleep", "1000"}, Timeout: &timeout}}}
	m := o.launch(id, spec)
	exits(t, m, 255)
	expect(t, "the output of a program whose startContainer hook hangs", wholeOutput(t, m), "")
	o.do("delete", id)
	must(t, cleanTime, idle)
}
