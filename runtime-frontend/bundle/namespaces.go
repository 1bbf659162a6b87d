// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package bundle

import (
	"errors"
	"fmt"
	"os"
	"path"
	"slices"
	"syscall"

	"github.com/opencontainers/runtime-spec/specs-go"
)

// namespaceRule is what can be asked of one type of namespace. A reason that
// is empty permits.
type namespaceRule struct {
	kind   specs.LinuxNamespaceType
	absent string // why the host's own cannot be used
	joined string // why another one, by path, cannot be used
	never  string // why the type is not supported at all
}

const noSharing = "this version gives every container a virtual machine of its own, and a kernel cannot share a namespace with another machine's"

// namespaceRules are in the order of the specification's list.
var namespaceRules = []namespaceRule{
	{
		kind:   specs.PIDNamespace,
		absent: "bulkhead runs containers in a VM, which cannot share the host's processes; do without --pid=host",
		joined: noSharing,
	},
	{
		kind:   specs.NetworkNamespace,
		absent: "bulkhead runs containers in a VM, which cannot share the host's network namespace; use --network none or a network of the engine",
	},
	{
		kind:   specs.MountNamespace,
		absent: "bulkhead runs containers in a VM, which cannot share the host's mount namespace",
		joined: noSharing,
	},
	{
		kind:   specs.IPCNamespace,
		absent: "bulkhead runs containers in a VM, which cannot share the host's IPC namespace; do without --ipc=host",
		joined: noSharing,
	},
	{
		kind:   specs.UTSNamespace,
		absent: "bulkhead runs containers in a VM, which cannot share the host's UTS namespace; do without --uts=host",
		joined: noSharing,
	},
	{kind: specs.UserNamespace, never: noUserNamespace},
	// An absent cgroup namespace shows the container the guest's cgroup tree, and nothing of the host's.
	{kind: specs.CgroupNamespace, joined: noSharing},
	{kind: specs.TimeNamespace, never: "time namespaces are not supported: the virtual machine keeps the host's time"},
}

// Namespaces are the types that "features" reports.
func Namespaces() []string {
	var names []string
	for _, rule := range namespaceRules {
		if rule.never == "" {
			names = append(names, string(rule.kind))
		}
	}
	slices.Sort(names)
	return names
}

func checkNamespaces(linux *specs.Linux) error {
	var errs []error
	deny := func(kind specs.LinuxNamespaceType, reason string) {
		errs = append(errs, refuse("linux.namespaces", fmt.Sprintf("%s: %s", kind, reason)))
	}
	given := map[specs.LinuxNamespaceType]specs.LinuxNamespace{}
	for _, ns := range linux.Namespaces {
		if _, twice := given[ns.Type]; twice {
			deny(ns.Type, "it is given twice")
		}
		if !slices.ContainsFunc(namespaceRules, func(r namespaceRule) bool { return r.kind == ns.Type }) {
			deny(ns.Type, "unknown type of namespace")
		}
		given[ns.Type] = ns
	}
	for _, rule := range namespaceRules {
		ns, ok := given[rule.kind]
		switch {
		case !ok && rule.never == "" && rule.absent != "":
			deny(rule.kind, rule.absent)
		case !ok:
		case rule.never != "":
			deny(rule.kind, rule.never)
		case ns.Path == "":
		case rule.joined != "":
			deny(rule.kind, fmt.Sprintf("cannot join %q: %s", ns.Path, rule.joined))
		case !path.IsAbs(ns.Path):
			deny(rule.kind, fmt.Sprintf("%q is not an absolute path", ns.Path))
		case rule.kind == specs.NetworkNamespace:
			if same, err := hostsNetwork(ns.Path); err != nil {
				deny(rule.kind, fmt.Sprintf("%q cannot be joined: %v", ns.Path, err))
			} else if same {
				deny(rule.kind, fmt.Sprintf("%q is the host's own: %s", ns.Path, rule.absent))
			}
		}
	}
	return errors.Join(errs...)
}

// hostsNetwork says whether a path names the network namespace that this
// command runs in, however it is spelt.
func hostsNetwork(path string) (bool, error) {
	var own, other syscall.Stat_t
	if err := syscall.Stat("/proc/self/ns/net", &own); err != nil {
		return false, &os.PathError{Op: "stat", Path: "/proc/self/ns/net", Err: err}
	}
	if err := syscall.Stat(path, &other); err != nil {
		return false, err
	}
	return own.Dev == other.Dev && own.Ino == other.Ino, nil
}
