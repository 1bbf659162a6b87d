// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package bundle

import (
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"
)

func TestEveryPropertyOfTheSpecHasAVerdict(t *testing.T) {
	met := map[string]bool{}
	var visit func(reflect.Type, string)
	visit = func(typ reflect.Type, path string) {
		if _, ok := properties[path]; ok {
			met[path] = true
			return
		}
		switch typ.Kind() {
		case reflect.Pointer:
			visit(typ.Elem(), path)
		case reflect.Slice:
			visit(typ.Elem(), path+"[]")
		case reflect.Struct:
			for i := range typ.NumField() {
				visit(typ.Field(i).Type, childPath(path, typ.Field(i)))
			}
		default:
			t.Errorf("%s has no verdict", path)
		}
	}
	visit(reflect.TypeFor[specs.Spec](), "")
	for path := range properties {
		if !met[path] {
			t.Errorf("verdict for %s, which the specification does not have", path)
		}
	}
}

// TestWhatCannotBeDoneIsRefusedByName holds an otherwise good configuration
// with one impossible wish each against the property's name and a word of the reason.
func TestWhatCannotBeDoneIsRefusedByName(t *testing.T) {
	one, sixty := uint16(1), uint64(60)
	number, yes := int64(1000), true
	class := uint32(1)
	errno := uint(1)
	scheduler := func(scheduler specs.Scheduler) func(*specs.Spec) {
		return func(s *specs.Spec) { s.Process.Scheduler = &scheduler }
	}
	namespace := func(kind specs.LinuxNamespaceType, path string) func(*specs.Spec) {
		return func(s *specs.Spec) {
			s.Linux.Namespaces = slices.DeleteFunc(s.Linux.Namespaces, func(n specs.LinuxNamespace) bool { return n.Type == kind })
			s.Linux.Namespaces = append(s.Linux.Namespaces, specs.LinuxNamespace{Type: kind, Path: path})
		}
	}
	host := func(kind specs.LinuxNamespaceType) func(*specs.Spec) {
		return func(s *specs.Spec) {
			s.Linux.Namespaces = slices.DeleteFunc(s.Linux.Namespaces, func(n specs.LinuxNamespace) bool { return n.Type == kind })
		}
	}
	mount := func(m specs.Mount) func(*specs.Spec) {
		return func(s *specs.Spec) { s.Mounts = append(s.Mounts, m) }
	}
	foreign := foreignDevice(t)
	mapping := []specs.LinuxIDMapping{{Size: 1}}
	for _, c := range []struct {
		property, reason string
		edit             func(*specs.Spec)
	}{
		{"annotations", `unknown model "slirp"`, func(s *specs.Spec) { s.Annotations = map[string]string{"io.bulkhead.network.model": "slirp"} }},
		{"root", "needs a root file system", func(s *specs.Spec) { s.Root = nil }},
		{"linux", "missing", func(s *specs.Spec) { s.Linux = nil }},
		{"linux.namespaces: network", "use --network none", host(specs.NetworkNamespace)},
		{"linux.namespaces: network", "is the host's own", namespace(specs.NetworkNamespace, "/proc/self/ns/net")},
		{"linux.namespaces: network", "is gone", namespace(specs.NetworkNamespace, "/nonexistent/netns")},
		{"linux.namespaces: ipc", "is the host's own", namespace(specs.IPCNamespace, "/proc/self/ns/ipc")},
		{"linux.namespaces: cgroup", "leave it out", namespace(specs.CgroupNamespace, "/proc/self/ns/cgroup")},
		{"linux.namespaces: pid", "host's processes", host(specs.PIDNamespace)},
		{"linux.namespaces: ipc", "host's IPC", host(specs.IPCNamespace)},
		{"linux.namespaces: uts", "host's UTS", host(specs.UTSNamespace)},
		{"linux.namespaces: mount", "host's mount", host(specs.MountNamespace)},
		{"linux.namespaces: pid", "is the host's own", namespace(specs.PIDNamespace, "/proc/self/ns/pid")},
		{"linux.namespaces: mount", "root file system of its own", namespace(specs.MountNamespace, "/proc/1/ns/mnt")},
		{"linux.namespaces: user", "no file stands for it", namespace(specs.UserNamespace, "/proc/self/ns/user")},
		{"linux.uidMappings", "the container's id 0", namespace(specs.UserNamespace, "")},
		{"linux.gidMappings", "overlaps", func(s *specs.Spec) {
			namespace(specs.UserNamespace, "")(s)
			s.Linux.UIDMappings, s.Linux.GIDMappings = mapping, []specs.LinuxIDMapping{{HostID: 5, Size: 10}, {ContainerID: 10, HostID: 14, Size: 1}}
		}},
		{"linux.uidMappings", "size 0", func(s *specs.Spec) {
			namespace(specs.UserNamespace, "")(s)
			s.Linux.UIDMappings, s.Linux.GIDMappings = []specs.LinuxIDMapping{{}}, mapping
		}},
		{"linux.namespaces: tomorrow", "unknown type", namespace("tomorrow", "")},
		{"linux.namespaces: pid", "twice", func(s *specs.Spec) {
			s.Linux.Namespaces = append(s.Linux.Namespaces, specs.LinuxNamespace{Type: specs.PIDNamespace})
		}},
		{"linux.uidMappings", "need a user namespace", func(s *specs.Spec) { s.Linux.UIDMappings = mapping }},
		{"linux.gidMappings", "need a user namespace", func(s *specs.Spec) { s.Linux.GIDMappings = mapping }},
		{"linux.timeOffsets", "need a time namespace", func(s *specs.Spec) { s.Linux.TimeOffsets = map[string]specs.LinuxTimeOffset{"boottime": {Secs: 1}} }},
		{"linux.timeOffsets", "unknown clock", func(s *specs.Spec) {
			namespace(specs.TimeNamespace, "")(s)
			s.Linux.TimeOffsets = map[string]specs.LinuxTimeOffset{"realtime": {Secs: 1}}
		}},
		{"linux.intelRdt", "cache", func(s *specs.Spec) { s.Linux.IntelRdt = &specs.LinuxIntelRdt{} }},
		{"linux.memoryPolicy", "one memory node", func(s *specs.Spec) { s.Linux.MemoryPolicy = &specs.LinuxMemoryPolicy{} }},
		{"linux.personality.domain", "use LINUX or LINUX32", func(s *specs.Spec) { s.Linux.Personality = &specs.LinuxPersonality{Domain: "SVR4"} }},
		{"linux.personality.flags", "no flag", func(s *specs.Spec) {
			s.Linux.Personality = &specs.LinuxPersonality{Domain: specs.PerLinux, Flags: []specs.LinuxPersonalityFlag{"X"}}
		}},
		{"process.consoleSize", "a terminal can be told", func(s *specs.Spec) { s.Process.ConsoleSize = &specs.Box{Width: 1 << 16} }},
		{"process.user.umask", "above 0777", func(s *specs.Spec) { m := uint32(0o1022); s.Process.User.Umask = &m }},
		{"process.scheduler.policy", "unknown policy", scheduler(specs.Scheduler{})},
		{"process.scheduler.policy", "never made", scheduler(specs.Scheduler{Policy: specs.SchedISO})},
		{"process.scheduler.nice", "-20..19", scheduler(specs.Scheduler{Policy: specs.SchedOther, Nice: 20})},
		{"process.scheduler.priority", "has no priority", scheduler(specs.Scheduler{Policy: specs.SchedBatch, Priority: 1})},
		{"process.scheduler.priority", "1..99", scheduler(specs.Scheduler{Policy: specs.SchedFIFO})},
		{"process.scheduler.runtime", "only SCHED_DEADLINE", scheduler(specs.Scheduler{Policy: specs.SchedRR, Priority: 1, Period: 1})},
		{"process.scheduler.flags", "unknown flag", scheduler(specs.Scheduler{Policy: specs.SchedOther, Flags: []specs.LinuxSchedulerFlag{"X"}})},
		{"process.ioPriority.class", "unknown class", func(s *specs.Spec) { s.Process.IOPriority = &specs.LinuxIOPriority{Class: "X"} }},
		{"process.ioPriority.priority", "0..7", func(s *specs.Spec) {
			s.Process.IOPriority = &specs.LinuxIOPriority{Class: specs.IOPRIO_CLASS_BE, Priority: 8}
		}},
		{"process.execCPUAffinity.initial", "not a list", func(s *specs.Spec) { s.Process.ExecCPUAffinity = &specs.CPUAffinity{Initial: "a"} }},
		{"linux.seccomp.syscalls[].args[].index", "six arguments", func(s *specs.Spec) {
			s.Linux.Seccomp.Syscalls[0].Args = []specs.LinuxSeccompArg{{Index: 6, Op: specs.OpEqualTo}}
		}},
		{"linux.seccomp.syscalls[].errnoRet", "no error number", func(s *specs.Spec) {
			s.Linux.Seccomp.Syscalls[0].Action, s.Linux.Seccomp.Syscalls[0].ErrnoRet = specs.ActAllow, &errno
		}},
		{"linux.seccomp.flags", "SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV", func(s *specs.Spec) {
			s.Linux.Seccomp.Flags = []specs.LinuxSeccompFlag{specs.LinuxSeccompFlagWaitKillableRecv}
		}},
		{"linux.netDevices", "network devices", func(s *specs.Spec) { s.Linux.NetDevices = map[string]specs.LinuxNetDevice{"eth0": {}} }},
		{"linux.mountLabel", "SELinux", func(s *specs.Spec) { s.Linux.MountLabel = "system_u:object_r:container_file_t:s0" }},
		{"process.selinuxLabel", "SELinux", func(s *specs.Spec) { s.Process.SelinuxLabel = "system_u:system_r:container_t:s0" }},
		{"process.apparmorProfile", "AppArmor", func(s *specs.Spec) { s.Process.ApparmorProfile = "my-profile" }},
		{"linux.seccomp.listenerPath", "seccomp notify", func(s *specs.Spec) { s.Linux.Seccomp.ListenerPath = "/run/s" }},
		{"linux.seccomp.syscalls[].action", "SCMP_ACT_NOTIFY", func(s *specs.Spec) { s.Linux.Seccomp.Syscalls[0].Action = specs.ActNotify }},
		{"linux.seccomp.defaultAction", "unknown value", func(s *specs.Spec) { s.Linux.Seccomp.DefaultAction = "SCMP_ACT_MAYBE" }},
		{"linux.devices", "run this container with runc", func(s *specs.Spec) {
			s.Linux.Devices = []specs.LinuxDevice{{Path: "/dev/x", Type: "c", Major: foreign.major, Minor: foreign.minor}}
		}},
		{"linux.devices", "/dev/y", func(s *specs.Spec) { // allowed, then all forbidden: not privileged
			s.Linux.Resources.Devices = []specs.LinuxDeviceCgroup{{Allow: true, Access: "rwm"}, {Access: "rwm"}}
			s.Linux.Devices = []specs.LinuxDevice{{Path: "/dev/y", Type: "c", Major: foreign.major, Minor: foreign.minor}}
		}},
		{"linux.devices", "not absolute", func(s *specs.Spec) { s.Linux.Devices = []specs.LinuxDevice{{Path: "x", Type: "b"}} }},
		{"linux.resources.blockIO.throttleReadBpsDevice", "8:1 was not given", func(s *specs.Spec) {
			s.Linux.Resources.BlockIO.ThrottleReadBpsDevice = make([]specs.LinuxThrottleDevice, 1)
			s.Linux.Resources.BlockIO.ThrottleReadBpsDevice[0].Major, s.Linux.Resources.BlockIO.ThrottleReadBpsDevice[0].Minor = 8, 1
		}},
		{"linux.resources.hugepageLimits", "2MB and 1GB", func(s *specs.Spec) {
			s.Linux.Resources.HugepageLimits = []specs.LinuxHugepageLimit{{Pagesize: "64KB", Limit: 1}}
		}},
		{"linux.resources.unified", "CONTROLLER.SETTING", func(s *specs.Spec) { s.Linux.Resources.Unified = map[string]string{"rdma.max": "1"} }},
		{"linux.resources.unified", "CONTROLLER.SETTING", func(s *specs.Spec) { s.Linux.Resources.Unified = map[string]string{"../memory.max": "1"} }},
		{"linux.resources.rdma", "RDMA", func(s *specs.Spec) { s.Linux.Resources.Rdma = map[string]specs.LinuxRdma{"mlx": {}} }},
		{"linux.resources.network", "network classes", func(s *specs.Spec) { s.Linux.Resources.Network = &specs.LinuxNetwork{ClassID: &class} }},
		{"linux.resources.blockIO.leafWeight", "leaf weights", func(s *specs.Spec) { s.Linux.Resources.BlockIO.LeafWeight = &one }},
		{"linux.resources.memory.swappiness", "no swap", func(s *specs.Spec) { s.Linux.Resources.Memory.Swappiness = &sixty }},
		{"linux.resources.memory.kernel", "kernel memory", func(s *specs.Spec) { s.Linux.Resources.Memory.Kernel = &number }},
		{"linux.resources.memory.disableOOMKiller", "OOM killer", func(s *specs.Spec) { s.Linux.Resources.Memory.DisableOOMKiller = &yes }},
		{"linux.resources.memory.useHierarchy", "hierarchy", func(s *specs.Spec) { no := false; s.Linux.Resources.Memory.UseHierarchy = &no }},
		{"linux.resources.cpu.realtimeRuntime", "real-time", func(s *specs.Spec) { s.Linux.Resources.CPU.RealtimeRuntime = &number }},
		{"linux.rootfsPropagation", "use unbindable", func(s *specs.Spec) { s.Linux.RootfsPropagation = "runbindable" }},
		{"linux.rootfsPropagation", "unknown propagation", func(s *specs.Spec) { s.Linux.RootfsPropagation = "rw" }},
		{"hooks.createContainer[0].path", "not an absolute path", func(s *specs.Spec) { s.Hooks.CreateContainer = []specs.Hook{{Path: "true"}} }},
		{"hooks.poststop[0].path", "not an absolute path", func(s *specs.Spec) { s.Hooks.Poststop = []specs.Hook{{Path: "true"}} }},
		{"vm", "host's configuration", func(s *specs.Spec) { s.VM = &specs.VM{} }},
		{"windows", "another platform", func(s *specs.Spec) { s.Windows = &specs.Windows{} }},
		{"solaris", "another platform", func(s *specs.Spec) { s.Solaris = &specs.Solaris{} }},
		{"process.user.username", "another platform", func(s *specs.Spec) { s.Process.User.Username = "u" }},
		{"process.cwd", "not an absolute path", func(s *specs.Spec) { s.Process.Cwd = "tmp" }},
		{"process.args", "must not be empty", func(s *specs.Spec) { s.Process.Args = nil }},
		{"process.rlimits", "twice", func(s *specs.Spec) {
			s.Process.Rlimits = []specs.POSIXRlimit{{Type: "RLIMIT_CORE"}, {Type: "RLIMIT_CORE"}}
		}},
		{"process.oomScoreAdj", "outside", func(s *specs.Spec) { n := 2000; s.Process.OOMScoreAdj = &n }},
		{"mounts[10].type", "bind", mount(specs.Mount{Destination: "/x", Type: "nfs", Source: "h:/x"})},
		{"mounts[10].type", "mount it on the host", mount(specs.Mount{Destination: "/x", Type: "overlay", Source: "overlay", Options: []string{"lowerdir=/a"}})},
		{"mounts[10].options", "nothing yet to mount again", mount(specs.Mount{Destination: "/x", Type: "bind", Source: "/etc", Options: []string{"rbind", "remount"}})},
		{"mounts[10].options", "cannot appear on the host", mount(specs.Mount{Destination: "/x", Type: "bind", Source: "/etc", Options: []string{"rbind", "rshared"}})},
		{"mounts[10].options", "add rbind", mount(specs.Mount{Destination: "/x", Type: "bind", Source: "/etc", Options: []string{"bind", "rslave"}})},
		{"mounts[10].uidMappings", "no mappings", mount(specs.Mount{Destination: "/x", Type: "bind", Source: "/etc", Options: []string{"bind", "idmap"}})},
		{"mounts[10].uidMappings", "give both", mount(specs.Mount{Destination: "/x", Type: "bind", Source: "/etc", Options: []string{"bind"}, UIDMappings: mapping})},
		{"mounts[0].uidMappings", "(bind) only", func(s *specs.Spec) { s.Mounts[0].UIDMappings, s.Mounts[0].GIDMappings = mapping, mapping }},
		{"mounts[10].options", "filesystem-specific", mount(specs.Mount{Destination: "/x", Type: "bind", Source: "/etc", Options: []string{"rbind", "size=1"}})},
		{"mounts[10].destination", "root file system", mount(specs.Mount{Destination: "/", Type: "tmpfs"})},
		{"annotations", "key is empty", func(s *specs.Spec) { s.Annotations = map[string]string{"": "x"} }},
	} {
		t.Run(c.property+" "+c.reason, func(t *testing.T) {
			_, err := Load(dockerBundle(t, c.edit), Options{})
			if err == nil {
				t.Fatal("it passed")
			}
			text := err.Error()
			if !strings.Contains(text, ConfigName+": "+c.property+": ") || !strings.Contains(text, c.reason) {
				t.Errorf("%q does not name %q with %q", text, c.property, c.reason)
			}
			for _, misread := range []string{"permission denied", "container not found"} {
				if strings.Contains(text, misread) {
					t.Errorf("%q would be misread by engines for %q", text, misread)
				}
			}
		})
	}
}

// TestWhatEnginesWriteForNothingPasses: zeros and empty values ask for nothing.
func TestWhatEnginesWriteForNothingPasses(t *testing.T) {
	zero := uint64(0)
	mapping := []specs.LinuxIDMapping{{HostID: 100000, Size: 65536}}
	for name, edit := range map[string]func(*specs.Spec){
		"zero hugepage limits": func(s *specs.Spec) {
			s.Linux.Resources.HugepageLimits = []specs.LinuxHugepageLimit{{Pagesize: "2MB"}}
		},
		"empty network resources": func(s *specs.Spec) { s.Linux.Resources.Network = &specs.LinuxNetwork{} },
		"podman's profile":        func(s *specs.Spec) { s.Process.ApparmorProfile = "containers-default-0.50.1" },
		"zero real-time period":   func(s *specs.Spec) { s.Linux.Resources.CPU.RealtimePeriod = &zero },
		"no hooks":                func(s *specs.Spec) { s.Hooks = &specs.Hooks{} },
		"private root":            func(s *specs.Spec) { s.Linux.RootfsPropagation = "rprivate" },
		"Kubernetes' volumes": func(s *specs.Spec) {
			s.Linux.RootfsPropagation = "rslave"
			s.Mounts = append(s.Mounts, specs.Mount{Destination: "/x", Type: "bind", Source: "rootfs", Options: []string{"rbind", "bind", "rslave", "ro"}})
		},
		"mapped owners": func(s *specs.Spec) {
			s.Mounts = append(s.Mounts, specs.Mount{
				Destination: "/x", Type: "bind", Source: "rootfs", Options: []string{"rbind", "ridmap"}, UIDMappings: mapping, GIDMappings: mapping,
			})
		},
		"devices of every kernel": func(s *specs.Spec) {
			s.Linux.Devices = []specs.LinuxDevice{{Path: "/dev/null", Type: "c", Major: 1, Minor: 3}}
		},
		"devices of a privileged container": func(s *specs.Spec) {
			s.Linux.Resources.Devices = []specs.LinuxDeviceCgroup{{Allow: true, Access: "rwm"}}
			s.Linux.Devices = []specs.LinuxDevice{{Path: "/dev/sda", Type: "b", Major: 8}, {Path: "/dev/kvm", Type: "c", Major: 10, Minor: 232}}
		},
		"relative destination": func(s *specs.Spec) { s.Mounts[0].Destination = "proc" },
		"recursive read-only": func(s *specs.Spec) {
			s.Mounts = append(s.Mounts, specs.Mount{Destination: "/x", Type: "none", Source: "rootfs", Options: []string{"rbind", "rro"}})
		},
	} {
		t.Run(name, func(t *testing.T) {
			if _, err := Load(dockerBundle(t, edit), Options{}); err != nil {
				t.Fatal(err)
			}
		})
	}
}

func TestSeveralFaultsAreToldTogether(t *testing.T) {
	_, err := Load(dockerBundle(t, func(s *specs.Spec) {
		s.Linux.IntelRdt = &specs.LinuxIntelRdt{}
		s.VM = &specs.VM{}
	}), Options{})
	if err == nil || !strings.Contains(err.Error(), "intelRdt") || !strings.Contains(err.Error(), "config.json: vm:") || strings.Contains(err.Error(), "\n") {
		t.Fatalf("error %v", err)
	}
}

func TestExecObeysTheSameTable(t *testing.T) {
	good := specs.Process{Args: []string{"id"}, Cwd: "/"}
	if err := CheckProcess(&good, Options{}); err != nil {
		t.Fatal(err)
	}
	bad := good
	bad.SelinuxLabel = "x"
	if err := CheckProcess(&bad, Options{}); err == nil || !strings.Contains(err.Error(), "process.selinuxLabel") {
		t.Errorf("error %v", err)
	}
	if err := CheckProcess(nil, Options{}); err == nil {
		t.Error("null passed")
	}
}

func TestHooksAreReadFromTheirText(t *testing.T) {
	list, err := ReadHooks(`{"prestart":[{"path":"/bin/true"}]}`)
	if err != nil || len(list.Prestart) != 1 {
		t.Fatalf("%v, %v", list, err)
	}
	if list, err := ReadHooks(""); list != nil || err != nil {
		t.Fatalf("no hooks read as %v, %v", list, err)
	}
	if _, err := ReadHooks(`{"prestart":[{"path":"relative"}]}`); err == nil {
		t.Fatal("a relative hook path passed")
	}
}
