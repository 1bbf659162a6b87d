// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package vmtest_test

import (
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"bulkhead/agent/vmtest"
	agentv1 "bulkhead/proto/agent/v1"
)

// shareLabel is the label of the files of most containers of the VM.
const shareLabel = "system_u:object_r:container_file_t:s0:c1"

func labelled(s *specs.Spec) { s.Linux.MountLabel = shareLabel }

// as is a process with a label, and with all it takes to mount and to read the kernel's log.
func as(label string, args ...string) *specs.Process {
	p := process(args...)
	p.SelinuxLabel = label
	for _, set := range []*[]string{&p.Capabilities.Bounding, &p.Capabilities.Effective, &p.Capabilities.Permitted} {
		*set = append(slices.Clone(*set), "CAP_SYS_ADMIN", "CAP_SYSLOG")
	}
	return p
}

// compile makes a static program for the containers, from C.
func compile(t *testing.T, source, output string, flags ...string) {
	t.Helper()
	args := append([]string{"-std=gnu11", "-Wall", "-Wextra", "-Werror", "-O1", "-static", "-o", output, source}, flags...)
	if out, err := exec.Command("gcc", args...).CombinedOutput(); err != nil {
		t.Fatalf("compiling %s: %v\n%s", source, err, out)
	}
}

// TestSELinuxKeepsContainersOfOneVMApart shows the policy denying one container what it allows another, by categories
// and by types, in a VM whose containers share a network and so a name space of sockets.
func TestSELinuxKeepsContainersOfOneVMApart(t *testing.T) {
	vm := vmtest.BootMachine(t, vmtest.Machine{
		Parameters: "lsm=selinux enforcing=1",
		Options:    []string{"-device", "virtio-9p-pci,fsdev=share,mount_tag=share1"},
	})
	const first, second = "system_u:system_r:container_t:s0:c1,c2", "system_u:system_r:container_t:s0:c1,c3"
	run := func(t *testing.T, key string, p *specs.Process, change ...func(*specs.Spec)) (string, int) {
		t.Helper()
		withProbe(t, vm, key)
		c := create(t, vm, key, p, append([]func(*specs.Spec){labelled, withoutSeccomp}, change...)...)
		c.start(t)
		code := exit(t, c.Relay)
		c.delete(t)
		return c.Output() + c.ErrOutput(), code
	}
	withProbe(t, vm, "server")
	server := create(t, vm, "server", as(first, "probe", "listen"), labelled, withoutSeccomp)
	server.start(t)
	if err := server.Until(within(t), "listening"); err != nil {
		t.Fatal(err)
	}

	for _, c := range []struct {
		promise string
		process *specs.Process
		want    string
		code    int
	}{
		{"the process has its label", as(first, "cat", "/proc/self/attr/current"), first, 0},
		{"an alias is the type it stands for", as("system_u:system_r:svirt_lxc_net_t:s0:c1", "cat", "/proc/self/attr/current"), "container_t:s0:c1\x00", 0},
		{"file systems of the container have its label", as(first, "grep", "/dev/shm", "/proc/mounts"), "context=" + shareLabel, 0},
		{"categories in common", as(first, "probe", "connect"), "connected\n", 0},
		{"other categories", as(second, "probe", "connect"), "connect: Permission denied\n", 1},
		{"no label is unconfined, and not the agent's", as("", "sh", "-c", "cat /proc/self/attr/current; probe connect"), ":spc_t:s0-s0:c0.c1023\x00connected\n", 0},
		{"a type that may not mount", as(first, "mount", "-t", "tmpfs", "none", "/tmp"), "Permission denied", 255},
		{"a type that may mount", as("system_u:system_r:container_init_t:s0:c1,c2", "sh", "-c", "mount -t tmpfs none /tmp && touch /tmp/x && echo mounted"), "mounted\n", 0},
		{"files: its own", as(first, "sh", "-c", "echo x >/root/f && cat /root/f && echo y >/dev/shm/f && cat /dev/shm/f"), "x\ny\n", 0},
		{"files of other categories, the program among them", as("system_u:system_r:container_t:s0:c5", "true"), "permission denied", 255},
		{"no label does not switch it off", as("", "sh", "-c", "mount -t selinuxfs none /tmp && echo 0 >/tmp/enforce"), "Permission denied", 255},
		{"what was denied is in the kernel's log", as("", "sh", "-c", "busybox dmesg | grep -o 'denied  { connectto }' | head -n 1"), "denied  { connectto }\n", 0},
		{"no new privileges", func() *specs.Process {
			p := as(first, "cat", "/proc/self/attr/current")
			p.NoNewPrivileges = true
			return p
		}(), first, 0},
	} {
		t.Run(c.promise, func(t *testing.T) {
			got, code := run(t, "client", c.process)
			if !strings.Contains(got, c.want) || code != c.code {
				t.Errorf("ended with %d and %q, want %d and %q", code, got, c.code, c.want)
			}
		})
	}
	t.Run("an exec has the container's label or its own", func(t *testing.T) {
		for label, want := range map[string]string{"": first, second: second} {
			p := as(label, "sh", "-c", "cat /proc/self/attr/current; probe connect")
			p.SelinuxLabel = label
			e := server.exec(t, "e", p)
			code := exit(t, e)
			if connected := strings.Contains(e.Output(), "connected"); !strings.Contains(e.Output(), want) || connected != (want == first) {
				t.Errorf("an exec with label %q ended with %d and %q", label, code, e.Output()+e.ErrOutput())
			}
		}
	})
	t.Run("a terminal", func(t *testing.T) {
		e := tty(t, server, as(first, "sh", "-c", "tty; stty size; read x; echo got $x"))
		if err := e.Until(within(t), "24 80"); err != nil {
			t.Fatal(err)
		}
		e.Input("word\n")
		if code := exit(t, e); code != 0 || !strings.HasSuffix(e.Output(), "got word\r\n") {
			t.Errorf("ended with %d and %q", code, e.Output())
		}
	})
	t.Run("files of another container", func(t *testing.T) {
		const files = "system_u:object_r:container_file_t:s0:c3"
		for label, want := range map[string]string{second: "mine\n", first: "permission denied"} {
			busyboxRootfs(t, vm, "other")
			relay := vm.NewRelay()
			spec := dockerSpec(t, as(label, "sh", "-c", "echo mine >/root/f && cat /root/f"))
			spec.Linux.MountLabel = files
			call[agentv1.CreateReply](t, vm, "create", &agentv1.CreateRequest{
				Container: "other", Config: marshal(t, spec), Channel: relay.Channel, Rootfs: "other/rootfs", Share: "share1",
			})
			other := &ctr{Relay: relay, vm: vm, key: "other"}
			other.start(t)
			exit(t, relay)
			if got := relay.Output() + relay.ErrOutput(); !strings.Contains(got, want) {
				t.Errorf("%s says %q of files with the label %s, want %q", label, got, files, want)
			}
			other.delete(t)
		}
	})
	t.Run("refused by name", func(t *testing.T) {
		for name, c := range map[string]struct {
			process, mount, want string
		}{
			"unknown type of a process":    {"system_u:system_r:httpd_t:s0", shareLabel, "process.selinuxLabel"},
			"unknown type of files":        {first, "system_u:object_r:httpd_sys_content_t:s0", "linux.mountLabel"},
			"categories beyond the policy": {"system_u:system_r:container_t:s0:c2000", shareLabel, "process.selinuxLabel"},
			"a second label of the share":  {first, "system_u:object_r:container_file_t:s0:c2", "a share has one SELinux label"},
		} {
			_, err := tryCreate(t, vm, "refused", as(c.process, "true"), func(s *specs.Spec) { s.Linux.MountLabel = c.mount })
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("%s: error %v, want one with %q", name, err, c.want)
			}
		}
		if _, err := server.tryExec(t, "refused", as("system_u:system_r:httpd_t:s0", "true")); err == nil || !strings.Contains(err.Error(), "process.selinuxLabel") {
			t.Errorf("exec with an unknown type: %v", err)
		}
	})
	server.signal(t, 9)
	exit(t, server.Relay)
	server.delete(t)
}

// withProbe puts the probe into the root file system of a container.
func withProbe(t *testing.T, vm *vmtest.VM, key string) {
	t.Helper()
	busyboxRootfs(t, vm, key)
	compile(t, "testdata/probe.c", filepath.Join(vm.Share, key, "rootfs/bin/probe"))
}
