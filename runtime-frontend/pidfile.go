// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package frontend

import (
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"

	"golang.org/x/sys/unix"
)

// writePidFile puts the pid in place at once: digits and no newline, which
// containerd's strconv.Atoi would choke on.
func writePidFile(path string, pid int) error {
	temp, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+"-")
	if err != nil {
		return fmt.Errorf("writing the pid-file %q: %w", path, err)
	}
	defer os.Remove(temp.Name()) // gone already when it was renamed
	_, err = temp.WriteString(strconv.Itoa(pid))
	if err == nil {
		err = temp.Chmod(0o644)
	}
	if closeErr := temp.Close(); err == nil {
		err = closeErr
	}
	if err == nil {
		err = os.Rename(temp.Name(), path)
	}
	if err != nil {
		return fmt.Errorf("writing the pid-file %q: %w", path, err)
	}
	return nil
}

// sendPidfd sends a pidfd of the process to a unix socket, in the one message that runc's console protocol has.
func sendPidfd(socket string, pid int) error {
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return fmt.Errorf("opening a pidfd of process %d: %w", pid, err)
	}
	defer unix.Close(fd)
	conn, err := net.DialUnix("unix", nil, &net.UnixAddr{Name: socket, Net: "unix"})
	if err != nil {
		return err
	}
	defer conn.Close()
	_, _, err = conn.WriteMsgUnix([]byte("pidfd"), unix.UnixRights(fd), nil)
	return err
}
