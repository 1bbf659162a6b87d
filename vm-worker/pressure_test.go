// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package vmworker_test

import (
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"bulkhead/bus/childtest"
	vmv1 "bulkhead/proto/vm/v1"
	"bulkhead/vm-worker/hostcgroup"
)

const (
	// thrashEnv names the file of a process that is to wait for memory.
	thrashEnv = "BULKHEAD_TEST_THRASH"
	// thrashRoom is the memory that it has, and thrashFile what it reads again and again.
	thrashRoom, thrashFile = 24 << 20, 96 << 20
)

// thrash reads a file that does not fit into the memory of its cgroup, page by page, until its input ends.
func thrash(file string) int {
	fmt.Println("there")
	if _, err := os.Stdin.Read(make([]byte, 1)); err != nil { // it is in its cgroup now
		return 1
	}
	go func() {
		_, _ = io.Copy(io.Discard, os.Stdin)
		os.Exit(0)
	}()
	f, err := os.OpenFile(file, os.O_RDWR|os.O_CREATE, 0o600)
	if err == nil {
		_, err = io.CopyN(f, endless{}, thrashFile) // here, so that the cached pages are this cgroup's
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer f.Close()
	null, err := unix.Open(os.DevNull, unix.O_WRONLY, 0)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	pages, err := unix.Mmap(int(f.Fd()), 0, thrashFile, unix.PROT_READ, unix.MAP_SHARED)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	for one := []byte{0}; ; {
		for i := 0; i < len(pages); i += os.Getpagesize() {
			if _, err := unix.Write(null, append(one[:0], pages[i])); err != nil { // or the compiler reads nothing
				return 1
			}
		}
	}
}

// thrashing is a cgroup in which processes wait for memory, until end is called.
func thrashing(t *testing.T) (pressure string, begin, end func()) {
	t.Helper()
	limit := int64(thrashRoom)
	spec := &specs.Spec{Linux: &specs.Linux{
		CgroupsPath: "/" + filepath.Base(t.TempDir()) + "-" + fmt.Sprint(os.Getpid()) + "/thrash",
		Resources:   &specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: &limit}},
	}}
	cgroup, err := hostcgroup.Create(spec, "thrash", hostcgroup.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := cgroup.Destroy(context.Background()); err != nil {
			t.Log(err)
		}
		for _, procs := range cgroup.ProcsPaths() {
			_ = os.Remove(filepath.Dir(filepath.Dir(procs)))
		}
	})
	for _, procs := range cgroup.ProcsPaths() {
		if file := filepath.Join(filepath.Dir(procs), "memory.pressure"); exists(file) {
			pressure = file
		}
	}
	if pressure == "" {
		t.Skip("this kernel does not tell how long the processes of a cgroup wait for memory (CONFIG_PSI, cgroup v2)")
	}
	file := filepath.Join(t.TempDir(), "data")
	child := childtest.Start(t, thrashEnv+"="+file)
	if err := cgroup.Enter(child.Process.Pid); err != nil {
		t.Fatal(err)
	}
	return pressure, func() { _, _ = child.In.Write([]byte("go")) }, child.Kill
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

// endless has no end and says little.
type endless struct{}

func (endless) Read(b []byte) (int, error) { return len(b), nil }

// TestThePoolIsGivenUpWhenTheKernelTellsOfWaitsForMemory: by a real cgroup whose processes do wait.
func TestThePoolIsGivenUpWhenTheKernelTellsOfWaitsForMemory(t *testing.T) {
	if testing.Short() {
		t.Skip("has processes wait for memory for some seconds")
	}
	pressure, begin, end := thrashing(t)
	h := newStock(t, 2, func(*templating) {})
	h.stop()
	h.pressure = pressure
	h.serve()
	before := h.awaitPool("filled", full)
	begin()
	after := h.awaitPool("been given up", func(p *vmv1.PoolReply) bool { return p.Ready == 0 })
	if !strings.Contains(after.Waiting, "waited for memory") {
		t.Errorf("the pool says why it is empty: %q", after.Waiting)
	}
	eventually(t, "its VMs have ended and left nothing", func() bool {
		return len(h.vms()) == 0 && !exists(filepath.Join(h.bus.RunDir, "vm", before.Sandboxes[0].Id)) && !exists(filepath.Join(h.bus.RunDir, "vm", before.Sandboxes[1].Id))
	})
	h.run("c1", "sleep") // which does not depend on it
	if s := h.sandbox(); s.Origin != "template" {
		t.Errorf("beside an empty pool a VM's origin is %q, %q", s.Origin, s.OriginReason)
	}
	h.delete("c1", true)
	end()
	h.stop()
	h.expectNoTrace()
}
