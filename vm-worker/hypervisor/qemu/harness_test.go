// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package qemu

import (
	"bufio"
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"bulkhead/vm-worker/hypervisor"
	"bulkhead/vm-worker/jail"
)

func TestMain(m *testing.M) {
	jail.Main()
	if os.Args[0] == handleOpener {
		openByHandle()
	}
	if os.Args[0] == changer {
		changeTemplate()
	}
	if dir := os.Getenv(starterDir); dir != "" {
		starter(dir)
	}
	os.Exit(m.Run())
}

// repository is the root of the tree, seen from this package.
const repository = "../../.."

// guest builds the image of testdata/guest once and finds the kernel; tests that
// need a VM are skipped where one cannot be made.
var guest = sync.OnceValues(func() (files guestFiles, err error) {
	if os.Geteuid() != 0 {
		return files, fmt.Errorf("jails need root")
	}
	if _, err := exec.LookPath("qemu-system-x86_64"); err != nil {
		return files, fmt.Errorf("QEMU is not installed")
	}
	files.kernel = os.Getenv("BULKHEAD_GUEST_KERNEL")
	if files.kernel == "" {
		files.kernel, _ = filepath.Abs(repository + "/build/guest/vmlinux")
	}
	if _, err := os.Stat(files.kernel); err != nil {
		return files, fmt.Errorf("no guest kernel at %s: run deploy/guest/build-kernel", files.kernel)
	}
	dir, err := os.MkdirTemp("", "guest")
	if err != nil {
		return files, err
	}
	defer os.RemoveAll(dir)
	build := exec.Command("go", "build", "-trimpath", "-ldflags=-s -w", "-o", dir+"/agent", "./testdata/guest")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		return files, fmt.Errorf("building the test's guest: %w: %s", err, out)
	}
	if out, err := exec.Command(repository+"/deploy/guest/build-image", dir+"/agent", dir).CombinedOutput(); err != nil {
		return files, fmt.Errorf("building the test's image: %w: %s", err, out)
	}
	files.image, err = os.ReadFile(dir + "/image.ext4")
	return files, err
})

type guestFiles struct {
	kernel string
	image  []byte
}

// newSpec describes a small VM in a directory of its own.
func newSpec(t testing.TB) hypervisor.Spec {
	t.Helper()
	files, err := guest()
	if err != nil {
		t.Skip(err)
	}
	dir, err := os.MkdirTemp("", "vm") // short: the sockets' paths are
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	image := filepath.Join(dir, "image.ext4")
	if err := os.WriteFile(image, files.image, 0o600); err != nil {
		t.Fatal(err)
	}
	return hypervisor.Spec{
		ID: "test-" + filepath.Base(dir), Dir: dir, Kernel: files.kernel, Image: image,
		VCPUs: 1, MemoryBytes: 128 << 20, Accelerator: hypervisor.TCG,
	}
}

// startVM starts a VM that the test's end kills.
func startVM(t testing.TB, s hypervisor.Spec) hypervisor.VM {
	t.Helper()
	return startVMWith(t, Options{}, s)
}

func startVMWith(t testing.TB, o Options, s hypervisor.Spec) hypervisor.VM {
	t.Helper()
	v, err := New(o).Start(t.Context(), s)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { killVM(t, v) })
	return v
}

func killVM(t testing.TB, v hypervisor.VM) {
	if err := v.Kill(context.Background()); err != nil {
		t.Error(err)
	}
	if t.Failed() {
		t.Logf("reason: %s; console:\n%s", v.ExitReason(), v.ConsoleTail(4000))
	}
}

// control speaks to the test's guest.
type control struct {
	t    testing.TB
	conn net.Conn
	in   *bufio.Reader
}

// connect dials the guest and waits until it answers.
func connect(t testing.TB, v hypervisor.VM) *control {
	t.Helper()
	conn, err := v.DialCtl(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return &control{t, conn, bufio.NewReader(conn)}
}

func (c *control) line() string {
	c.t.Helper()
	_ = c.conn.SetReadDeadline(time.Now().Add(30 * time.Second))
	line, err := c.in.ReadString('\n')
	if err != nil {
		c.t.Fatalf("the guest does not answer: %v", err)
	}
	return strings.TrimSpace(line)
}

// ready waits for the guest's first line and returns its uptime.
func (c *control) ready() string {
	c.t.Helper()
	line := c.line()
	uptime, ok := strings.CutPrefix(line, "ready ")
	if !ok {
		c.t.Fatalf("the guest began with %q", line)
	}
	return uptime
}

func (c *control) send(command string) {
	c.t.Helper()
	if _, err := fmt.Fprintln(c.conn, command); err != nil {
		c.t.Fatal(err)
	}
}

func (c *control) ask(command string) string {
	c.t.Helper()
	c.send(command)
	return c.line()
}

func waitDone(t *testing.T, v hypervisor.VM, within time.Duration) {
	t.Helper()
	select {
	case <-v.Done():
	case <-time.After(within):
		t.Fatalf("the vm has not ended in %s", within)
	}
}
