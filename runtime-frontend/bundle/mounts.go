// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package bundle

import (
	"errors"
	"fmt"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// Bind is a mount whose files are the host's and which is handed over to the VM.
type Bind struct {
	Source      string // absolute on the host, symbolic links resolved
	Destination string // absolute in the container, cleaned
	ReadOnly    bool
	Recursive   bool // with the mounts beneath the source
	IsDir       bool
	// Follow is the propagation of a directory beneath which later mounts of the
	// host appear in the container, "slave" or "rslave"; empty otherwise.
	Follow string
	IDMap  *IDMap // how the container sees the owners of files; nil: as they are
}

// IDMap is what an id-mapped mount shows: the ContainerID on disk as the HostID
// (config.md#posix-platform-mounts).
type IDMap struct {
	UIDs, GIDs []specs.LinuxIDMapping
	Recursive  bool // also for the mounts beneath the source
}

// guestFilesystems are mounted by the guest's own kernel, so they show the
// guest, not the host. They need no source; the agent has the same list.
var guestFilesystems = []string{
	"proc", "sysfs", "tmpfs", "ramfs", "devpts", "mqueue", "cgroup", "cgroup2", "hugetlbfs", "bpf", "securityfs", "binfmt_misc",
}

// option is what a mount option that is not the file system's own does.
type option int

const (
	flagOption        option = iota // a mount flag, applied by the guest
	bindOption                      // makes the mount a bind mount
	propagationOption               // carried out by the guest; checkBindPropagation says what a bind can have
	idmapOption                     // done by the host, for a bind only
)

// mountOptions are those of runtime-spec, config.md#linux-mount-options. What is not
// among them is the file system's own data.
var mountOptions = func() map[string]option {
	table := map[string]option{
		"bind": bindOption, "rbind": bindOption,
		"idmap": idmapOption, "ridmap": idmapOption,
		"private": propagationOption, "rprivate": propagationOption, "unbindable": propagationOption, "runbindable": propagationOption,
		"shared": propagationOption, "rshared": propagationOption, "slave": propagationOption, "rslave": propagationOption,
	}
	for _, name := range strings.Fields(`async atime defaults dev diratime dirsync exec iversion lazytime loud mand
		noatime nodev nodiratime noexec noiversion nolazytime nomand norelatime nostrictatime nosuid nosymfollow
		relatime ro rw silent strictatime suid symfollow sync tmpcopyup
		rro rrw rnosuid rsuid rnodev rdev rnoexec rexec rnodiratime rdiratime rrelatime rnorelatime rnoatime ratime
		rstrictatime rnostrictatime rnosymfollow rsymfollow`) {
		table[name] = flagOption
	}
	return table
}()

// MountOptions are the options that "features" reports: those that are
// recognised and carried out, whatever they are for.
func MountOptions() []string {
	var names []string
	for name, kind := range mountOptions {
		if kind == propagationOption && checkBindPropagation(name) != nil {
			continue
		}
		names = append(names, name)
	}
	slices.Sort(names)
	return names
}

func checkMounts(spec *specs.Spec) error {
	var errs []error
	for i, m := range spec.Mounts {
		property := fmt.Sprintf("mounts[%d]", i)
		errs = append(errs, checkMount(property, m))
		_, err := idMap(m, spec.Linux)
		if err != nil {
			errs = append(errs, refuse(property+".uidMappings", fmt.Sprintf("at %s: %v", m.Destination, err)))
		}
	}
	return errors.Join(errs...)
}

func checkMount(property string, m specs.Mount) error {
	switch {
	case m.Destination == "":
		return refuse(property+".destination", "it is empty")
	case containerPath(m.Destination) == "/":
		return refuse(property+".destination", "a mount over the root file system is not supported: use root.path")
	}
	bind := isBind(m)
	if !bind && !slices.Contains(guestFilesystems, m.Type) {
		return refuse(property+".type", fmt.Sprintf("%q at %s: a virtual machine can be given directories and files of the host (bind) and %s; mount it on the host and bind it",
			m.Type, m.Destination, strings.Join(guestFilesystems, ", ")))
	}
	if bind && m.Source == "" {
		return refuse(property+".source", "a bind mount needs one")
	}
	for _, name := range m.Options {
		kind, known := mountOptions[name]
		switch {
		case name == "remount":
			return refuse(property+".options", fmt.Sprintf("%q at %s: there is nothing yet to mount again", name, m.Destination))
		case !known && bind:
			return refuse(property+".options", fmt.Sprintf("%q at %s: bind mounts cannot have any filesystem-specific options applied", name, m.Destination))
		case !known:
		case kind == propagationOption && bind:
			if err := checkBindPropagation(name); err != nil {
				return refuse(property+".options", fmt.Sprintf("%q at %s: %v", name, m.Destination, err))
			}
		}
	}
	if bind && follows(m) != "" && !recursive(m) {
		return refuse(property+".options", fmt.Sprintf("%q at %s: mounts of the host can be followed with those that are there already only: add rbind", follows(m), m.Destination))
	}
	return nil
}

// checkBindPropagation says what passes the border of a VM: mounts of the host
// do, those of the container do not.
func checkBindPropagation(name string) error {
	if name == "shared" || name == "rshared" {
		return errors.New("what is mounted in a virtual machine cannot appear on the host; use rslave to see the host's mounts, or rprivate")
	}
	return nil
}

// follows gives the propagation of a mount that shows later mounts of the host.
// The last word counts, as in mount(8).
func follows(m specs.Mount) string {
	last := ""
	for _, name := range m.Options {
		if mountOptions[name] == propagationOption {
			last = name
		}
	}
	if last == "slave" || last == "rslave" {
		return last
	}
	return ""
}

// recursive says whether a bind mount has the mounts beneath its source: one "rbind" is
// enough, as with mount(2), where a "bind" beside it adds nothing.
func recursive(m specs.Mount) bool { return slices.Contains(m.Options, "rbind") }

// idMap reads how a mount maps the owners of files.
func idMap(m specs.Mount, linux *specs.Linux) (*IDMap, error) {
	asked, recursive := false, false
	for _, name := range m.Options {
		if mountOptions[name] == idmapOption {
			asked, recursive = true, name == "ridmap"
		}
	}
	uids, gids := m.UIDMappings, m.GIDMappings
	if asked && len(uids) == 0 && len(gids) == 0 && linux != nil {
		uids, gids = linux.UIDMappings, linux.GIDMappings // those of the container's user namespace
	}
	switch {
	case !asked && len(uids) == 0 && len(gids) == 0:
		return nil, nil
	case !isBind(m):
		return nil, errors.New("owners can be mapped in directories and files of the host (bind) only")
	case len(uids) == 0 && len(gids) == 0:
		return nil, errors.New("there are no mappings, neither of the mount nor of the container's user namespace")
	case len(uids) == 0 || len(gids) == 0:
		return nil, errors.New("uidMappings and gidMappings belong together: give both")
	}
	return &IDMap{uids, gids, recursive}, nil
}

// isBind: the type is only a hint, as with mount(8) ("none" with option "bind").
func isBind(m specs.Mount) bool {
	return m.Type == "bind" || slices.Contains(m.Options, "bind") || slices.Contains(m.Options, "rbind")
}

// containerPath reads a destination as the specification wants it: a relative
// one is relative to "/".
func containerPath(destination string) string {
	return path.Join("/", destination)
}

// binds looks at the sources of the bind mounts. Relative ones are relative to
// the bundle. The nodes of block devices are kept apart: what is given is the
// device, not a file.
func binds(dir string, spec *specs.Spec) ([]Bind, []DeviceBind, error) {
	var (
		found []Bind
		nodes []DeviceBind
		errs  []error
	)
	for i, m := range spec.Mounts {
		if !isBind(m) {
			continue
		}
		bind, node, err := inspect(dir, m)
		if err != nil {
			errs = append(errs, refuse(fmt.Sprintf("mounts[%d].source", i), err.Error()))
			continue
		}
		bind.IDMap, err = idMap(m, spec.Linux)
		if err == nil && bind.IDMap != nil && node != nil {
			err = errors.New("the owner of a device's node cannot be mapped")
		}
		if err != nil {
			errs = append(errs, refuse(fmt.Sprintf("mounts[%d].uidMappings", i), err.Error()))
			continue
		}
		if node != nil {
			nodes = append(nodes, *node)
			continue
		}
		found = append(found, bind)
	}
	return found, nodes, errors.Join(errs...)
}

func inspect(dir string, m specs.Mount) (bind Bind, node *DeviceBind, err error) {
	source := m.Source
	if !filepath.IsAbs(source) {
		source = filepath.Join(dir, source)
	}
	bind = Bind{Destination: containerPath(m.Destination), Recursive: recursive(m)}
	for _, name := range m.Options { // the last word counts, as in mount(8)
		switch name {
		case "ro", "rro":
			bind.ReadOnly = true
		case "rw", "rrw":
			bind.ReadOnly = false
		}
	}
	resolved, err := filepath.EvalSymlinks(source)
	if errors.Is(err, unix.ENOENT) {
		return bind, nil, fmt.Errorf("%q for %s is missing on the host", source, m.Destination)
	}
	if err != nil {
		return bind, nil, fmt.Errorf("%q for %s: %w", source, m.Destination, err)
	}
	var st unix.Stat_t
	if err := unix.Stat(resolved, &st); err != nil {
		return bind, nil, fmt.Errorf("%q for %s: %w", source, m.Destination, err)
	}
	bind.Source = resolved
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFDIR:
		bind.IsDir = true
		bind.Follow = follows(m) // nothing is ever mounted beneath a file
	case unix.S_IFREG:
	case unix.S_IFSOCK:
		return bind, nil, fmt.Errorf("%q for %s is a socket, and its other end cannot be reached from a virtual machine", source, m.Destination)
	case unix.S_IFIFO:
		return bind, nil, fmt.Errorf("%q for %s is a named pipe, and its other end cannot be reached from a virtual machine", source, m.Destination)
	case unix.S_IFCHR:
		// The node's numbers mean the same device in the guest's kernel.
		n := numberOf(st.Rdev)
		if _, everywhere := everyKernelsDevices[n]; !everywhere {
			return bind, nil, fmt.Errorf("%q for %s is a character device of the host (c %s), which cannot be given to a virtual machine; do without it, or run this container with runc",
				source, m.Destination, n)
		}
	default:
		return bind, &DeviceBind{
			Destination: bind.Destination, Mode: st.Mode & 0o777, UID: st.Uid, GID: st.Gid,
			readOnly: bind.ReadOnly, number: numberOf(st.Rdev), node: resolved,
		}, nil
	}
	return bind, nil, nil
}
