// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package ksmworker

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestKernelStateIsReadAndNeverAssumed(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	for name, text := range map[string]string{
		"run": "1\n", "pages_shared": "10\n", "pages_sharing": "250\n",
		"pages_to_scan": "100\n", "sleep_millisecs": "20\n", "full_scans": "7\n",
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	k := kernel{dir: dir}
	state, err := k.read()
	if err != nil {
		t.Fatal(err)
	}
	if !state.Available || state.Run != 1 || state.PagesSharing != 250 || state.FullScans != 7 {
		t.Fatalf("read %v", state)
	}
	if s := k.sentence(); !strings.Contains(s, "250 sharing 10") {
		t.Fatalf("sentence %q", s)
	}
	if err := os.WriteFile(filepath.Join(dir, "run"), []byte("what\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := k.read(); err == nil {
		t.Fatal("an unreadable number was taken for a value")
	}
	none := kernel{dir: filepath.Join(dir, "absent")}
	if state, err := none.read(); err != nil || state.Available {
		t.Fatalf("a kernel without ksm: %v, %v", state, err)
	}
}
