// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package frontend

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"

	"bulkhead/bus"
	vmv1 "bulkhead/proto/vm/v1"
)

const (
	running = vmv1.ContainerStatus_CONTAINER_STATUS_RUNNING
	stopped = vmv1.ContainerStatus_CONTAINER_STATUS_STOPPED
)

func TestStateHasExactlyTheKeysOfTheContract(t *testing.T) {
	h := newHost(t)
	dir := h.created("c1", func(s *specs.Spec) { s.Annotations = map[string]string{"k": "v"} })
	r := h.run("state", "c1").succeeds(t)
	var got map[string]any
	if err := json.Unmarshal([]byte(r.stdout), &got); err != nil {
		t.Fatalf("%q: %v", r.stdout, err)
	}
	keys := []string{"ociVersion", "id", "pid", "status", "bundle", "rootfs", "created", "annotations", "owner"}
	for key := range got {
		if !slices.Contains(keys, key) {
			t.Errorf("extra key %q", key)
		}
	}
	for _, key := range keys {
		if _, ok := got[key]; !ok {
			t.Errorf("missing key %q", key)
		}
	}
	if got["status"] != "created" || got["bundle"] != dir || got["pid"] != float64(h.lastRelay().Identity().GetPid()) || got["ociVersion"] != "1.3.0" {
		t.Errorf("%v", got)
	}
}

func TestStateOfAGoneRelayIsStoppedWithoutPid(t *testing.T) {
	h := newHost(t)
	h.created("c1", nil)
	h.setStatus("c1", running)
	if err := h.lastRelay().cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	// Unreaped, it is a zombie, and that counts as stopped.
	if err := waitExited(h.lastRelay().cmd.Process.Pid); err != nil {
		t.Fatal(err)
	}
	r := h.run("state", "c1").succeeds(t)
	if !strings.Contains(r.stdout, `"status": "stopped"`) || !strings.Contains(r.stdout, `"pid": 0`) {
		t.Errorf("%s", r.stdout)
	}
}

func TestUnknownContainers(t *testing.T) {
	h := newHost(t)
	for _, args := range [][]string{
		{"state", "x"}, {"start", "x"}, {"kill", "x", "9"}, {"kill", "-a", "x", "9"}, {"delete", "x"}, {"pause", "x"}, {"resume", "x"}, {"update", "--memory", "64m", "x"}, {"events", "--stats", "x"}, {"ps", "x"}, {"exec", "x", "id"},
	} {
		status := 1
		if args[0] == "exec" {
			status = 255
		}
		t.Run(args[0], func(t *testing.T) { h.run(args...).fails(t, status, "container does not exist") })
	}
}

func TestForceDeleteOfUnknownIsSilent(t *testing.T) {
	h := newHost(t)
	if r := h.run("delete", "--force", "x").succeeds(t); r.stdout != "" {
		t.Errorf("stdout %q", r.stdout)
	}
	h.created("c1", nil)
	for range 3 {
		h.run("delete", "--force", "c1").succeeds(t)
	}
}

func TestIDsAreScopedByRoot(t *testing.T) {
	h := newHost(t)
	h.created("c1", nil)
	other := []string{"--root", "/run/other", "--config", h.config}
	if r := h.runWith(other, "state", "c1"); r.status != 1 {
		t.Errorf("another root sees the container: %q", r.stdout)
	}
	if r := h.runWith(other, "list", "-f", "json").succeeds(t); r.stdout != "[]\n" {
		t.Errorf("list of another root: %q", r.stdout)
	}
	if r := h.run("list", "-q").succeeds(t); r.stdout != "c1\n" {
		t.Errorf("list: %q", r.stdout)
	}
	h.created("c2", nil)
	h.created("c3", nil)
	if r := h.run("list", "-q").succeeds(t); r.stdout != "c1\nc2\nc3\n" {
		t.Errorf("a list that comes in parts: %q", r.stdout)
	}
	if r := h.run("list").succeeds(t); !strings.HasPrefix(r.stdout, "ID ") || !strings.Contains(r.stdout, "created") {
		t.Errorf("list: %q", r.stdout)
	}
}

func TestKillPassesTheSignal(t *testing.T) {
	h := newHost(t)
	h.created("c1", nil)
	h.run("kill", "c1").succeeds(t)
	h.run("kill", "--all", "c1", "SIGHUP").succeeds(t)
	if len(h.kills) != 2 || h.kills[0].GetSignal() != 15 || h.kills[0].GetAll() || h.kills[1].GetSignal() != 1 || !h.kills[1].GetAll() {
		t.Errorf("%v", h.kills)
	}
}

func TestKillOfAStoppedContainer(t *testing.T) {
	h := newHost(t)
	h.created("c1", nil)
	h.setStatus("c1", stopped)
	h.run("kill", "c1", "9").fails(t, 1, "container not running")
	h.run("kill", "--all", "c1", "9").succeeds(t)
}

func TestStartTwiceAndAfterTheEnd(t *testing.T) {
	h := newHost(t)
	h.created("c1", nil)
	h.run("start", "c1").succeeds(t)
	h.run("start", "c1").fails(t, 1, "cannot start an already running container")
	h.setStatus("c1", stopped)
	h.run("start", "c1").fails(t, 1, "cannot start a container that has stopped")
}

func TestDeleteOfARunningContainerNeedsForce(t *testing.T) {
	h := newHost(t)
	h.created("c1", nil)
	h.run("start", "c1").succeeds(t)
	h.run("delete", "c1").fails(t, 1, "cannot delete container c1 that is not stopped: running")
	h.run("delete", "-f", "c1").succeeds(t)
}

func TestPauseAndResume(t *testing.T) {
	h := newHost(t)
	h.created("c1", nil)
	h.run("start", "c1").succeeds(t)
	h.run("resume", "c1").fails(t, 1, "container not paused")
	h.run("pause", "c1").succeeds(t)
	if r := h.run("state", "c1").succeeds(t); !strings.Contains(r.stdout, `"status": "paused"`) {
		t.Errorf("%s", r.stdout)
	}
	h.run("exec", "c1", "id").fails(t, 255, "cannot exec in a paused container")
	h.run("exec", "--ignore-paused", "c1", "id").succeeds(t)
	h.run("resume", "c1").succeeds(t)
}

func TestPsPrintsTheRelays(t *testing.T) {
	h := newHost(t)
	h.created("c1", nil)
	pid := h.lastRelay().Identity().GetPid()
	if r := h.run("ps", "--format", "json", "c1").succeeds(t); r.stdout != fmt.Sprintf("[%d]\n", pid) {
		t.Errorf("%q", r.stdout)
	}
	r := h.run("ps", "c1", "-o", "pid,args").succeeds(t)
	if lines := strings.Split(strings.TrimSpace(r.stdout), "\n"); len(lines) != 2 || !strings.Contains(lines[0], "PID") || !strings.Contains(lines[1], "sleep") {
		t.Errorf("%q", r.stdout)
	}
	h.setStatus("c1", stopped)
	if r := h.run("ps", "-f", "json", "c1").succeeds(t); r.stdout != "[]\n" {
		t.Errorf("%q", r.stdout)
	}
}

func TestPoststartAndPoststopHooks(t *testing.T) {
	h := newHost(t)
	dir := t.TempDir()
	h.created("c1", func(s *specs.Spec) {
		s.Hooks = &specs.Hooks{
			Poststart: []specs.Hook{script(t, "cat > "+dir+"/start")},
			Poststop:  []specs.Hook{script(t, "exit 1"), script(t, "cat > "+dir+"/stop")},
		}
	})
	h.run("start", "c1").succeeds(t)
	if text, _ := os.ReadFile(dir + "/start"); !strings.Contains(string(text), `"status":"running"`) {
		t.Errorf("poststart saw %q", text)
	}
	r := h.run("delete", "--force", "c1")
	if r.status != 0 || r.log != "" || !strings.Contains(r.stderr, "warning: error running poststop hook #0") {
		t.Errorf("exit status %d, stderr %q, log %q: a failing poststop hook is a warning", r.status, r.stderr, r.log)
	}
	if text, _ := os.ReadFile(dir + "/stop"); !strings.Contains(string(text), `"status":"stopped"`) || strings.Contains(string(text), `"pid"`) {
		t.Errorf("poststop saw %q", text)
	}
}

func TestPoststartFailureFollowsTheVersion(t *testing.T) {
	for version, fatal := range map[string]bool{"1.3.0": true, "1.0.0": true, "1.0.1": true, "1.0.2": false, "1.0.2-dev": false, "1.2.1": false} {
		t.Run(version, func(t *testing.T) {
			h := newHost(t)
			h.created("c1", func(s *specs.Spec) {
				s.Version = version
				s.Hooks = &specs.Hooks{Poststart: []specs.Hook{script(t, "exit 1")}}
			})
			r := h.run("start", "c1")
			if (r.status != 0) != fatal || (len(h.kills) > 0) != fatal || !strings.Contains(r.stderr, "poststart") {
				t.Errorf("exit status %d, %d kills, stderr %q", r.status, len(h.kills), r.stderr)
			}
		})
	}
}

func TestWhatBecomesOfABundleAfterCreateDoesNotMatter(t *testing.T) {
	h := newHost(t)
	mark := filepath.Join(t.TempDir(), "stop")
	dir := h.created("c1", func(s *specs.Spec) {
		s.Hooks = &specs.Hooks{Poststop: []specs.Hook{script(t, "cat > "+mark)}}
	})
	if err := os.RemoveAll(dir); err != nil {
		t.Fatal(err)
	}
	h.run("delete", "c1").succeeds(t)
	if text, _ := os.ReadFile(mark); !strings.Contains(string(text), `"status":"stopped"`) {
		t.Errorf("poststop saw %q after its bundle was gone", text)
	}
}

func TestExecOfAProcessFile(t *testing.T) {
	h := newHost(t)
	h.created("c1", nil)
	dir := t.TempDir()
	write := func(text string) string {
		path := filepath.Join(dir, "process.json")
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		return path
	}
	pidFile := filepath.Join(dir, "pid")
	good := `{"args":["id"],"cwd":"/","user":{"uid":5,"gid":6},"env":["A=b"]}`
	h.run("exec", "-p", write(good), "-d", "--pid-file", pidFile, "c1").succeeds(t)
	exec := h.lastRelay()
	if text, _ := os.ReadFile(pidFile); string(text) != fmt.Sprint(exec.cmd.Process.Pid) {
		t.Errorf("pid-file %q", text)
	}
	if !exec.committed || exec.spec.JoinPID != h.relays[0].cmd.Process.Pid || len(exec.spec.Namespaces) != 0 {
		t.Errorf("relay %+v, committed %v", exec.spec, exec.committed)
	}
	if req := h.execs[0]; req.GetExecId() == "" || req.GetRelay().GetPid() != int32(exec.cmd.Process.Pid) || !strings.Contains(req.GetProcess(), `"uid":5`) {
		t.Errorf("request %v", req)
	}
	for text, want := range map[string]string{
		"null": "null", "{": "is not a process", `{"cwd":"/"}`: "args must not be empty", `{"args":["x"],"cwd":"/","selinuxLabel":"l"}`: "selinuxLabel",
		`{"args":["x"],"cwd":"/","terminal":true}`: "without setting console socket",
	} {
		h.run("exec", "-d", "-p", write(text), "c1").fails(t, 255, want)
	}
}

func TestExecEndsWithTheProgramsStatus(t *testing.T) {
	h := newHost(t)
	h.created("c1", nil)
	h.exit = 42
	if r := h.run("exec", "c1", "false"); r.status != 42 || r.stderr != "" || r.log != "" {
		t.Errorf("exit status %d, stderr %q, log %q", r.status, r.stderr, r.log)
	}
	if h.lastRelay().committed {
		t.Error("a program in the foreground would outlive its caller")
	}
}

func TestFailedExecLeavesNothing(t *testing.T) {
	h := newHost(t)
	h.created("c1", nil)
	h.onExec = func(*vmv1.ExecRequest) error {
		return bus.Errorf(bus.Internal, `unable to start container process: exec: "nosuch": executable file not found in $PATH`).With("from", "guest")
	}
	pidFile := filepath.Join(t.TempDir(), "pid")
	h.run("exec", "-d", "--pid-file", pidFile, "c1", "nosuch").fails(t, 255, `exec failed: unable to start container process: exec: "nosuch": executable file not found in $PATH`)
	if _, err := os.Stat(pidFile); err == nil {
		t.Error("there is a pid-file")
	}
	if !h.lastRelay().killed {
		t.Error("the relay lives on")
	}
	h.setStatus("c1", stopped)
	h.run("exec", "c1", "id").fails(t, 255, "cannot exec in a stopped container")
}

func TestRunWaitsAndRemoves(t *testing.T) {
	h := newHost(t)
	h.exit = 3
	if r := h.run("run", "-b", h.bundle(nil), "-no-subreaper", "c1"); r.status != 3 || r.stderr != "" {
		t.Errorf("exit status %d, stderr %q", r.status, r.stderr)
	}
	if _, ok := h.record("c1"); ok {
		t.Error("the container is still there")
	}
	if r := h.run("run", "-b", h.bundle(nil), "--keep", "c2"); r.status != 3 {
		t.Errorf("exit status %d", r.status)
	}
	if _, ok := h.record("c2"); !ok {
		t.Error("the container is not kept")
	}
	h.run("run", "-b", h.bundle(nil), "--detach", "c3").succeeds(t)
	if record, ok := h.record("c3"); !ok || record.GetStatus() != running {
		t.Errorf("record %v", record)
	}
}

func TestRunThatCannotStartLeavesNothing(t *testing.T) {
	h := newHost(t)
	h.onStart = func(*vmv1.Container) error { return bus.Errorf(bus.Internal, "no") }
	pidFile := filepath.Join(t.TempDir(), "pid")
	h.run("run", "-b", h.bundle(nil), "-d", "--pid-file", pidFile, "c1").fails(t, 1, "no")
	if _, ok := h.record("c1"); ok {
		t.Error("the container is still there")
	}
	if _, err := os.Stat(pidFile); err == nil {
		t.Error("the pid-file is still there")
	}
}

func TestSpecWritesABundleThatPasses(t *testing.T) {
	h := newHost(t)
	t.Run("rootless", func(t *testing.T) { specPasses(t, h, "c2", "--rootless") })
	specPasses(t, h, "c1")
}

func specPasses(t *testing.T, h *host, id string, flags ...string) {
	t.Helper()
	dir := t.TempDir()
	h.run(append(append([]string{"spec"}, flags...), "-b", dir)...).succeeds(t)
	h.run("spec", "--bundle", dir).fails(t, 1, "exists")
	text, err := os.ReadFile(filepath.Join(dir, "config.json"))
	if err != nil {
		t.Fatal(err)
	}
	text = []byte(strings.Replace(string(text), `"terminal": true`, `"terminal": false`, 1))
	if err := os.WriteFile(filepath.Join(dir, "config.json"), text, 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(filepath.Join(dir, "rootfs"), 0o755); err != nil {
		t.Fatal(err)
	}
	h.run("create", "-b", dir, id).succeeds(t)
}

// TestLabelsAreRefusedWhereTheyAreSwitchedOff: the configuration decides, and features say what it decided.
func TestLabelsAreRefusedWhereTheyAreSwitchedOff(t *testing.T) {
	h := newHost(t)
	const label = "system_u:system_r:container_t:s0:c1,c2"
	labelled := h.bundle(func(s *specs.Spec) { s.Process.SelinuxLabel = label })
	claims := func() bool {
		return strings.Contains(strings.Join(strings.Fields(h.run("features").succeeds(t).stdout), ""), `"selinux":{"enabled":true}`)
	}
	h.run("create", "--bundle", labelled, "c1").succeeds(t)
	if !claims() {
		t.Error("features do not claim what is done")
	}
	text, err := os.ReadFile(h.config)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(h.config, append(text, "[vm]\nselinux = false\n"...), 0o644); err != nil {
		t.Fatal(err)
	}
	h.run("create", "--bundle", labelled, "c2").fails(t, 1, "process.selinuxLabel: SELinux label \""+label+"\": [vm] selinux = false")
	h.run("exec", "-d", "--process-label", label, "c1", "id").fails(t, 255, "[vm] selinux = false")
	if claims() {
		t.Error("features claim what is refused")
	}
	if got := len(h.creates); got != 1 {
		t.Errorf("%d creates reached the worker, want the first alone", got)
	}
}
