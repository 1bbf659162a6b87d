// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package spec

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go"

	"bulkhead/test/conformance"
	"bulkhead/test/e2e/host"
)

// refusal is a configuration with which "create" must fail, and leave nothing.
type refusal struct {
	name, says string
	spoil      func(*specs.Spec)
	// spoilText changes the text of a configuration that Go's types cannot spoil.
	spoilText func(string) string
	declared  map[string]conformance.Declaration
}

// lenient declares that runc takes what the specification forbids.
func lenient(how string) map[string]conformance.Declaration {
	return map[string]conformance.Declaration{conformance.Runc: conformance.Fails("1.1.5 " + how)}
}

func refusalGroups() []conformance.Group {
	var groups []conformance.Group
	for _, set := range []struct {
		name     string
		refusals []refusal
	}{{"refusals-config", configRefusals()}, {"refusals-linux", linuxRefusals()}} {
		g := conformance.Group{Name: set.name}
		for _, r := range set.refusals {
			g.Cases = append(g.Cases, conformance.Case{Name: r.name, Says: "an error, and no container, if " + r.says, Declared: r.declared})
		}
		g.Run = func(ctx context.Context, s *conformance.Stage) (err error) {
			o := newOCI(s)
			defer func() { err = errors.Join(err, o.close()) }()
			bundle, err := o.bundle(host.NewSpec("/bin/true"))
			if err != nil {
				return err
			}
			for _, r := range set.refusals {
				s.Verdict(r.name, r.ask(ctx, o, bundle))
			}
			return nil
		}
		groups = append(groups, g)
	}
	return groups
}

func (r refusal) ask(ctx context.Context, o *oci, bundle string) error {
	spec := host.NewSpec("/bin/true")
	spec.Hostname = "" // so that a configuration without a UTS namespace is sound but for what is asked
	if r.spoil != nil {
		r.spoil(spec)
	}
	text, err := json.Marshal(spec)
	if err != nil {
		return err
	}
	if r.spoilText != nil {
		text = []byte(r.spoilText(string(text)))
	}
	if err := os.WriteFile(filepath.Join(bundle, "config.json"), text, 0o644); err != nil {
		return err
	}
	return o.refused(ctx, bundle)
}

// refused complains unless create of a bundle fails with a sentence and leaves
// no container, no pid-file and no cgroup.
func (o *oci) refused(ctx context.Context, bundle string) error {
	c, err := o.try(ctx, bundle)
	if err != nil {
		return err
	}
	var errs []error
	if c.Code == 0 {
		return errors.New("create succeeded")
	}
	select {
	case <-c.Closed: // all that was said has come
	case <-ctx.Done():
		return errors.New("create failed, and something holds its output")
	}
	if strings.TrimSpace(c.Stderr.String()) == "" {
		errs = append(errs, errors.New("create failed without a word"))
	}
	if c.PidFile != "" {
		errs = append(errs, fmt.Errorf("there is a pid-file with %q", c.PidFile))
	}
	if err := o.fails(ctx, "state", c.id); err != nil {
		errs = append(errs, fmt.Errorf("a container is left: %w", err))
	}
	cgroups, err := o.cgroups(c.id)
	if err == nil && len(cgroups) > 0 {
		err = fmt.Errorf("cgroups are left: %q", cgroups)
	}
	return errors.Join(append(errs, err)...)
}

// cgroups are those of a container on the host.
func (o *oci) cgroups(id string) ([]string, error) {
	all, err := o.stage.Ground.Cgroups()
	var found []string
	for _, path := range all {
		if filepath.Base(path) == id {
			found = append(found, path)
		}
	}
	return found, err
}

func configRefusals() []refusal {
	return []refusal{
		{
			name: "config.md#specification-version/semver", says: "ociVersion is not a semantic version",
			spoil:    func(s *specs.Spec) { s.Version = "1.0" },
			declared: lenient("does not look at ociVersion"),
		},
		{
			name: "config.md#specification-version/required", says: "there is no ociVersion",
			spoil:    func(s *specs.Spec) { s.Version = "" },
			declared: lenient("does not look at ociVersion"),
		},
		{name: "config.md#root/required", says: "there is no root", spoil: func(s *specs.Spec) { s.Root = nil }},
		{name: "config.md#root/path-exists", says: "there is no directory at root.path", spoil: func(s *specs.Spec) { s.Root.Path = "no-rootfs" }},
		{name: "config.md#root/path-is-a-directory", says: "root.path is no directory", spoil: func(s *specs.Spec) { s.Root.Path = "rootfs/bin/busybox" }},
		{name: "config.md#process/cwd-is-absolute", says: "cwd is relative", spoil: func(s *specs.Spec) { s.Process.Cwd = "tmp" }},
		{name: "config.md#process/cwd-required", says: "there is no cwd", spoil: func(s *specs.Spec) { s.Process.Cwd = "" }},
		{name: "config.md#process/args-has-an-entry", says: "args is empty", spoil: func(s *specs.Spec) { s.Process.Args = nil }},
		{
			name: "config.md#posix-process/rlimits-type-known", says: "the type of an rlimit is unknown",
			spoil: func(s *specs.Spec) { s.Process.Rlimits = []specs.POSIXRlimit{{Type: "RLIMIT_TEST", Soft: 1, Hard: 1}} },
		},
		{
			name: "config.md#posix-process/rlimits-unique", says: "rlimits has two entries of a type",
			spoil: func(s *specs.Spec) {
				s.Process.Rlimits = []specs.POSIXRlimit{{Type: "RLIMIT_CORE", Soft: 1, Hard: 1}, {Type: "RLIMIT_CORE", Soft: 2, Hard: 2}}
			},
		},
		{
			name: "config.md#linux-process/oomScoreAdj-in-range", says: "oomScoreAdj is none that the kernel takes",
			spoil: func(s *specs.Spec) { far := 2000; s.Process.OOMScoreAdj = &far },
		},
		{
			name: "config.md#linux-process/scheduler-policy-valid", says: "the scheduling policy is unknown",
			spoil:    func(s *specs.Spec) { s.Process.Scheduler = &specs.Scheduler{Policy: "SCHED_NONE"} },
			declared: ignoredByRunc,
		},
		{
			name: "config.md#linux-process/ioPriority-class-valid", says: "the I/O class is unknown",
			spoil:    func(s *specs.Spec) { s.Process.IOPriority = &specs.LinuxIOPriority{Class: "IOPRIO_CLASS_NONE_SUCH"} },
			declared: ignoredByRunc,
		},
		{
			name: "config.md#posix-platform-mounts/uidMappings-with-gidMappings", says: "a mount has uidMappings without gidMappings",
			spoil: func(s *specs.Spec) {
				s.Mounts = append(s.Mounts, specs.Mount{
					Destination: "/mnt", Type: "bind", Source: "/tmp", Options: []string{"bind", "idmap"}, UIDMappings: []specs.LinuxIDMapping{{ContainerID: 0, HostID: 1000, Size: 1}},
				})
			},
			declared: ignoredByRunc,
		},
		{
			name: "config.md#mounts/bind-source-exists", says: "the source of a bind mount does not exist",
			spoil: func(s *specs.Spec) {
				s.Mounts = append(s.Mounts, specs.Mount{Destination: "/mnt", Type: "bind", Source: "/no/such/source", Options: []string{"bind"}})
			},
		},
		{
			name: "config.md#mounts/type-known", says: "the type of a mount is no file system of the kernel",
			spoil: func(s *specs.Spec) {
				s.Mounts = append(s.Mounts, specs.Mount{Destination: "/mnt", Type: "nosuchfs", Source: "none"})
			},
		},
		{
			name: "config.md#posix-platform-hooks/prestart-path-absolute", says: "the path of a prestart hook is relative",
			spoil: func(s *specs.Spec) { s.Hooks = &specs.Hooks{Prestart: []specs.Hook{{Path: "bin/true"}}} },
		},
		{
			name: "config.md#posix-platform-hooks/timeout-positive", says: "the timeout of a hook is not greater than zero",
			spoil: func(s *specs.Spec) {
				below := -1
				s.Hooks = &specs.Hooks{CreateRuntime: []specs.Hook{{Path: "/bin/sleep", Args: []string{"sleep", "1"}, Timeout: &below}}}
			},
		},
		{name: "bundle.md#container-format/config-is-json", says: "config.json is not JSON", spoilText: func(text string) string { return text[:len(text)/2] }},
		{
			name: "config.md#process/args-are-strings", says: "a property has another type than the specification's",
			spoilText: func(text string) string {
				return strings.Replace(text, `"args":["/bin/true"]`, `"args":"/bin/true"`, 1)
			},
		},
	}
}

func linuxRefusals() []refusal {
	seccomp := func(change func(*specs.LinuxSeccomp)) func(*specs.Spec) {
		return func(s *specs.Spec) {
			s.Linux.Seccomp = &specs.LinuxSeccomp{
				DefaultAction: specs.ActAllow, Architectures: []specs.Arch{specs.ArchX86_64},
				Syscalls: []specs.LinuxSyscall{{Names: []string{"mkdir"}, Action: specs.ActErrno}},
			}
			change(s.Linux.Seccomp)
		}
	}
	eperm := uint(1)
	return []refusal{
		{
			name: "config-linux.md#namespaces/unique", says: "namespaces has two of a type",
			spoil: func(s *specs.Spec) {
				s.Linux.Namespaces = append(s.Linux.Namespaces, specs.LinuxNamespace{Type: specs.PIDNamespace})
			},
		},
		{
			name: "config-linux.md#namespaces/type-known", says: "the type of a namespace is unknown",
			spoil: func(s *specs.Spec) {
				s.Linux.Namespaces = append(s.Linux.Namespaces, specs.LinuxNamespace{Type: "none"})
			},
		},
		{
			name: "config-linux.md#namespaces/path-of-its-type", says: "the path of a namespace is one of another type",
			spoil: func(s *specs.Spec) { s.Linux.Namespaces[3].Path = "/proc/self/ns/uts" },
		},
		{
			name: "config-linux.md#namespaces/path-exists", says: "the path of a namespace does not exist",
			spoil: func(s *specs.Spec) { s.Linux.Namespaces[4].Path = "/run/netns/no-such-namespace" },
		},
		{
			name: "config-linux.md#namespaces/path-is-absolute", says: "the path of a namespace is relative",
			spoil: func(s *specs.Spec) { s.Linux.Namespaces[4].Path = "run/netns/x" },
		},
		{
			name: "config-linux.md#devices/type-known", says: "the type of a device is unknown",
			spoil: func(s *specs.Spec) {
				s.Linux.Devices = []specs.LinuxDevice{{Path: "/dev/x", Type: "x", Major: 1, Minor: 3}}
			},
		},
		{
			name: "config-linux.md#devices/existing-file-matches", says: "a file that is no such device exists at the path of a device",
			spoil: func(s *specs.Spec) {
				s.Linux.Devices = []specs.LinuxDevice{{Path: "/etc/passwd", Type: "c", Major: 1, Minor: 3}}
			},
			declared: map[string]conformance.Declaration{
				conformance.Runc:     conformance.Fails("libcontainer takes whatever exists at the path of a device"),
				conformance.Bulkhead: conformance.Fails("the guest's libcontainer takes whatever exists at the path of a device, as runc's does"),
			},
		},
		{
			name: "config-linux.md#sysctl/known", says: "a kernel parameter does not exist",
			spoil: func(s *specs.Spec) { s.Linux.Sysctl = map[string]string{"kernel.no_such_parameter": "1"} },
		},
		{
			name: "config-linux.md#rootfs-mount-propagation/known", says: "rootfsPropagation is unknown",
			spoil: func(s *specs.Spec) { s.Linux.RootfsPropagation = "sideways" },
		},
		{
			name: "config-linux.md#seccomp/names-has-an-entry", says: "names of a seccomp rule is empty",
			spoil: seccomp(func(c *specs.LinuxSeccomp) { c.Syscalls[0].Names = []string{""} }),
		},
		{
			name: "config-linux.md#seccomp/action-known", says: "the action of a seccomp rule is unknown",
			spoil: seccomp(func(c *specs.LinuxSeccomp) { c.Syscalls[0].Action = "SCMP_ACT_NONE" }),
		},
		{
			name: "config-linux.md#seccomp/operator-known", says: "the operator of a seccomp argument is unknown",
			spoil: seccomp(func(c *specs.LinuxSeccomp) { c.Syscalls[0].Args = []specs.LinuxSeccompArg{{Op: "SCMP_CMP_NONE"}} }),
		},
		{
			name: "config-linux.md#seccomp/architecture-known", says: "an architecture of seccomp is unknown",
			spoil: seccomp(func(c *specs.LinuxSeccomp) { c.Architectures = []specs.Arch{"SCMP_ARCH_NONE"} }),
		},
		{
			name: "config-linux.md#seccomp/defaultErrnoRet-with-an-errno", says: "defaultErrnoRet is given for an action without an errno",
			spoil:    seccomp(func(c *specs.LinuxSeccomp) { c.DefaultAction, c.DefaultErrnoRet = specs.ActAllow, &eperm }),
			declared: lenient("ignores defaultErrnoRet of an action without an errno"),
		},
		{
			name: "config-linux.md#seccomp/errnoRet-with-an-errno", says: "errnoRet is given for an action without an errno",
			spoil: seccomp(func(c *specs.LinuxSeccomp) {
				c.Syscalls[0].Action, c.Syscalls[0].ErrnoRet = specs.ActKillProcess, &eperm
			}),
			declared: lenient("ignores errnoRet of an action without an errno"),
		},
		{
			name: "config-linux.md#personality/domain-known", says: "the execution domain is unknown",
			spoil:    func(s *specs.Spec) { s.Linux.Personality = &specs.LinuxPersonality{Domain: "LINUX128"} },
			declared: ignoredByRunc,
		},
		{
			name: "config-linux.md#intelrdt/needs-resctrl", says: "intelRdt is asked for and there is no resctrl file system",
			spoil: func(s *specs.Spec) { s.Linux.IntelRdt = &specs.LinuxIntelRdt{L3CacheSchema: "L3:0=f"} },
		},
		{
			name: "config-linux.md#network-devices/exists", says: "a network device that is to be moved in does not exist",
			spoil:    func(s *specs.Spec) { s.Linux.NetDevices = map[string]specs.LinuxNetDevice{"no-such-link": {}} },
			declared: ignoredByRunc,
		},
		{
			name: "config-linux.md#memory-policy/mode-known", says: "the mode of the memory policy is unknown",
			spoil:    func(s *specs.Spec) { s.Linux.MemoryPolicy = &specs.LinuxMemoryPolicy{Mode: "MPOL_NONE"} },
			declared: ignoredByRunc,
		},
		{
			name: "config-linux.md#unified/controller-present", says: "unified names a controller that is not there",
			spoil: func(s *specs.Spec) {
				s.Linux.Resources = &specs.LinuxResources{Unified: map[string]string{"nosuch.max": "1"}}
			},
		},
		{
			name: "config-linux.md#hugepage-limits/page-size-known", says: "there are no huge pages of a limit's size",
			spoil: func(s *specs.Spec) {
				s.Linux.Resources = &specs.LinuxResources{HugepageLimits: []specs.LinuxHugepageLimit{{Pagesize: "3MB", Limit: 9 << 20}}}
			},
		},
		{
			name: "config-linux.md#user-namespace-mappings/need-the-namespace", says: "there are mappings without a user namespace",
			spoil: func(s *specs.Spec) {
				s.Linux.UIDMappings = []specs.LinuxIDMapping{{ContainerID: 0, HostID: 100000, Size: 65536}}
				s.Linux.GIDMappings = s.Linux.UIDMappings
			},
			declared: lenient("ignores mappings without a user namespace"),
		},
		{
			name: "config.md#hostname/needs-uts-namespace", says: "a host name is asked for without a UTS namespace, so that the host's would change",
			spoil: func(s *specs.Spec) {
				s.Hostname = "conform"
				s.Linux.Namespaces = append(s.Linux.Namespaces[:2:2], s.Linux.Namespaces[3:]...)
			},
		},
	}
}
