// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// joining makes spec join namespaces of a process, as engines write it.
func joining(spec *specs.Spec, pid int, kinds ...specs.LinuxNamespaceType) *specs.Spec {
	files := map[specs.LinuxNamespaceType]string{specs.NetworkNamespace: "net"}
	for i, ns := range spec.Linux.Namespaces {
		for _, kind := range kinds {
			if ns.Type == kind {
				file := files[kind]
				if file == "" {
					file = string(kind)
				}
				spec.Linux.Namespaces[i].Path = fmt.Sprintf("/proc/%d/ns/%s", pid, file)
			}
		}
	}
	return spec
}

// whereAmI prints the namespaces that a process of a container is in.
const whereAmI = `for n in pid ipc uts net mnt; do readlink /proc/self/ns/$n; done`

func TestOCIContainersShareNamespacesInOneVM(t *testing.T) {
	o := newOCI(t, sharedHost(t))
	conn := dial(t, o.host)
	one, all, some := newID("one"), newID("all"), newID("some")
	spec := newSpec("sleep", "1000")
	spec.Hostname = "first"
	first := o.launch(one, spec)

	spec = joining(newSpec("sleep", "1000"), first.PID, specs.PIDNamespace, specs.IPCNamespace, specs.UTSNamespace, specs.NetworkNamespace)
	spec.Hostname = ""
	second := o.launch(all, spec)
	// The host's side agrees: engines look at it and join it in their turn.
	for _, file := range []string{"pid", "ipc", "uts", "net"} {
		theirs, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/%s", first.PID, file))
		if err != nil {
			t.Fatal(err)
		}
		got, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/%s", second.PID, file))
		if err != nil || got != theirs {
			t.Errorf("on the host the second container is in %s, %v, and the first in %s", got, err, theirs)
		}
	}
	third := o.launch(some, joining(newSpec("sleep", "1000"), second.PID, specs.IPCNamespace))

	pod := newID("pod") // by the annotations of containerd's CRI plugin alone
	spec = newSpec("sleep", "1000")
	spec.Annotations = map[string]string{"io.kubernetes.cri.container-type": "container", "io.kubernetes.cri.sandbox-id": one}
	o.launch(pod, spec)

	vm := o.sandbox(conn, one)
	for _, id := range []string{all, some, pod} {
		expect(t, "the VM of "+id, o.sandbox(conn, id).GetId(), vm.GetId())
	}
	ofOne, ofAll, ofSome := strings.Fields(o.do("exec", one, "sh", "-c", whereAmI)), strings.Fields(o.do("exec", all, "sh", "-c", whereAmI)), strings.Fields(o.do("exec", some, "sh", "-c", whereAmI))
	if len(ofOne) != 5 || len(ofAll) != 5 || len(ofSome) != 5 {
		t.Fatalf("the namespaces are %v, %v and %v", ofOne, ofAll, ofSome)
	}
	for i, ns := range ofOne {
		expect(t, ns+" of one is shared by all", ofAll[i] == ns, i < 4)
		expect(t, ns+" of one is shared by some", ofSome[i] == ns, i == 1)
	}
	expect(t, "the host name", o.do("exec", all, "hostname"), "first\n")
	expect(t, "the host name of who shares it not", o.do("exec", some, "hostname"), "bundle\n")
	expect(t, "the processes that those who share them see", o.do("exec", all, "sh", "-c", "ps | grep -c '[s]leep 1000'"), "2\n")
	expect(t, "the namespaces of a member of a pod that joins none", strings.Count(o.do("exec", pod, "sh", "-c", whereAmI), ofOne[1]), 0)
	expect(t, "the processes that the third sees", o.do("exec", some, "sh", "-c", "ps | grep -c '[s]leep 1000'"), "1\n")
	o.do("exec", some, "sh", "-c", "echo mine > /etc/mark")
	expect(t, "another's files", o.cli("exec", all, "cat", "/etc/mark").Code, 1)

	// The end of the first is the end of who shares its processes, and of nobody else.
	o.do("kill", one, "KILL")
	exits(t, first, 137)
	exits(t, second, 137)
	o.do("delete", one)
	o.do("delete", all)
	expect(t, "the status of the third", o.status(some), "running")
	fourth := newID("late")
	late := o.launch(fourth, joining(newSpec("sh", "-c", whereAmI), third.PID, specs.IPCNamespace))
	exits(t, late, 0)
	if out := wholeOutput(t, late); !strings.Contains(out, ofOne[1]+"\n") {
		t.Errorf("the last container is in %q instead of %s", out, ofOne[1])
	}
	o.do("kill", some, "KILL")
	exits(t, third, 137)

	o.fails(1, "it is gone", "create", "--bundle", o.bundle(joining(newSpec("true"), first.PID, specs.IPCNamespace)), newID("bad"))
	o.fails(1, "is the host's own", "create", "--bundle", o.bundle(joining(newSpec("true"), os.Getpid(), specs.UTSNamespace)), newID("bad"))
}

// TestOCIUserAndTimeNamespaces: the bundle is as Docker makes it with userns-remap and Podman
// with --userns=auto: its files belong to the mapped ids.
func TestOCIUserAndTimeNamespaces(t *testing.T) {
	o := newOCI(t, sharedHost(t))
	const base = 100000
	volume := t.TempDir()
	mapped := func(args ...string) (*specs.Spec, string) {
		spec := newSpec(args...)
		mappings := []specs.LinuxIDMapping{{ContainerID: 0, HostID: base, Size: 65536}}
		spec.Linux.UIDMappings, spec.Linux.GIDMappings = mappings, mappings
		spec.Linux.TimeOffsets = map[string]specs.LinuxTimeOffset{"boottime": {Secs: 1000000}}
		spec.Linux.Namespaces = append(spec.Linux.Namespaces,
			specs.LinuxNamespace{Type: specs.UserNamespace}, specs.LinuxNamespace{Type: specs.TimeNamespace}, specs.LinuxNamespace{Type: specs.CgroupNamespace})
		spec.Linux.Sysctl = map[string]string{"net.ipv4.ip_unprivileged_port_start": "81"}
		spec.Mounts = append(spec.Mounts, specs.Mount{Destination: "/mnt", Type: "bind", Source: volume, Options: []string{"rbind"}},
			specs.Mount{Destination: "/sys/fs/cgroup", Type: "cgroup", Source: "cgroup", Options: []string{"ro"}},
			specs.Mount{Destination: "/dev/mqueue", Type: "mqueue", Source: "mqueue"})
		bundle := o.bundle(spec)
		give := func(path string, info os.FileInfo, err error) error {
			if err != nil {
				return err
			}
			if info.Sys().(*syscall.Stat_t).Uid >= base {
				return nil
			}
			return os.Lchown(path, base, base)
		}
		if err := errors.Join(filepath.Walk(filepath.Join(bundle, "rootfs"), give), filepath.Walk(volume, give)); err != nil {
			t.Fatal(err)
		}
		return spec, bundle
	}
	id := newID("mapped")
	_, bundle := mapped("sh", "-c", `cat /proc/self/uid_map; stat -c '%u:%g' /bin/busybox /mnt; touch /made /mnt/made; chown 5:6 /mnt/made; `+
		`echo again > /dev/stdout; test $(cut -d. -f1 /proc/uptime) -gt 1000000 && echo long ago; cat /proc/sys/net/ipv4/ip_unprivileged_port_start; ls /sys/class/net; exec sleep 1000`)
	m := o.createIn(id, bundle)
	o.do("start", id)
	until(t, m, "lo\n")
	expect(t, "what it says", strings.Join(strings.Fields(m.Stdout.String()), " "), "0 100000 65536 0:0 0:0 again long ago 81 lo")
	expect(t, "what an exec of another user says", o.do("exec", "--user", "1000:2000", id, "sh", "-c", "id -u; id -g; echo of 1000 > /tmp/exec; echo again > /dev/stdout"), "1000\n2000\nagain\n")
	for path, owner := range map[string]uint32{filepath.Join(bundle, "rootfs/made"): 0, filepath.Join(volume, "made"): 5, filepath.Join(bundle, "rootfs/tmp/exec"): 1000} {
		var st unix.Stat_t
		if err := unix.Stat(path, &st); err != nil || st.Uid != base+owner {
			t.Errorf("on the host %s belongs to %d, %v", path, st.Uid, err)
		}
	}

	// Another container in the same user and time namespaces, named by the first one's process.
	joined := newID("joined")
	spec, _ := mapped("sh", "-c", `cat /proc/self/uid_map; stat -c '%u:%g' /mnt/made; test $(cut -d. -f1 /proc/uptime) -gt 1000000 && echo long ago; readlink /proc/self/ns/user; readlink /proc/self/ns/net`)
	spec.Linux.TimeOffsets = nil
	joining(spec, m.PID, specs.UserNamespace, specs.TimeNamespace, specs.NetworkNamespace)
	bundle = o.bundle(spec)
	other := o.createIn(joined, bundle)
	o.do("start", joined)
	exits(t, other, 0)
	want := "0 100000 65536 5:6 long ago " + strings.Join(strings.Fields(o.do("exec", id, "sh", "-c", "readlink /proc/self/ns/user; readlink /proc/self/ns/net")), " ")
	expect(t, "what the other says", strings.Join(strings.Fields(wholeOutput(t, other)), " "), want)
}
