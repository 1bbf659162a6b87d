// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"debug/buildinfo"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"

	"golang.org/x/sys/unix"
)

const runscPrefix = "runsc_"

// findRunsc looks for gVisor's runtime: BULKHEAD_RUNSC, which make bench sets to the
// one it has built, else that of the search path. Without it its columns are missing.
func (b *bench) findRunsc() {
	path := os.Getenv("BULKHEAD_RUNSC")
	if path == "" {
		path = "runsc"
	}
	path, err := exec.LookPath(path)
	if err != nil {
		b.results.leaveOut("runsc_*", "gVisor's runsc is not here; make bench builds it where the Go module proxy can be reached")
		return
	}
	b.facts.runsc = runscVersion(path)
	b.runsc = &runtime{
		prefix: runscPrefix, binary: path, names: runscNames,
		// Without a network, as the others have none either. Its root is a directory of its own.
		global: []string{"--root", filepath.Join(b.dir, "runsc"), "--network=none"},
	}
}

// runscVersion is that of the module it was built from: the program itself knows none when Go has built it.
func runscVersion(path string) string {
	info, err := buildinfo.ReadFile(path)
	if err != nil {
		return "runsc of an unknown version"
	}
	return "runsc " + info.Main.Version
}

// releaseRunsc unmounts what runsc keeps mounted below its root.
func (b *bench) releaseRunsc() error {
	if b.runsc == nil {
		return nil
	}
	err := unix.Unmount(filepath.Join(b.dir, "runsc", "null-netns"), unix.MNT_DETACH)
	if err != nil && !errors.Is(err, unix.ENOENT) && !errors.Is(err, unix.EINVAL) {
		return fmt.Errorf("unmount runsc's network namespace: %w", err)
	}
	return nil
}
