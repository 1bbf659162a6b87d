// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"bulkhead/test/e2e/host"
)

// newHost is a host of a test's own; it is not started.
func newHost(t *testing.T, what string, s host.Settings) *host.Host {
	t.Helper()
	needsProduct(t)
	h, err := ground.NewHost(what, s)
	if err != nil {
		t.Fatal(err)
	}
	return h
}

// stopAtEnd stops a host that was started when the test ends; it must end well
// and leave nothing.
func stopAtEnd(t *testing.T, h *host.Host) {
	t.Helper()
	logOnFailure(t, h.Log())
	t.Cleanup(func() {
		if err := errors.Join(h.NoRecords(), h.Stop()); err != nil {
			t.Error(err)
		}
	})
}

func TestWithoutADaemonTheUserLearnsHowToStartIt(t *testing.T) {
	h := newHost(t, "absent", host.Settings{})
	o := newOCI(t, h)
	for _, args := range [][]string{
		{"run", "--bundle", o.bundle(newSpec("true")), newID("absent")}, {"create", "--bundle", o.bundle(newSpec("true")), newID("absent")},
		{"state", "any"}, {"list"}, {"kill", "any", "9"},
	} {
		r := o.cli(args...)
		if r.Code == 0 {
			t.Errorf("bulkhead %s succeeded", args[0])
		}
		sentence(t, r.Stderr, "daemon", "start it with")
		// Docker would read these as "the command was not found" or "not executable".
		for _, misleading := range []string{"no such file or directory", "permission denied", "executable file not found"} {
			if strings.Contains(strings.ToLower(r.Stderr), misleading) {
				t.Errorf("%q misleads engines", r.Stderr)
			}
		}
	}
	processes, err := ground.Processes()
	if err != nil {
		t.Fatal(err)
	}
	if found := host.Named(processes, "bulkhead-relay"); len(found) > 0 {
		t.Errorf("relays are left: %v", found)
	}
}

// What is missing on the host is told by the daemon at its start, or by the
// first container, in a sentence that names the file and the option.
func TestAMissingPartIsNamed(t *testing.T) {
	for _, c := range []struct {
		option   string
		settings host.Settings
	}{
		{"kernel", host.Settings{Kernel: "/nonexistent/kernel"}},
		{"image", host.Settings{Image: "/nonexistent/image"}},
		{"qemu", host.Settings{QEMU: "/nonexistent/qemu"}},
	} {
		t.Run(c.option, func(t *testing.T) {
			h := newHost(t, "no-"+c.option, c.settings)
			var ended *host.EndedError
			err := h.Start(t.Context())
			if errors.As(err, &ended) {
				if ended.Err == nil {
					t.Error("the daemon ended with 0")
				}
				sentence(t, ended.Output, c.option, "/nonexistent/"+c.option)
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			stopAtEnd(t, h)
			idle := newIdle(t, h)
			o := newOCI(t, h)
			id := newID("missing")
			r := o.cli("run", "--bundle", o.bundle(newSpec("true")), id)
			if r.Code == 0 {
				t.Error("a container ran")
			}
			sentence(t, r.Stderr, c.option, "/nonexistent/"+c.option)
			if strings.Contains(r.Stderr, "no such file or directory") {
				t.Errorf("%q would be read as a missing command by engines", r.Stderr)
			}
			conn := dial(t, h)
			must(t, cleanTime, func() error { return o.noTrace(conn, id) })
			must(t, cleanTime, idle)
		})
	}
}

func TestAWrongConfigurationIsRefusedByName(t *testing.T) {
	for _, c := range []struct{ name, text, word string }{
		{"unknown option", "[vm]\nmemory_mbi = 5\n", "memory_mbi"},
		{"unknown section", "[vmm]\nmemory_mib = 512\n", "vmm"},
		{"wrong type", "[vm]\nmemory_mib = \"much\"\n", "memory_mib"},
		{"wrong value", "[vm]\nhypervisor = \"hyper\"\n", "hypervisor"},
		{"reachable operator", "[host]\noperator_addr = \"0.0.0.0:4222\"\n", "operator_addr"},
		{"no TOML", "[vm\n", ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			h := newHost(t, strings.ReplaceAll("wrong-"+c.name, " ", "-"), host.Settings{})
			if err := os.WriteFile(h.Config, []byte(c.text), 0o600); err != nil {
				t.Fatal(err)
			}
			for _, args := range [][]string{
				{h.Binary("bulkheadd"), "--config", h.Config}, {h.Binary("bulkhead"), "--config", h.Config, "list"},
				{h.Binary("bulkhead-vm-worker"), "--config", h.Config}, {h.Binary("bulkhead-network"), "--config", h.Config}, {h.Binary("bulkhead-ksm-worker"), "--config", h.Config},
			} {
				r, err := host.Run(within(t, commandTime), nil, nil, args...)
				if err != nil {
					t.Fatalf("%s does not end: %v", filepath.Base(args[0]), err)
				}
				if r.Code == 0 {
					t.Errorf("%s accepts it", filepath.Base(args[0]))
				}
				sentence(t, r.Stderr, h.Config, c.word)
			}
			if err := gone(h.RunDir); err != nil {
				t.Error(err)
			}
		})
	}
}

func TestAWrongBundleIsRefusedInASentence(t *testing.T) {
	h := sharedHost(t)
	o := newOCI(t, h)
	conn := dial(t, h)
	for _, c := range []struct{ name, text, word string }{
		{"no JSON", "{", "config.json"},
		{"empty", "{}", "config.json"},
		{"wrong type", `{"ociVersion": 1}`, "config.json"},
		{"missing", "", "config.json"},
	} {
		t.Run(c.name, func(t *testing.T) {
			o := ociUser{t, h, o.root, t.TempDir()}
			bundle, id := o.bundle(newSpec("true")), newID("wrong")
			config := filepath.Join(bundle, "config.json")
			if c.text == "" {
				os.Remove(config)
			} else {
				write(t, config, c.text)
			}
			r := o.cli("run", "--bundle", bundle, id)
			if r.Code == 0 {
				t.Error("it ran")
			}
			sentence(t, r.Stderr, c.word)
			must(t, cleanTime, func() error { return o.noTrace(conn, id) })
		})
	}
}
