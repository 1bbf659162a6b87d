// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package qemu

import (
	"fmt"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"bulkhead/vm-worker/hypervisor"
)

func buildZygote(t testing.TB) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), Zygote)
	sources, err := filepath.Glob("preload/zygote/*.c")
	if err != nil || len(sources) == 0 {
		t.Fatal(sources, err)
	}
	args := append([]string{"-std=gnu11", "-Wall", "-Wextra", "-Werror", "-O2", "-fPIC", "-shared", "-o", path}, sources...)
	if out, err := exec.Command("gcc", args...).CombinedOutput(); err != nil {
		t.Fatalf("compiling %s: %v\n%s", Zygote, err, out)
	}
	return path
}

func TestVMsAreForkedFromAZygote(t *testing.T) {
	t.Parallel()
	d, s := New(Options{Zygote: buildZygote(t)}), templateSpec(t)
	from := makeTemplate(t, d, s)
	if worn := from.(*template).worn; worn != nil {
		t.Fatal(worn)
	}
	for i := range 3 {
		began := time.Now()
		v := clone(t, d, s, from, fmt.Sprint("c", i))
		if !v.(*vm).forked {
			t.Fatal("it was not forked:", from.(*template).worn)
		}
		c := connect(t, v)
		if got := c.ask("echo hello"); got != "hello" {
			t.Fatalf("the clone answers %q", got)
		}
		t.Logf("from its start to its first answer %s", time.Since(began))
		if got := c.ask("share"); got != "ok" {
			t.Fatalf("mounting the share: %s", got)
		}
		if got := c.ask("list /run/share"); got != "" {
			t.Errorf("the share holds %q", got)
		}
		if i == 0 {
			var kib int
			if err := v.Resize(t.Context(), hypervisor.Size{VCPUs: 2, MemoryBytes: s.Max.MemoryBytes}); err != nil {
				t.Error(err)
			}
			if _, err := fmt.Sscanf(c.ask("read /proc/meminfo"), "MemTotal: %d kB", &kib); err != nil || kib < 300<<10 {
				t.Errorf("the clone has %d KiB, %v", kib, err)
			}
		}
	}
}
