// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package hypervisor

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"bulkhead/bus/procstat"
)

// RecordFile is the name of the record in a VM's directory.
const RecordFile = "vm.json"

// ErrGone says that a recorded process no longer exists.
var ErrGone = errors.New("the vm's process no longer exists")

// ErrEnding says that a VM takes no orders any more: its process is ending, and may exist for moments yet.
var ErrEnding = errors.New("the vm is ending")

// Process names a process beyond the reuse of its pid.
type Process struct {
	PID int `json:"pid,omitempty"`
	// StartTime is field 22 of /proc/<pid>/stat.
	StartTime uint64 `json:"start_time,omitempty"`
}

// Record is what a VM's directory tells about it, enough to adopt it. A record
// without a PID was written before a launch that never let a guest run: there
// is no process to look for.
type Record struct {
	ID                string      `json:"id"`
	Driver            string      `json:"driver"`
	Dir               string      `json:"-"`
	Process                       // zero until launched
	Accelerator       Accelerator `json:"accelerator"`
	AcceleratorReason string      `json:"accelerator_reason,omitempty"`
	VCPUs             uint32      `json:"vcpus"`
	MemoryBytes       uint64      `json:"memory_bytes"`
	BootMemoryBytes   uint64      `json:"boot_memory_bytes"` // what it was started with
	Max               Size        `json:"max"`
	Kernel            string      `json:"kernel"`
	Image             string      `json:"image"`
	Template          string      `json:"template,omitempty"` // key of the one it was started from
}

// NewRecord is the record of a VM that is about to be launched.
func NewRecord(driver string, s Spec) Record {
	r := Record{
		ID: s.ID, Driver: driver, Dir: s.Dir,
		Accelerator: s.Accelerator, AcceleratorReason: s.AcceleratorReason,
		VCPUs: max(s.VCPUs, 1), MemoryBytes: s.MemoryBytes, BootMemoryBytes: s.MemoryBytes,
		Max:    Size{max(s.Max.VCPUs, s.VCPUs, 1), max(s.Max.MemoryBytes, s.MemoryBytes)},
		Kernel: s.Kernel, Image: s.Image,
	}
	if s.From != nil {
		r.Template = s.From.Key()
	}
	return r
}

// Save writes the record into its directory, whole or not at all. It is not
// synced to a disk: VMs do not outlive the host's memory, nor need their records.
func (r Record) Save() error {
	b, err := json.Marshal(r)
	if err != nil {
		return fmt.Errorf("encoding the record of vm %s: %w", r.ID, err)
	}
	tmp := filepath.Join(r.Dir, "."+RecordFile+".tmp")
	if err := os.WriteFile(tmp, append(b, '\n'), 0o600); err != nil {
		return fmt.Errorf("writing the record of vm %s: %w", r.ID, err)
	}
	if err := os.Rename(tmp, filepath.Join(r.Dir, RecordFile)); err != nil {
		return fmt.Errorf("writing the record of vm %s: %w", r.ID, err)
	}
	return nil
}

// LoadRecord reads the record of the VM in dir. An error that is
// fs.ErrNotExist means that no launch was ever prepared there.
func LoadRecord(dir string) (Record, error) {
	b, err := os.ReadFile(filepath.Join(dir, RecordFile))
	if err != nil {
		return Record{}, fmt.Errorf("reading the record of the vm in %s: %w", dir, err)
	}
	r := Record{}
	if err := json.Unmarshal(b, &r); err != nil {
		return Record{}, fmt.Errorf("reading the record of the vm in %s: %w", dir, err)
	}
	r.Dir = dir
	return r, nil
}

// FindProcess describes the running process pid.
func FindProcess(pid int) (Process, error) {
	stat, err := procstat.Read("/proc", pid)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ESRCH) || stat.State == "Z" || stat.State == "X" {
		return Process{}, fmt.Errorf("process %d: %w", pid, ErrGone)
	}
	if err != nil {
		return Process{}, fmt.Errorf("process %d: %w", pid, err)
	}
	return Process{PID: pid, StartTime: stat.Start}, nil
}

// Pidfd opens the process and is sure that it is this one: the start time is
// compared after the descriptor pins the pid. The descriptor is non-blocking,
// so that Go's poller can wait for it. The error is ErrGone when it has ended.
func (p Process) Pidfd() (*os.File, error) {
	if p.PID <= 0 {
		return nil, ErrGone
	}
	fd, err := unix.PidfdOpen(p.PID, unix.PIDFD_NONBLOCK)
	if err != nil {
		if errors.Is(err, unix.ESRCH) || errors.Is(err, unix.EINVAL) {
			return nil, fmt.Errorf("process %d: %w", p.PID, ErrGone)
		}
		return nil, fmt.Errorf("opening a pidfd of process %d: %w", p.PID, err)
	}
	found, err := FindProcess(p.PID)
	if err != nil {
		unix.Close(fd)
		return nil, err
	}
	if found.StartTime != p.StartTime {
		unix.Close(fd)
		return nil, fmt.Errorf("process %d is another by now: %w", p.PID, ErrGone)
	}
	return os.NewFile(uintptr(fd), "pidfd"), nil
}

// KillProcess ends the process of a record without adopting the VM, for one
// that cannot be adopted. A process that is gone is no error. It does not wait:
// a zombie of another parent would never go; wait on a Pidfd where it matters.
func (p Process) KillProcess() error {
	f, err := p.Pidfd()
	if errors.Is(err, ErrGone) {
		return nil
	}
	if err != nil {
		return err
	}
	defer f.Close()
	err = unix.PidfdSendSignal(int(f.Fd()), unix.SIGKILL, nil, 0)
	if err != nil && !errors.Is(err, unix.ESRCH) {
		return fmt.Errorf("killing process %d: %w", p.PID, err)
	}
	return nil
}
