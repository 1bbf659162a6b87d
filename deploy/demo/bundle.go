// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// busybox is Debian's static one (package busybox-static).
const busybox = "/bin/busybox"

// script is what the container runs. It waits for a line so that the VM can be
// looked at while it lives.
const script = `
echo "kernel    $(uname -r)"
echo "hostname  $(hostname)"
echo "processes $(ls -d /proc/[0-9]* | wc -l) ($(cat /proc/1/comm) is pid 1)"
echo "memory    $(awk '/MemTotal/ {print int($2/1024)}' /proc/meminfo) MiB in this machine"
echo "root      $(awk '$2 == "/" {print $3}' /proc/mounts)"
read line
echo "got       $line from the host"
exit 42
`

// exitCode is what script ends with.
const exitCode = 42

// makeBundle makes an OCI bundle with a busybox root file system.
func makeBundle(dir string) (string, error) {
	bundle := filepath.Join(dir, "bundle")
	bin := filepath.Join(bundle, "rootfs", "bin")
	for _, d := range []string{bin, filepath.Join(bundle, "rootfs", "proc"), filepath.Join(bundle, "rootfs", "dev"), filepath.Join(bundle, "rootfs", "sys")} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			return "", err
		}
	}
	raw, err := os.ReadFile(busybox)
	if err != nil {
		return "", fmt.Errorf("busybox is missing; install the Debian package busybox-static: %w", err)
	}
	if err := os.WriteFile(filepath.Join(bin, "busybox"), raw, 0o755); err != nil {
		return "", err
	}
	for _, name := range strings.Fields("sh uname hostname ls wc cat awk") {
		if err := os.Symlink("busybox", filepath.Join(bin, name)); err != nil {
			return "", err
		}
	}
	spec := specs.Spec{
		Version:  specs.Version,
		Hostname: "demo",
		Root:     &specs.Root{Path: "rootfs"},
		Process: &specs.Process{
			Args: []string{"/bin/sh", "-c", script},
			Env:  []string{"PATH=/bin"},
			Cwd:  "/",
		},
		Mounts: []specs.Mount{
			{Destination: "/proc", Type: "proc", Source: "proc"},
			{Destination: "/dev", Type: "tmpfs", Source: "tmpfs", Options: []string{"nosuid", "mode=755"}},
		},
		Linux: &specs.Linux{Namespaces: []specs.LinuxNamespace{
			{Type: specs.PIDNamespace}, {Type: specs.MountNamespace}, {Type: specs.UTSNamespace},
			{Type: specs.IPCNamespace}, {Type: specs.NetworkNamespace},
		}},
	}
	config, err := json.MarshalIndent(spec, "", "  ")
	if err != nil {
		return "", err
	}
	return bundle, os.WriteFile(filepath.Join(bundle, "config.json"), config, 0o644)
}
