// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package spec

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"bulkhead/test/conformance"
	"bulkhead/test/conformance/probe"
)

func mountGroups() []conformance.Group {
	return []conformance.Group{
		mountOptions("mount-options", optionsMustHave, nil).group(), mountOptions("mount-defaults", optionDefaults, lenient("hands defaults to the file system, which refuses it")).group(), mountRules().group(), readonlyRoot().group(), remount().group(),
		propagation("mount-propagation", ownPropagation, nil).group(), propagation("mount-propagation-slave", slavePropagation, nil).group(), propagation("mount-propagation-shared", sharedPropagation, noPropagation).group(),
	}
}

// mountOption is one of config.md#linux-mount-options.
type mountOption struct {
	name string
	with []string // options before it
	see  func(m probe.Mount) error
}

// optionDefaults stands alone, since it keeps the whole container from starting
// where it is not known.
var optionDefaults = []mountOption{{"defaults", nil, flag("rw", true)}}

// optionsMustHave are the options of a mount that config.md marks MUST and that
// need no bind mount, and what tells that they had effect: nil if only that they
// were taken. See proc(5), mountinfo, for what the kernel shows.
var optionsMustHave = []mountOption{
	{"async", []string{"sync"}, super("sync", false)}, {"atime", []string{"noatime"}, flag("noatime", false)}, {"dev", []string{"nodev"}, flag("nodev", false)}, {"diratime", []string{"nodiratime"}, flag("nodiratime", false)}, {"dirsync", nil, super("dirsync", true)},
	{"exec", []string{"noexec"}, flag("noexec", false)}, {"iversion", nil, nil}, {"lazytime", nil, super("lazytime", true)}, {"loud", nil, nil},
	{"noatime", nil, flag("noatime", true)}, {"nodev", nil, flag("nodev", true)}, {"nodiratime", nil, flag("nodiratime", true)}, {"noexec", nil, flag("noexec", true)},
	{"noiversion", nil, nil}, {"nolazytime", []string{"lazytime"}, super("lazytime", false)}, {"norelatime", nil, nil}, {"nostrictatime", nil, flag("relatime", true)},
	{"nosuid", nil, flag("nosuid", true)}, {"relatime", nil, flag("relatime", true)}, {"ro", nil, flag("ro", true)}, {"rw", []string{"ro"}, flag("rw", true)},
	{"silent", nil, nil}, {"strictatime", nil, flag("relatime", false)}, {"suid", []string{"nosuid"}, flag("nosuid", false)}, {"sync", nil, super("sync", true)},
}

func mountOptions(name string, options []mountOption, declared map[string]conformance.Declaration) inside {
	i := inside{
		name: name,
		configure: func(spec *specs.Spec, _ string) error {
			for _, option := range options {
				spec.Mounts = append(spec.Mounts, specs.Mount{
					Destination: "/opt/" + option.name, Type: "tmpfs", Source: "tmpfs", Options: append(slices.Clone(option.with), option.name),
				})
			}
			return nil
		},
	}
	for _, option := range options {
		i.cases = append(i.cases, look{
			name: "config.md#linux-mount-options/" + option.name, says: "the option " + option.name + " is taken" + map[bool]string{true: " and does what mount(8) says"}[option.see != nil],
			see: func(r *found) error {
				m, err := r.mount("/opt/" + option.name)
				if err != nil || option.see == nil {
					return err
				}
				return option.see(m)
			},
			declared: declared,
		})
	}
	return i
}

func flag(name string, want bool) func(probe.Mount) error {
	return func(m probe.Mount) error {
		if slices.Contains(m.Options, name) != want {
			return fmt.Errorf("the options are %q", m.Options)
		}
		return nil
	}
}

func super(name string, want bool) func(probe.Mount) error {
	return func(m probe.Mount) error {
		if slices.Contains(m.Super, name) != want {
			return fmt.Errorf("the options of the file system are %q", m.Super)
		}
		return nil
	}
}

// mount is the last one at a path.
func (r *found) mount(point string) (probe.Mount, error) {
	for _, m := range slices.Backward(r.Mounts) {
		if m.Point == point {
			return m, nil
		}
	}
	return probe.Mount{}, fmt.Errorf("nothing is mounted at %s", point)
}

// shared makes directories and files in the bundle that are bound into the
// container.
func sharedFiles(bundle string, names ...string) error {
	for _, name := range names {
		path := filepath.Join(bundle, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			return err
		}
		if err := os.WriteFile(path, []byte(name), 0o644); err != nil {
			return err
		}
	}
	return nil
}

func mountRules() inside {
	return inside{
		name: "mounts",
		configure: func(spec *specs.Spec, bundle string) error {
			bind := func(source, destination string, options ...string) specs.Mount {
				return specs.Mount{Destination: destination, Type: "bind", Source: filepath.Join(bundle, source), Options: append([]string{"bind"}, options...)}
			}
			spec.Mounts = append(spec.Mounts,
				specs.Mount{Destination: "/order", Type: "tmpfs", Source: "tmpfs"},
				bind("one/file", "/order/deep/file"),
				bind("one", "/covered"), bind("two", "/covered"),
				specs.Mount{Destination: "relative", Type: "tmpfs", Source: "tmpfs"},
				bind("one", "/readonly", "ro"), bind("two", "/writable"), bind("one", "/made/by/the/runtime"),
				specs.Mount{Destination: "/none", Type: "none", Source: filepath.Join(bundle, "one"), Options: []string{"rbind"}},
				specs.Mount{Destination: "/sized", Type: "tmpfs", Source: "tmpfs", Options: []string{"size=1024k", "mode=1750", "nr_inodes=100"}},
				specs.Mount{Destination: "/dev/shm", Type: "tmpfs", Source: "shm", Options: []string{"nosuid", "noexec", "nodev", "mode=1777", "size=65536k"}},
				specs.Mount{Destination: "/dev/mqueue", Type: "mqueue", Source: "mqueue", Options: []string{"nosuid", "noexec", "nodev"}},
				bind("one", "/relative-source-is-not-asked"),
			)
			spec.Mounts[len(spec.Mounts)-1].Source = "one" // relative to the bundle
			return sharedFiles(bundle, "one/file", "two/file")
		},
		ask: probe.Ask{
			Read:  []string{"/order/deep/file", "/covered/file", "/made/by/the/runtime/file", "/none/file", "/relative-source-is-not-asked/file"},
			Write: []string{"/readonly/new", "/writable/new", "/root-is-writable"},
			Stat:  []string{"/sized", "/dev/shm", "/proc/1", "/sys/kernel", "/dev/pts/ptmx", "/readonly/new"},
		},
		cases: []look{
			{
				name: "config.md#mounts/in-the-listed-order", says: "mounts are made in the listed order: one inside another, and one over another",
				see: func(r *found) error {
					return errors.Join(equal("a file in an earlier mount", r.Read["/order/deep/file"].Text, "one/file"), equal("a file under a later mount", r.Read["/covered/file"].Text, "two/file"))
				},
			},
			{
				name: "config.md#mounts/relative-destination", says: "a relative destination is relative to /",
				see: func(r *found) error { _, err := r.mount("/relative"); return err },
			},
			{
				name: "config.md#mounts/destination-is-made", says: "a destination that does not exist is made",
				see: func(r *found) error { return equal("the file", r.Read["/made/by/the/runtime/file"].Text, "one/file") },
			},
			{
				name: "config.md#mounts/relative-source", says: "the relative source of a bind mount is relative to the bundle",
				see: func(r *found) error {
					return equal("the file", r.Read["/relative-source-is-not-asked/file"].Text, "one/file")
				},
			},
			{
				name: "config.md#linux-mount-options/bind", says: "bind makes a bind mount, and what is written to it is written to its source",
				see: func(r *found) error {
					_, err := os.Stat(filepath.Join(r.bundle, "two/new"))
					return errors.Join(equal("writing", r.Write["/writable/new"], ""), err)
				},
			},
			{
				name: "config.md#linux-mount-options/rbind", says: "rbind makes a bind mount whatever the type says",
				see: func(r *found) error { return equal("the file", r.Read["/none/file"].Text, "one/file") },
			},
			{
				name: "config.md#linux-mount-options/bind-ro", says: "a bind mount with ro cannot be written",
				see: func(r *found) error { return equal("writing", r.Write["/readonly/new"], "EROFS") },
			},
			{
				name: "config.md#linux-mount-options/file-systems-own", says: "options that are not mount(8)'s are the file system's own",
				see: func(r *found) error {
					m, err := r.mount("/sized")
					return errors.Join(err, super("size=1024k", true)(m), super("nr_inodes=100", true)(m), equal("the mode", r.Stat["/sized"].Mode, unix.S_IFDIR|0o1750))
				},
			},
			{
				name: "config-linux.md#default-filesystems/proc", says: "/proc is a proc file system",
				see: fileSystem("/proc", "proc"),
			},
			{
				name: "config-linux.md#default-filesystems/sys", says: "/sys is a sysfs file system",
				see: fileSystem("/sys", "sysfs"),
			},
			{
				name: "config-linux.md#default-filesystems/devpts", says: "/dev/pts is a devpts file system of the container's own",
				see: func(r *found) error {
					return errors.Join(fileSystem("/dev/pts", "devpts")(r), equal("ptmx", r.Stat["/dev/pts/ptmx"].Err, ""))
				},
			},
			{
				name: "config-linux.md#default-filesystems/shm", says: "/dev/shm is a tmpfs with the size that is asked for",
				see: func(r *found) error {
					m, err := r.mount("/dev/shm")
					return errors.Join(err, fileSystem("/dev/shm", "tmpfs")(r), super("size=65536k", true)(m))
				},
			},
			{
				name: "config.md#mounts/mqueue", says: "an mqueue file system can be mounted",
				see: fileSystem("/dev/mqueue", "mqueue"),
			},
			{
				name: "config.md#root/writable-by-default", says: "the root file system can be written unless readonly is set, and what is written is in root.path",
				see: func(r *found) error {
					_, err := os.Stat(filepath.Join(r.bundle, "rootfs/root-is-writable"))
					return errors.Join(equal("writing", r.Write["/root-is-writable"], ""), err)
				},
			},
		},
	}
}

func fileSystem(point, kind string) func(r *found) error {
	return func(r *found) error {
		m, err := r.mount(point)
		return errors.Join(err, equal("the type", m.Type, kind))
	}
}

func readonlyRoot() inside {
	return inside{
		name: "root-readonly",
		configure: func(spec *specs.Spec, bundle string) error {
			spec.Root.Readonly = true
			spec.Root.Path = filepath.Join(bundle, "rootfs") // absolute, as most engines write it
			spec.Mounts = append(spec.Mounts, specs.Mount{Destination: "/tmp", Type: "tmpfs", Source: "tmpfs"})
			return nil
		},
		ask: probe.Ask{Write: []string{"/new", "/etc/passwd", "/tmp/new"}},
		cases: []look{
			{
				name: "config.md#root/readonly", says: "a readonly root file system cannot be written",
				see: func(r *found) error {
					return errors.Join(equal("a new file", r.Write["/new"], "EROFS"), equal("an old file", r.Write["/etc/passwd"], "EROFS"))
				},
			},
			{
				name: "config.md#root/readonly-not-its-mounts", says: "mounts inside a readonly root file system are as they were asked for",
				see: func(r *found) error { return equal("a file in a tmpfs", r.Write["/tmp/new"], "") },
			},
			{
				name: "config.md#root/absolute-path", says: "root.path may be absolute",
				see: func(r *found) error { return equal("the program's first argument", r.Args[0], "/bin/probe") },
			},
		},
	}
}

func remount() inside {
	return inside{
		name: "mount-remount",
		configure: func(spec *specs.Spec, _ string) error {
			spec.Mounts = append(spec.Mounts, specs.Mount{Destination: "/again", Type: "tmpfs", Source: "tmpfs"},
				specs.Mount{Destination: "/again", Type: "tmpfs", Source: "tmpfs", Options: []string{"remount", "ro"}})
			return nil
		},
		cases: []look{{
			name: "config.md#linux-mount-options/remount", says: "remount changes the options of a mount that was made before",
			see: func(r *found) error {
				m, err := r.mount("/again")
				return errors.Join(err, flag("ro", true)(m))
			},
			declared: map[string]conformance.Declaration{conformance.Bulkhead: conformance.Fails("refused by name: write the options at the first mount")},
		}},
	}
}

// noPropagation declares what a VM does not have.
var noPropagation = map[string]conformance.Declaration{conformance.Bulkhead: conformance.Fails("refused by name: what is mounted in a virtual machine cannot appear on the host")}

// Propagation options of a bind mount and the tag of mountinfo that tells of each;
// empty for none.
var (
	ownPropagation = []struct{ name, tag string }{
		{"private", ""}, {"rprivate", ""}, {"unbindable", "unbindable"}, {"runbindable", "unbindable"},
	}
	slavePropagation  = []struct{ name, tag string }{{"slave", "master:"}, {"rslave", "master:"}}
	sharedPropagation = []struct{ name, tag string }{{"shared", "shared:"}, {"rshared", "shared:"}}
)

func propagation(name string, options []struct{ name, tag string }, declared map[string]conformance.Declaration) inside {
	i := inside{
		name: name,
		configure: func(spec *specs.Spec, bundle string) error {
			for _, option := range options {
				spec.Mounts = append(spec.Mounts, specs.Mount{
					Destination: "/" + option.name, Type: "bind", Source: filepath.Join(bundle, "one"), Options: []string{"rbind", option.name},
				})
			}
			return sharedFiles(bundle, "one/file")
		},
	}
	for _, option := range options {
		i.cases = append(i.cases, look{
			name: "config.md#linux-mount-options/" + option.name, says: "the option " + option.name + " sets the propagation of a bind mount, as mountinfo tells inside",
			see: func(r *found) error {
				m, err := r.mount("/" + option.name)
				if err != nil {
					return err
				}
				for _, tag := range []string{"shared:", "master:", "unbindable"} {
					has := slices.ContainsFunc(m.Tags, func(have string) bool { return strings.HasPrefix(have, tag) })
					if has && tag != option.tag || !has && tag == option.tag && tag != "master:" { // without a master there is nothing to be a slave of
						return fmt.Errorf("its tags are %q", m.Tags)
					}
				}
				return nil
			},
			declared: declared,
		})
	}
	return i
}
