// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package bundle

import (
	"cmp"
	"errors"
	"fmt"
	"os"
	"path"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"github.com/opencontainers/runtime-spec/specs-go"
)

// namespaceRule is what can be asked of one type of namespace. A reason that
// is empty permits.
type namespaceRule struct {
	kind   specs.LinuxNamespaceType
	file   string // its name in /proc/<pid>/ns
	absent string // why the host's own cannot be used
	joined string // why another container's, by path, cannot be used
	never  string // why the type is not supported at all
}

// namespaceRules are in the order of the specification's list.
var namespaceRules = []namespaceRule{
	{
		kind: specs.PIDNamespace, file: "pid",
		absent: "bulkhead runs containers in a VM, which cannot share the host's processes; do without --pid=host",
	},
	{
		kind: specs.NetworkNamespace, file: "net",
		absent: "bulkhead runs containers in a VM, which cannot share the host's network namespace; use --network none or a network of the engine",
	},
	{
		kind: specs.MountNamespace, file: "mnt",
		absent: "bulkhead runs containers in a VM, which cannot share the host's mount namespace",
		joined: "a container has a root file system of its own, which would become the other one's, too; to work among another container's mounts, use exec",
	},
	{
		kind: specs.IPCNamespace, file: "ipc",
		absent: "bulkhead runs containers in a VM, which cannot share the host's IPC namespace; do without --ipc=host",
	},
	{
		kind: specs.UTSNamespace, file: "uts",
		absent: "bulkhead runs containers in a VM, which cannot share the host's UTS namespace; do without --uts=host",
	},
	{kind: specs.UserNamespace, file: "user", never: noUserNamespace},
	// An absent cgroup namespace is the guest's, and shows nothing of the host's.
	{kind: specs.CgroupNamespace, file: "cgroup"},
	{kind: specs.TimeNamespace, file: "time", never: "time namespaces are not supported: the virtual machine keeps the host's time"},
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
		}
	}
	return errors.Join(errs...)
}

// Joined is a namespace that the bundle gives by path: what it is, is told by
// the file and not by its name.
type Joined struct {
	Type   string
	Path   string
	Device uint64
	Inode  uint64
	PID    int // of a path /proc/<pid>/ns/<file>, else 0
}

// joined looks at the namespaces that are given by path. Whose they are, only
// the worker knows; the host's own are refused here.
func joined(linux *specs.Linux) ([]Joined, error) {
	var (
		found []Joined
		errs  []error
	)
	for _, ns := range linux.Namespaces {
		if ns.Path == "" {
			continue
		}
		deny := func(reason string) {
			errs = append(errs, refuse("linux.namespaces", fmt.Sprintf("%s: %s", ns.Type, reason)))
		}
		i := slices.IndexFunc(namespaceRules, func(r namespaceRule) bool { return r.kind == ns.Type })
		rule := namespaceRules[i]
		var own, other syscall.Stat_t
		if err := syscall.Stat("/proc/self/ns/"+rule.file, &own); err != nil {
			return nil, &os.PathError{Op: "stat", Path: "/proc/self/ns/" + rule.file, Err: err}
		}
		switch err := syscall.Stat(ns.Path, &other); {
		// Engines read the kernel's own texts as the program's failure.
		case errors.Is(err, syscall.ENOENT):
			deny(fmt.Sprintf("%q cannot be joined: it is gone, as the process or the mount that held it is", ns.Path))
			continue
		case errors.Is(err, syscall.EACCES):
			deny(fmt.Sprintf("%q cannot be joined: bulkhead has no right to look at it", ns.Path))
			continue
		case err != nil:
			deny(fmt.Sprintf("%q cannot be joined: %v", ns.Path, err))
			continue
		}
		if own.Dev == other.Dev && own.Ino == other.Ino {
			deny(fmt.Sprintf("%q is the host's own: %s", ns.Path, cmp.Or(rule.absent, "leave it out, and the container has the virtual machine's")))
			continue
		}
		found = append(found, Joined{Type: string(ns.Type), Path: ns.Path, Device: other.Dev, Inode: other.Ino, PID: processOf(ns.Path, rule.file)})
	}
	return found, errors.Join(errs...)
}

// processOf reads the process out of a path /proc/<pid>/ns/<file>.
func processOf(name, file string) int {
	number, inProc := strings.CutPrefix(path.Clean(name), "/proc/")
	number, isNamespace := strings.CutSuffix(number, "/ns/"+file)
	pid, err := strconv.Atoi(number)
	if !inProc || !isNamespace || err != nil {
		return 0
	}
	return pid
}
