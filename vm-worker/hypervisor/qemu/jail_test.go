// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package qemu

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"

	"bulkhead/vm-worker/hypervisor"
	"bulkhead/vm-worker/jail"

	"golang.org/x/sys/unix"
)

func TestQEMUIsJailed(t *testing.T) {
	secret, err := os.Open("/etc/passwd") // held here, and not to be inherited
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { secret.Close() })
	adj := 7
	t.Run("started", func(t *testing.T) {
		t.Parallel()
		spec := newSpec(t)
		spec.OOMScoreAdj = &adj
		isJailed(t, spec, startVM(t, spec))
	})
	t.Run("forked", func(t *testing.T) {
		t.Parallel()
		d, spec := New(Options{Zygote: buildZygote(t)}), templateSpec(t)
		spec.OOMScoreAdj = &adj
		from := makeTemplate(t, d, spec)
		v := clone(t, d, spec, from, "c")
		if !v.(*vm).forked {
			t.Fatal(from.Worn())
		}
		isJailed(t, spec, v)
		for name, pid := range map[string]int{"VM": v.Record().PID, "zygote": from.Process()} {
			if shared := writableShared(t, pid); len(shared) > 0 {
				t.Errorf("the %s has memory that it would share with others: %q", name, shared)
			}
		}
		for _, what := range sharedFiles(t, v.Record().PID, from.Process()) {
			if !strings.HasPrefix(what, "/dev/") && !strings.HasPrefix(what, "/memfd:guest-memory") && what != "/guest/image" {
				t.Errorf("the VM and its zygote share %s", what)
			}
		}
	})
}

// sharedFiles are the open files, not only of the same name, that both processes have.
func sharedFiles(t *testing.T, a, b int) (shared []string) {
	t.Helper()
	for _, x := range list(t, fmt.Sprintf("/proc/%d/fd", a)) {
		what, err := os.Readlink(fmt.Sprintf("/proc/%d/fd/%s", a, x))
		if err != nil {
			continue // closed meanwhile
		}
		for _, y := range list(t, fmt.Sprintf("/proc/%d/fd", b)) {
			i, _ := strconv.Atoi(x)
			j, _ := strconv.Atoi(y)
			const file = 0 // KCMP_FILE, kcmp(2)
			order, _, errno := unix.Syscall6(unix.SYS_KCMP, uintptr(a), uintptr(b), file, uintptr(i), uintptr(j), 0)
			if errno == unix.ENOSYS || errno == unix.EPERM {
				t.Skipf("open files cannot be compared, which takes CONFIG_KCMP and CAP_SYS_PTRACE: %v", errno)
			}
			if errno != 0 && errno != unix.EBADF { // closed meanwhile
				t.Fatalf("comparing descriptor %d of process %d with %d of %d: %v", i, a, j, b, errno)
			}
			if errno == 0 && order == 0 {
				shared = append(shared, what)
			}
		}
	}
	return shared
}

// writableShared are the mappings of a process that it can write to and a fork of it would as well.
func writableShared(t *testing.T, pid int) (shared []string) {
	t.Helper()
	maps, err := os.ReadFile(fmt.Sprintf("/proc/%d/maps", pid))
	if err != nil {
		t.Fatal(err)
	}
	for _, line := range strings.Split(string(maps), "\n") {
		if fields := strings.Fields(line); len(fields) > 1 && strings.HasSuffix(fields[1], "s") && strings.Contains(fields[1], "w") {
			shared = append(shared, line)
		}
	}
	return shared
}

func isJailed(t *testing.T, spec hypervisor.Spec, v hypervisor.VM) {
	t.Helper()
	proc := fmt.Sprintf("/proc/%d", v.Record().PID)

	for _, ns := range []string{"mnt", "pid", "ipc", "uts", "net"} {
		own, _ := os.Readlink("/proc/self/ns/" + ns)
		its, err := os.Readlink(proc + "/ns/" + ns)
		if err != nil || own == its {
			t.Errorf("the %s namespace is %s, ours is %s, %v", ns, its, own, err)
		}
	}
	var want uint64
	for _, c := range capabilities {
		want |= 1 << c
	}
	for _, thread := range list(t, proc+"/task") { // each has its own
		status := fieldsOf(t, proc+"/task/"+thread+"/status")
		for _, set := range []string{"CapEff", "CapPrm", "CapBnd"} {
			if got, _ := strconv.ParseUint(status[set], 16, 64); got != want {
				t.Errorf("%s of thread %s is %x, want %x", set, thread, got, want)
			}
		}
		for name, want := range map[string]string{
			"CapInh": "0000000000000000", "CapAmb": "0000000000000000", "NoNewPrivs": "1", "Seccomp": "2", "Seccomp_filters": "1",
		} {
			if status[name] != want {
				t.Errorf("%s of thread %s is %s, want %s", name, thread, status[name], want)
			}
		}
	}
	if b, _ := os.ReadFile(proc + "/oom_score_adj"); strings.TrimSpace(string(b)) != "7" {
		t.Errorf("oom_score_adj is %s", b)
	}
	if got, want := list(t, proc+"/root"), []string{".stage", "dev", "etc", "guest", "lib", "lib32", "lib64", "libx32", "proc", "share", "usr", "zygote.so"}; !subset(got, want) {
		t.Errorf("the jail's root has %v, want nothing but %v", got, want)
	}
	if got, want := list(t, proc+"/root/dev"), []string{"null", "urandom", "zero"}; !slices.Equal(got, want) {
		t.Errorf("the jail's /dev has %v, want %v", got, want)
	}
	if got, want := list(t, proc+"/root/etc"), []string{"ld.so.cache"}; !subset(got, want) {
		t.Errorf("the jail's /etc has %v, want %v", got, want)
	}
	mounts, err := os.ReadFile(proc + "/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(mounts)) {
		f := strings.Fields(line)
		place, options := f[4], strings.Split(f[5], ",")
		if place != "/.stage" && !slices.Contains(options, "ro") {
			t.Errorf("%s is writable in the jail: %s", place, line)
		}
		if strings.Contains(line, "shared:") || strings.Contains(line, "master:") {
			t.Errorf("%s is not private: %s", place, line)
		}
	}
	for _, fd := range list(t, proc+"/fd") {
		target, _ := os.Readlink(proc + "/fd/" + fd)
		if strings.Contains(target, "passwd") || strings.HasPrefix(target, spec.Dir) {
			t.Errorf("descriptor %s of QEMU is %s", fd, target)
		}
	}
	if stat := strings.Fields(readFile(t, proc+"/stat")); stat[5] != stat[0] {
		t.Errorf("QEMU is in session %s, not one of its own", stat[5])
	}
}

// handleOpener is argv[0] of this program in a jail, with QEMU's rights.
const handleOpener = "/open-by-handle"

// openByHandle tells on descriptor 3 whether files can be opened past the jail's
// root, by their handles.
func openByHandle() {
	out := os.NewFile(3, "out")
	handle, _, err := unix.NameToHandleAt(unix.AT_FDCWD, "/usr", 0)
	if err == nil {
		var mount, fd int
		if mount, err = unix.Open("/usr", unix.O_RDONLY, 0); err == nil {
			if fd, err = unix.OpenByHandleAt(mount, handle, unix.O_RDONLY); err == nil {
				unix.Close(fd)
			}
		}
	} else { // a file system without handles: the right is asked for first all the same
		_, err = unix.OpenByHandleAt(unix.AT_FDCWD, unix.NewFileHandle(1, make([]byte, 8)), unix.O_RDONLY)
	}
	fmt.Fprint(out, err)
	os.Exit(0)
}

func TestQEMUCannotOpenFilesByHandlePastItsRoot(t *testing.T) {
	t.Parallel()
	if os.Geteuid() != 0 {
		t.Skip("jails need root")
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	p, err := jail.Start(t.Context(), jail.Config{
		Root: t.TempDir(), Argv: []string{handleOpener}, Binds: []jail.Bind{{Source: self, Target: handleOpener}}, Capabilities: capabilities,
	}, []*os.File{w}, os.Stderr, nil)
	w.Close()
	if err != nil {
		t.Fatal(err)
	}
	said, err := io.ReadAll(r)
	if _, waitErr := p.Wait(); err != nil || waitErr != nil {
		t.Fatal(err, waitErr)
	}
	if string(said) != unix.EPERM.Error() {
		t.Errorf("open_by_handle_at gives %q in the jail, want %q", said, unix.EPERM)
	}
}

// TestDeviceSet is the list of everything a guest can talk to.
func TestDeviceSet(t *testing.T) {
	t.Parallel()
	spec := newSpec(t)
	spec.Max.MemoryBytes = spec.MemoryBytes + 1<<30
	v := startVM(t, spec).(*vm)
	connect(t, v).ready() // what is behind a bridge is told once the guest has numbered its bus
	type pciDevice struct {
		QdevID string `json:"qdev_id"`
		ID     struct {
			Vendor, Device int
		} `json:"id"`
		Bridge struct {
			Devices json.RawMessage `json:"devices"`
		} `json:"pci_bridge"`
	}
	var buses []struct {
		Devices []pciDevice `json:"devices"`
	}
	if err := v.monitor.execute(t.Context(), "query-pci", nil, &buses); err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, b := range buses {
		for _, d := range b.Devices {
			got = append(got, fmt.Sprintf("%04x:%04x %s", d.ID.Vendor, d.ID.Device, d.QdevID))
			var behind []pciDevice
			if d.Bridge.Devices != nil {
				if err := json.Unmarshal(d.Bridge.Devices, &behind); err != nil {
					t.Fatal(err)
				}
			}
			for _, d := range behind {
				got = append(got, fmt.Sprintf("%04x:%04x %s", d.ID.Vendor, d.ID.Device, d.QdevID))
			}
		}
	}
	slices.Sort(got)
	want := []string{
		"1af4:1002 balloon0", "1af4:1003 link", "1af4:1009 share0", "1af4:1044 rng0", "1af4:1058 growth0", "1af4:105b pmem0",
		"1b36:0001 hotplug", // the bridge that devices are plugged into
		"8086:2918 ",        // the ISA bridge, ICH9-LPC: serial port, RTC, ACPI
		"8086:29c0 ",        // the host bridge
	}
	if !slices.Equal(got, want) {
		t.Errorf("the PCI devices are\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
	var peripherals []struct{ Name, Type string }
	args := map[string]string{"path": "/machine/peripheral-anon"}
	if err := v.monitor.execute(t.Context(), "qom-list", args, &peripherals); err != nil {
		t.Fatal(err)
	}
	got = nil
	for _, p := range peripherals {
		if strings.HasPrefix(p.Type, "child<") {
			got = append(got, strings.TrimSuffix(strings.TrimPrefix(p.Type, "child<"), ">"))
		}
	}
	slices.Sort(got)
	if want := []string{"virtserialport", "virtserialport", "virtserialport"}; !slices.Equal(got, want) {
		t.Errorf("the further devices are %v, want %v", got, want)
	}
	var net json.RawMessage
	if err := v.monitor.execute(t.Context(), "query-rx-filter", nil, &net); err != nil || string(net) != "[]" {
		t.Errorf("the network cards are %s, %v", net, err)
	}
}

func TestConsoleFloodIsBounded(t *testing.T) {
	t.Parallel()
	spec := newSpec(t)
	v := startVM(t, spec)
	c := connect(t, v)
	c.ready()
	if got := c.ask("print"); got != "ok" {
		t.Fatalf("the guest answers %q", got)
	}
	if err := v.Shutdown(t.Context()); err != nil {
		t.Fatal(err)
	}
	var size int64
	for _, name := range []string{consoleFile, consoleFile + ".1"} {
		st, err := os.Stat(spec.Dir + "/" + name)
		if err != nil {
			t.Fatal(err)
		}
		size += st.Size()
	}
	if size > 2*consoleHalf {
		t.Errorf("the console's logs have %d bytes, more than %d", size, 2*consoleHalf)
	}
	if tail := v.ConsoleTail(100); !strings.Contains(tail, "last line") {
		t.Errorf("the console ends with %q", tail)
	}
}

func TestPauseStopsTheGuest(t *testing.T) {
	t.Parallel()
	startedAndForked(t, pauseStops)
}

func pauseStops(t *testing.T, _ *Driver, v hypervisor.VM) {
	t.Cleanup(func() { killVM(t, v) })
	c := connect(t, v)
	c.awake(v)
	if err := v.Pause(t.Context()); err != nil {
		t.Fatal(err)
	}
	c.send("echo back")
	if err := v.Resume(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got := c.line(); got != "back" {
		t.Errorf("after the pause the guest answers %q", got)
	}
	var kinds []hypervisor.EventKind
	for len(kinds) == 0 || kinds[len(kinds)-1] != hypervisor.EventResumed || !slices.Contains(kinds, hypervisor.EventStopped) {
		e, ok := <-v.Events()
		if !ok {
			t.Fatalf("the events are %v", kinds)
		}
		kinds = append(kinds, e.Kind)
	}
}

func fieldsOf(t *testing.T, path string) map[string]string {
	t.Helper()
	fields := map[string]string{}
	for line := range strings.Lines(readFile(t, path)) {
		name, value, _ := strings.Cut(line, ":")
		fields[name] = strings.TrimSpace(value)
	}
	return fields
}

func readFile(t testing.TB, path string) string {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func list(t *testing.T, dir string) []string {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names
}

func subset(of, all []string) bool {
	return !slices.ContainsFunc(of, func(s string) bool { return !slices.Contains(all, s) })
}
