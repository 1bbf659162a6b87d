// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package container

import (
	"fmt"
	"path"
	"path/filepath"
	"slices"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// Share is a file or directory of the host that the guest sees below its share.
type Share struct {
	Destination string // path in the container
	Source      string // path below the share
	ReadOnly    bool
	Memory      string // instead of Source: name of a tmpfs that containers share (memory.go)
	MemoryBytes uint64
}

// layout says where a container's files are.
type layout struct {
	share      string // where the share is mounted in the guest
	rootfs     string // below share
	shares     []Share
	disks      disks
	memory     string // directory of the shared memories
	ownNetwork bool   // it has no part in the guest's network
}

// path resolves a path below the share. What the host sends is trusted, but a
// slip must not make the guest's own root a container's.
func (l layout) path(below string) (string, error) {
	if !filepath.IsLocal(below) {
		return "", fmt.Errorf("%w: path %q does not lie below the share", ErrInvalid, below)
	}
	return filepath.Join(l.share, below), nil
}

// place is where the files of a share are.
func (l layout) place(s Share) (string, error) {
	if s.Memory != "" {
		return filepath.Join(l.memory, s.Memory), nil
	}
	return l.path(s.Source)
}

// guestTypes are the file systems that the guest's kernel makes without a
// source. The frontend has the same list.
var guestTypes = []string{
	"proc", "sysfs", "tmpfs", "ramfs", "devpts", "mqueue", "cgroup", "cgroup2", "hugetlbfs", "bpf", "securityfs", "binfmt_misc",
}

// translateMounts points every bind mount at its share and refuses what the
// guest cannot mount.
func translateMounts(mounts []specs.Mount, l layout) ([]specs.Mount, error) {
	// A destination may be mounted over more than once: shares are used in order.
	shares := make(map[string][]Share, len(l.shares))
	for _, s := range l.shares {
		at := containerPath(s.Destination)
		shares[at] = append(shares[at], s)
	}
	out := make([]specs.Mount, 0, len(mounts))
	for _, m := range mounts {
		if len(m.UIDMappings) > 0 || len(m.GIDMappings) > 0 || slices.Contains(m.Options, "idmap") || slices.Contains(m.Options, "ridmap") {
			if !isBind(m) {
				return nil, fmt.Errorf("%w: mount %q: only files of the host can have other owners", ErrInvalid, m.Destination)
			}
			// The host has mapped what it shares, and 9p cannot do it again.
			m.UIDMappings, m.GIDMappings = nil, nil
			m.Options = slices.DeleteFunc(slices.Clone(m.Options), func(o string) bool { return o == "idmap" || o == "ridmap" })
		}
		at := containerPath(m.Destination)
		m.Destination = at
		disk, isDisk := l.disks.bound(at)
		switch {
		case isBind(m) && isDisk:
			// The node of the disk takes the place of the host's node.
			m.Source, m.Type = disk, "bind"
			m.Options = append(slices.DeleteFunc(slices.Clone(m.Options), func(o string) bool { return o == "rbind" || o == "nodev" }), "bind")
		case isBind(m):
			if len(shares[at]) == 0 {
				return nil, fmt.Errorf("%w: mount %q: its source %q is not shared with the guest", ErrInvalid, m.Destination, m.Source)
			}
			share := shares[at][0]
			if shares[at] = shares[at][1:]; len(shares[at]) == 0 {
				delete(shares, at)
			}
			source, err := l.place(share)
			if err != nil {
				return nil, fmt.Errorf("mount %q: %w", m.Destination, err)
			}
			m.Source = source
			m.Type = "bind"
			if !slices.Contains(m.Options, "bind") && !slices.Contains(m.Options, "rbind") {
				// libcontainer knows a bind mount by its options alone.
				m.Options = append(slices.Clone(m.Options), "bind")
			}
			if share.ReadOnly {
				m.Options = readOnly(m.Options)
			}
		case !slices.Contains(guestTypes, m.Type):
			return nil, fmt.Errorf("%w: mount %q: type %q is not supported in the guest", ErrInvalid, m.Destination, m.Type)
		default:
			m.Options = notRecursive(m.Options)
		}
		// It means nothing (mount(8)), and libcontainer would hand it to the file system.
		m.Options = slices.DeleteFunc(slices.Clone(m.Options), func(o string) bool { return o == "defaults" })
		out = append(out, m)
	}
	for destination := range shares {
		return nil, fmt.Errorf("%w: share for %q: the specification has no bind mount there", ErrInvalid, destination)
	}
	return out, nil
}

// bindOwnCgroup shows a container without a cgroup namespace its own cgroup, as runc does
// with cgroup v1, where engines leave the namespace out by default. /proc/self/cgroup
// then says where in the guest's tree that is, and the mount's root agrees.
func bindOwnCgroup(mounts []specs.Mount, key string) []specs.Mount {
	for i, m := range mounts {
		if m.Type == "cgroup" || m.Type == "cgroup2" {
			mounts[i].Type, mounts[i].Source = "bind", string(cgroupOf(key))
			mounts[i].Options = append(slices.Clone(m.Options), "bind")
		}
	}
	return mounts
}

// containerPath reads a destination as the runtime-spec wants it: one without a
// leading slash is relative to the root (config.md#mounts).
func containerPath(destination string) string { return path.Join("/", destination) }

// isBind follows the runtime-spec (config.md#mounts): with bind or rbind among
// the options, the type has no meaning.
func isBind(m specs.Mount) bool {
	return m.Type == "bind" || slices.Contains(m.Options, "bind") || slices.Contains(m.Options, "rbind")
}

// recursiveOptions are the attributes for a mount and all beneath it, without
// the letter that says so (config.md#linux-mount-options).
var recursiveOptions = []string{
	"ro", "rw", "nosuid", "suid", "nodev", "dev", "noexec", "exec", "nodiratime", "diratime", "relatime", "norelatime",
	"noatime", "atime", "strictatime", "nostrictatime", "nosymfollow", "symfollow",
}

// notRecursive writes the recursive attributes of a new file system as plain
// ones, which is the same as nothing is mounted beneath it yet: libcontainer
// carries out the recursive ones for bind mounts only, and drops the others.
func notRecursive(options []string) []string {
	out := make([]string, len(options))
	for i, o := range options {
		out[i] = o
		if plain, ok := strings.CutPrefix(o, "r"); ok && slices.Contains(recursiveOptions, plain) {
			out[i] = plain
		}
	}
	return out
}

// readOnly makes the options read-only, whatever they said.
func readOnly(options []string) []string {
	kept := slices.DeleteFunc(slices.Clone(options), func(o string) bool { return o == "rw" || o == "ro" || o == "rrw" })
	return append(kept, "ro")
}
