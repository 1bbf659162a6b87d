// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package container

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/opencontainers/runc/libcontainer/configs"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

func translated(t *testing.T, config string, l layout) *configs.Config {
	t.Helper()
	got, err := translate(parsed(t, config), "0123abcd-web", l, nil)
	if err != nil {
		t.Fatal(err)
	}
	return got.config
}

func TestAProcessWithoutCapabilitiesHasNone(t *testing.T) {
	t.Parallel()
	config := translated(t, `{"root":{},"process":{"args":["/bin/true"]}}`, layout{share: "/run/share", rootfs: "0123abcd-web/rootfs"})
	if c := config.Capabilities; c == nil || len(c.Bounding)+len(c.Effective)+len(c.Permitted)+len(c.Inheritable)+len(c.Ambient) != 0 {
		t.Errorf("capabilities are %+v; nil would leave those of the agent", c)
	}
}

func TestSpecificationIsTranslatedIntoTheGuest(t *testing.T) {
	t.Parallel()
	config := translated(t, `{
		"hostname":"web","domainname":"example","root":{"readonly":true},
		"process":{"user":{"umask":18},"noNewPrivileges":true,"oomScoreAdj":100},
		"hooks":{"prestart":[{"path":"/host"}],"startContainer":[{"path":"/in/container"}]},
		"linux":{"cgroupsPath":"/docker/x","namespaces":[{"type":"network","path":"/proc/1/ns/net"},{"type":"pid","path":"/proc/2/ns/pid"}],
			"resources":{"cpu":{"shares":2048,"quota":50000,"period":100000,"cpus":"5-7","mems":"1"},"hugepageLimits":[{"pageSize":"3GB","limit":0},{"pageSize":"2MB","limit":2097152}],"memory":{"limit":1048576,"swap":2097152},"pids":{"limit":10}}}}`,
		layout{share: "/run/share", rootfs: "0123abcd-web/rootfs"})

	if config.Rootfs != "/run/share/0123abcd-web/rootfs" || !config.Readonlyfs {
		t.Errorf("root is %q, read-only %v", config.Rootfs, config.Readonlyfs)
	}
	if config.Hostname != "web" || config.Domainname != "example" {
		t.Errorf("names are %q, %q", config.Hostname, config.Domainname)
	}
	for _, ns := range []configs.NamespaceType{configs.NEWPID, configs.NEWNS, configs.NEWUTS, configs.NEWIPC} {
		if !config.Namespaces.IsPrivate(ns) {
			t.Errorf("namespace %s is not the container's own", ns)
		}
	}
	if config.Namespaces.Contains(configs.NEWNET) {
		t.Error("the container has a network namespace; it would not see the guest's interfaces")
	}
	if config.Namespaces.Contains(configs.NEWCGROUP) {
		t.Error("the container has a cgroup namespace that it did not ask for")
	}
	if got := config.Cgroups.Path; got != "/containers/0123abcd-web" {
		t.Errorf("cgroup is %q", got)
	}
	r := config.Cgroups.Resources
	if r.CpuQuota != 50000 || r.CpuPeriod != 100000 || r.CpuWeight == 0 || r.CpusetCpus != "" || r.CpusetMems != "" || len(r.HugetlbLimit) != 1 || r.Memory != 1<<20 || r.MemorySwap != 2<<20 || *r.PidsLimit != 10 {
		t.Errorf("resources are %+v", r)
	}
	if !config.NoNewPrivileges || *config.OomScoreAdj != 100 || *config.Umask != 18 {
		t.Errorf("process properties are %v %v %v", config.NoNewPrivileges, *config.OomScoreAdj, *config.Umask)
	}
	if config.HasHook(configs.Prestart) || !config.HasHook(configs.StartContainer) {
		t.Error("host hooks must go, startContainer must stay")
	}
}

func TestNamespacesOfOthersAreJoinedByDescriptor(t *testing.T) {
	t.Parallel()
	f, err := os.Open("/proc/self/ns/ipc")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	spec := parsed(t, `{"linux":{"namespaces":[{"type":"pid"},{"type":"ipc","path":"/proc/7/ns/ipc"},{"type":"network","path":"/proc/7/ns/net"},{"type":"cgroup"}]}}`)
	got, err := translate(spec, "key", layout{share: "/run/share", rootfs: "key/rootfs"}, joined{specs.IPCNamespace: {f, os.Getpid()}})
	if err != nil {
		t.Fatal(err)
	}
	path := got.config.Namespaces.PathOf(configs.NEWIPC)
	if theirs, err := os.Readlink(path); err != nil || !strings.HasPrefix(theirs, "ipc:") {
		t.Errorf("the IPC namespace is joined by %q: %q, %v", path, theirs, err)
	}
	for _, ns := range []configs.NamespaceType{configs.NEWPID, configs.NEWCGROUP} {
		if !got.config.Namespaces.IsPrivate(ns) {
			t.Errorf("namespace %s is not the container's own", ns)
		}
	}
	if got.config.Namespaces.Contains(configs.NEWNET) {
		t.Error("the path of the host's network namespace became one of the guest")
	}
}

func TestAUserNamespaceComesWithANetworkOfItsOwn(t *testing.T) {
	t.Parallel()
	const config = `{"linux":{"namespaces":[{"type":"user"},{"type":"network","path":"/run/netns/x"}],"sysctl":{"net.ipv4.ip_forward":"1"},
		"uidMappings":[{"containerID":0,"hostID":100000,"size":65536}],"gidMappings":[{"containerID":0,"hostID":100000,"size":65536}]}}`
	l := layout{share: "/run/share", rootfs: "r"}
	got := translated(t, config, l)
	if !got.Namespaces.IsPrivate(configs.NEWUSER) || !got.Namespaces.IsPrivate(configs.NEWNET) || got.Sysctl["net.ipv4.ip_forward"] != "1" {
		t.Errorf("the namespaces are %v, the parameters in them %v", got.Namespaces, got.Sysctl)
	}
	// Of a container that has none: its network is the guest's, and so are its users.
	same, err := translate(parsed(t, config), "key", l, joined{specs.UserNamespace: {}, specs.NetworkNamespace: {}})
	if err != nil {
		t.Fatal(err)
	}
	if n := same.config.Namespaces; n.Contains(configs.NEWUSER) || n.Contains(configs.NEWNET) || same.config.UIDMappings != nil {
		t.Errorf("joining a container without them, it has the namespaces %v and the mappings %v", n, same.config.UIDMappings)
	}
}

// TestWithoutACgroupNamespaceTheOwnCgroupIsShown as runc does with cgroup v1, where engines
// leave the namespace out by default.
func TestWithoutACgroupNamespaceTheOwnCgroupIsShown(t *testing.T) {
	t.Parallel()
	const mounts = `"mounts":[{"destination":"/sys/fs/cgroup","type":"cgroup","source":"cgroup","options":["ro","nosuid"]}]`
	l := layout{share: "/run/share", rootfs: "r"}
	m := translated(t, `{`+mounts+`}`, l).Mounts[0]
	if m.Source != "/sys/fs/cgroup/containers/0123abcd-web" || m.Flags != unix.MS_BIND|unix.MS_RDONLY|unix.MS_NOSUID {
		t.Errorf("the mount is %+v", m)
	}
	if m = translated(t, `{`+mounts+`,"linux":{"namespaces":[{"type":"cgroup"}]}}`, l).Mounts[0]; m.Device != "cgroup" {
		t.Errorf("with a namespace the mount is %+v", m)
	}
}

func TestOOMProtectionOfTheAgentIsNotInherited(t *testing.T) {
	t.Parallel()
	config := translated(t, `{}`, layout{share: "/run/share", rootfs: "r"})
	if config.OomScoreAdj == nil || *config.OomScoreAdj != 0 {
		t.Errorf("oom_score_adj is %v, want 0", config.OomScoreAdj)
	}
}

func TestBindMountsComeFromTheShare(t *testing.T) {
	t.Parallel()
	l := layout{share: "/run/share", rootfs: "k/rootfs", shares: []Share{
		{Destination: "/data/", Source: "k/m0"},
		{Destination: "/etc/hosts", Source: "k/m1", ReadOnly: true},
		{Destination: "/data", Source: "k/m2"},
		{Destination: "/rel", Source: "k/m3"},
		{Destination: "/x", Source: "k/m4", ReadOnly: true},
	}}
	config := translated(t, `{"mounts":[
		{"destination":"/data","type":"bind","source":"/srv/data","options":["rbind","rprivate"]},
		{"destination":"/etc/hosts","source":"/var/lib/x/hosts","options":["bind","rw"]},
		{"destination":"/data","type":"none","source":"/srv/other","options":["rbind","nosuid"]},
		{"destination":"./rel","type":"bind","source":"rel"},
		{"destination":"/x","type":"bind","source":"/srv/x","options":["rbind","rro"]},
		{"destination":"proc","type":"proc","source":"proc"}]}`, l)
	want := []struct {
		source, destination string
		flags               int
	}{
		{"/run/share/k/m0", "/data", unix.MS_BIND | unix.MS_REC},
		{"/run/share/k/m1", "/etc/hosts", unix.MS_BIND | unix.MS_RDONLY},
		{"/run/share/k/m2", "/data", unix.MS_BIND | unix.MS_REC | unix.MS_NOSUID},
		{"/run/share/k/m3", "/rel", unix.MS_BIND},
		{"/run/share/k/m4", "/x", unix.MS_BIND | unix.MS_REC | unix.MS_RDONLY},
		{"proc", "/proc", 0},
	}
	for i, w := range want {
		if m := config.Mounts[i]; m.Source != w.source || m.Destination != w.destination || m.Flags != w.flags {
			t.Errorf("mount %d is from %q at %q with flags %#x, want %q %q %#x", i, m.Source, m.Destination, m.Flags, w.source, w.destination, w.flags)
		}
	}
	if attr := config.Mounts[4].RecAttr; attr == nil || attr.Attr_set != unix.MOUNT_ATTR_RDONLY {
		t.Errorf("rro became %+v", attr)
	}
}

func TestPathsMustStayBelowTheShare(t *testing.T) {
	t.Parallel()
	for _, path := range []string{"", "/etc", "../etc", "k/../../etc", "."} {
		_, err := translate(base(), "key", layout{share: "/run/share", rootfs: path}, nil)
		if path == "." {
			continue // the share itself is local, and useless rather than dangerous
		}
		if !errors.Is(err, ErrInvalid) {
			t.Errorf("rootfs %q: got %v, want a refusal", path, err)
		}
		spec := base()
		spec.Mounts = []specs.Mount{{Destination: "/d", Type: "bind", Source: "/x"}}
		l := layout{share: "/run/share", rootfs: "r", shares: []Share{{Destination: "/d", Source: path}}}
		if _, err := translate(spec, "key", l, nil); !errors.Is(err, ErrInvalid) {
			t.Errorf("share %q: got %v, want a refusal", path, err)
		}
	}
}

func TestShareWithoutItsMountIsRefused(t *testing.T) {
	t.Parallel()
	l := layout{share: "/run/share", rootfs: "r", shares: []Share{{Destination: "/d", Source: "k/m0"}}}
	if _, err := translate(base(), "key", l, nil); !errors.Is(err, ErrInvalid) {
		t.Errorf("got %v, want a refusal", err)
	}
}

func TestSysctlsOfTheWholeGuestAreAllowedAndUndone(t *testing.T) {
	t.Parallel()
	namespaced, guest := splitSysctl(map[string]string{
		"kernel.shmmax": "1", "kernel/msgmax": "2", "fs.mqueue.msg_max": "3", "net.ipv4.ip_forward": "1", "vm.swappiness": "0",
	}, false)
	if len(namespaced) != 3 || len(guest) != 2 {
		t.Fatalf("split into %v and %v", namespaced, guest)
	}
	root := t.TempDir()
	for path, value := range map[string]string{"net/ipv4/ip_forward": "0\n", "vm/swappiness": "60\n"} {
		if err := os.MkdirAll(filepath.Dir(filepath.Join(root, path)), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(root, path), []byte(value), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	read := func(path string) string {
		b, err := os.ReadFile(filepath.Join(root, path))
		if err != nil {
			t.Fatal(err)
		}
		return string(b)
	}
	undo, err := applySysctl(root, guest)
	if err != nil {
		t.Fatal(err)
	}
	if read("net/ipv4/ip_forward") != "1" || read("vm/swappiness") != "0" {
		t.Error("the values were not written")
	}
	undo()
	if read("net/ipv4/ip_forward") != "0\n" || read("vm/swappiness") != "60\n" {
		t.Error("the old values were not put back")
	}
	if _, err := applySysctl(root, map[string]string{"no.such": "1"}); !errors.Is(err, ErrInvalid) {
		t.Errorf("an unknown parameter gave %v", err)
	}
}

func TestSysctlNamesBecomePaths(t *testing.T) {
	t.Parallel()
	for _, c := range []struct{ key, want string }{
		{"net.ipv4.ip_forward", "/p/net/ipv4/ip_forward"},
		{"net/ipv4/ip_forward", "/p/net/ipv4/ip_forward"},
		{"net.ipv4.conf.eno2/100.rp_filter", "/p/net/ipv4/conf/eno2.100/rp_filter"},
		{"net/ipv4/conf/eno2.100/rp_filter", "/p/net/ipv4/conf/eno2.100/rp_filter"},
		{"//..//etc", ""},
		{"net/../../etc", ""},
		{"", ""},
	} {
		got, err := sysctlPath("/p", c.key)
		if c.want == "" && !errors.Is(err, ErrInvalid) || got != c.want {
			t.Errorf("%q: got %q, %v; want %q", c.key, got, err, c.want)
		}
	}
}
