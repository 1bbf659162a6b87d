// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package shadow

import (
	"fmt"
	"os"
	"runtime"
	"strconv"
	"syscall"

	"golang.org/x/sys/unix"

	"bulkhead/bus/procstat"
	"bulkhead/runtime-frontend/relay"
)

type streams [3]*os.File

// namespaces is what the child is born into.
type namespaces struct {
	flags uintptr    // clone flags of the new ones
	enter []*os.File // existing ones the forking thread enters first
	mount *os.File   // mount namespace the relay enters by itself
}

var cloneFlags = map[string]uintptr{
	"network": unix.CLONE_NEWNET,
	"ipc":     unix.CLONE_NEWIPC,
	"uts":     unix.CLONE_NEWUTS,
	"mount":   unix.CLONE_NEWNS,
	"pid":     unix.CLONE_NEWPID,
	"cgroup":  unix.CLONE_NEWCGROUP,
}

// openNamespaces opens what spec names and completes setup accordingly.
func openNamespaces(spec Spec, setup *relay.Setup) (_ *namespaces, retErr error) {
	ns := &namespaces{}
	defer func() {
		if retErr != nil {
			ns.close()
		}
	}()
	if spec.JoinPID != 0 {
		return ns, ns.join(spec, setup)
	}
	seen := make(map[string]bool)
	for _, n := range spec.Namespaces {
		flag, known := cloneFlags[n.Type]
		if !known {
			return nil, fmt.Errorf("starting a relay: namespaces of type %q are not supported on the host", n.Type)
		}
		if seen[n.Type] {
			return nil, fmt.Errorf("starting a relay: namespace type %q is given twice", n.Type)
		}
		seen[n.Type] = true
		switch {
		case n.Path != "" && n.Type == "mount":
			f, err := openNamespace(n.Path, flag)
			if err != nil {
				return nil, err
			}
			ns.mount, setup.JoinMount = f, true
		case n.Path != "":
			f, err := openNamespace(n.Path, flag)
			if err != nil {
				return nil, err
			}
			ns.enter = append(ns.enter, f)
		case n.Type == "cgroup":
			setup.NewCgroupNS = true // its root is the cgroup the process will be in
		default:
			ns.flags |= flag
		}
	}
	setup.Init = ns.flags&unix.CLONE_NEWPID != 0
	if ns.flags&unix.CLONE_NEWNS != 0 {
		setup.Rootfs = spec.Rootfs
	}
	if ns.flags&unix.CLONE_NEWUTS != 0 {
		setup.Hostname = spec.Hostname
	}
	return ns, nil
}

// join takes the namespaces of an init relay, except those the caller is in already.
func (ns *namespaces) join(spec Spec, setup *relay.Setup) (retErr error) {
	defer func() {
		if retErr != nil {
			ns.close()
		}
	}()
	if spec.JoinStartTime != 0 {
		if stat, err := procstat.Read("/proc", spec.JoinPID); err != nil || stat.Start != spec.JoinStartTime {
			return fmt.Errorf("joining the container process %d: it is gone", spec.JoinPID)
		}
	}
	for _, n := range []struct{ file, kind string }{{"ipc", "ipc"}, {"uts", "uts"}, {"net", "network"}, {"pid", "pid"}, {"cgroup", "cgroup"}, {"mnt", "mount"}} {
		path := "/proc/" + strconv.Itoa(spec.JoinPID) + "/ns/" + n.file
		f, err := openNamespace(path, cloneFlags[n.kind])
		if err != nil {
			return err
		}
		same, err := isOwn(f, n.file)
		if err != nil || same {
			f.Close()
			if err != nil {
				return err
			}
			continue
		}
		if n.kind == "mount" {
			ns.mount, setup.JoinMount = f, true
		} else {
			ns.enter = append(ns.enter, f)
		}
	}
	return nil
}

// openNamespace opens path and checks that it is a namespace of the type.
func openNamespace(path string, flag uintptr) (*os.File, error) {
	f, err := os.OpenFile(path, unix.O_RDONLY|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, fmt.Errorf("opening the namespace %s: %w", path, err)
	}
	kind, err := unix.IoctlRetInt(int(f.Fd()), unix.NS_GET_NSTYPE)
	if err != nil || uintptr(kind) != flag {
		f.Close()
		return nil, fmt.Errorf("the file %s is not a namespace of the type it is given for", path)
	}
	return f, nil
}

func isOwn(f *os.File, name string) (bool, error) {
	theirs, err := f.Stat()
	if err != nil {
		return false, err
	}
	own, err := os.Stat("/proc/thread-self/ns/" + name)
	if err != nil {
		return false, err
	}
	return os.SameFile(theirs, own), nil
}

func (ns *namespaces) close() {
	for _, f := range ns.enter {
		f.Close()
	}
	if ns.mount != nil {
		ns.mount.Close()
	}
}

// fork starts the relay from a thread that enters the namespaces and then
// ends: it is never unlocked, so no other goroutine runs in them.
func (ns *namespaces) fork(spec Spec, std streams, control, dir *os.File) (*os.Process, error) {
	type result struct {
		p   *os.Process
		err error
	}
	done := make(chan result, 1)
	go onOwnThread(func() {
		p, err := ns.forkHere(spec, std, control, dir)
		done <- result{p, err}
	})
	r := <-done
	return r.p, r.err
}

// onOwnThread runs f on a thread that ends with it, and never on the leading
// one, which /proc/self stands for.
func onOwnThread(f func()) {
	runtime.LockOSThread()
	if unix.Gettid() != unix.Getpid() {
		f()
		return
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		onOwnThread(f)
	}()
	<-done // holding the leading thread meanwhile keeps the other off it
	runtime.UnlockOSThread()
}

func (ns *namespaces) forkHere(spec Spec, std streams, control, dir *os.File) (*os.Process, error) {
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	defer null.Close()
	files := []*os.File{null, null, null, control, dir}
	for i, f := range std {
		if f != nil {
			files[i] = f
		}
	}
	if ns.mount != nil {
		files = append(files, ns.mount)
	}
	for _, f := range ns.enter {
		if err := unix.Setns(int(f.Fd()), 0); err != nil {
			return nil, fmt.Errorf("entering the namespace %s: %w", f.Name(), err)
		}
	}
	// Whatever the caller was started with is not for the relay.
	if err := unix.CloseRange(3, ^uint(0)>>1, unix.CLOSE_RANGE_CLOEXEC); err != nil {
		return nil, fmt.Errorf("keeping descriptors from the relay: %w", err)
	}
	attr := &os.ProcAttr{
		Dir:   "/",
		Env:   []string{},
		Files: files,
		Sys:   &syscall.SysProcAttr{Setsid: true, Cloneflags: ns.flags},
	}
	if spec.Terminal != nil {
		attr.Sys.Setctty, attr.Sys.Ctty = true, 0
	}
	return os.StartProcess(spec.Binary, spec.Args, attr)
}

// socketPair makes the control socket; ours can be given deadlines.
func socketPair() (ours, theirs *os.File, err error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, err
	}
	if err := unix.SetNonblock(fds[0], true); err != nil {
		unix.Close(fds[0])
		unix.Close(fds[1])
		return nil, nil, err
	}
	return os.NewFile(uintptr(fds[0]), "relay control"), os.NewFile(uintptr(fds[1]), "relay control"), nil
}

func signalOf(state *os.ProcessState) syscall.Signal {
	return state.Sys().(syscall.WaitStatus).Signal()
}
