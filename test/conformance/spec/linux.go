// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package spec

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"bulkhead/test/conformance"
	"bulkhead/test/conformance/probe"
	"bulkhead/test/e2e/host"
)

func linuxGroups() []conformance.Group {
	return []conformance.Group{
		linuxProperties().group(), resources().group(), seccompRules().group(), life("seccomp-kill", seccompKill),
		life("namespaces", namespaces), life("namespaces-inherited", inheritedNamespaces), userNamespace().group(), personality().group(),
		rootfsPropagation("private", nil).group(), rootfsPropagation("slave", nil).group(), life("cgroups", cgroups),
	}
}

// linuxProperties are those of config-linux.md that one container can have at once.
func linuxProperties() inside {
	mode, uid, gid := fs.FileMode(0o640), uint32(5), uint32(6)
	return inside{
		name: "linux",
		configure: func(spec *specs.Spec, bundle string) error {
			l := spec.Linux
			l.Devices = []specs.LinuxDevice{
				{Path: "/dev/conform", Type: "c", Major: 1, Minor: 3, FileMode: &mode, UID: &uid, GID: &gid},
				{Path: "/dev/deep/conform", Type: "u", Major: 1, Minor: 5},
				{Path: "/dev/fifo", Type: "p", Major: 8, Minor: 666, FileMode: &mode}, // the numbers mean nothing
			}
			l.Sysctl = map[string]string{"net.ipv4.ip_forward": "1", "kernel.msgmax": "12345", "fs.mqueue.msg_max": "42"}
			l.MaskedPaths = []string{"/proc/timer_list", "/masked", "/masked-file", "/no/such/path"}
			l.ReadonlyPaths = []string{"/proc/sys", "/readonly", "/no/such/path"}
			l.Namespaces = append(l.Namespaces, specs.LinuxNamespace{Type: specs.CgroupNamespace})
			return sharedFiles(bundle, "rootfs/masked/secret", "rootfs/masked-file", "rootfs/readonly/file", "rootfs/plain/file")
		},
		ask: probe.Ask{
			Stat:  []string{"/dev/conform", "/dev/deep/conform", "/dev/fifo"},
			Open:  []string{"/dev/conform"},
			Read:  []string{"/proc/sys/net/ipv4/ip_forward", "/proc/sys/kernel/msgmax", "/proc/sys/fs/mqueue/msg_max", "/proc/timer_list", "/masked-file", "/proc/self/cgroup", "/proc/net/dev"},
			List:  []string{"/masked", "/proc"},
			Write: []string{"/proc/sys/kernel/msgmax", "/readonly/new", "/readonly/file", "/plain/new"},
		},
		cases: []look{
			{
				name: "config-linux.md#devices/character", says: "a character device of the list is there, with its numbers",
				see: func(r *found) error {
					st := r.Stat["/dev/conform"]
					return errors.Join(equal("its error", st.Err, ""), equal("its type", st.Mode&unix.S_IFMT, unix.S_IFCHR), equal("its major", st.Major, 1), equal("its minor", st.Minor, 3), equal("opening it", r.Open["/dev/conform"], ""))
				},
			},
			{
				name: "config-linux.md#devices/fileMode", says: "fileMode is the mode of a device",
				see: func(r *found) error { return equal("its mode", r.Stat["/dev/conform"].Mode&0o7777, 0o640) },
			},
			{
				name: "config-linux.md#devices/uid-gid", says: "uid and gid own a device",
				see: func(r *found) error {
					return errors.Join(equal("its uid", r.Stat["/dev/conform"].UID, 5), equal("its gid", r.Stat["/dev/conform"].GID, 6))
				},
			},
			{
				name: "config-linux.md#devices/unbuffered-in-a-new-directory", says: "a device of type u is a character device, and directories on its way are made",
				see: func(r *found) error {
					st := r.Stat["/dev/deep/conform"]
					return errors.Join(equal("its error", st.Err, ""), equal("its type", st.Mode&unix.S_IFMT, unix.S_IFCHR), equal("its minor", st.Minor, 5))
				},
			},
			{
				name: "config-linux.md#devices/fifo", says: "a device of type p is a FIFO",
				see: func(r *found) error { return equal("its type", r.Stat["/dev/fifo"].Mode&unix.S_IFMT, unix.S_IFIFO) },
			},
			{
				name: "config-linux.md#sysctl/network", says: "a kernel parameter of the network namespace has the given value",
				see: func(r *found) error {
					return equal("ip_forward", strings.TrimSpace(r.Read["/proc/sys/net/ipv4/ip_forward"].Text), "1")
				},
			},
			{
				name: "config-linux.md#sysctl/ipc", says: "kernel parameters of the IPC namespace have the given values",
				see: func(r *found) error {
					return errors.Join(equal("msgmax", strings.TrimSpace(r.Read["/proc/sys/kernel/msgmax"].Text), "12345"), equal("msg_max", strings.TrimSpace(r.Read["/proc/sys/fs/mqueue/msg_max"].Text), "42"))
				},
			},
			{
				name: "config-linux.md#masked-paths/directory", says: "a masked directory cannot be read",
				see: func(r *found) error { return equal("its entries", r.List["/masked"].Text, "") },
			},
			{
				name: "config-linux.md#masked-paths/file", says: "a masked file cannot be read",
				see: func(r *found) error {
					return errors.Join(equal("it", r.Read["/masked-file"].Text, ""), equal("/proc/timer_list", r.Read["/proc/timer_list"].Text, ""))
				},
			},
			{
				name: "config-linux.md#readonly-paths/directory", says: "a readonly path cannot be written, and what is beneath it neither",
				see: func(r *found) error {
					return errors.Join(equal("a new file", r.Write["/readonly/new"], "EROFS"), equal("an old file", r.Write["/readonly/file"], "EROFS"), equal("a file beside it", r.Write["/plain/new"], ""))
				},
			},
			{
				name: "config-linux.md#readonly-paths/proc-sys", says: "a readonly path in /proc cannot be written",
				see: func(r *found) error { return equal("a kernel parameter", r.Write["/proc/sys/kernel/msgmax"], "EROFS") },
			},
			{
				name: "config-linux.md#namespaces/cgroup-new", says: "a new cgroup namespace makes the container's cgroup the root",
				see: func(r *found) error {
					for line := range strings.Lines(r.Read["/proc/self/cgroup"].Text) {
						if !strings.HasSuffix(line, ":/\n") {
							return fmt.Errorf("there is the line %q", line)
						}
					}
					return nil
				},
			},
			{
				name: "config-linux.md#namespaces/pid-sees-only-its-own", says: "only processes of the container are in /proc",
				see: func(r *found) error {
					for name := range strings.Lines(r.List["/proc"].Text) {
						if pid, err := strconv.Atoi(strings.TrimSpace(name)); err == nil && pid != 1 {
							return fmt.Errorf("process %d is there", pid)
						}
					}
					return nil
				},
			},
			{
				name: "config-linux.md#namespaces/network-new", says: "a new network namespace has no interface of the host",
				see: func(r *found) error {
					for line := range strings.Lines(r.Read["/proc/net/dev"].Text) {
						if name, _, found := strings.Cut(strings.TrimSpace(line), ":"); found && (strings.HasPrefix(name, "eth") || strings.HasPrefix(name, "docker") || strings.HasPrefix(name, "en")) {
							return fmt.Errorf("interface %s is there", name)
						}
					}
					return nil
				},
			},
		},
	}
}

// resources are read where the container sees its own cgroup: below /sys/fs/cgroup,
// in the files of cgroup v2 or of v1.
func resources() inside {
	const megabytes = 1 << 20
	limit, reservation, swap := int64(64*megabytes), int64(32*megabytes), int64(64*megabytes)
	quota, period, shares := int64(50000), uint64(100000), uint64(512)
	pids := int64(77)
	files := func(v2, v1 string) []string { return []string{"/sys/fs/cgroup/" + v2, "/sys/fs/cgroup/" + v1} }
	cases := []struct {
		name, says     string
		files          []string
		v2, v1         string
		afterSpaces    bool
		notThisDefault string
	}{
		{"memory/limit", "memory.limit is the container's limit", files("memory.max", "memory/memory.limit_in_bytes"), "67108864", "67108864", false, ""},
		{"memory/reservation", "memory.reservation is the soft limit", files("memory.low", "memory/memory.soft_limit_in_bytes"), "33554432", "33554432", false, ""},
		{"memory/swap", "memory.swap is the limit of memory and swap", files("memory.swap.max", "memory/memory.memsw.limit_in_bytes"), "0", "67108864", false, ""},
		{"cpu/quota-and-period", "cpu.quota and cpu.period bound the time of the processors", files("cpu.max", "cpu/cpu.cfs_quota_us"), "50000 100000", "50000", false, ""},
		{"cpu/shares", "cpu.shares weighs the container", files("cpu.weight", "cpu/cpu.shares"), "", "512", false, "100"},
		{"pids/limit", "pids.limit bounds the number of tasks", files("pids.max", "pids/pids.max"), "77", "77", false, ""},
	}
	i := inside{
		name: "resources",
		configure: func(spec *specs.Spec, _ string) error {
			spec.Linux.Resources = &specs.LinuxResources{
				Memory: &specs.LinuxMemory{Limit: &limit, Reservation: &reservation, Swap: &swap},
				CPU:    &specs.LinuxCPU{Quota: &quota, Period: &period, Shares: &shares},
				Pids:   &specs.LinuxPids{Limit: &pids},
			}
			spec.Mounts = append(spec.Mounts, specs.Mount{Destination: "/sys/fs/cgroup", Type: "cgroup", Source: "cgroup", Options: []string{"nosuid", "noexec", "nodev", "relatime", "ro"}})
			return nil
		},
		ask: probe.Ask{Open: []string{"/sys/fs/cgroup/cgroup.procs", "/sys/fs/cgroup/pids/cgroup.procs"}},
	}
	for _, c := range cases {
		i.ask.Read = append(i.ask.Read, c.files...)
		i.cases = append(i.cases, look{
			name: "config-linux.md#" + c.name, says: c.says + ", as the container sees it",
			see: func(r *found) error {
				v2, v1 := r.Read[c.files[0]], r.Read[c.files[1]]
				got, want := strings.TrimSpace(v2.Text), c.v2
				if v2.Err != "" {
					got, want = strings.TrimSpace(v1.Text), c.v1
					if v1.Err != "" {
						if v1.Err == "ENOENT" && strings.Contains(c.files[1], "memsw") {
							return conformance.Skipped{Reason: "the kernel counts no swap"}
						}
						return fmt.Errorf("%s: %s; %s: %s", c.files[0], v2.Err, c.files[1], v1.Err)
					}
				} else if want == "" {
					if got == c.notThisDefault || got == "" {
						return fmt.Errorf("%s is %q, as it is without being asked", c.files[0], got)
					}
					return nil
				}
				return equal("it", got, want)
			},
		})
	}
	i.cases = append(i.cases, look{
		name: "config-linux.md#control-groups/mount", says: "a mount of type cgroup with ro shows the container's cgroup and cannot be written",
		see: func(r *found) error {
			for _, path := range i.ask.Open {
				if got := r.Open[path]; got == "" {
					return fmt.Errorf("%s can be written", path)
				}
			}
			return nil
		},
	})
	return i
}

func seccompRules() inside {
	enosys, efault := uint(unix.ENOSYS), uint(unix.EFAULT)
	return inside{
		name: "seccomp",
		configure: func(spec *specs.Spec, _ string) error {
			spec.Process.Capabilities.Bounding = append(spec.Process.Capabilities.Bounding, "CAP_SYS_ADMIN")
			spec.Process.Capabilities.Effective, spec.Process.Capabilities.Permitted = spec.Process.Capabilities.Bounding, spec.Process.Capabilities.Bounding
			spec.Linux.Seccomp = &specs.LinuxSeccomp{
				DefaultAction: specs.ActAllow,
				Architectures: []specs.Arch{specs.ArchX86_64, specs.ArchX86},
				Syscalls: []specs.LinuxSyscall{
					{Names: []string{"mkdir", "mkdirat"}, Action: specs.ActErrno},
					{Names: []string{"sethostname"}, Action: specs.ActErrno, ErrnoRet: &enosys},
					{Names: []string{"umask"}, Action: specs.ActErrno, ErrnoRet: &efault, Args: []specs.LinuxSeccompArg{{Index: 0, Value: 0o077, Op: specs.OpEqualTo}}},
					{Names: []string{"no_such_system_call", "mount"}, Action: specs.ActErrno},
				},
			}
			return nil
		},
		ask: probe.Ask{Calls: []string{"getcwd", "mkdir", "sethostname", "umask-077", "umask-022", "mount", "unshare"}},
		cases: []look{
			{
				name: "config-linux.md#seccomp/filter-is-loaded", says: "the program runs with a filter",
				see: func(r *found) error { return equal("Seccomp", r.Status["Seccomp"], "2") },
			},
			{
				name: "config-linux.md#seccomp/defaultAction", says: "what no rule names has the default action",
				see: func(r *found) error {
					return errors.Join(equal("getcwd", r.Calls["getcwd"], ""), equal("unshare", r.Calls["unshare"], ""))
				},
			},
			{
				name: "config-linux.md#seccomp/errno", says: "SCMP_ACT_ERRNO without a number is EPERM",
				see: func(r *found) error { return equal("mkdir", r.Calls["mkdir"], "EPERM") },
			},
			{
				name: "config-linux.md#seccomp/errnoRet", says: "errnoRet is the error of SCMP_ACT_ERRNO",
				see: func(r *found) error { return equal("sethostname", r.Calls["sethostname"], "ENOSYS") },
			},
			{
				name: "config-linux.md#seccomp/args", says: "a rule with args holds for those alone",
				see: func(r *found) error {
					return errors.Join(equal("umask 077", r.Calls["umask-077"], "EFAULT"), equal("umask 022", r.Calls["umask-022"], ""))
				},
			},
			{
				name: "config-linux.md#seccomp/unknown-names-are-ignored", says: "a name that the kernel does not know leaves the others of its rule in force",
				see: func(r *found) error { return equal("mount", r.Calls["mount"], "EPERM") },
			},
		},
	}
}

func seccompKill(o *oci) []step {
	return []step{{
		name: "config-linux.md#seccomp/kill-process", says: "SCMP_ACT_KILL_PROCESS ends the program by SIGSYS",
		take: func(ctx context.Context) error {
			spec := host.NewSpec("mkdir", "/made")
			spec.Linux.Seccomp = &specs.LinuxSeccomp{
				DefaultAction: specs.ActAllow, Architectures: []specs.Arch{specs.ArchX86_64},
				Syscalls: []specs.LinuxSyscall{{Names: []string{"mkdir", "mkdirat"}, Action: specs.ActKillProcess}},
			}
			c, err := o.launch(ctx, spec)
			if err != nil {
				return err
			}
			code, err := c.Wait(ctx)
			return errors.Join(err, equal("the exit code", code, 128+int(unix.SIGSYS)), absent(filepath.Join(c.bundle, "rootfs/made")))
		},
	}}
}

// byName are the namespaces as the specification and as /proc name them.
var byName = []struct {
	kind specs.LinuxNamespaceType
	file string
}{
	{specs.PIDNamespace, "pid"}, {specs.NetworkNamespace, "net"}, {specs.MountNamespace, "mnt"}, {specs.IPCNamespace, "ipc"}, {specs.UTSNamespace, "uts"},
}

// namespaces are seen from the host, by the process that the runtime names.
func namespaces(o *oci) []step {
	var c *container
	link := func(pid, file string) (string, error) { return os.Readlink(filepath.Join("/proc", pid, "ns", file)) }
	steps := []step{{
		name: "config-linux.md#namespaces/network-path", says: "the container's process is in the network namespace of path",
		take: func(ctx context.Context) error {
			path := filepath.Join("/run/netns", o.stage.Ground.Token+"-"+o.stage.Runtime.Name)
			name := filepath.Base(path)
			if r, err := host.Run(ctx, nil, nil, "ip", "netns", "add", name); err != nil || r.Code != 0 {
				return errors.Join(err, fmt.Errorf("ip netns add: %s", r.Stderr))
			}
			spec := host.NewSpec("sleep", "1000")
			spec.Linux.Namespaces[4].Path = path
			var err error
			c, err = o.launch(ctx, spec)
			if err == nil {
				var there, want unix.Stat_t
				err = errors.Join(unix.Stat(filepath.Join("/proc", strconv.Itoa(c.PID), "ns/net"), &there), unix.Stat(path, &want), equal("the namespace", there.Ino, want.Ino))
			}
			r, err2 := host.Run(context.WithoutCancel(ctx), nil, nil, "ip", "netns", "delete", name)
			return errors.Join(err, err2, equal("the exit code of ip netns delete", r.Code, 0))
		},
	}}
	for _, ns := range byName {
		if ns.kind == specs.NetworkNamespace {
			continue // it was joined
		}
		steps = append(steps, step{
			name: "config-linux.md#namespaces/" + string(ns.kind) + "-is-new", says: "without a path, the container's process has a " + string(ns.kind) + " namespace of its own, as the host sees it",
			take: func(context.Context) error {
				if c == nil {
					return errNoContainer
				}
				got, err := link(strconv.Itoa(c.PID), ns.file)
				own, err2 := link("self", ns.file)
				if err = errors.Join(err, err2); err == nil && got == own {
					err = fmt.Errorf("it is the caller's: %s", got)
				}
				return err
			},
		})
	}
	return steps
}

// inheritedNamespaces leaves a namespace out of the list.
func inheritedNamespaces(o *oci) []step {
	var steps []step
	for _, ns := range byName {
		if ns.kind == specs.MountNamespace {
			continue // root.path cannot be had without one
		}
		steps = append(steps, step{
			name: "config-linux.md#namespaces/" + string(ns.kind) + "-inherited", says: "without an entry, the container's process is in the caller's " + string(ns.kind) + " namespace",
			take: func(ctx context.Context) error {
				spec := host.NewSpec("sleep", "1000")
				spec.Hostname = ""
				var kept []specs.LinuxNamespace
				for _, entry := range spec.Linux.Namespaces {
					if entry.Type != ns.kind {
						kept = append(kept, entry)
					}
				}
				spec.Linux.Namespaces = kept
				if ns.kind == specs.NetworkNamespace {
					spec.Mounts = spec.Mounts[:3] // a new sysfs needs the right to the network namespace
				}
				c, err := o.launch(ctx, spec)
				if err != nil {
					return err
				}
				got, err := os.Readlink(filepath.Join("/proc", strconv.Itoa(c.PID), "ns", ns.file))
				own, err2 := os.Readlink(filepath.Join("/proc/self/ns", ns.file))
				return errors.Join(err, err2, equal("the namespace", got, own))
			},
			declared: map[string]conformance.Declaration{conformance.Bulkhead: conformance.Fails("refused by name: a virtual machine cannot be in a namespace of the host's kernel")},
		})
	}
	return steps
}

func userNamespace() inside {
	mapping := []specs.LinuxIDMapping{{ContainerID: 0, HostID: 100000, Size: 65536}}
	return inside{
		name: "user-namespace",
		configure: func(spec *specs.Spec, bundle string) error {
			spec.Linux.Namespaces = append(spec.Linux.Namespaces, specs.LinuxNamespace{Type: specs.UserNamespace})
			spec.Linux.UIDMappings, spec.Linux.GIDMappings = mapping, mapping
			// The mapped root must be able to search the way to its root file system.
			return filepath.WalkDir(filepath.Join(bundle, "rootfs"), func(path string, _ fs.DirEntry, err error) error {
				return errors.Join(err, os.Lchown(path, 100000, 100000))
			})
		},
		ask: probe.Ask{Read: []string{"/proc/self/uid_map", "/proc/self/gid_map"}, Write: []string{"/new"}, Stat: []string{"/etc/passwd"}},
		cases: []look{
			{
				name: "config-linux.md#user-namespace-mappings/uid", says: "uidMappings are those of the container's user namespace",
				see: func(r *found) error {
					fields := strings.Fields(r.Read["/proc/self/uid_map"].Text)
					return errors.Join(equal("its lines", len(fields), 3), equal("the first id", strings.Join(fields[:1], ""), "0"), equal("the size", strings.Join(fields[2:], ""), "65536"))
				},
			},
			{
				name: "config-linux.md#user-namespace-mappings/gid", says: "gidMappings are those of the container's user namespace",
				see: func(r *found) error {
					fields := strings.Fields(r.Read["/proc/self/gid_map"].Text)
					return errors.Join(equal("its lines", len(fields), 3), equal("the size", strings.Join(fields[2:], ""), "65536"))
				},
			},
			{
				name: "config-linux.md#user-namespace-mappings/files", says: "files of the mapped owner are the container's root's, in its eyes and on the host",
				see: func(r *found) error {
					var st unix.Stat_t
					err := unix.Stat(filepath.Join(r.bundle, "rootfs/new"), &st)
					return errors.Join(equal("the owner inside", r.Stat["/etc/passwd"].UID, 0), equal("writing", r.Write["/new"], ""), err, equal("the owner on the host", st.Uid, 100000))
				},
			},
		},
	}
}

func personality() inside {
	return inside{
		name: "personality",
		configure: func(spec *specs.Spec, _ string) error {
			spec.Linux.Personality = &specs.LinuxPersonality{Domain: specs.PerLinux32}
			return nil
		},
		cases: []look{{
			name: "config-linux.md#personality/domain", says: "the execution domain is the given one",
			see:      func(r *found) error { return equal("personality", r.Domain, "00000008") },
			declared: ignoredByRunc,
		}},
	}
}

func rootfsPropagation(value string, declared map[string]conformance.Declaration) inside {
	return inside{
		name:      "rootfs-propagation-" + value,
		configure: func(spec *specs.Spec, _ string) error { spec.Linux.RootfsPropagation = value; return nil },
		cases: []look{{
			name: "config-linux.md#rootfs-mount-propagation/" + value, says: "rootfsPropagation " + value + " is that of the root mount, as mountinfo tells inside",
			see: func(r *found) error {
				m, err := r.mount("/")
				for _, tag := range m.Tags {
					if strings.HasPrefix(tag, "shared:") || value == "private" {
						err = errors.Join(err, fmt.Errorf("its tags are %q", m.Tags))
					}
				}
				return err
			},
			declared: declared,
		}},
	}
}

// cgroups are where the host accounts for a container.
func cgroups(o *oci) []step {
	var c *container
	var path string
	return []step{
		{
			name: "config-linux.md#cgroups-path/absolute", says: "the container's process is in cgroupsPath, below the mount point of the cgroups",
			take: func(ctx context.Context) (err error) {
				path = "/" + o.stage.Ground.Token + "-" + o.stage.Runtime.Name + "/conform"
				spec := host.NewSpec("sleep", "1000")
				spec.Linux.CgroupsPath = path
				if c, err = o.launch(ctx, spec); err != nil {
					return err
				}
				text, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(c.PID), "cgroup"))
				if err == nil && !strings.Contains(string(text), ":"+path+"\n") {
					err = fmt.Errorf("its cgroups are %q", text)
				}
				return err
			},
		},
		{
			name: "config-linux.md#cgroups-path/removed", says: "delete removes the cgroups that create made",
			take: func(ctx context.Context) error {
				if c == nil {
					return errNoContainer
				}
				if _, err := o.do(ctx, "delete", "--force", c.id); err != nil {
					return err
				}
				all, err := o.stage.Ground.Cgroups()
				for _, left := range all {
					if strings.HasSuffix(left, path) {
						err = errors.Join(err, fmt.Errorf("%s is left", left))
					}
				}
				for _, left := range all { // the parent is not runc's to remove, but it is ours
					if filepath.Base(left) == filepath.Base(filepath.Dir(path)) {
						err = errors.Join(err, os.Remove(left))
					}
				}
				return err
			},
		},
	}
}
