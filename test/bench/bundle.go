// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"

	"github.com/opencontainers/runtime-spec/specs-go"
)

// busybox is Debian's static one (package busybox-static).
const busybox = "/bin/busybox"

// bundles are directories with a config.json each; all share one root file system
// and differ in the process. Both runtimes run the same bundles.
type bundles struct {
	yes    string // ends at once
	sleep  string // idles
	tty    string // idles with a terminal
	writer string // writes writeBytes bytes to stdout
	reader string // reads stdin to its end and says how much that was
	quick  string // writer, with quickBytes
	exec   string // the file of an exec's process
}

const (
	writeBytes = 256 << 20
	quickBytes = 16 << 20
	blockBytes = 64 << 10
)

func makeBundles(dir string) (b bundles, err error) {
	root := filepath.Join(dir, "rootfs")
	for _, d := range []string{"bin", "proc", "dev", "sys", "tmp"} {
		if err := os.MkdirAll(filepath.Join(root, d), 0o755); err != nil {
			return b, err
		}
	}
	raw, err := os.ReadFile(busybox)
	if err != nil {
		return b, fmt.Errorf("busybox is missing; install the Debian package busybox-static: %w", err)
	}
	if err := os.WriteFile(filepath.Join(root, "bin", "busybox"), raw, 0o755); err != nil {
		return b, err
	}
	for _, name := range []string{"true", "sleep", "cat", "dd", "sh"} {
		if err := os.Symlink("busybox", filepath.Join(root, "bin", name)); err != nil {
			return b, err
		}
	}
	dd := func(bytes int) string {
		return fmt.Sprintf("exec dd if=/dev/zero bs=%d count=%d 2>/dev/null", blockBytes, bytes/blockBytes)
	}
	for _, one := range []struct {
		path     *string
		name     string
		terminal bool
		args     []string
	}{
		{&b.yes, "true", false, []string{"/bin/true"}},
		{&b.sleep, "sleep", false, []string{"/bin/sleep", "86400"}},
		{&b.tty, "tty", true, []string{"/bin/cat"}},
		{&b.writer, "writer", false, []string{"/bin/sh", "-c", dd(writeBytes)}},
		{&b.quick, "quick", false, []string{"/bin/sh", "-c", dd(quickBytes)}},
		{&b.reader, "reader", false, []string{"/bin/sh", "-c", fmt.Sprintf("exec dd of=/dev/null bs=%d iflag=fullblock 2>&1", blockBytes)}},
	} {
		*one.path = filepath.Join(dir, "bundles", one.name)
		if err := os.MkdirAll(*one.path, 0o755); err != nil {
			return b, err
		}
		spec := bundleSpec(root, process(one.terminal, one.args...))
		if err := writeJSON(filepath.Join(*one.path, "config.json"), spec); err != nil {
			return b, err
		}
	}
	b.exec = filepath.Join(dir, "process.json")
	return b, writeJSON(b.exec, process(false, "/bin/true"))
}

func process(terminal bool, args ...string) *specs.Process {
	return &specs.Process{Terminal: terminal, Args: args, Env: []string{"PATH=/bin"}, Cwd: "/"}
}

// bundleSpec is what "runc spec" writes, less what a benchmark has no use for.
func bundleSpec(root string, p *specs.Process) *specs.Spec {
	return &specs.Spec{
		Version:  "1.0.2",
		Hostname: "bench",
		Root:     &specs.Root{Path: root},
		Process:  p,
		Mounts: []specs.Mount{
			{Destination: "/proc", Type: "proc", Source: "proc"},
			{Destination: "/dev", Type: "tmpfs", Source: "tmpfs", Options: []string{"nosuid", "strictatime", "mode=755", "size=65536k"}},
			{Destination: "/dev/pts", Type: "devpts", Source: "devpts", Options: []string{"nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620"}},
			{Destination: "/dev/shm", Type: "tmpfs", Source: "shm", Options: []string{"nosuid", "noexec", "nodev", "mode=1777", "size=65536k"}},
			{Destination: "/sys", Type: "sysfs", Source: "sysfs", Options: []string{"nosuid", "noexec", "nodev", "ro"}},
		},
		Linux: &specs.Linux{Namespaces: []specs.LinuxNamespace{
			{Type: specs.PIDNamespace}, {Type: specs.MountNamespace}, {Type: specs.UTSNamespace},
			{Type: specs.IPCNamespace}, {Type: specs.NetworkNamespace},
		}},
	}
}

func writeJSON(path string, v any) error {
	text, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		return err
	}
	return os.WriteFile(path, append(text, '\n'), 0o644)
}
