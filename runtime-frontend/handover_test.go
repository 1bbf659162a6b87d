// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package frontend

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// Who may write to a directory on the way could lead the path elsewhere after the bundle was judged.
func TestALinkPutIntoThePathOfABindLeadsNowhere(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root: it makes detached mounts")
	}
	dir := t.TempDir()
	for _, made := range []string{"volume/data", "elsewhere/data"} {
		if err := os.MkdirAll(filepath.Join(dir, made), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	judged := tree{source: filepath.Join(dir, "volume/data"), destination: "/data", isDir: true}
	f, err := judged.open()
	if err != nil {
		t.Fatal(err)
	}
	f.Close()
	if err := os.Rename(filepath.Join(dir, "volume"), filepath.Join(dir, "moved")); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("elsewhere", filepath.Join(dir, "volume")); err != nil {
		t.Fatal(err)
	}
	f, err = judged.open()
	if err == nil {
		f.Close()
		t.Fatal("the path leads through a link that was put into it")
	}
	if !strings.Contains(err.Error(), "was replaced") {
		t.Errorf("the error is %q", err)
	}
}
