// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package config

import (
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
)

func TestExampleIsTheDefaults(t *testing.T) {
	got, err := Parse([]byte(Example))
	if err != nil {
		t.Fatal(err)
	}
	if want := Default(); !reflect.DeepEqual(got, want) {
		t.Errorf("the example file differs from the defaults:\n got %+v\nwant %+v", got, want)
	}
}

func TestExampleNamesEveryOption(t *testing.T) {
	for _, section := range options("") {
		_, body, found := strings.Cut(Example, "["+section+"]\n")
		if !found {
			t.Errorf("the example has no section [%s]", section)
		}
		for _, option := range options(section) {
			if !strings.Contains(body, "\n"+option+" = ") && !strings.Contains(body, "\n# "+option+" = ") {
				t.Errorf("the example does not show [%s] %s", section, option)
			}
		}
	}
}

func TestLoad(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "bulkhead.toml")
	if err := os.WriteFile(file, []byte("[host]\nid = \"h7\"\n[vm]\nboot_timeout = \"90s\"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	t.Setenv(EnvPath, file)
	cfg, err := Load("")
	if err != nil {
		t.Fatal(err)
	}
	if cfg.Host.ID != "h7" || cfg.VM.BootTimeout.Seconds() != 90 || cfg.VM.MaxVMs != Default().VM.MaxVMs {
		t.Errorf("loaded %+v", cfg)
	}
	if _, err := Load(filepath.Join(dir, "absent.toml")); err == nil {
		t.Error("a named file that is absent was accepted")
	}
}

// TestTemplatesAreTurnedOffByOneLine: the pool, which needs them, follows unless the file itself asks for one.
func TestTemplatesAreTurnedOffByOneLine(t *testing.T) {
	for text, want := range map[string]int{
		"":                                    Default().VM.Pool,
		"[vm]\ntemplates = false\n":           0,
		"[vm]\ntemplates = true\n":            Default().VM.Pool,
		"[vm]\npool = 3\n":                    3,
		"[vm]\ntemplates = false\npool = 0\n": 0,
	} {
		cfg, err := Parse([]byte(text))
		if err != nil {
			t.Errorf("%q is refused: %v", text, err)
		} else if cfg.VM.Pool != want {
			t.Errorf("%q gives a pool of %d, want %d", text, cfg.VM.Pool, want)
		}
	}
}

func TestWrongFilesAreRefusedInASentence(t *testing.T) {
	for _, tc := range []struct {
		name, text string
		want       []string
	}{
		{"unknown option", "[host]\nid = \"a\"\nlog_levle = \"info\"\n", []string{"line 3", `[host] has no option "log_levle"`, "log_level"}},
		{"unknown section", "[hots]\nid = \"a\"\n", []string{"line", "hots", "host, ksm, network, vm"}},
		{"top-level option", "id = \"a\"\n", []string{"line 1", `"id"`, "host, ksm, network, vm"}},
		{"wrong type", "[vm]\nmax_vms = \"many\"\n", []string{"line 2", "max_vms"}},
		{"not toml", "[host\n", []string{"line 1"}},
		{"duration", "[vm]\nboot_timeout = \"soon\"\n", []string{"soon", "30s"}},
		{"zero duration", "[vm]\nboot_timeout = \"0s\"\n", []string{"boot_timeout"}},
		{"id", "[host]\nid = \"a.b\"\n", []string{"[host] id", "a.b"}},
		{"run dir", "[host]\nrun_dir = \"run\"\n", []string{"run_dir", "absolute"}},
		{"long run dir", "[host]\nrun_dir = \"/" + strings.Repeat("x", 90) + "\"\n", []string{"run_dir", "unix sockets"}},
		{"level", "[host]\nlog_level = \"loud\"\n", []string{"loud", "trace"}},
		{"public listener", "[host]\noperator_addr = \"0.0.0.0:4222\"\n", []string{"operator_addr", "loopback"}},
		{"no port", "[host]\noperator_addr = \"127.0.0.1\"\n", []string{"operator_addr", "127.0.0.1:4222"}},
		{"service", "[host]\nservices = [\"vm\", \"dns\"]\n", []string{"dns", "vm, net, ksm"}},
		{"service twice", "[host]\nservices = [\"vm\", \"vm\"]\n", []string{"twice"}},
		{"hypervisor", "[vm]\nhypervisor = \"xen\"\n", []string{"xen", "qemu-q35"}},
		{"memory", "[vm]\nmemory_mib = 3\n", []string{"memory_mib 3", "64"}},
		{"pool without templates", "[vm]\ntemplates = false\npool = 1\n", []string{"[vm] pool 1", "templates = true"}},
		{"pool", "[vm]\npool = -1\n", []string{"[vm] pool -1"}},
		{"model", "[network]\nmodel = \"nat\"\n", []string{"[network] model", "nat", "macvtap"}},
		{"queues", "[network]\nqueues = 0\n", []string{"[network] queues 0", "1 to 256"}},
		{"two at once", "[vm]\nmemory_mib = 3\nvcpus = 0\n", []string{"memory_mib", "vcpus"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			_, err := Parse([]byte(tc.text))
			if err == nil {
				t.Fatal("accepted")
			}
			for _, want := range tc.want {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("error %q does not say %q", err, want)
				}
			}
		})
	}
}
