// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package frontend

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// TestArgvOfEveryCaller runs the command lines that engines were seen to use.
// Each must reach its command, with its id.
func TestArgvOfEveryCaller(t *testing.T) {
	h := newHost(t)
	process := filepath.Join(t.TempDir(), "process.json")
	if err := os.WriteFile(process, []byte(`{"args":["id"],"cwd":"/","user":{"uid":0,"gid":0}}`), 0o644); err != nil {
		t.Fatal(err)
	}
	pid := filepath.Join(t.TempDir(), "pid")
	config := "--config=" + h.config
	for _, c := range []struct {
		name   string
		global []string
		args   []string
	}{
		{"shim create", []string{"--root", h.root, "--debug", "--log-format", "json"}, []string{"create", "--bundle", "BUNDLE", "--pid-file", pid, "--no-pivot", "--no-new-keyring", "ID"}},
		{"shim start", []string{"--root", h.root, "--log-format", "json"}, []string{"start", "ID"}},
		{"shim exec", []string{"--root", h.root}, []string{"exec", "--process", process, "--detach", "--pid-file", pid, "ID"}},
		{"conmon exec", []string{"--root=" + h.root, "--log-format=json"}, []string{"exec", "--pid-file", pid, "--process", process, "--detach", "--tty", "ID"}},
		{"CRI-O exec", []string{"--root=" + h.root}, []string{"exec", "--process", process, "ID"}},
		{"shim ps", []string{"--root", h.root}, []string{"ps", "--format", "json", "ID"}},
		{"short ps", []string{"--root", h.root}, []string{"ps", "-f=json", "ID"}},
		{"shim pause", []string{"--root", h.root}, []string{"pause", "ID"}},
		{"shim resume", []string{"--root", h.root}, []string{"resume", "ID"}},
		{"shim kill", []string{"--root", h.root}, []string{"kill", "--all", "ID", "9"}},
		{"CRI-O kill", []string{"--root", h.root}, []string{"kill", "-a", "ID", "9"}},
		{"docker's real-time signal", []string{"--root", h.root}, []string{"kill", "ID", "37"}},
		{"podman state", []string{"--rootless=false", "--root", h.root}, []string{"state", "ID"}},
		{"crun's flags", []string{"--cgroup-manager", "cgroupfs", "--criu", "/usr/sbin/criu", "--rootless", "auto", "--root", h.root}, []string{"state", "ID"}},
		{"single dashes", []string{"-root", h.root, "-log-format=json"}, []string{"list", "-format", "json"}},
		{"quiet list", []string{"--root", h.root}, []string{"list", "-q"}},
		{"shim delete", []string{"--root", h.root}, []string{"delete", "--force", "ID"}},
		{"short delete", []string{"--root", h.root}, []string{"delete", "-f", "ID"}},
		{"late flag", []string{"--root", h.root}, []string{"delete", "ID", "--force"}},
	} {
		args := slices.Clone(c.args)
		for i, arg := range args {
			switch arg {
			case "BUNDLE":
				args[i] = h.bundle(nil)
			case "ID":
				args[i] = "a.b+c-d_E"
			}
		}
		if r := h.runWith(append(c.global, config), args...); r.status != 0 {
			t.Errorf("%s: exit status %d: %s", c.name, r.status, r.stderr)
		}
	}
}

// TestExecPassesArgumentsUntouched: what follows the id is the program's.
func TestExecPassesArgumentsUntouched(t *testing.T) {
	h := newHost(t)
	h.created("c1", nil)
	want := []string{"sh", "-c", "echo -- \"$@\"", "--", "-h", "--help", "--env", "", " x ", "--root=/"}
	h.run(append([]string{"exec", "-e", "A=1,2", "-u", "1:2", "-g", "3", "--cwd", "/tmp", "-c", "CAP_SYS_TIME", "--no-new-privs=false", "-t=false", "c1"}, want...)...).succeeds(t)
	process := h.lastRelay().spec
	if !slices.Equal(process.Args, want) {
		t.Errorf("arguments %q, want %q", process.Args, want)
	}
	text := h.execs[0].GetProcess()
	for _, part := range []string{`"A=1,2"`, `"uid":1`, `"gid":2`, `"additionalGids":[3]`, `"cwd":"/tmp"`, `CAP_SYS_TIME`} {
		if !strings.Contains(text, part) {
			t.Errorf("%s lacks %s", text, part)
		}
	}
	if strings.Contains(text, "noNewPrivileges") {
		t.Errorf("--no-new-privs=false did not reach the process: %s", text)
	}
	h.run("exec", "--no-new-privs", "--apparmor", "docker-default", "--process-label", "system_u:system_r:container_t:s0", "--ignore-paused", "-u", "7", "c1", "id").succeeds(t)
	text = h.execs[1].GetProcess()
	for _, part := range []string{`"noNewPrivileges":true`, `"selinuxLabel":"system_u:system_r:container_t:s0"`, `"uid":7,"gid":0`} {
		if !strings.Contains(text, part) {
			t.Errorf("%s lacks %s", text, part)
		}
	}
	if !h.execs[1].GetIgnorePaused() {
		t.Error("--ignore-paused did not reach the worker")
	}
	h.run("exec", "--apparmor", "mine", "c1", "id").fails(t, 255, "process.apparmorProfile")
	h.run("exec", "-p", "/nonexistent", "-e", "A=b", "c1").fails(t, 255, "--env beside --process")
	h.run("exec", "-p", "/nonexistent", "c1", "id").fails(t, 255, `"id" beside --process`)
}

func TestWrongCommandLines(t *testing.T) {
	h := newHost(t)
	for _, c := range []struct {
		args   []string
		status int
		want   string
	}{
		{[]string{"bogus"}, 3, `unknown command "bogus"`},
		{[]string{"state"}, 1, "requires at least 1 argument"},
		{[]string{"state", "a", "b"}, 1, "takes at most 1 argument"},
		{[]string{"state", "--nosuch", "a"}, 1, "-nosuch"},
		{[]string{"exec", "--nosuch", "a"}, 1, "-nosuch"},
		{[]string{"exec"}, 1, "requires at least 1 argument"},
		{[]string{"exec", "a/b", "id"}, 255, "invalid container id"},
		{[]string{"kill", "c", "NOSUCH"}, 1, "unknown signal"},
		{[]string{"kill", "c", "65"}, 1, "unknown signal"},
		{[]string{"list", "-f", "xml"}, 1, "invalid format option"},
		{[]string{"state", ""}, 1, "cannot be empty"},
		{[]string{"state", ".."}, 1, "invalid container id"},
		{[]string{"state", "a/b"}, 1, "invalid container id"},
		{[]string{"state", strings.Repeat("a", 1025)}, 1, "invalid container id"},
		{[]string{"update", "--memory", "lots", "c"}, 1, "invalid value \"lots\" for --memory"},
		{[]string{"update", "--cpu-quota", "1.5", "c"}, 1, "invalid value \"1.5\" for --cpu-quota"},
		{[]string{"update", "--cpu-period", "-1", "c"}, 1, "invalid value \"-1\" for --cpu-period"},
		{[]string{"update", "--cpu-rt-runtime", "5000", "c"}, 1, "linux.resources.cpu.realtimeRuntime: "},
		{[]string{"update", "--kernel-memory", "1m", "c"}, 1, "linux.resources.memory.kernel: "},
		{[]string{"update", "--l3-cache-schema", "L3:0=f", "c"}, 1, "--l3-cache-schema: "},
		{[]string{"update", "--resources", "-", "--memory", "1m", "c"}, 1, "give no --memory beside it"},
		{[]string{"update", "--resources", "-", "c"}, 1, "reading the resources"},
		{[]string{"checkpoint", "--image-path", "i", "--work-path", "w", "c"}, 1, "container does not exist"},
		{[]string{"restore", "--image-path", "i", "-no-subreaper", "--bundle", "b", "c"}, 1, "cannot be made from a saved state"},
		{[]string{"checkpoint", "--nosuch", "c"}, 1, "flag provided but not defined"},
		{[]string{"restore", "--nosuch", "c"}, 1, "flag provided but not defined"},
		{[]string{"checkpoint"}, 1, "requires at least 1 argument"},
		{[]string{"events", "--interval", "0s", "c"}, 1, "duration interval must be greater than 0"},
		{[]string{"events", "--interval", "often", "c"}, 1, "invalid value"},
		{[]string{"--cgroup-manager", "other", "state", "c"}, 1, "use cgroupfs, systemd or disabled"},
	} {
		t.Run(strings.Join(c.args, " ")[:min(30, len(strings.Join(c.args, " ")))], func(t *testing.T) { h.run(c.args...).fails(t, c.status, c.want) })
	}
}

func TestRootlessIsRefused(t *testing.T) {
	h := newHost(t)
	for _, global := range [][]string{{"--rootless"}, {"--rootless=true"}, {"--rootless", "true"}} {
		r := h.runWith(append(global, "--config", h.config), "state", "c")
		if r.status != 1 || !strings.Contains(r.stderr, "--rootless=true") {
			t.Errorf("%v: %d, %q", global, r.status, r.stderr)
		}
	}
}

func TestHelpIsACommandToo(t *testing.T) {
	h := newHost(t)
	for _, c := range []struct {
		args []string
		says string
	}{{[]string{"help"}, "COMMANDS"}, {[]string{"help", "kill"}, "--all"}} {
		if r := h.run(c.args...); r.status != 0 || !strings.Contains(r.stdout, c.says) {
			t.Errorf("%v: exit status %d, stdout %q", c.args, r.status, r.stdout)
		}
	}
}

func TestCheckpointHelpEndsWell(t *testing.T) {
	h := newHost(t)
	if r := h.run("checkpoint", "--help"); r.status != 0 || !strings.Contains(r.stdout, "not supported") {
		t.Errorf("exit status %d, stdout %q", r.status, r.stdout)
	}
}

func TestSignals(t *testing.T) {
	for text, want := range map[string]unix.Signal{
		"": unix.SIGTERM, "0": 0, "9": unix.SIGKILL, "KILL": unix.SIGKILL, "SIGKILL": unix.SIGKILL, "sigusr1": unix.SIGUSR1, "hup": unix.SIGHUP,
		"37": 37, "64": 64, "RTMIN+3": 37, "SIGRTMIN": 34, "RTMAX": 64, "SIGRTMAX-1": 63,
	} {
		if got, err := parseSignal(text); err != nil || got != want {
			t.Errorf("%q: %d, %v, want %d", text, got, err, want)
		}
	}
	for _, text := range []string{"-9", "65", "NOSUCH", "SIG", "SIGRTMIN+31", "RTMAX+1", "9x"} {
		if got, err := parseSignal(text); err == nil {
			t.Errorf("%q is taken as %d", text, got)
		}
	}
}

func TestVersionAndFeaturesNeedNoDaemon(t *testing.T) {
	h := newHost(t)
	absent := []string{"--config", "/nonexistent/bulkhead.toml"}
	for _, args := range [][]string{{"--version"}, {"-v"}, {"version"}} {
		r := h.runWith(absent, args...).succeeds(t)
		lines := strings.Split(r.stdout, "\n")
		if !strings.HasPrefix(lines[0], "bulkhead version ") || !strings.HasPrefix(lines[1], "commit: ") || lines[2] != "spec: 1.3.0" {
			t.Errorf("%v: %q", args, r.stdout)
		}
	}
	r := h.runWith(absent, "features").succeeds(t)
	for _, want := range []string{`"ociVersionMin": "1.0.0"`, `"ociVersionMax": "1.3.0"`, `"linux": {`, `"rro"`, `"rslave"`, `"ridmap"`, `"createRuntime"`, `"io.kubernetes.cri.sandbox-id"`} {
		if !strings.Contains(r.stdout, want) {
			t.Errorf("features lack %s", want)
		}
	}
	for _, claim := range []string{"NOTIFY", "rshared"} {
		if strings.Contains(r.stdout, claim) {
			t.Errorf("features claim %s", claim)
		}
	}
}
