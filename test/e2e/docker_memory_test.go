// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package e2e

import "testing"

// TestMemoryFollowsDemand: a VM starts small whatever its container's limit, and what is taken faster than the VM
// grows is waited for, not killed for.
func TestMemoryFollowsDemand(t *testing.T) {
	if reference() {
		t.Skip("a container of the host's kernel has no machine that could grow")
	}
	d := newDocker(t)
	defer consolesOnFailure(t)
	name := d.launch(opts("-m", "512m", "--tmpfs", "/scratch:size=450m"), "sleep", "1000")
	inside := func(script string) string { return d.do("exec", name, "sh", "-c", script) }
	sees(t, inside, 512)
	for _, c := range []struct{ what, script string }{
		{"400 MiB by one program", "dd if=/dev/zero of=/dev/null bs=400M count=1"},
		{"twenty programs with 20 MiB each", "for i in $(seq 20); do dd if=/dev/zero of=/dev/null bs=20M count=2 & done; for j in $(seq 20); do wait %$j || exit; done"},
		{"400 MiB of files in memory", "dd if=/dev/zero of=/scratch/file bs=1M count=400 && rm /scratch/file"},
	} {
		if r := d.try("exec", name, "sh", "-c", c.script); r.Code != 0 {
			t.Errorf("%s end with %d: %s", c.what, r.Code, r.Stderr)
		}
	}
	if r := d.try("exec", name, "dd", "if=/dev/zero", "of=/dev/null", "bs=600M", "count=1"); r.Code != 137 {
		t.Errorf("a program that takes 600 of 512 MiB ended with %d: %s", r.Code, r.Stderr)
	}
	sees(t, inside, 512)
}
