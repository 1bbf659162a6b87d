// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package rehearsal

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

const (
	// Program is the agent's binary in the containers, which then repeats what it is told (agent/reexec).
	Program = "/rehearse"

	rootDir   = "root"  // of the containers, below what stands for the share
	filesDir  = "files" // of engines
	hostsFile = "/etc/hosts"
)

// Files makes what stands for the host's share, in a directory that is not there yet, and returns what takes it away again.
func Files(dir string) (remove func() error, err error) {
	program := filepath.Join(dir, rootDir, Program)
	remove = func() error {
		err := unix.Unmount(program, unix.MNT_DETACH)
		if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOENT) {
			err = nil // it was not mounted
		}
		return errors.Join(err, os.RemoveAll(dir))
	}
	defer func() {
		if err != nil {
			err = errors.Join(fmt.Errorf("making the files of the rehearsal: %w", err), remove())
		}
	}()
	for _, d := range []string{"proc", "sys", "dev", "etc", "tmp"} {
		if err := os.MkdirAll(filepath.Join(dir, rootDir, d), 0o755); err != nil {
			return nil, err
		}
	}
	hosts := filepath.Join(dir, filesDir, hostsFile)
	if err := os.MkdirAll(filepath.Dir(hosts), 0o755); err != nil {
		return nil, err
	}
	for _, file := range []string{hosts, filepath.Join(dir, rootDir, hostsFile), program} {
		if err := os.WriteFile(file, []byte("127.0.0.1 localhost\n"), 0o755); err != nil {
			return nil, err
		}
	}
	// Not a copy: fourteen megabytes would be the guest's for good.
	if err := unix.Mount("/proc/self/exe", program, "", unix.MS_BIND, ""); err != nil {
		return nil, fmt.Errorf("mounting the program: %w", err)
	}
	return remove, nil
}
