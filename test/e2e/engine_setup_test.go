// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/pelletier/go-toml/v2"

	"bulkhead/test/e2e/host"
)

// The files for Docker and Podman are those that the tests' own engines are made
// with (dockerEngine, podmanEngine). These two have no daemon here to start.

func TestTheSetUpFileForContainerdIsUnderstoodByIt(t *testing.T) {
	r, err := host.Run(within(t, commandTime), nil, nil, "/usr/bin/containerd", "--config", setUpFile("containerd-config.toml"), "config", "dump")
	if err != nil || r.Code != 0 {
		t.Fatalf("containerd config dump: %v, code %d: %s", err, r.Code, r.Stderr)
	}
	var config struct {
		Plugins map[string]struct {
			Containerd struct {
				Runtimes map[string]struct {
					Type    string `toml:"runtime_type"`
					Options struct{ BinaryName string }
				}
			}
		}
	}
	if err := toml.Unmarshal([]byte(r.Stdout), &config); err != nil {
		t.Fatal(err)
	}
	runtimes := config.Plugins["io.containerd.grpc.v1.cri"].Containerd.Runtimes
	expect(t, "the binary", runtimes[product].Options.BinaryName, installedRuntime)
	expect(t, "the type", runtimes[product].Type, "io.containerd.runc.v2")
}

func TestTheSetUpFileForCRIOHasItsKeys(t *testing.T) {
	text, err := os.ReadFile(setUpFile("crio.conf"))
	if err != nil {
		t.Fatal(err)
	}
	// crio.conf(5), "CRIO.RUNTIME.RUNTIMES TABLE".
	var config struct {
		CRIO struct {
			Runtime struct {
				Runtimes map[string]struct {
					Path    string `toml:"runtime_path"`
					Type    string `toml:"runtime_type"`
					Root    string `toml:"runtime_root"`
					Monitor string `toml:"monitor_path"`
				} `toml:"runtimes"`
			} `toml:"runtime"`
		} `toml:"crio"`
	}
	if err := toml.NewDecoder(strings.NewReader(string(text))).DisallowUnknownFields().Decode(&config); err != nil {
		t.Fatal(err)
	}
	runtime := config.CRIO.Runtime.Runtimes[product]
	expect(t, "the path", runtime.Path, installedRuntime)
	expect(t, "the type", runtime.Type, "oci")
	if !filepath.IsAbs(runtime.Root) || !filepath.IsAbs(runtime.Monitor) {
		t.Errorf("the root is %q and the monitor %q", runtime.Root, runtime.Monitor)
	}
}
