// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package container

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strconv"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// Join is a namespace that a container shares with another one of the guest.
type Join struct {
	Type      specs.LinuxNamespaceType
	Container string // key of the other
}

// namespaceFiles are the names in /proc/<pid>/ns of what can be joined. A mount
// namespace is not among them: it would get a second root.
var namespaceFiles = map[specs.LinuxNamespaceType]string{
	specs.PIDNamespace: "pid", specs.NetworkNamespace: "net", specs.IPCNamespace: "ipc",
	specs.UTSNamespace: "uts", specs.CgroupNamespace: "cgroup", specs.UserNamespace: "user", specs.TimeNamespace: "time",
}

// joined are namespaces of other containers, held open while one is made: the
// process that stood for them may end meanwhile. One that is the agent's own is there without a file.
type joined map[specs.LinuxNamespaceType]joinedFile

type joinedFile struct {
	*os.File
	pid int // whose namespace it is
}

func (j joined) close() {
	for _, f := range j {
		if f.File != nil {
			_ = f.Close()
		}
	}
}

// path is a name of the namespace that libcontainer's init can open, too. It is empty
// for one that is not joined.
func (j joined) path(kind specs.LinuxNamespaceType) string {
	f := j[kind]
	switch {
	case f.File == nil:
		return ""
	case kind == specs.UserNamespace: // by its process: libcontainer reads the mappings there
		return "/proc/" + strconv.Itoa(f.pid) + "/ns/user"
	default:
		return "/proc/" + strconv.Itoa(os.Getpid()) + "/fd/" + strconv.Itoa(int(f.Fd()))
	}
}

// own tells whether the container stays in the agent's namespace of a kind, because the one
// it joins does.
func (j joined) own(kind specs.LinuxNamespaceType) bool {
	f, asked := j[kind]
	return asked && f.File == nil
}

// openJoins opens the namespaces to join.
func (m *Manager) openJoins(joins []Join) (_ joined, err error) {
	open := joined{}
	defer func() {
		if err != nil {
			open.close()
		}
	}()
	for _, j := range joins {
		file, ok := namespaceFiles[j.Type]
		if !ok {
			return nil, fmt.Errorf("%w: linux.namespaces %q cannot be joined", ErrInvalid, j.Type)
		}
		other, err := m.Get(j.Container)
		if err != nil {
			return nil, errOtherGone(j)
		}
		f, err := other.openNamespace(file)
		if err != nil {
			return nil, errOtherGone(j)
		}
		same, err := isOwn(f.File, file)
		if err != nil || same {
			_ = f.Close()
			f = joinedFile{}
		}
		if err != nil {
			return nil, err
		}
		open[j.Type] = f
	}
	return open, nil
}

func errOtherGone(j Join) error {
	return stateError(fmt.Sprintf("cannot join the %s namespace of container %s: it is not running", j.Type, j.Container))
}

// openNamespace opens a namespace of the container's init.
func (c *Container) openNamespace(file string) (joinedFile, error) {
	c.mu.Lock()
	p := c.init
	if p == nil || p.lp == nil {
		c.mu.Unlock()
		return joinedFile{}, ErrNotRunning
	}
	pid := p.pid
	c.mu.Unlock()
	f, err := os.Open("/proc/" + strconv.Itoa(pid) + "/ns/" + file)
	if errors.Is(err, fs.ErrNotExist) { // it has ended, of which nobody has heard yet
		return joinedFile{}, ErrNotRunning
	}
	if err != nil {
		return joinedFile{}, err
	}
	// A process that still can be signalled has not been waited for, so the pid was its.
	if err := signalProcess(p.lp, 0); err != nil {
		_ = f.Close()
		return joinedFile{}, err
	}
	return joinedFile{f, pid}, nil
}

// NetworkNamespace opens the network namespace of the container's init; the caller closes it.
func (c *Container) NetworkNamespace() (*os.File, error) {
	f, err := c.openNamespace("net")
	return f.File, err
}

func isOwn(f *os.File, file string) (bool, error) {
	var own, other unix.Stat_t
	if err := unix.Stat("/proc/self/ns/"+file, &own); err != nil {
		return false, fmt.Errorf("looking at the agent's %s namespace: %w", file, err)
	}
	if err := unix.Fstat(int(f.Fd()), &other); err != nil {
		return false, fmt.Errorf("looking at a %s namespace: %w", file, err)
	}
	return own.Dev == other.Dev && own.Ino == other.Ino, nil
}

// guestNamespaces are the container's, whatever their paths on the host were:
// another container's where one is joined, else new ones. Four are never the agent's own.
//
// The guest's own network is the container's, except in a user namespace: its root has no power over
// a network that does not belong to it, not even to listen on port 80. So the network moves into that
// container's namespace (takesNetwork). One that has no part in the guest's network (isolated) has a
// namespace of its own as well, with nothing in it.
func guestNamespaces(asked []specs.LinuxNamespace, joined joined, isolated bool) (all []specs.LinuxNamespace, takesNetwork bool) {
	kinds := []specs.LinuxNamespaceType{specs.PIDNamespace, specs.MountNamespace, specs.UTSNamespace, specs.IPCNamespace}
	for _, ns := range asked {
		switch {
		case slices.Contains(kinds, ns.Type) || joined.own(ns.Type):
		case ns.Type == specs.NetworkNamespace && joined.path(ns.Type) == "":
		default:
			kinds = append(kinds, ns.Type)
		}
	}
	if _, joins := joined[specs.NetworkNamespace]; !joins && (isolated || slices.Contains(kinds, specs.UserNamespace)) {
		kinds = append(kinds, specs.NetworkNamespace)
		takesNetwork = !isolated
	}
	for _, kind := range kinds {
		all = append(all, specs.LinuxNamespace{Type: kind, Path: joined.path(kind)})
	}
	return all, takesNetwork
}

func hasNamespace(l *specs.Linux, kind specs.LinuxNamespaceType) bool {
	return slices.ContainsFunc(l.Namespaces, func(ns specs.LinuxNamespace) bool { return ns.Type == kind })
}
