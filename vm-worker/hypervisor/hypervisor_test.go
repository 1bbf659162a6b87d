// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package hypervisor_test

import (
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"bulkhead/vm-worker/hypervisor"
)

func TestAcceleratorIsChosenByWhatGuestsCanUse(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	file := func(name, text string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	const plain, intel, amd = "flags\t\t: fpu vme nx\n", "processor : 0\nflags\t\t: fpu vmx nx\n", "flags : svm_lock fpu svm\n"
	refuse := func(*os.File) error { return errors.New("no") }
	accept := func(*os.File) error { return nil }
	for _, c := range []struct {
		name    string
		mode    hypervisor.Accelerator
		cpuinfo string
		kvm     bool
		create  func(*os.File) error
		want    hypervisor.Accelerator
		says    string
	}{
		{"intel", hypervisor.Auto, intel, true, accept, hypervisor.KVM, "vmx"},
		{"amd", hypervisor.Auto, amd, true, accept, hypervisor.KVM, "svm"},
		{"unset is auto", "", intel, true, accept, hypervisor.KVM, "vmx"},
		{"software kvm", hypervisor.Auto, plain, true, accept, hypervisor.TCG, "would hang although /dev/kvm opens"},
		{"flag of another name", hypervisor.Auto, "flags : svm_lock\n", false, accept, hypervisor.TCG, "neither vmx nor svm"},
		{"no device", hypervisor.Auto, intel, false, accept, hypervisor.TCG, "there is no device at"},
		{"no vm", hypervisor.Auto, intel, true, refuse, hypervisor.TCG, "refuses to make"},
		{"caveat", hypervisor.Auto, plain, true, accept, hypervisor.TCG, "not a security boundary"},
		{"asked for tcg", hypervisor.TCG, intel, true, accept, hypervisor.TCG, "asks for tcg"},
		{"asked for kvm", hypervisor.KVM, intel, true, accept, hypervisor.KVM, "asks for kvm"},
		{"asked for kvm in vain", hypervisor.KVM, plain, true, accept, "", "set accelerator to auto"},
		{"unknown", "xen", intel, true, accept, "", "use auto, kvm or tcg"},
	} {
		t.Run(c.name, func(t *testing.T) {
			host := hypervisor.Host{CPUInfo: file(t.Name()[strings.LastIndex(t.Name(), "/")+1:], c.cpuinfo), KVM: filepath.Join(dir, "none"), CreateVM: c.create}
			if c.kvm {
				host.KVM = file("kvm", "")
			}
			got, says, err := host.Resolve(c.mode)
			if err != nil {
				says = err.Error()
			}
			if got != c.want || !strings.Contains(says, c.says) || (c.want == "") != (err != nil) {
				t.Errorf("Resolve gives %q, %q, %v; want %q and %q", got, says, err, c.want, c.says)
			}
		})
	}
}

func TestKVMThatComesWhileTheHostStartsIsTaken(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	device := filepath.Join(dir, "kvm")
	cpuinfo := filepath.Join(dir, "cpuinfo")
	write := func(path, text string) {
		t.Helper()
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write(cpuinfo, "flags : fpu svm\n")
	asked := 0
	choice := hypervisor.Choice{Mode: hypervisor.Auto, Host: hypervisor.Host{
		CPUInfo: cpuinfo, KVM: device, CreateVM: func(*os.File) error { asked++; return nil },
	}}
	expect := func(when string, want hypervisor.Accelerator, times int) {
		t.Helper()
		got, says, err := choice.Get()
		if got != want || err != nil || asked != times {
			t.Errorf("%s: %q, %q, %v, and a VM was made %d times; want %q and %d", when, got, says, err, asked, want, times)
		}
	}
	expect("without the device", hypervisor.TCG, 0)
	write(device, "")
	expect("with it", hypervisor.KVM, 1)
	if err := os.Remove(device); err != nil {
		t.Fatal(err)
	}
	expect("once settled", hypervisor.KVM, 1)
}

func TestRecordIsReadBackWhole(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	if _, err := hypervisor.LoadRecord(dir); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a directory without record gives %v", err)
	}
	want := hypervisor.NewRecord("qemu-q35", hypervisor.Spec{
		ID: "a", Dir: dir, Kernel: "/k", Image: "/i", VCPUs: 2, MemoryBytes: 1 << 30,
		Accelerator: hypervisor.TCG, AcceleratorReason: "why",
	})
	want.Process = hypervisor.Process{PID: 5, StartTime: 6}
	if err := want.Save(); err != nil {
		t.Fatal(err)
	}
	if got, err := hypervisor.LoadRecord(dir); err != nil || got != want {
		t.Errorf("read %+v, %v; want %+v", got, err, want)
	}
}

func TestReusedPidIsNotTheProcess(t *testing.T) {
	t.Parallel()
	cmd := exec.Command("cat")
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer cmd.Wait()
	defer in.Close()
	p, err := hypervisor.FindProcess(cmd.Process.Pid)
	if err != nil {
		t.Fatal(err)
	}
	fd, err := p.Pidfd()
	if err != nil {
		t.Fatal(err)
	}
	fd.Close()
	other := p
	other.StartTime++
	if _, err := other.Pidfd(); !errors.Is(err, hypervisor.ErrGone) {
		t.Errorf("the pid of another process gives %v", err)
	}
	if err := other.KillProcess(); err != nil {
		t.Errorf("killing what is gone: %v", err)
	}
	if again, err := hypervisor.FindProcess(cmd.Process.Pid); err != nil || again != p {
		t.Errorf("a stranger was killed: %v", err)
	}
	if _, err := (hypervisor.Process{}).Pidfd(); !errors.Is(err, hypervisor.ErrGone) {
		t.Errorf("no process gives %v", err)
	}
}
