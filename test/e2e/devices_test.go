// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// hostCommand runs a program of the host that must succeed.
func hostCommand(t *testing.T, name string, args ...string) string {
	t.Helper()
	out, err := exec.CommandContext(within(t, commandTime), name, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %s: %v: %s", name, strings.Join(args, " "), err, out)
	}
	return string(out)
}

// loopDevice makes a block device of 8 MiB on the host that ends with the test,
// when nothing may hold it any more.
func loopDevice(t *testing.T) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "disk")
	if err := os.WriteFile(file, make([]byte, 8<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	device := strings.TrimSpace(hostCommand(t, "losetup", "--find", "--show", file))
	t.Cleanup(func() {
		if out, err := exec.Command("losetup", "--detach", device).CombinedOutput(); err != nil {
			t.Errorf("losetup --detach %s: %v: %s", device, err, out)
		}
	})
	return device
}

// A block device of the host is a disk of the container: what one side writes the
// other reads, to the last byte before an exit, and what the rules forbid is refused.
func TestBlockDevicesOfTheHostAreTheContainers(t *testing.T) {
	d := newDocker(t)
	blank, filled := loopDevice(t), loopDevice(t)
	dir := t.TempDir()
	write(t, filepath.Join(dir, "file"), "from the host\n")
	hostCommand(t, "mkfs.ext4", "-q", "-d", dir, filled)
	options := opts("--cap-add", "SYS_ADMIN", "--device", blank+":/dev/xvda", "--device", filled+":/dev/deep/xvdb:r",
		"--device-write-bps", blank+":64mb", "-v", "/usr:/usr:ro", "-v", "/lib:/lib:ro", "-v", "/lib64:/lib64:ro")
	out := d.run(options, "sh", "-c", `set -e
		mkdir /a /b
		/usr/sbin/mkfs.ext4 -q /dev/xvda
		mount /dev/xvda /a
		mount -o ro /dev/deep/xvdb /b
		cat /b/file
		stat -c '%t %a' /dev/xvda
		(echo x > /dev/deep/xvdb) 2>&1 || true
		blockdev --getro /dev/deep/xvdb
		grep -c wbps=67108864 /sys/fs/cgroup/io.max || true
		echo from the container > /a/file
		exit`) // with both mounted
	lines := strings.Split(out, "\n")
	if len(lines) != 5 {
		t.Fatalf("the container says %q", out)
	}
	expect(t, "the host's file", lines[0], "from the host")
	if !strings.HasSuffix(lines[1], " 660") && !strings.HasSuffix(lines[1], " 600") {
		t.Errorf("the node is %q", lines[1])
	}
	if !strings.Contains(lines[2], "Operation not permitted") && !strings.Contains(lines[2], "Permission denied") {
		t.Errorf("writing to a read-only device: %q", lines[2])
	}
	if !reference() {
		expect(t, "the device is read-only in the guest's kernel too", lines[3], "1")
	}
	expect(t, "the limits that name the device", lines[4], "1")
	if out, err := exec.CommandContext(within(t, commandTime), "e2fsck", "-fn", blank).CombinedOutput(); err != nil {
		t.Errorf("the container's file system after its end: %v: %s", err, out)
	}
	if out := hostCommand(t, "debugfs", "-R", "cat /file", blank); !strings.Contains(out, "from the container\n") {
		t.Errorf("the container's file reads %q", out)
	}

	if reference() {
		return
	}
	// A limit for a device that is not the container's is refused by name, and so is a character device.
	sentence(t, d.tryRun(opts("--device-read-bps", blank+":1mb"), "true").Stderr, "throttleReadBpsDevice", "was not given to this container", "--device")
	sentence(t, d.tryRun(opts("--device", "/dev/loop-control"), "true").Stderr, "/dev/loop-control", "character device", "runc")
}

// Devices come and go with each container of a pod while its VM runs, through the
// death of the daemon, and nothing holds them afterwards.
func TestBlockDevicesComeAndGoWithTheContainersOfAPod(t *testing.T) {
	h := sharedHost(t)
	o := newOCI(t, h)
	device := loopDevice(t)
	var st unix.Stat_t
	if err := unix.Stat(device, &st); err != nil {
		t.Fatal(err)
	}
	major, minor := int64(unix.Major(st.Rdev)), int64(unix.Minor(st.Rdev))
	heavy := uint16(1000)
	// The host holds the weight too, and can only where it has this scheduler.
	weighs := os.WriteFile("/sys/block/"+filepath.Base(device)+"/queue/scheduler", []byte("bfq"), 0) == nil
	if !weighs {
		t.Log("the host's kernel has no BFQ: weights of single devices are left out")
	}
	sandbox := newID("sandbox")
	spec := func(kind string, args ...string) *specs.Spec {
		s := newSpec(args...)
		s.Annotations = map[string]string{"io.kubernetes.cri.container-type": kind, "io.kubernetes.cri.sandbox-id": sandbox}
		return s
	}
	o.launch(sandbox, spec("sandbox", "sleep", "1000"))
	conn := dial(t, h)
	qemu := o.sandbox(conn, sandbox).GetPid()
	held := func() error {
		for _, fd := range strings.Fields(names(t, fmt.Sprintf("/proc/%d/fd", qemu))) {
			if to, _ := os.Readlink(fmt.Sprintf("/proc/%d/fd/%s", qemu, fd)); to == device {
				return fmt.Errorf("QEMU holds %s", device)
			}
		}
		return nil
	}
	member := func(text string) *specs.Spec {
		s := spec("container", "sh", "-c", "head -c 6 /dev/disk; echo; cat /sys/fs/cgroup/io.weight; stat -c '%F %a %u %g' /dev/pipe; stat -c '%F %a %t:%T' /dev/dead; echo "+text+" > /dev/disk; echo done; exec sleep 1000")
		s.Mounts = append(s.Mounts, specs.Mount{Destination: "/dev/disk", Type: "bind", Source: device, Options: []string{"bind"}})
		s.Mounts = append(s.Mounts, specs.Mount{Destination: "/sys/fs/cgroup", Type: "cgroup", Source: "cgroup", Options: []string{"ro"}})
		mode := os.FileMode(0o640)
		five, six := uint32(5), uint32(6)
		s.Linux.Devices = []specs.LinuxDevice{
			{Path: "/dev/pipe", Type: "p", FileMode: &mode, UID: &five, GID: &six},
			{Path: "/dev/dead", Type: "c", Major: 4000, Minor: 7, FileMode: &mode}, // that neither host nor guest has
		}
		weight := specs.LinuxWeightDevice{Weight: &heavy}
		weight.Major, weight.Minor = major, minor
		s.Linux.Resources = &specs.LinuxResources{
			Devices: []specs.LinuxDeviceCgroup{{Access: "rwm"}, {Allow: true, Type: "b", Major: &major, Minor: &minor, Access: "rw"}},
		}
		if weighs {
			s.Linux.Resources.BlockIO = &specs.LinuxBlockIO{WeightDevice: []specs.LinuxWeightDevice{weight}}
		}
		return s
	}
	write(t, device, "before")
	id := newID("member")
	m := o.launch(id, member("middle"))
	until(t, m, "done")
	expect(t, "the member read", strings.Fields(m.Stdout.String())[0], "before")
	for _, node := range []string{"fifo 640 5 6\n", "character special file 640 fa0:7\n"} {
		if out := m.Stdout.String(); !strings.Contains(out, node) {
			t.Errorf("no %q in %q", node, out)
		}
	}
	if out := m.Stdout.String(); weighs && !strings.Contains(out, " 10000\n") { // of io.weight's 1 to 10000
		t.Errorf("the device's weight is not in %q", out)
	}
	if held() == nil {
		t.Error("QEMU does not hold the device of a running member")
	}
	killDaemon(t, h)
	restart(t, h)
	o.do("kill", id, "9")
	exits(t, m, 137)
	o.do("delete", id)
	must(t, cleanTime, held)
	expect(t, "the device holds", read(t, device)[:6], "middle")

	again := newID("again")
	m = o.launch(again, member("after!"))
	until(t, m, "done")
	expect(t, "the next member read", strings.Fields(m.Stdout.String())[0], "middle")
	o.do("delete", "--force", again)
	must(t, cleanTime, held)
	o.do("delete", "--force", sandbox)
}
