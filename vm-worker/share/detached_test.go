// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package share

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"
)

func TestPartsOfADetachedTreeOutliveIt(t *testing.T) {
	tree := detachedTmpfs(t)
	at := fmt.Sprintf("/proc/self/fd/%d", tree.Fd())
	if err := os.Mkdir(filepath.Join(at, "dir"), 0o755); err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string]string{"dir/in": "in the directory", "file": "the file"} {
		if err := os.WriteFile(filepath.Join(at, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	before, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	parts, err := Parts(tree, "dir", "file")
	if err != nil {
		t.Fatal(err)
	}
	for _, part := range parts {
		defer part.Close()
	}
	if err := tree.Close(); err != nil {
		t.Fatal(err)
	}
	for i, want := range map[int]string{0: "in the directory", 1: "the file"} {
		place := fmt.Sprintf("/proc/self/fd/%d", parts[i].Fd())
		if i == 0 {
			place += "/in"
		}
		if text, err := os.ReadFile(place); err != nil || string(text) != want {
			t.Errorf("part %d holds %q, %v", i, text, err)
		}
	}
	if after, err := os.ReadFile("/proc/self/mountinfo"); err != nil || string(after) != string(before) {
		t.Errorf("the mounts of this process have changed: %v\n%s\n%s", err, before, after)
	}
}

func TestPartsThatAreNotThereAreSaid(t *testing.T) {
	tree := detachedTmpfs(t)
	defer tree.Close()
	if parts, err := Parts(tree, "dir"); err == nil {
		t.Errorf("it gave %d parts", len(parts))
	}
}

func detachedTmpfs(t *testing.T) *os.File {
	t.Helper()
	tree, err := DetachedMemory()
	if err != nil {
		t.Fatal(err)
	}
	return tree
}
