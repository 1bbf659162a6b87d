// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package container

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// cgroupMount is where the guest's unified hierarchy is.
const cgroupMount = "/sys/fs/cgroup"

// cgroup is the directory of a container's cgroup. libcontainer makes and removes it;
// killing, freezing and counting are done here directly, because libcontainer
// does them under the lock that a hanging start holds.
type cgroup string

func cgroupOf(key string) cgroup {
	return cgroup(filepath.Join(cgroupMount, cgroupRoot, key))
}

// kill sends SIGKILL to every process, also to frozen ones and to those being
// forked (Documentation/admin-guide/cgroup-v2.rst, cgroup.kill).
func (c cgroup) kill() error {
	err := os.WriteFile(filepath.Join(string(c), "cgroup.kill"), []byte("1"), 0)
	if errors.Is(err, os.ErrNotExist) || errors.Is(err, unix.ENODEV) {
		return nil
	}
	return err
}

// freeze changes the freezer's state and waits until the kernel says that all
// processes have followed. A freeze that does not complete in time is undone.
func (c cgroup) freeze(ctx context.Context, frozen bool) error {
	want := "0"
	if frozen {
		want = "1"
	}
	events, err := os.Open(filepath.Join(string(c), "cgroup.events"))
	if err != nil {
		return err
	}
	defer events.Close()
	if err := os.WriteFile(filepath.Join(string(c), "cgroup.freeze"), []byte(want), 0); err != nil {
		return err
	}
	for {
		now, err := readKey(events, "frozen")
		if err != nil {
			return err
		}
		if now == want {
			return nil
		}
		if err := waitEvent(ctx, events); err != nil {
			if frozen {
				err = errors.Join(err, os.WriteFile(filepath.Join(string(c), "cgroup.freeze"), []byte("0"), 0))
			}
			return fmt.Errorf("waiting for the freezer: %w", err)
		}
	}
}

// waitEvent waits for the next change of an events file, at most as long as the
// context's deadline allows.
func waitEvent(ctx context.Context, events *os.File) error {
	timeout := 10 * time.Second
	if deadline, ok := ctx.Deadline(); ok {
		timeout = min(timeout, time.Until(deadline))
	}
	if timeout <= 0 {
		return context.DeadlineExceeded
	}
	fds := []unix.PollFd{{Fd: int32(events.Fd()), Events: unix.POLLPRI}}
	n, err := unix.Poll(fds, int(timeout.Milliseconds())+1)
	switch {
	case errors.Is(err, unix.EINTR):
		return nil
	case err != nil:
		return os.NewSyscallError("poll", err)
	case n == 0:
		return context.DeadlineExceeded
	}
	return nil
}

// readKey finds one key of a flat keyed file that is open.
func readKey(f *os.File, key string) (string, error) {
	buf := make([]byte, 4096)
	n, err := f.ReadAt(buf, 0)
	if n == 0 && err != nil {
		return "", fmt.Errorf("reading %s: %w", f.Name(), err)
	}
	for line := range bytes.Lines(buf[:n]) {
		if name, value, ok := strings.Cut(strings.TrimSpace(string(line)), " "); ok && name == key {
			return value, nil
		}
	}
	return "", fmt.Errorf("%s has no %q", f.Name(), key)
}

func (c cgroup) number(file, key string) uint64 {
	f, err := os.Open(filepath.Join(string(c), file))
	if err != nil {
		return 0
	}
	defer f.Close()
	var text string
	if key != "" {
		text, err = readKey(f, key)
	} else {
		buf := make([]byte, 64)
		var n int
		n, err = f.Read(buf)
		text = strings.TrimSpace(string(buf[:n]))
	}
	if err != nil {
		return 0
	}
	n, err := strconv.ParseUint(text, 10, 64)
	if err != nil {
		return 0
	}
	return n
}

// oomKills counts the processes of the container the kernel killed for memory.
func (c cgroup) oomKills() uint64 { return c.number("memory.events", "oom_kill") }

// pids lists every process of the container, those of nested cgroups too.
func (c cgroup) pids() ([]int, error) {
	var pids []int
	err := filepath.WalkDir(string(c), func(path string, d os.DirEntry, err error) error {
		if errors.Is(err, os.ErrNotExist) {
			return nil
		}
		if err != nil || !d.IsDir() {
			return err
		}
		data, err := os.ReadFile(filepath.Join(path, "cgroup.procs"))
		if errors.Is(err, os.ErrNotExist) || errors.Is(err, unix.ENODEV) || errors.Is(err, unix.EOPNOTSUPP) {
			return nil
		}
		for _, field := range strings.Fields(string(data)) {
			pid, convErr := strconv.Atoi(field)
			if convErr != nil {
				return fmt.Errorf("reading %s/cgroup.procs: %w", path, convErr)
			}
			pids = append(pids, pid)
		}
		return err
	})
	return pids, err
}
