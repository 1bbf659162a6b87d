// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

// Package qemu drives QEMU's q35 machine: it starts it in a jail, speaks its
// machine protocol and attaches host mounts to its share.
//
// It imports vm-worker/hypervisor, whose interface it fulfils, vm-worker/jail and
// vm-worker/share. The invariant to remember: QEMU is given its sockets
// listening and its orders whole. It knows no path of the host, inherits no
// descriptor but its own, and outlives whoever started it.
package qemu

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"time"

	"bulkhead/vm-worker/hypervisor"
	"bulkhead/vm-worker/jail"
	"bulkhead/vm-worker/share"

	"github.com/hashicorp/go-hclog"
	"golang.org/x/sys/unix"
)

// Name is what records call this driver.
const Name = "qemu-q35"

// startTimeout bounds a start that was given no deadline: the jail, QEMU's own
// initialization, the monitor's greeting. The guest's boot is not part of it.
const startTimeout = 30 * time.Second

// killTimeout bounds the wait for a killed process, which must only free its
// memory.
const killTimeout = 10 * time.Second

// undoTime bounds taking back an order that was given and not followed.
const undoTime = 5 * time.Second

// capabilities are what QEMU's 9p server needs to act for the guest's root on
// the files of the share (security_model=passthrough), and no others.
//
// CAP_DAC_READ_SEARCH is not among them: CAP_DAC_OVERRIDE covers what the share
// does with it, and it alone permits open_by_handle_at(2), which opens any
// file of a file system of which the jail shows a corner, such as /usr.
var capabilities = []uintptr{
	unix.CAP_CHOWN, unix.CAP_DAC_OVERRIDE, unix.CAP_FOWNER,
	unix.CAP_FSETID, unix.CAP_MKNOD, unix.CAP_SETFCAP,
}

// Options configure the driver.
type Options struct {
	// Binary is QEMU, a name in PATH or an absolute path below /usr; default
	// qemu-system-x86_64.
	Binary string
	// Preload is the library named by the constant of that name; empty means the
	// one beside the running program, or in /usr/libexec/bulkhead.
	Preload string
	// Zygote is the library named by that constant, found likewise.
	Zygote string
	Log    hclog.Logger
}

// Driver starts and adopts QEMU machines. The program that uses it must call
// jail.Main first in its main.
type Driver struct {
	binary  binary
	preload preload
	growth  growthHold
	zygotes zygoteLibrary
	log     hclog.Logger
}

var _ hypervisor.Driver = (*Driver)(nil)

// New returns a driver; QEMU is looked for when the first VM is started.
func New(o Options) *Driver {
	if o.Binary == "" {
		o.Binary = "qemu-system-x86_64"
	}
	if o.Log == nil {
		o.Log = hclog.NewNullLogger()
	}
	return &Driver{binary: binary{name: o.Binary}, preload: preload{path: o.Preload}, zygotes: zygoteLibrary{path: o.Zygote}, log: o.Log}
}

// Name implements hypervisor.Driver.
func (d *Driver) Name() string { return Name }

// Start implements hypervisor.Driver.
func (d *Driver) Start(ctx context.Context, s hypervisor.Spec) (hypervisor.VM, error) {
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	var from origin
	if s.From != nil {
		var err error
		if from, err = d.cloned(ctx, s); err != nil {
			return nil, fmt.Errorf("starting vm %s: %w", s.ID, err)
		}
		defer from.close()
	}
	v, err := d.forkOrStart(ctx, s, from)
	if err != nil {
		return nil, fmt.Errorf("starting vm %s: %w", s.ID, err)
	}
	d.log.Info("vm started", "sandbox", s.ID, "pid", v.rec.PID, "accelerator", s.Accelerator, "template", v.rec.Template, "forked", v.forked)
	return v, nil
}

// forkOrStart has the template's zygote fork the VM, or starts it when there is none or it does not.
func (d *Driver) forkOrStart(ctx context.Context, s hypervisor.Spec, from origin) (*vm, error) {
	if from.zygote == nil {
		return d.start(ctx, s, from)
	}
	v, err := d.fork(ctx, s, from.zygote)
	var failure forkError
	if err == nil || ctx.Err() != nil || !errors.As(err, &failure) {
		return v, err
	}
	d.log.Warn("vm not forked; it is started from the memory of its template", "sandbox", s.ID, "error", err)
	from.zygote.failures.Add(1)
	if !from.zygote.alive() {
		s.From.(*template).wear(err)
	}
	return d.start(ctx, s, from)
}

func (d *Driver) start(ctx context.Context, s hypervisor.Spec, from origin) (_ *vm, err error) {
	if err := checkSpec(s); err != nil {
		return nil, err
	}
	binary, err := d.binary.find(ctx)
	if err != nil {
		return nil, err
	}
	imageBytes, err := checkGuest(s)
	if err != nil {
		return nil, err
	}
	l, err := d.prepare(s)
	if err != nil {
		return nil, err
	}
	defer l.hand()
	files := slices.Clip(l.sockets)
	if from.ram != ramOwn {
		files = append(files, from.memory)
	}
	library := d.preload.find(d.binary.release(), d.log)
	c := preloaded(jailConfig(s, args(binary, s, imageBytes, from.ram)), library, d.growth.hold(s, binary, d.binary.release(), library, d.log))
	if from.ram == ramZygote {
		files = append(files, from.control)
		c = zygoteJail(c, d.zygotes.find(), 2+len(files))
	}
	process, err := jail.Start(ctx, c, files, l.stderr, l.launched)
	if err != nil {
		return nil, l.failed(err)
	}
	// From here on the pidfd stands for the process, as it will for an adopter.
	_ = process.Release()
	return d.takeLaunched(ctx, l, from)
}

// Adopt implements hypervisor.Driver.
func (d *Driver) Adopt(ctx context.Context, rec hypervisor.Record) (hypervisor.VM, error) {
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	stderr, err := openErrorLog(rec)
	if err != nil {
		return nil, fmt.Errorf("adopting vm %s: %w", rec.ID, err)
	}
	v, err := d.take(ctx, rec, stderr, origin{})
	if err != nil {
		return nil, errors.Join(fmt.Errorf("adopting vm %s: %w", rec.ID, err), stderr.Close())
	}
	d.log.Info("vm adopted", "sandbox", rec.ID, "pid", rec.PID)
	return v, nil
}

func checkSpec(s hypervisor.Spec) error {
	if s.ID == "" || len(s.ID) > 64 || strings.Trim(s.ID, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_") != "" {
		return fmt.Errorf("sandbox id %q is not made of 1 to 64 letters, digits, '-' and '_'", s.ID)
	}
	if s.Accelerator != hypervisor.KVM && s.Accelerator != hypervisor.TCG {
		return fmt.Errorf("accelerator %q is not resolved to kvm or tcg", s.Accelerator)
	}
	if s.MemoryBytes < 32<<20 {
		return fmt.Errorf("a vm cannot boot in %d bytes of memory: give it at least 32 MiB", s.MemoryBytes)
	}
	return nil
}

// checkGuest finds what is missing before QEMU would, and says what to do. The
// sentences avoid the kernel's own words for a missing file: engines take
// those, found in a runtime's output, for a missing command in the container.
func checkGuest(s hypervisor.Spec) (imageBytes int64, err error) {
	for _, f := range []struct{ what, path, next string }{
		{"guest kernel", s.Kernel, "build it with deploy/guest/build-kernel, or set the path in bulkhead's configuration"},
		{"guest image", s.Image, "build it with deploy/guest/build-image, or set the path in bulkhead's configuration"},
	} {
		st, err := os.Stat(f.path)
		switch {
		case errors.Is(err, os.ErrNotExist):
			return 0, fmt.Errorf("there is no %s at %q: %s", f.what, f.path, f.next)
		case err != nil || !st.Mode().IsRegular():
			return 0, fmt.Errorf("the %s at %q cannot be used, it must be a readable file: %s", f.what, f.path, f.next)
		case st.Size() == 0:
			return 0, fmt.Errorf("the %s at %q is empty: %s", f.what, f.path, f.next)
		}
		imageBytes = st.Size()
	}
	return imageBytes, nil
}

// jailHostname is what the jail's UTS namespace says.
const jailHostname = "bulkhead"

func jailConfig(s hypervisor.Spec, argv []string) jail.Config {
	c := jail.Config{
		Root: s.Dir,
		Argv: argv,
		Binds: []jail.Bind{
			{Source: s.Kernel, Target: jailKernel},
			{Source: s.Image, Target: jailImage},
		},
		Capabilities: capabilities,
		CgroupProcs:  s.CgroupProcs,
		OOMScoreAdj:  s.OOMScoreAdj,
		Hostname:     jailHostname,
		NoHugePages:  true,
		Mergeable:    s.Mergeable,
		Stage:        share.StageDir,
		Export:       share.ExportDir,
	}
	if s.Accelerator == hypervisor.KVM {
		c.Devices = []string{"/dev/kvm"}
	}
	return c
}

// errorLogSize bounds what QEMU may write to its standard error: a guest can
// make it complain without end. The beginning is kept; it is where a failed
// start explains itself.
const errorLogSize = 16 << 10

// newErrorLog is memory that cannot grow: no file to fill a disk, nobody needed
// to read it, and an adopter finds it in /proc.
func newErrorLog() (*os.File, error) {
	fd, err := unix.MemfdCreate("qemu-stderr", unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	if err != nil {
		return nil, fmt.Errorf("making the vm's error log: %w", err)
	}
	f := os.NewFile(uintptr(fd), "qemu-stderr")
	err = f.Truncate(errorLogSize)
	if err == nil {
		_, err = unix.FcntlInt(f.Fd(), unix.F_ADD_SEALS, unix.F_SEAL_GROW|unix.F_SEAL_SHRINK|unix.F_SEAL_SEAL)
	}
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("making the vm's error log: %w", err)
	}
	return f, nil
}

func openErrorLog(rec hypervisor.Record) (*os.File, error) {
	pin, err := rec.Pidfd() // the process is the right one before its files are opened
	if err != nil {
		return nil, err
	}
	defer pin.Close()
	f, err := os.Open(fmt.Sprintf("/proc/%d/fd/2", rec.PID))
	if err != nil {
		return nil, fmt.Errorf("opening the vm's error log: %w", err)
	}
	return f, nil
}

// errorLogText is what QEMU wrote, without its own noise.
func errorLogText(log *os.File) string {
	b := make([]byte, errorLogSize)
	n, err := log.ReadAt(b, 0)
	if err != nil && !errors.Is(err, io.EOF) {
		return ""
	}
	return strings.TrimSpace(printable(b[:n]))
}

// withErrorLog adds the last thing QEMU said to err.
func withErrorLog(err error, log *os.File) error {
	if line := lastLine(errorLogText(log)); line != "" {
		return fmt.Errorf("%w: qemu says: %s", err, line)
	}
	return err
}

func lastLine(text string) string {
	line := text[strings.LastIndexByte(text, '\n')+1:]
	return engineSafe.Replace(line[:min(len(line), 300)])
}

// engineSafe rewords what engines, finding it in a runtime's output, take for
// the container's command being missing or forbidden.
var engineSafe = strings.NewReplacer(
	"No such file or directory", "the file is missing", "no such file or directory", "the file is missing",
	"Permission denied", "access is refused", "permission denied", "access is refused",
	"executable file not found", "the program is missing",
)
