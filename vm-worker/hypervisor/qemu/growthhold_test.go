// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package qemu

import (
	"bufio"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"bulkhead/vm-worker/hypervisor"

	"golang.org/x/sys/unix"
)

// TestAGuestCannotUseMemoryThatItWasNotGiven writes to the addresses of the guest, as a kernel that was taken over would.
func TestAGuestCannotUseMemoryThatItWasNotGiven(t *testing.T) {
	t.Parallel()
	const room = 64 * growthBlock
	sized := func(s hypervisor.Spec) hypervisor.Spec {
		s.Max = hypervisor.Size{VCPUs: 1, MemoryBytes: s.MemoryBytes + room}
		return s
	}
	t.Run("booted", func(t *testing.T) {
		t.Parallel()
		v := startVMWith(t, Options{Preload: buildPreload(t)}, sized(newSpec(t)))
		connect(t, v).ready()
		onlyGivenMemory(t, v)
	})
	for name, zygote := range map[string]string{"cloned": "none", "forked": buildZygote(t)} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			d, s := New(Options{Preload: buildPreload(t), Zygote: zygote}), sized(templateSpec(t))
			v := clone(t, d, s, makeTemplate(t, d, s), "c")
			if v.(*vm).forked != (name == "forked") {
				t.Fatal("it was not", name)
			}
			onlyGivenMemory(t, v)
		})
	}
}

// onlyGivenMemory ends the VM.
func onlyGivenMemory(t *testing.T, v hypervisor.VM) {
	t.Helper()
	base := v.Record().BootMemoryBytes
	for _, blocks := range []uint64{4, 2} {
		if err := v.Resize(t.Context(), hypervisor.Size{VCPUs: 1, MemoryBytes: base + blocks*growthBlock}); err != nil {
			t.Fatal(err)
		}
	}
	has := v.Record().MemoryBytes - base
	if has >= 4*growthBlock || has == 0 {
		t.Fatalf("it has %d MiB more", has>>20)
	}
	growth := growthAddress(t, v)
	g := debug(t, v)
	// Its kernel takes from the beginning, and gives back from the end.
	if err := g.touch(growth); err != nil {
		t.Errorf("memory that it was given cannot be used: %v", err)
	}
	before := privateMemory(t, v)
	var used int
	for at := growth + 4*growthBlock - 4096; at > growth+3*growthBlock; at -= 4096 {
		if err := g.touch(at); err != nil {
			break
		}
		used++
	}
	if used > 0 {
		t.Fatalf("%d pages were used that it had given back; it has %d KiB more", used, (privateMemory(t, v)-before)>>10)
	}
	waitDone(t, v, 30*time.Second)
	if reason := v.ExitReason(); !strings.Contains(reason, "signal") && !strings.Contains(reason, "segmentation") {
		t.Errorf("it ended because %s", reason)
	}
}

// TestARoomThatCannotBeHeldIsTold covers what is looked at before a VM is told to hold its memory.
func TestARoomThatCannotBeHeldIsTold(t *testing.T) {
	t.Parallel()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	for want, why := range map[string]string{
		"is not there":    whyNotHeld(self, [2]int{7, 2}, ""),
		"is newer than":   whyNotHeld(self, [2]int{newestHeld + 1, 0}, "/library"),
		"does not export": whyNotHeld("/bin/sh", [2]int{7, 2}, "/library"),
		"cannot be read":  whyNotHeld(filepath.Join(t.TempDir(), "none"), [2]int{7, 2}, "/library"),
	} {
		if !strings.Contains(why, want) {
			t.Errorf("not %q, but %q", want, why)
		}
	}
}

// growthAddress is where the guest has what it may grow by.
func growthAddress(t *testing.T, v hypervisor.VM) uint64 {
	t.Helper()
	var tree string
	if err := v.(*vm).monitor.execute(t.Context(), "human-monitor-command", map[string]any{"command-line": "info mtree -f"}, &tree); err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(tree) {
		var from, to uint64
		if _, err := fmt.Sscanf(strings.TrimSpace(line), "%x-%x", &from, &to); err == nil && strings.HasSuffix(strings.TrimSpace(line), growthBackend) {
			return from
		}
	}
	t.Fatalf("nothing to grow by in\n%s", tree)
	return 0
}

// debugger writes to the physical addresses of a guest through QEMU's stub for gdb, while the guest stands still.
type debugger struct {
	conn net.Conn
	in   *bufio.Reader
}

func debug(t *testing.T, v hypervisor.VM) *debugger {
	t.Helper()
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	ours, theirs := os.NewFile(uintptr(pair[0]), "gdb"), os.NewFile(uintptr(pair[1]), "gdb")
	defer ours.Close()
	defer theirs.Close()
	conn, err := net.FileConn(ours)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	m := v.(*vm).monitor
	if err := m.executeWith(t.Context(), "getfd", map[string]any{"fdname": "gdb"}, nil, theirs); err != nil {
		t.Fatal(err)
	}
	address := map[string]any{"type": "fd", "data": map[string]any{"str": "gdb"}}
	backend := map[string]any{"type": "socket", "data": map[string]any{"addr": address, "server": false}}
	if err := m.execute(t.Context(), "chardev-add", map[string]any{"id": "gdb", "backend": backend}, nil); err != nil {
		t.Fatal(err)
	}
	if err := m.execute(t.Context(), "human-monitor-command", map[string]any{"command-line": "gdbserver chardev:gdb"}, nil); err != nil {
		t.Fatal(err)
	}
	g := &debugger{conn, bufio.NewReader(conn)}
	if answer, err := g.ask("Qqemu.PhyMemMode:1"); err != nil || answer != "OK" {
		t.Fatalf("no physical addresses: %q, %v", answer, err)
	}
	return g
}

// touch reads what is at an address, and writes it back.
func (g *debugger) touch(at uint64) error {
	is, err := g.ask(fmt.Sprintf("m%x,10", at))
	if err != nil {
		return err
	}
	answer, err := g.ask(fmt.Sprintf("M%x,10:%s", at, is))
	if err == nil && answer != "OK" {
		err = fmt.Errorf("a write to %x gives %q", at, answer)
	}
	return err
}

// ask speaks gdb's remote serial protocol: $text#sum, each acknowledged by +.
func (g *debugger) ask(text string) (string, error) {
	sum := byte(0)
	for i := range len(text) {
		sum += text[i]
	}
	_ = g.conn.SetDeadline(time.Now().Add(20 * time.Second))
	if _, err := fmt.Fprintf(g.conn, "$%s#%02x", text, sum); err != nil {
		return "", fmt.Errorf("ask the debugger's stub: %w", err)
	}
	if _, err := g.in.ReadString('$'); err != nil {
		return "", fmt.Errorf("hear the debugger's stub: %w", err)
	}
	answer, err := g.in.ReadString('#')
	if err != nil {
		return "", fmt.Errorf("hear the debugger's stub: %w", err)
	}
	if _, err := g.in.Discard(2); err != nil {
		return "", fmt.Errorf("hear the debugger's stub: %w", err)
	}
	_, err = g.conn.Write([]byte("+"))
	return strings.TrimSuffix(answer, "#"), err
}
