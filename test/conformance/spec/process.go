// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package spec

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"bulkhead/test/conformance"
	"bulkhead/test/conformance/probe"
)

// Why Debian 12's runc does not keep what came later.
const olderSpec = "1.1.5 is of runtime-spec 1.0.2, which does not have this property, and ignores it"

// ignoredByRunc declares that runc does not know what is asked.
var ignoredByRunc = map[string]conformance.Declaration{conformance.Runc: conformance.Fails(olderSpec)}

// processGroups ask for what config.md#process promises.
func processGroups() []conformance.Group {
	return []conformance.Group{rootProcess().group(), userProcess().group(), scheduledProcess().group(), plainProcess().group()}
}

func rootProcess() inside {
	args := []string{"/bin/probe", "", "a b", "c=d", "*"}
	env := []string{"PATH=/bin", "EMPTY=", "EQUALS=a=b=c", "ONCE=1", "LINE=a\nb"}
	adjustment := 123
	limits := []specs.POSIXRlimit{
		{Type: "RLIMIT_CORE", Soft: 0, Hard: 4096}, {Type: "RLIMIT_CPU", Soft: 1000, Hard: 2000}, {Type: "RLIMIT_FSIZE", Soft: 1 << 30, Hard: 1 << 31},
		{Type: "RLIMIT_NOFILE", Soft: 1234, Hard: 1234}, {Type: "RLIMIT_STACK", Soft: 4 << 20, Hard: 8 << 20}, {Type: "RLIMIT_NPROC", Soft: 500, Hard: 600},
	}
	return inside{
		name: "process-root",
		configure: func(spec *specs.Spec, _ string) error {
			p := spec.Process
			p.Args, p.Env, p.Cwd, p.OOMScoreAdj, p.Rlimits = args, env, "/home/app", &adjustment, limits
			p.ConsoleSize = &specs.Box{Height: 11, Width: 22}
			p.NoNewPrivileges = true
			p.Capabilities = &specs.LinuxCapabilities{
				Bounding:    []string{"CAP_CHOWN", "CAP_KILL", "CAP_NET_RAW", "CAP_SYS_CHROOT"},
				Permitted:   []string{"CAP_CHOWN", "CAP_KILL", "CAP_NET_RAW"},
				Inheritable: []string{"CAP_CHOWN", "CAP_KILL"},
				Effective:   []string{"CAP_CHOWN", "CAP_NET_RAW"},
				Ambient:     []string{"CAP_CHOWN"},
			}
			return nil
		},
		cases: []look{
			{
				name: "config.md#process/args", says: "the program is executed with exactly the given arguments",
				see: func(r *found) error { return equalList("args", r.Args, args) },
			},
			{
				name: "config.md#process/env", says: "the environment has the given entries as they are written: empty values, values with = and line ends",
				see: func(r *found) error {
					for _, entry := range env {
						if !slices.Contains(r.Env, entry) {
							return fmt.Errorf("env has no %q: %q", entry, r.Env)
						}
					}
					return nil
				},
			},
			{
				name: "config.md#process/cwd", says: "cwd is the working directory of the program",
				see: func(r *found) error { return equal("cwd", r.Cwd, "/home/app") },
			},
			{
				name: "config.md#process/consoleSize-ignored-without-terminal", says: "consoleSize is ignored if terminal is false",
				see: func(r *found) error { return equal("a terminal", r.Terminal, false) },
			},
			{
				name: "config.md#posix-process/rlimits-soft", says: "rlim.rlim_cur matches the configured value",
				see: func(r *found) error {
					return limitsAre(limits, func(want specs.POSIXRlimit) error {
						return equal(want.Type+" soft", r.Limits[want.Type].Soft, want.Soft)
					})
				},
			},
			{
				name: "config.md#posix-process/rlimits-hard", says: "rlim.rlim_max matches the configured value",
				see: func(r *found) error {
					return limitsAre(limits, func(want specs.POSIXRlimit) error {
						return equal(want.Type+" hard", r.Limits[want.Type].Hard, want.Hard)
					})
				},
			},
			{
				name: "config.md#linux-process/noNewPrivileges", says: "noNewPrivileges prevents the process from gaining privileges",
				see: func(r *found) error { return equal("NoNewPrivs", r.Status["NoNewPrivs"], "1") },
			},
			{
				name: "config.md#linux-process/oomScoreAdj", says: "oom_score_adj is set to the given value",
				see: func(r *found) error { return equal("oom_score_adj", r.OOMScore, "123") },
			},
			capability("bounding", "CapBnd", unix.CAP_CHOWN, unix.CAP_KILL, unix.CAP_NET_RAW, unix.CAP_SYS_CHROOT),
			capability("inheritable", "CapInh", unix.CAP_CHOWN, unix.CAP_KILL),
			capability("ambient", "CapAmb", unix.CAP_CHOWN),
			{
				name: "runtime-linux.md#file-descriptors/only-standard-streams", says: "only stdin, stdout and stderr are open in the program",
				see: func(r *found) error {
					for _, fd := range r.FDs {
						number, _, _ := strings.Cut(fd, " ")
						if !slices.Contains([]string{"0", "1", "2"}, number) {
							return fmt.Errorf("open are %q", r.FDs)
						}
					}
					return equal("the number of open descriptors", len(r.FDs), 3)
				},
			},
		},
	}
}

func userProcess() inside {
	umask := uint32(0o027)
	return inside{
		name: "process-user",
		configure: func(spec *specs.Spec, _ string) error {
			spec.Process.User = specs.User{UID: 1000, GID: 1001, AdditionalGids: []uint32{5, 2000}, Umask: &umask}
			spec.Process.Capabilities = &specs.LinuxCapabilities{
				Bounding: []string{"CAP_CHOWN", "CAP_KILL"}, Permitted: []string{"CAP_CHOWN", "CAP_KILL"}, Inheritable: []string{"CAP_KILL"},
				Effective: []string{"CAP_KILL"}, Ambient: []string{"CAP_KILL"},
			}
			return nil
		},
		ask: probe.Ask{Write: []string{"/written"}},
		cases: []look{
			{
				name: "config.md#posix-user/uid", says: "uid is the user of the program",
				see: func(r *found) error { return equal("Uid", r.Status["Uid"], "1000 1000 1000 1000") },
			},
			{
				name: "config.md#posix-user/gid", says: "gid is the group of the program",
				see: func(r *found) error { return equal("Gid", r.Status["Gid"], "1001 1001 1001 1001") },
			},
			{
				name: "config.md#posix-user/additionalGids", says: "additionalGids are further groups of the program",
				see: func(r *found) error {
					groups := strings.Fields(r.Status["Groups"])
					if !slices.Contains(groups, "5") || !slices.Contains(groups, "2000") || slices.Contains(groups, "0") {
						return fmt.Errorf("the groups are %q", groups)
					}
					return nil
				},
			},
			{
				name: "config.md#posix-user/umask", says: "umask is the mask of the program",
				see: func(r *found) error { return equal("Umask", r.Status["Umask"], "0027") },
			},
			{
				name: "config.md#posix-user/is-enforced", says: "a user without permission cannot write",
				see: func(r *found) error { return equal("writing a file in /", r.Write["/written"], "EACCES") },
			},
			// For root, execve(2) gives these sets back; so they are asked of a user.
			capability("effective", "CapEff", unix.CAP_KILL),
			capability("permitted", "CapPrm", unix.CAP_KILL),
		},
	}
}

func scheduledProcess() inside {
	return inside{
		name: "process-scheduled",
		configure: func(spec *specs.Spec, _ string) error {
			spec.Process.Scheduler = &specs.Scheduler{Policy: specs.SchedBatch, Nice: 7}
			spec.Process.IOPriority = &specs.LinuxIOPriority{Class: specs.IOPRIO_CLASS_BE, Priority: 6}
			return nil
		},
		cases: []look{
			{
				name: "config.md#linux-process/scheduler-policy", says: "the scheduling policy is the given one",
				see:      func(r *found) error { return equal("the policy", r.Policy, unix.SCHED_BATCH) },
				declared: ignoredByRunc,
			},
			{
				name: "config.md#linux-process/scheduler-nice", says: "the nice value is the given one",
				see:      func(r *found) error { return equal("nice", r.Nice, 7) },
				declared: ignoredByRunc,
			},
			{
				name: "config.md#linux-process/ioPriority", says: "the I/O class and priority are the given ones",
				see:      func(r *found) error { return equal("ioprio", r.IOPriority, 2<<13|6) },
				declared: ignoredByRunc,
			},
		},
	}
}

// plainProcess asks what holds when little is asked for.
func plainProcess() inside {
	return inside{
		name: "process-plain",
		configure: func(spec *specs.Spec, _ string) error {
			spec.Process.Capabilities = nil
			spec.Hostname, spec.Domainname = "conform", "conform.example"
			spec.Annotations = map[string]string{"org.example.unknown": "kept", "org.example.empty": ""}
			return nil
		},
		ask: probe.Ask{
			Calls: []string{"mount", "sethostname", "chown"},
			Stat:  []string{"/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom", "/dev/tty", "/dev/ptmx", "/dev/fd", "/dev/stdin", "/dev/stdout", "/dev/stderr", "/dev/console"},
			Open:  []string{"/dev/null", "/dev/zero", "/dev/full", "/dev/urandom"},
			Read:  []string{"/proc/self/attr/current"},
		},
		cases: append([]look{
			{
				name: "config.md#linux-process/capabilities-absent", says: "without capabilities the program has none",
				see: func(r *found) error {
					return errors.Join(equal("CapEff", r.Status["CapEff"], "0000000000000000"), equal("CapPrm", r.Status["CapPrm"], "0000000000000000"),
						equal("mount", r.Calls["mount"], "EPERM"), equal("sethostname", r.Calls["sethostname"], "EPERM"))
				},
			},
			{
				name: "config.md#linux-process/noNewPrivileges-absent", says: "noNewPrivileges is not set unless it is asked for",
				see: func(r *found) error { return equal("NoNewPrivs", r.Status["NoNewPrivs"], "0") },
			},
			{
				name: "config.md#hostname", says: "hostname is the container's host name",
				see: func(r *found) error { return equal("hostname", r.Hostname, "conform") },
			},
			{
				name: "config.md#domainname", says: "domainname is the container's domain name",
				see:      func(r *found) error { return equal("domainname", r.Domainname, "conform.example") },
				declared: ignoredByRunc,
			},
			{
				name: "config-linux.md#namespaces/pid-new", says: "a new PID namespace makes the program process 1",
				see: func(r *found) error { return equal("the pid", r.PID, 1) },
			},
			link("/dev/fd", "/proc/self/fd"), link("/dev/stdin", "/proc/self/fd/0"), link("/dev/stdout", "/proc/self/fd/1"), link("/dev/stderr", "/proc/self/fd/2"),
		}, defaultDevices()...),
	}
}

// defaultDevices are those that config-linux.md#default-devices wants supplied.
func defaultDevices() []look {
	var looks []look
	for _, d := range []struct {
		path         string
		major, minor uint32
	}{
		{"/dev/null", 1, 3}, {"/dev/zero", 1, 5}, {"/dev/full", 1, 7}, {"/dev/random", 1, 8}, {"/dev/urandom", 1, 9}, {"/dev/tty", 5, 0},
	} {
		looks = append(looks, look{
			name: "config-linux.md#default-devices" + strings.TrimPrefix(d.path, "/dev"), says: d.path + " is supplied",
			see: func(r *found) error {
				st := r.Stat[d.path]
				return errors.Join(equal("its error", st.Err, ""), equal("its type", st.Mode&unix.S_IFMT, unix.S_IFCHR), equal("its mode", st.Mode&0o777, 0o666),
					equal("its major", st.Major, d.major), equal("its minor", st.Minor, d.minor), equal("opening it", r.Open[d.path], ""))
			},
		})
	}
	return append(looks, look{
		name: "config-linux.md#default-devices/ptmx", says: "/dev/ptmx is a link to, or a bind mount of, the container's /dev/pts/ptmx",
		see: func(r *found) error {
			if target := r.Stat["/dev/ptmx"].Target; target != "pts/ptmx" && target != "/dev/pts/ptmx" {
				return fmt.Errorf("it is %+v", r.Stat["/dev/ptmx"])
			}
			return nil
		},
	})
}

func link(path, target string) look {
	return look{
		name: "runtime-linux.md#dev-symbolic-links" + strings.TrimPrefix(path, "/dev"), says: path + " is a link to " + target,
		see: func(r *found) error { return equal("its target", r.Stat[path].Target, target) },
	}
}

func capability(set, field string, want ...int) look {
	return look{
		name: "config.md#linux-process/capabilities-" + set, says: "the " + set + " set is exactly the given one",
		see: func(r *found) error { return equal(field, r.Status[field], mask(want)) },
	}
}

func mask(bits []int) string {
	var value uint64
	for _, bit := range bits {
		value |= 1 << bit
	}
	return fmt.Sprintf("%016x", value)
}

func limitsAre(limits []specs.POSIXRlimit, check func(specs.POSIXRlimit) error) error {
	var errs []error
	for _, limit := range limits {
		errs = append(errs, check(limit))
	}
	return errors.Join(errs...)
}

func equalList(what string, got, want []string) error {
	if !slices.Equal(got, want) {
		return fmt.Errorf("%s are %q instead of %q", what, got, want)
	}
	return nil
}
