// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package netspace

import (
	"errors"
	"os"
	"strconv"
	"strings"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"
)

// Find opens a namespace again after the process that it was found by has ended:
// through a mount that pins it (engines and CNI make those), or through another
// process in it. ErrGone says that there is neither.
func Find(id ID) (*Namespace, error) {
	for _, path := range pinned() {
		if n := openPath(path, id); n != nil {
			return n, nil
		}
	}
	for _, pid := range processes() {
		if n := openPath("/proc/"+strconv.Itoa(int(pid))+"/ns/net", id); n != nil {
			n.Close() // found; opened again so that its process is known
			again, err := Open(pid, 0)
			if err == nil && again.ID == id {
				return again, nil
			}
			if err == nil {
				again.Close()
			}
		}
	}
	return nil, ErrGone
}

// All calls fn with each namespace of this machine but the host's that is pinned
// by a mount or has a process that may be looked at. fn closes it, or keeps it.
func All(fn func(*Namespace)) {
	seen := map[ID]bool{}
	visit := func(path string, open func() (*Namespace, error)) {
		var st unix.Stat_t
		if unix.Stat(path, &st) != nil || seen[ID{st.Dev, st.Ino}] {
			return
		}
		seen[ID{st.Dev, st.Ino}] = true
		if n, err := open(); err == nil {
			fn(n)
		}
	}
	for _, pid := range processes() {
		path := "/proc/" + strconv.Itoa(int(pid)) + "/ns/net"
		visit(path, func() (*Namespace, error) { return Open(pid, 0) })
	}
	for _, path := range pinned() {
		visit(path, func() (*Namespace, error) {
			file, err := os.Open(path)
			if err != nil {
				return nil, err
			}
			return newNamespace(file)
		})
	}
}

// openPath opens the namespace at path if it is that one.
func openPath(path string, id ID) *Namespace {
	var st unix.Stat_t
	if unix.Stat(path, &st) != nil || (ID{st.Dev, st.Ino}) != id {
		return nil
	}
	file, err := os.Open(path)
	if err != nil {
		return nil
	}
	n, err := newNamespace(file)
	if err != nil {
		return nil
	}
	if n.ID != id {
		n.Close()
		return nil
	}
	return n
}

// pinned lists where network namespaces are mounted (proc_pid_mountinfo(5)).
func pinned() []string {
	table, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return nil
	}
	defer table.Close()
	mounts, err := mountinfo.GetMountsFromReader(table, func(m *mountinfo.Info) (skip, stop bool) {
		return !strings.HasPrefix(m.Root, "net:["), false
	})
	if err != nil {
		return nil
	}
	var paths []string
	for _, m := range mounts {
		paths = append(paths, m.Mountpoint)
	}
	return paths
}

func processes() []int32 {
	dir, err := os.Open("/proc")
	if err != nil {
		return nil
	}
	defer dir.Close()
	names, err := dir.Readdirnames(-1)
	if err != nil && !errors.Is(err, unix.ENOENT) {
		return nil
	}
	var pids []int32
	for _, name := range names {
		if pid, err := strconv.ParseInt(name, 10, 32); err == nil {
			pids = append(pids, int32(pid))
		}
	}
	return pids
}
