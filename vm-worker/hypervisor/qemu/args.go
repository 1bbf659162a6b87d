// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package qemu

import (
	"fmt"
	"strings"

	"bulkhead/vm-worker/hypervisor"
	"bulkhead/vm-worker/share"
)

// Paths in the jail.
const (
	jailKernel = "/guest/kernel"
	jailImage  = "/guest/image"
)

// Names of the sockets in a VM's directory; each is also the id of its chardev.
const (
	socketQMP     = "qmp"
	socketConsole = "console"
	socketCtl     = "ctl"
	socketIO      = "io"
	socketNet     = "net"
)

// sockets are made by the driver and given to QEMU listening, in this order
// from descriptor 3 on: so they can be connected to before QEMU serves them, and
// QEMU knows no path of the host.
var sockets = []string{socketQMP, socketConsole, socketCtl, socketIO, socketNet}

// args is the command line of a VM. Every device is named here: the machine's
// own extras are switched off, and -nodefaults adds none.
func args(binary string, s hypervisor.Spec, imageBytes int64, r ram) []string {
	a := []string{
		binary,
		"-name", processName(s.ID) + ",debug-threads=on",
		"-no-user-config", "-nodefaults", "-display", "none",
		// The machine waits for "cont": what it does first is seen from the start.
		"-S",
		// A reboot is the end of the VM; so is a guest's panic, which reboots.
		"-no-reboot",
		// hpet=off lets an idle guest under TCG sleep; the rest is hardware that no
		// guest of ours has a driver for, and code a hostile one could reach.
		"-machine", "q35,hpet=off,vmport=off,smm=off,sata=off,smbus=off,i8042=off,usb=off,dump-guest-core=off,mem-merge=" + onOff(s.Mergeable) + r.machine(),
		"-global", "ICH9-LPC.disable_s3=1", "-global", "ICH9-LPC.disable_s4=1",
		"-m", memory(s, imageBytes),
		"-smp", processors(s),
		"-rtc", "base=utc",
		"-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny",
	}
	a = append(a, acceleration(s.Accelerator, r)...)
	a = append(a, r.options(s)...)
	a = append(a, "-kernel", jailKernel, "-append", kernelArgs(s))
	for i, name := range sockets {
		a = append(a, "-chardev", fmt.Sprintf("socket,id=%s,fd=%d,server=on,wait=off", name, 3+i))
	}
	// Before the image: at the start of its address space it is aligned to the
	// blocks in which the guest's kernel takes memory.
	if room := growthMiB(s); room > 0 {
		a = append(a,
			"-object", fmt.Sprintf("memory-backend-ram,id=%s,size=%dM", growthBackend, room),
			// What is not plugged cannot be read either (growthHold), which a guest is to know.
			"-device", "virtio-mem-pci,id="+growthID+",memdev="+growthBackend+",requested-size=0,unplugged-inaccessible=on")
	}
	// What the guest's kernel has had free for two seconds goes back to the host.
	a = append(a, "-device", "virtio-balloon-pci,id=balloon0,free-page-reporting=on")
	return append(a,
		"-mon", "chardev="+socketQMP+",mode=control",
		"-serial", "chardev:"+socketConsole,
		// The image is mapped, not read: all VMs share its page cache.
		"-object", fmt.Sprintf("memory-backend-file,id=image,mem-path=%s,size=%d,share=on,readonly=on", jailImage, imageBytes),
		"-device", "virtio-pmem-pci,id=pmem0,memdev=image",
		"-object", "rng-random,id=rng,filename=/dev/urandom",
		// Where devices are plugged in while the VM runs, which the root bus does not
		// take. One bridge has 31 places at no cost that can be told from noise, where eight
		// root ports cost a tenth of the boot's work (docs/performance.md). The kernel gives
		// it the address space that what is behind it needs at boot, in whole MiB: the
		// random generator's registers, of the same kinds as a disk's, make room for all.
		"-device", "pci-bridge,id="+hotplugBus+",chassis_nr=1,addr=1e.0",
		// Enough for any use of the guest, too little to keep the host busy.
		"-device", "virtio-rng-pci,id=rng0,bus="+hotplugBus+",addr=1,disable-legacy=on,rng=rng,max-bytes=65536,period=1000",
		"-device", "virtio-serial-pci,id=link,max_ports=4",
		"-device", "virtserialport,bus=link.0,nr=1,chardev="+socketCtl+",name=bulkhead.ctl",
		"-device", "virtserialport,bus=link.0,nr=2,chardev="+socketIO+",name=bulkhead.io",
		"-device", "virtserialport,bus=link.0,nr=3,chardev="+socketNet+",name=bulkhead.net",
		"-fsdev", "local,id="+shareFsdev+",path="+share.ExportDir+",security_model=passthrough,multidevs=remap",
		"-device", "virtio-9p-pci,id=share0,fsdev="+shareFsdev+",mount_tag=share",
	)
}

// processName is what ps shows of a VM.
func processName(id string) string { return "bulkhead-" + id }

func onOff(b bool) string {
	if b {
		return "on"
	}
	return "off"
}

func acceleration(a hypervisor.Accelerator, r ram) []string {
	if a == hypervisor.KVM {
		return []string{"-accel", "kvm", "-cpu", "host"}
	}
	// max has ARAT, without which the guest's tick never stops. It also promises
	// fast "rep movsb" and "rep stosb", which TCG does byte by byte: without the
	// promise the guest's kernel copies by words, three to six times as fast.
	size := tbSizeMiB
	if r == ramZygote {
		size = zygoteTBSizeMiB
	}
	return []string{"-accel", fmt.Sprintf("tcg,tb-size=%d", size), "-cpu", "max,-erms,-fsrm"}
}

// tbSizeMiB bounds the translated code TCG keeps. The default is an eighth of
// the guest's memory and more; measured here, a boot and a container need less
// than this, and a smaller buffer is flushed and filled again and again.
const tbSizeMiB = 32

// zygoteTBSizeMiB is that of a QEMU that forks: its children share what it has translated, and begin behind it.
const zygoteTBSizeMiB = 64

// memory leaves room above the guest's RAM for what it may grow by and for the
// image, which is a memory device; their address space is aligned to a GiB.
func memory(s hypervisor.Spec, imageBytes int64) string {
	ram := memoryMiB(s.MemoryBytes)
	const gib = 1 << 10 // in MiB
	room := (memoryMiB(uint64(imageBytes))/gib + 2) * gib
	return fmt.Sprintf("%dM,slots=1,maxmem=%dM", ram, ram+room+growthMiB(s))
}

// growthBlock is what memory is added in: the blocks of the guest's kernel on
// x86-64. A part of one would cost as many page descriptors as the whole.
const growthBlock = 128 << 20

// growthMiB is the size of the device by which the VM can grow, in whole blocks.
func growthMiB(s hypervisor.Spec) int64 {
	if s.Max.MemoryBytes <= s.MemoryBytes {
		return 0
	}
	return int64(blocks(s.Max.MemoryBytes-s.MemoryBytes) >> 20)
}

// blocks rounds up to whole blocks.
func blocks(bytes uint64) uint64 { return (bytes + growthBlock - 1) / growthBlock * growthBlock }

// processors are those the VM starts with, and how many it can ever have; each of
// these costs the guest's kernel 0.2 MB.
func processors(s hypervisor.Spec) string {
	return fmt.Sprintf("%d,maxcpus=%d", present(s), max(s.VCPUs, s.Max.VCPUs, 1))
}

// presentTCG is how many processors are there from the start under TCG, for as long as the
// VM may have as many.
const presentTCG = 8

// present counts the processors that are there from the start, of which the guest uses those of its size: the
// others are left offline. Under TCG all are, within reason, as QEMU ends itself when a processor is plugged in while the others have
// used up the buffer of translated code (tcg/region.c, tcg_region_initial_alloc: it takes its part without a flush, or fails an assertion).
func present(s hypervisor.Spec) uint32 {
	n := max(s.VCPUs, 1)
	if s.Accelerator == hypervisor.TCG {
		n = max(n, min(s.Max.VCPUs, presentTCG))
	}
	return n
}

// memoryMiB rounds up: the kernel wants whole pages, a person whole MiB.
func memoryMiB(bytes uint64) int64 { return int64((bytes + 1<<20 - 1) >> 20) }

// kernelArgs is the kernel's command line, as deploy/guest/README.md has it. A
// panic reboots at once, and with -no-reboot that ends the VM.
func kernelArgs(s hypervisor.Spec) string {
	a := []string{
		"root=/dev/pmem0", "rootfstype=ext4", "rootflags=dax=always", "ro", "rootwait",
		"console=ttyS0", "quiet", "panic=-1", "no_timer_check",
		// Added memory is good for everything, as what a container needs may be the kernel's. It can be taken back all the
		// same, in parts in which there is no page that cannot be moved.
		"memhp_default_state=online_kernel", "dummy.numdummies=0",
		"init=/sbin/bulkhead-agent",
	}
	if n := max(s.VCPUs, 1); present(s) > n {
		a = append(a, fmt.Sprintf("maxcpus=%d", n)) // that the kernel brings up; the agent can bring up the others
	}
	if s.Accelerator == hypervisor.TCG {
		a = append(a, "tsc=reliable") // with KVM the guest has kvmclock
		if khz := hostTSC(); khz > 0 {
			a = append(a, fmt.Sprintf("tsc_early_khz=%d", khz))
		}
	}
	return strings.Join(append(a, s.KernelArgs...), " ")
}
