// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package vmworker

import (
	"os"
	"path/filepath"
	"testing"
)

// TestTemplateSharedCountsOnlyGuestMemoryThatIsStillTheTemplates by maps as the kernel writes them.
func TestTemplateSharedCountsOnlyGuestMemoryThatIsStillTheTemplates(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	text := `55d8c0a00000-55d8c0c00000 r--p 00000000 fe:00 1234 /usr/bin/qemu-system-x86_64
Rss:                2048 kB
Anonymous:             0 kB
7f0000000000-7f0008000000 rw-p 00000000 00:01 77 /memfd:template (deleted)
Size:             131072 kB
Rss:               40960 kB
Pss:                2000 kB
Anonymous:         10240 kB
7f0008000000-7f0009400000 rw-p 00000000 fe:00 78 /guest/kernel
Size:              20480 kB
Rss:               15360 kB
Anonymous:             0 kB
7f0010000000-7f0010200000 rw-s 00000000 fe:00 88 /guest/image
Rss:                1024 kB
Anonymous:             0 kB
7f0020000000-7f0020200000 rw-p 00000000 00:00 0
Rss:                1024 kB
Anonymous:          1024 kB
7f0030000000-7f0030200000 rw-p 00000000 fe:00 99 /usr/lib/libc.so.6
Rss:                  16 kB
Anonymous:             8 kB
`
	if err := os.WriteFile(filepath.Join(dir, "smaps"), []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	got, err := templateShared(dir)
	if err != nil || got != (40960-10240)<<10 {
		t.Errorf("%d KiB are said to be the template's: %v", got>>10, err)
	}
}
