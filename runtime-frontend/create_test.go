// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package frontend

import (
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"

	"bulkhead/bus"
	vmv1 "bulkhead/proto/vm/v1"
)

func TestCreateHandsOverAndLetsGo(t *testing.T) {
	h := newHost(t)
	dir := h.bundle(func(s *specs.Spec) {
		s.Mounts = append(s.Mounts, specs.Mount{Destination: "/etc/hosts", Type: "bind", Source: "/etc/hosts", Options: []string{"rbind", "ro"}})
	})
	pidFile := filepath.Join(dir, "init.pid")
	h.run("create", "--bundle", dir, "--pid-file", pidFile, "--no-pivot", "--no-new-keyring", "c1").succeeds(t)

	req := h.creates[0]
	relay := h.lastRelay()
	if !relay.committed || relay.killed {
		t.Errorf("relay committed %v, killed %v", relay.committed, relay.killed)
	}
	if req.GetRef().GetId() != "c1" || req.GetRef().GetRoot() != h.root || req.GetBundle() != dir || req.GetRootfs() != filepath.Join(dir, "rootfs") {
		t.Errorf("request %v", req)
	}
	if text, _ := os.ReadFile(filepath.Join(dir, "config.json")); req.GetConfig() != string(text) {
		t.Error("the configuration is not passed as it is written")
	}
	if h.handed[req.GetHandover()] != 2 || len(req.GetMounts()) != 2 {
		t.Fatalf("handed %d descriptors, described %d", h.handed[req.GetHandover()], len(req.GetMounts()))
	}
	if m := req.GetMounts()[0]; m.GetDestination() != "/" || !m.GetIsDir() || m.GetReadOnly() {
		t.Errorf("root mount %v", m)
	}
	if m := req.GetMounts()[1]; m.GetDestination() != "/etc/hosts" || m.GetIsDir() || !m.GetReadOnly() || m.GetIndex() != 1 {
		t.Errorf("bind mount %v", m)
	}
	if spec := relay.spec; spec.Rootfs != filepath.Join(dir, "rootfs") || len(spec.Namespaces) != 6 || spec.RelayDir != filepath.Join(h.bus.RunDir, "relay") {
		t.Errorf("relay spec %+v", spec)
	}
}

func TestPidFileHasNoNewline(t *testing.T) {
	h := newHost(t)
	dir := h.bundle(nil)
	pidFile := filepath.Join(dir, "init.pid")
	h.run("create", "-b", dir, "--pid-file="+pidFile, "c1").succeeds(t)
	text, err := os.ReadFile(pidFile)
	if err != nil {
		t.Fatal(err)
	}
	// strconv.Atoi is what containerd does with it.
	if pid, err := strconv.Atoi(string(text)); err != nil || pid != int(h.lastRelay().Identity().GetPid()) {
		t.Errorf("pid-file %q: %v", text, err)
	}
	if left, _ := filepath.Glob(filepath.Join(dir, ".init.pid*")); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
}

// TestFailedCreateLeavesNothing lets each step fail in turn.
func TestFailedCreateLeavesNothing(t *testing.T) {
	for name, c := range map[string]struct {
		prepare func(t *testing.T, h *host, dir string)
		edit    func(*specs.Spec)
		args    []string
		want    string
	}{
		"bad bundle": {edit: func(s *specs.Spec) { s.Linux.IntelRdt = &specs.LinuxIntelRdt{} }, want: "linux.intelRdt"},
		"prestart hook": {
			edit: func(s *specs.Spec) {
				s.Hooks = &specs.Hooks{Prestart: []specs.Hook{script(t, "echo broken; exit 1")}}
			},
			want: "broken",
		},
		"createRuntime hook": {
			edit: func(s *specs.Spec) {
				s.Hooks = &specs.Hooks{CreateRuntime: []specs.Hook{script(t, "echo broken; exit 1")}}
			},
			want: "createRuntime hook #0",
		},
		"worker": {
			prepare: func(_ *testing.T, h *host, _ string) {
				h.onCreate = func(*vmv1.CreateRequest) error {
					h.records = map[string]*vmv1.Container{}
					return bus.Errorf(bus.Internal, `exec: "nosuch": executable file not found in $PATH`).With("from", "guest")
				}
			},
			want: `exec: "nosuch": executable file not found in $PATH`,
		},
		"console": {
			prepare: func(_ *testing.T, h *host, _ string) { h.console = errors.New("broken socket") },
			want:    "broken socket",
		},
		"pid-file": {
			prepare: func(t *testing.T, _ *host, dir string) {
				if err := os.Mkdir(filepath.Join(dir, "init.pid"), 0o755); err != nil {
					t.Fatal(err)
				}
			},
			want: "pid-file",
		},
		"preserved descriptors":     {args: []string{"--preserve-fds", "2"}, want: "--preserve-fds 2"},
		"socket without a terminal": {args: []string{"--console-socket", "/s"}, want: "cannot use console socket"},
		"terminal without a socket": {edit: func(s *specs.Spec) { s.Process.Terminal = true }, want: "without setting console socket"},
	} {
		t.Run(name, func(t *testing.T) {
			h := newHost(t)
			dir := h.bundle(c.edit)
			if c.prepare != nil {
				c.prepare(t, h, dir)
			}
			pidFile := filepath.Join(dir, "init.pid")
			args := append([]string{"create", "--bundle", dir, "--pid-file", pidFile}, append(c.args, "c1")...)
			h.run(args...).fails(t, 1, c.want)
			if info, err := os.Stat(pidFile); err == nil && info.Mode().IsRegular() {
				t.Error("there is a pid-file")
			}
			if _, ok := h.record("c1"); ok {
				t.Error("there is a record")
			}
			for _, r := range h.relays {
				if !r.killed || r.committed {
					t.Errorf("relay killed %v, committed %v", r.killed, r.committed)
				}
			}
		})
	}
}

func TestFailedCreateRunsPoststopHooks(t *testing.T) {
	h := newHost(t)
	mark := filepath.Join(t.TempDir(), "poststop")
	dir := h.bundle(func(s *specs.Spec) {
		s.Hooks = &specs.Hooks{
			Prestart: []specs.Hook{script(t, "exit 1")},
			Poststop: []specs.Hook{script(t, "cat > "+mark)},
		}
	})
	h.run("create", "-b", dir, "c1").fails(t, 1, "prestart")
	if text, err := os.ReadFile(mark); err != nil || !strings.Contains(string(text), `"status":"stopped"`) {
		t.Errorf("poststop saw %q, %v", text, err)
	}
}

func TestCreateHooksSeeTheRelayCreating(t *testing.T) {
	h := newHost(t)
	seen := filepath.Join(t.TempDir(), "state")
	dir := h.bundle(func(s *specs.Spec) {
		s.Hooks = &specs.Hooks{Prestart: []specs.Hook{script(t, "cat > "+seen)}}
	})
	h.run("create", "-b", dir, "c1").succeeds(t)
	text, _ := os.ReadFile(seen)
	for _, want := range []string{`"status":"creating"`, fmt.Sprintf(`"pid":%d`, h.lastRelay().Identity().GetPid()), `"bundle":"` + dir} {
		if !strings.Contains(string(text), want) {
			t.Errorf("%s lacks %s", text, want)
		}
	}
}

func TestDuplicateIDLeavesTheOtherAlone(t *testing.T) {
	h := newHost(t)
	h.created("c1", nil)
	ran := filepath.Join(t.TempDir(), "ran")
	dir := h.bundle(func(s *specs.Spec) {
		s.Hooks = &specs.Hooks{Prestart: []specs.Hook{script(t, "touch "+ran)}}
	})
	h.run("create", "-b", dir, "c1").fails(t, 1, "container with given ID already exists")
	if _, err := os.Stat(ran); err == nil {
		t.Error("hooks ran for an id that is taken")
	}
	if _, ok := h.record("c1"); !ok || len(h.deletes) != 0 {
		t.Error("the other container was touched")
	}
	if len(h.relays) != 1 || h.relays[0].killed {
		t.Error("relays were started or killed")
	}
}

// TestLostRaceForAnIDLeavesTheOtherAlone: the id is taken after we looked.
func TestLostRaceForAnIDLeavesTheOtherAlone(t *testing.T) {
	h := newHost(t)
	h.onCreate = func(req *vmv1.CreateRequest) error {
		h.records[bus.ContainerKey(h.root, "c1")].OperationId = "another's"
		return bus.Errorf(bus.AlreadyExists, "container with given ID already exists")
	}
	h.run("create", "-b", h.bundle(nil), "c1").fails(t, 1, "container with given ID already exists")
	if _, ok := h.record("c1"); !ok {
		t.Error("the other container is gone")
	}
}

func TestPidfdSocketGetsAPidfd(t *testing.T) {
	h := newHost(t)
	path := filepath.Join(t.TempDir(), "s")
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	h.run("create", "-b", h.bundle(nil), "--pidfd-socket", path, "c1").succeeds(t)
	conn, err := l.AcceptUnix()
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	text, rights := make([]byte, 64), make([]byte, 64)
	n, rn, _, _, err := conn.ReadMsgUnix(text, rights)
	if err != nil || n == 0 || rn == 0 {
		t.Errorf("message of %d bytes with %d of rights: %v", n, rn, err)
	}
}

func TestNamelessTextsNeverLookLikeAMissingProgram(t *testing.T) {
	h := newHost(t)
	dir := h.bundle(func(s *specs.Spec) {
		s.Linux.Namespaces[1].Path = "/nonexistent/netns" // the system says ENOENT
	})
	r := h.run("create", "-b", dir, "c1")
	r.fails(t, 1, "/nonexistent/netns")
	if strings.Contains(strings.ToLower(r.stderr), "no such file") {
		t.Errorf("%q would be reported as exit code 127", r.stderr)
	}
	gone := h.run("create", "-b", "/nonexistent/bundle", "c1")
	gone.fails(t, 1, "not found")
	if strings.Contains(strings.ToLower(gone.stderr), "no such file") {
		t.Errorf("%q would be reported as exit code 127", gone.stderr)
	}
}
