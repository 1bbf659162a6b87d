// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

func TestOCIErrorsAreLoggedAsJSON(t *testing.T) {
	o := newOCI(t, sharedHost(t))
	log := filepath.Join(o.dir, "log.json")
	if err := os.WriteFile(log, []byte(`{"level":"error","msg":"of before","time":"2026-01-01T00:00:00Z"}`+"\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	r := o.cli("--log", log, "--log-format", "json", "state", newID("unknown"))
	expect(t, "the exit code", r.Code, 1)
	lines := strings.Split(strings.TrimSpace(read(t, log)), "\n")
	expect(t, "the number of lines", len(lines), 2) // appended one, and one only
	var line struct {
		Level, Msg string
		Time       time.Time
	}
	if err := json.Unmarshal([]byte(lines[len(lines)-1]), &line); err != nil {
		t.Fatalf("%q: %v", lines[len(lines)-1], err)
	}
	expect(t, "the level", line.Level, "error")
	if !strings.Contains(line.Msg, "container does not exist") || !strings.Contains(r.Stderr, line.Msg) || time.Since(line.Time) > commandTime {
		t.Errorf("logged %+v, said %q", line, r.Stderr)
	}
	// Success logs nothing at all: podman reads the whole file as one object.
	quiet := filepath.Join(o.dir, "quiet.json")
	o.do("--log", quiet, "--log-format", "json", "delete", "--force", newID("unknown"))
	if text, err := os.ReadFile(quiet); err == nil && len(text) > 0 {
		t.Errorf("a command that succeeded logged %q", text)
	}
}

func TestOCIAnswersWhatEnginesAskFirst(t *testing.T) {
	o := newOCI(t, sharedHost(t))
	if v := o.do("--version"); !strings.Contains(v, " version ") || !strings.Contains(v, "spec: 1.") {
		t.Errorf("--version prints %q", v)
	}
	var features map[string]any
	if err := json.Unmarshal([]byte(o.do("features")), &features); err != nil {
		t.Fatal(err)
	}
	for _, key := range []string{"ociVersionMin", "ociVersionMax", "linux"} {
		if features[key] == nil {
			t.Errorf("features has no %s: %v", key, features)
		}
	}
	if r := o.cli("no-such-command"); r.Code == 0 {
		t.Error("an unknown command succeeded")
	}
}

func TestOCIPodsShareAMachine(t *testing.T) {
	h := sharedHost(t)
	o := newOCI(t, h)
	sandbox, member, stranger := newID("sandbox"), newID("member"), newID("stranger")
	spec := func(kind string) *specs.Spec {
		s := newSpec("sh", "-c", "cat /proc/sys/kernel/random/boot_id; hostname; exec sleep 1000")
		s.Hostname = "pod"
		s.Annotations = map[string]string{"io.kubernetes.cri.container-type": kind, "io.kubernetes.cri.sandbox-id": sandbox}
		return s
	}
	first := o.launch(sandbox, spec("sandbox"))
	second := o.launch(member, spec("container"))
	third := o.launch(stranger, newSpec("sh", "-c", "cat /proc/sys/kernel/random/boot_id; exec sleep 1000"))
	var boots []string
	for _, m := range []interface{ String() string }{first.Stdout, second.Stdout, third.Stdout} {
		must(t, commandTime, func() error {
			if !strings.Contains(m.String(), "\n") {
				return is(m.String(), "a boot id")
			}
			return nil
		})
		boots = append(boots, strings.Fields(m.String())[0])
	}
	expect(t, "the machine of the member", boots[1], boots[0])
	if boots[2] == boots[0] {
		t.Error("a stranger runs in the pod's machine")
	}
	conn := dial(t, h)
	list := o.list(conn)
	expect(t, "the number of VMs", len(list.GetSandboxes()), 2)
	expect(t, "the number of containers in the pod's VM", len(o.sandbox(conn, member).GetContainers()), 2)
	if out := o.do("exec", member, "ls", "/"); !strings.Contains(out, "bin") {
		t.Errorf("the member's root holds %q", out)
	}

	o.do("kill", member, "9")
	exits(t, second, 137)
	o.do("delete", member)
	expect(t, "the sandbox's status after a member's end", o.status(sandbox), "running")
	// A member may come again, and the sandbox may go before it.
	second = o.launch(newID("again"), spec("container"))
	must(t, commandTime, func() error { return is(strings.SplitN(second.Stdout.String(), "\n", 2)[0], boots[0]) })
	o.do("delete", "--force", sandbox)
	exits(t, first, 137)
}

func TestOCIRefusesWhatItCannotDo(t *testing.T) {
	h := sharedHost(t)
	o := newOCI(t, h)
	conn := dial(t, h)
	withNamespaces := func(keep func(specs.LinuxNamespaceType) bool) *specs.Spec {
		s := newSpec("true")
		var kept []specs.LinuxNamespace
		for _, ns := range s.Linux.Namespaces {
			if keep(ns.Type) {
				kept = append(kept, ns)
			}
		}
		s.Linux.Namespaces = kept
		return s
	}
	for _, c := range []struct {
		name string
		spec func() *specs.Spec
		word string
	}{
		{"host network", func() *specs.Spec {
			return withNamespaces(func(t specs.LinuxNamespaceType) bool { return t != specs.NetworkNamespace })
		}, "network"},
		{"version", func() *specs.Spec { s := newSpec("true"); s.Version = "2.0.0"; return s }, "2.0.0"},
		{"intel RDT", func() *specs.Spec {
			s := newSpec("true")
			s.Linux.IntelRdt = &specs.LinuxIntelRdt{ClosID: "group"}
			return s
		}, "intelRdt"},
		{"missing root", func() *specs.Spec { s := newSpec("true"); s.Root.Path = "elsewhere"; return s }, "elsewhere"},
		{"relative working directory", func() *specs.Spec { s := newSpec("true"); s.Process.Cwd = "here"; return s }, "cwd"},
	} {
		t.Run(c.name, func(t *testing.T) {
			o := ociUser{t, o.host, o.root, t.TempDir()}
			id := newID("refused")
			pidFile := o.pidFile(id)
			r := o.cli("create", "--bundle", o.bundle(c.spec()), "--pid-file", pidFile, id)
			if r.Code == 0 {
				o.remove(id)
				t.Fatal("it was created")
			}
			sentence(t, r.Stderr, c.word)
			if err := gone(pidFile); err != nil {
				t.Error(err)
			}
			must(t, cleanTime, func() error { return o.noTrace(conn, id) })
		})
	}
}

func TestOCIAMissingProgramLeavesNothing(t *testing.T) {
	h := sharedHost(t)
	o := newOCI(t, h)
	id := newID("missing")
	r := o.cli("run", "--bundle", o.bundle(newSpec("no-such-program")), id)
	if r.Code == 0 {
		t.Error("it ran")
	}
	sentence(t, r.Stderr, `exec: "no-such-program": executable file not found in $PATH`)
	conn := dial(t, h)
	must(t, cleanTime, func() error { return o.noTrace(conn, id) })
}
