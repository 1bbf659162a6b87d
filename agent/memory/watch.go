// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package memory

import (
	"context"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// watch tells each time that a charge has met the limit of this cgroup itself,
// until the context ends.
func (g group) watch(ctx context.Context) (<-chan struct{}, error) {
	const file = "memory.events.local" // not told of the limits of the cgroups in it
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		return nil, os.NewSyscallError("inotify_init1", err)
	}
	changes := os.NewFile(uintptr(fd), file)
	if _, err := unix.InotifyAddWatch(fd, filepath.Join(string(g), file), unix.IN_MODIFY); err != nil {
		changes.Close()
		return nil, os.NewSyscallError("inotify_add_watch", err)
	}
	context.AfterFunc(ctx, func() { changes.Close() })
	met := make(chan struct{}, 1)
	go func() {
		defer close(met)
		last := g.keyed(file, "max")
		for buf := make([]byte, 4096); ; {
			if _, err := changes.Read(buf); err != nil {
				return
			}
			now := g.keyed(file, "max")
			if now == last {
				continue
			}
			last = now
			select {
			case met <- struct{}{}:
			default:
			}
		}
	}()
	return met, nil
}
