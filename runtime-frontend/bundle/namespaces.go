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
	guest  bool   // it exists in the guest alone: on the host, no process is in it
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
	{kind: specs.UserNamespace, file: "user", guest: true},
	// An absent cgroup namespace is the guest's, and shows nothing of the host's.
	{kind: specs.CgroupNamespace, file: "cgroup"},
	{kind: specs.TimeNamespace, file: "time", guest: true},
}

// Namespaces are the types that "features" reports.
func Namespaces() []string {
	var names []string
	for _, rule := range namespaceRules {
		names = append(names, string(rule.kind))
	}
	slices.Sort(names)
	return names
}

// InGuestOnly tells whether namespaces of a type exist in the guest alone.
func InGuestOnly(kind specs.LinuxNamespaceType) bool {
	return slices.ContainsFunc(namespaceRules, func(r namespaceRule) bool { return r.kind == kind && r.guest })
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
		case !ok && rule.absent != "":
			deny(rule.kind, rule.absent)
		case !ok:
		case ns.Path == "":
		case rule.joined != "":
			deny(rule.kind, fmt.Sprintf("cannot join %q: %s", ns.Path, rule.joined))
		case !path.IsAbs(ns.Path):
			deny(rule.kind, fmt.Sprintf("%q is not an absolute path", ns.Path))
		}
	}
	user, hasUser := given[specs.UserNamespace]
	timens, hasTime := given[specs.TimeNamespace]
	errs = append(errs, checkMappings("linux.uidMappings", linux.UIDMappings, hasUser, user.Path != ""))
	errs = append(errs, checkMappings("linux.gidMappings", linux.GIDMappings, hasUser, user.Path != ""))
	switch {
	case len(linux.TimeOffsets) == 0:
	case !hasTime:
		errs = append(errs, refuse("linux.timeOffsets", "they need a time namespace in linux.namespaces"))
	case timens.Path != "":
		errs = append(errs, refuse("linux.timeOffsets", "the time namespace that is joined by path has its own"))
	default:
		for clock := range linux.TimeOffsets {
			if clock != "monotonic" && clock != "boottime" {
				errs = append(errs, refuse("linux.timeOffsets", fmt.Sprintf("unknown clock %q: monotonic and boottime can be set", clock)))
			}
		}
	}
	return errors.Join(errs...)
}

// maxMappings is how many lines the kernel takes (user_namespaces(7)).
const maxMappings = 340

// checkMappings holds the mappings of one kind of ids against what the guest's kernel will take.
func checkMappings(property string, mappings []specs.LinuxIDMapping, user, joined bool) error {
	switch {
	case !user && len(mappings) > 0:
		return refuse(property, "they need a user namespace in linux.namespaces")
	case !user || joined: // a namespace that is joined has its own; the guest compares
		return nil
	case len(mappings) > maxMappings:
		return refuse(property, fmt.Sprintf("%d mappings, and the kernel takes %d", len(mappings), maxMappings))
	}
	root := false
	for i, m := range mappings {
		if m.Size == 0 {
			return refuse(property, fmt.Sprintf("mapping %d has the size 0", i))
		}
		if uint64(m.ContainerID)+uint64(m.Size) > 1<<32 || uint64(m.HostID)+uint64(m.Size) > 1<<32 {
			return refuse(property, fmt.Sprintf("mapping %d ends beyond the highest id", i))
		}
		root = root || m.ContainerID == 0
		for _, o := range mappings[:i] {
			if overlap(m.ContainerID, o.ContainerID, m.Size, o.Size) || overlap(m.HostID, o.HostID, m.Size, o.Size) {
				return refuse(property, fmt.Sprintf("mapping %d overlaps another one", i))
			}
		}
	}
	if !root {
		return refuse(property, "a user namespace needs mappings, and among them one of the container's id 0, which sets the container up")
	}
	return nil
}

func overlap(a, b, sizeA, sizeB uint32) bool {
	return uint64(a) < uint64(b)+uint64(sizeB) && uint64(b) < uint64(a)+uint64(sizeA)
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
		pid := processOf(ns.Path, rule.file)
		if rule.guest && pid == 0 {
			deny(fmt.Sprintf("%q cannot be joined: on the host no file stands for it; give /proc/<pid>/ns/%s of the container's process", ns.Path, rule.file))
			continue
		}
		if !rule.guest && own.Dev == other.Dev && own.Ino == other.Ino {
			deny(fmt.Sprintf("%q is the host's own: %s", ns.Path, cmp.Or(rule.absent, "leave it out, and the container has the virtual machine's")))
			continue
		}
		found = append(found, Joined{Type: string(ns.Type), Path: ns.Path, Device: other.Dev, Inode: other.Ino, PID: pid})
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
