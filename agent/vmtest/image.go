// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package vmtest

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"
)

// guest is what a VM boots.
type guest struct {
	kernel, image string
	size          int64
}

var buildOnce = sync.OnceValues(buildGuest)

// guestImage builds the agent of the tree into an image, once per test binary, and
// skips the test in words when the machine cannot.
func guestImage(t testing.TB) guest {
	t.Helper()
	for _, tool := range []string{"qemu-system-x86_64", "mke2fs", "debugfs", "secilc"} {
		if _, err := exec.LookPath(tool); err != nil {
			t.Skipf("needs %s, which is not installed: %v", tool, err)
		}
	}
	if os.Geteuid() != 0 {
		t.Skip("needs root: the share serves files of any owner")
	}
	if _, err := os.Stat(kernelPath()); err != nil {
		t.Skipf("needs the guest kernel, which is not built: run \"make guest\": %v", err)
	}
	g, err := buildOnce()
	if err != nil {
		t.Fatal(err)
	}
	return g
}

func root() string {
	dir, err := os.Getwd()
	for err == nil && dir != "/" {
		if _, statErr := os.Stat(filepath.Join(dir, "go.mod")); statErr == nil {
			return dir
		}
		dir = filepath.Dir(dir)
	}
	return "."
}

func kernelPath() string { return filepath.Join(root(), "build/guest/vmlinux") }

// BuildDir is where the image goes; TestMain removes it.
var BuildDir = filepath.Join(os.TempDir(), fmt.Sprintf("bulkhead-vmtest-%d", os.Getpid()))

func buildGuest() (guest, error) {
	if err := os.MkdirAll(BuildDir, 0o700); err != nil {
		return guest{}, err
	}
	program := func(name string) string { return filepath.Join(BuildDir, name) }
	for _, name := range []string{"bulkhead-agent", "bulkhead-init"} {
		build := exec.Command("go", "build", "-trimpath", "-tags", "netgo osusergo seccomp runc_nocriu",
			"-ldflags", "-s -w -linkmode external -extldflags '-static -Wl,-z,max-page-size=0x200000,-z,separate-code,-T,"+
				filepath.Join(root(), "agent/cmd/huge.ld")+"'", "-o", program(name), "./agent/cmd/"+name)
		build.Dir = root()
		build.Env = append(os.Environ(), "CGO_ENABLED=1")
		if out, err := build.CombinedOutput(); err != nil {
			return guest{}, fmt.Errorf("building %s: %w\n%s", name, err, out)
		}
	}
	command := exec.Command(filepath.Join(root(), "deploy/guest/build-image"), program("bulkhead-agent"), BuildDir, program("bulkhead-init"))
	if out, err := command.CombinedOutput(); err != nil {
		return guest{}, fmt.Errorf("building the image: %w\n%s", err, out)
	}
	image := filepath.Join(BuildDir, "image.ext4")
	info, err := os.Stat(image)
	if err != nil {
		return guest{}, err
	}
	return guest{kernel: kernelPath(), image: image, size: info.Size()}, nil
}
