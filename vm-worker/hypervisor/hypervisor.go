// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

// Package hypervisor says what vm-worker needs of a hypervisor, and nothing of
// how one does it: drivers live beneath it (qemu, fake). It holds what every
// driver shares: the choice of the accelerator and the record that lets a
// restarted worker find its VMs again.
//
// It imports bus/procstat. The invariant to remember: a VM belongs to its
// directory, not to the process that started it. Once Start has let a VM run,
// vm.json names its process, so whoever reads the directory can adopt or kill
// it; before that, the death of the starter is the death of the VM.
package hypervisor

import (
	"context"
	"errors"
	"net"
	"os"
)

// Driver starts and adopts virtual machines of one kind.
type Driver interface {
	// Name is what records call this driver, for example "qemu-q35".
	Name() string

	// Start launches a VM and returns when its guest has been let run. It
	// writes vm.json in spec.Dir before the launch, and again with the process
	// before the guest runs. On an error nothing is left running; the
	// directory is the caller's to remove.
	Start(ctx context.Context, spec Spec) (VM, error)

	// Adopt takes over a VM that an earlier worker started. The error is
	// ErrGone when the recorded process no longer exists.
	Adopt(ctx context.Context, rec Record) (VM, error)
}

// Spec is what a VM is made of.
type Spec struct {
	// ID names the sandbox. The guest is not told: nothing of a machine that has
	// just been started, or cloned, is of one sandbox.
	ID string
	// Dir is the VM's own directory, existing, mode 0700.
	Dir string
	// Kernel and Image are the guest's kernel and its read-only root image.
	Kernel, Image string
	// VCPUs is at least 1.
	VCPUs uint32
	// MemoryBytes is the guest's memory; rounded up to whole MiB.
	MemoryBytes uint64
	// Max is what Resize may be asked for later; what is below VCPUs and
	// MemoryBytes counts as these. Room costs a little of the host's memory.
	Max Size
	// Accelerator is resolved: KVM or TCG, not Auto.
	Accelerator Accelerator
	// AcceleratorReason is carried into the record.
	AcceleratorReason string
	// KernelArgs are added at the end of the kernel's command line.
	KernelArgs []string
	// CgroupProcs are cgroup.procs files the VM's process writes itself into
	// before it becomes the hypervisor, so nothing of it is charged elsewhere.
	CgroupProcs []string
	// OOMScoreAdj is the process's oom_score_adj; lowering it may be refused by
	// the host, which is tolerated. Nil leaves it as inherited.
	OOMScoreAdj *int
	// Mergeable lets the host merge pages of the guest's memory with equal ones of
	// other processes (madvise(2), MADV_MERGEABLE).
	Mergeable bool
	// From, when set, is the template the VM continues from instead of booting. What
	// makes up its key must be equal: Driver.Start refuses a template of another key.
	From Template `json:"-"`
	// Launched, when set, is called with the complete record after the process
	// exists and before it runs the hypervisor. Its error stops the launch.
	Launched func(Record) error `json:"-"`
}

// Size is what a VM has of its host.
type Size struct {
	VCPUs       uint32
	MemoryBytes uint64
}

// ErrNoRoom says that a VM cannot grow as far as asked.
var ErrNoRoom = errors.New("the vm was started with less room to grow")

// VM is a virtual machine that has been started or adopted.
type VM interface {
	ID() string
	Record() Record

	// Pidfd returns a descriptor of the VM's process, the caller's to close.
	Pidfd() (*os.File, error)

	// DialCtl, DialIO and DialNet connect to the host ends of the guest link. A port
	// serves one connection at a time; a further one waits for its turn.
	DialCtl(ctx context.Context) (net.Conn, error)
	DialIO(ctx context.Context) (net.Conn, error)
	DialNet(ctx context.Context) (net.Conn, error)

	// AttachMount attaches a detached mount (open_tree with OPEN_TREE_CLONE) at
	// relPath below the share the guest sees, making the directories, and for
	// a file the empty file, it is attached to. The descriptor stays the caller's.
	AttachMount(ctx context.Context, mount *os.File, relPath string, isDir, readOnly bool) error

	// KeepMounts holds what AttachMount attaches until the result is closed, also
	// beyond the end of the VM: another VM can be given the same then.
	KeepMounts() (KeptMounts, error)

	// DetachMounts detaches every mount at or below relPrefix and removes the
	// directories made for them. That nothing is there is no error.
	DetachMounts(ctx context.Context, relPrefix string) error

	// AttachShare plugs a further device with the files of AttachMount into the
	// running VM, under this tag, and returns when the hypervisor has done its
	// part. That it is there already is no error. It ends with the VM.
	AttachShare(ctx context.Context, tag string) error

	// AttachDisk plugs a block device of the host into the running VM and returns
	// when the hypervisor has done its part; the guest finds it in its own time.
	// On an error nothing of it is left. The file stays the caller's.
	AttachDisk(ctx context.Context, d Disk) error

	// DetachDisks asks the guest to give up every disk whose id begins with
	// idPrefix, and takes it away. That there is none is no error; neither is a
	// VM that has ended.
	DetachDisks(ctx context.Context, idPrefix string) error

	// AttachNIC plugs a network card into the VM, also while its guest boots, and
	// returns when the hypervisor has done its part; the guest finds it in its own
	// time, by its MAC address. On an error nothing of it is left. The files stay
	// the caller's.
	AttachNIC(ctx context.Context, n NIC) error

	// DetachNIC asks the guest to give up the card with this id, and takes it away.
	// A guest that does not let go of it has a card that reaches nothing, and the
	// error says so. That there is none is no error; neither is a VM that has ended.
	DetachNIC(ctx context.Context, id string) error

	// NICs are the cards that the VM has, whoever plugged them in.
	NICs(ctx context.Context) ([]PluggedNIC, error)

	// MirrorMounts makes the mounts beneath an attached directory those that the
	// host has beneath the directory it came from.
	MirrorMounts(ctx context.Context, f Followed) error

	// Resize gives the VM more virtual CPUs and memory, or takes memory away, up
	// to Spec.Max and from what it was started with. It returns when the guest
	// has taken the memory it gains; CPUs it gains must be brought up by the guest.
	// Memory is given back as far as the guest can within moments, and CPUs are never
	// taken away: a guest that switches one off leaves it idle. Record tells
	// what the VM has then. The error is ErrNoRoom when more is asked for than there
	// is room for. On any error the memory is asked back to what it was.
	Resize(ctx context.Context, to Size) error

	// Pause stops the virtual CPUs; Resume lets them run.
	Pause(ctx context.Context) error
	Resume(ctx context.Context) error

	// Shutdown asks the hypervisor to end, and kills it when ctx ends first.
	Shutdown(ctx context.Context) error
	// Kill ends the VM at once and returns when its process is gone. Killing a
	// dead VM is no error.
	Kill(ctx context.Context) error

	// Done is closed when the process is gone, after the last of the console
	// was read: ExitReason and ConsoleTail are final then.
	Done() <-chan struct{}
	// ExitReason tells in a sentence why the VM ended; empty while it lives.
	ExitReason() string
	// ConsoleTail returns up to n bytes of the end of the guest's console,
	// printable text only.
	ConsoleTail(n int) string
	// Events tells what the guest did to its machine. The channel is closed
	// with Done; events nobody takes are dropped.
	Events() <-chan Event

	// Release lets go of the VM and leaves it running, for a worker that ends
	// and will adopt it again.
	Release()
}

// KeptMounts are the mounts of a VM's share, which may have ended.
type KeptMounts interface {
	// Again returns a detached mount like the one that was attached at relPath, for
	// AttachMount of another VM. It is the caller's to close.
	Again(ctx context.Context, relPath string) (*os.File, error)
	Close() error
}

// Disk is a block device of the host that is given to a guest.
type Disk struct {
	// ID is the serial number by which the guest finds the disk: 1 to 20
	// letters, digits and '-', the first a letter (virtio 1.2, 5.2.6).
	ID string
	// File is the open device: for reading alone when ReadOnly is set.
	File     *os.File
	ReadOnly bool
}

// NIC is a network card whose packets go through the queues of a tap.
type NIC struct {
	// ID is 1 to 20 letters, digits and '-', the first a letter.
	ID string
	// MAC is the card's address, as "02:42:ac:11:00:02".
	MAC string
	// Queues are the open queues of a tap or macvtap, one for each queue pair, opened for
	// this card: a file that a card has already must not be given again (QEMU makes what
	// it is sent blocking, and would stand still in its next read of it).
	Queues []*os.File
	// VHost are as many descriptors of vhost-net, or none: then the hypervisor
	// moves the packets itself.
	VHost []*os.File
}

// PluggedNIC is a card that a VM has.
type PluggedNIC struct{ ID, MAC string }

// MaxDisks is how many disks a VM has room for, less one for each network card.
const MaxDisks = 30

// Followed is a directory of the host that was attached to a VM and whose later
// mounts are to appear there too.
type Followed struct {
	Source   string // absolute on the host, no symbolic link in it
	MountID  uint64 // of the host's mount that holds Source
	Nested   bool   // also what is mounted upon the mounts that appear
	Place    string // below the share
	ReadOnly bool
}

// Event is something the guest, or the hypervisor, did to the machine.
type Event struct {
	Kind   EventKind
	Detail string
}

// EventKind tells events apart.
type EventKind string

// The events a driver reports.
const (
	EventPowerOff EventKind = "power_off" // the guest powered off
	EventReset    EventKind = "reset"     // the guest asked for a reboot, which ends the VM
	EventPanicked EventKind = "panicked"  // the guest's kernel panicked
	EventStopped  EventKind = "stopped"   // the virtual CPUs were stopped
	EventResumed  EventKind = "resumed"   // the virtual CPUs run again
)
