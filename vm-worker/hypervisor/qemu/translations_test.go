// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package qemu

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// TestQEMUsTableOfTranslationsMayBeShrunk: QEMU finds everything in it afterwards, and what is new in few pages; it may throw it
// away and let it grow again, and what frees it all does not mind where it came from. A table that is made otherwise is left alone.
func TestQEMUsTableOfTranslationsMayBeShrunk(t *testing.T) {
	t.Parallel()
	binary, err := exec.LookPath("qemu-system-x86_64")
	if err != nil {
		t.Skipf("needs QEMU: %v", err)
	}
	library := filepath.Join(t.TempDir(), "test.so")
	if out, err := exec.Command("gcc", "-std=gnu11", "-Wall", "-Wextra", "-Werror", "-O2", "-fPIC", "-shared", "-Ipreload/zygote", "-o", library,
		"testdata/shrink/shrink.c", "preload/zygote/buckets.c").CombinedOutput(); err != nil {
		t.Fatalf("compiling: %v\n%s", err, out)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, binary, "-version")
	cmd.Env = append(os.Environ(), "LD_PRELOAD="+library, "MALLOC_CHECK_=3")
	out, err := cmd.CombinedOutput()
	switch said := string(out); {
	case err == nil && strings.HasSuffix(said, "\nnot exported\n"):
		t.Skip("this QEMU does not export its table, and keeps it")
	case err != nil || !strings.HasSuffix(said, "\nas it should be\n"):
		t.Errorf("%v: %s", err, said)
	}
}
