// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package standalone

import (
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

func TestAServiceMayOpenFilesForThousandsOfVMs(t *testing.T) {
	var before unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &before); err != nil {
		t.Fatal(err)
	}
	const low = 4096
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: low, Max: low}); err != nil {
		t.Fatal(err)
	}
	err := allowFiles(2000, 21)
	var now unix.Rlimit
	if readErr := unix.Getrlimit(unix.RLIMIT_NOFILE, &now); readErr != nil {
		t.Fatal(readErr)
	}
	raised := now.Cur > low // whether this process may is not the test's
	if raised && (err != nil || now.Cur < 1<<19) {
		t.Errorf("a service may open %d files: %v", now.Cur, err)
	}
	if !raised && (err == nil || !strings.Contains(err.Error(), "42500")) {
		t.Errorf("that files do not suffice for 2000 VMs is told as %v", err)
	}
	for _, few := range []struct{ vms, ofVM int }{{100, 21}, {300, 9}} {
		if err := allowFiles(few.vms, few.ofVM); err != nil {
			t.Errorf("for %d VMs with %d files each they do, and it is said that %v", few.vms, few.ofVM, err)
		}
	}
}
