// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package frontend

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"syscall"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"bulkhead/runtime-frontend/bundle"
)

// serversID stands on disk, for a moment, for the owner of what the file server
// makes: it makes a file as root and gives it to its owner then. No file may be
// made on an id-mapped mount by an owner without a mapping. It is the highest
// id there is; -1 means none.
const serversID = 1<<32 - 2

// mapOwners makes a detached mount an id-mapped one (mount_setattr(2),
// MOUNT_ATTR_IDMAP), so that the guest, behind the file server, sees and sets mapped owners.
func mapOwners(mount *os.File, m *bundle.IDMap) error {
	namespace, err := mappingNamespace(withServer(m.UIDs), withServer(m.GIDs))
	if err != nil {
		return err
	}
	defer namespace.Close()
	flags := uint(unix.AT_EMPTY_PATH)
	if m.Recursive {
		flags |= unix.AT_RECURSIVE
	}
	err = unix.MountSetattr(int(mount.Fd()), "", flags, &unix.MountAttr{
		Attr_set: unix.MOUNT_ATTR_IDMAP, Userns_fd: uint64(namespace.Fd()),
	})
	switch {
	case errors.Is(err, unix.EINVAL):
		return fmt.Errorf("the host's kernel has no id-mapped mounts of this file system: %w", err)
	case err != nil:
		return fmt.Errorf("mount_setattr: %w", err)
	}
	return nil
}

// withServer adds the file server's own id, root, where no mapping shows it.
func withServer(mappings []specs.LinuxIDMapping) []syscall.SysProcIDMap {
	var out []syscall.SysProcIDMap
	server := false
	for _, m := range mappings {
		out = append(out, syscall.SysProcIDMap{ContainerID: int(m.ContainerID), HostID: int(m.HostID), Size: int(m.Size)})
		server = server || m.HostID == 0 && m.Size > 0
	}
	if !server {
		out = append(out, syscall.SysProcIDMap{ContainerID: serversID, HostID: 0, Size: 1})
	}
	return out
}

// mappingNamespace makes a user namespace with these mappings. It needs a
// process to be made, which is stopped before its first instruction and killed.
func mappingNamespace(uids, gids []syscall.SysProcIDMap) (*os.File, error) {
	runtime.LockOSThread() // the tracer is a thread
	defer runtime.UnlockOSThread()
	cmd := exec.Command("/proc/self/exe")
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: unix.CLONE_NEWUSER, UidMappings: uids, GidMappings: gids,
		Ptrace: true, Pdeathsig: syscall.SIGKILL,
	}
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("making a user namespace with the mappings %v and %v: %w", uids, gids, err)
	}
	namespace, err := os.Open(fmt.Sprintf("/proc/%d/ns/user", cmd.Process.Pid))
	if killErr := cmd.Process.Kill(); err == nil {
		err = killErr
	}
	_ = cmd.Wait() // it says that it was killed
	if err != nil {
		return nil, fmt.Errorf("opening a user namespace: %w", err)
	}
	return namespace, nil
}
