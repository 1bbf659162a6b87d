// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package host

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"bulkhead/bus"
	vmv1 "bulkhead/proto/vm/v1"
)

const (
	// recordTime is what the last records are given to go, and leftTime the same
	// for what has just been killed, on a machine that has other things to do.
	recordTime = time.Minute
	leftTime   = time.Minute
	leftPause  = 100 * time.Millisecond // between two looks: nothing tells of an end that is no child's
)

// cgroupMount is where the hierarchies of cgroup v1, or the one of v2, are.
const cgroupMount = "/sys/fs/cgroup"

// Links are the network interfaces of the host.
func Links() ([]string, error) {
	all, err := net.Interfaces()
	if err != nil {
		return nil, err
	}
	var names []string
	for _, link := range all {
		names = append(names, link.Name)
	}
	return names, nil
}

// Left lists what exists of the ground's token beside its directories:
// processes, mounts, cgroups and unix sockets; and the links that are not among
// those of before.
func (g *Ground) Left(before []string) ([]string, error) {
	var left []string
	processes, err := g.Processes()
	if err != nil {
		return nil, err
	}
	for _, p := range processes {
		left = append(left, "process "+p.String())
	}
	mounts, err := g.mounts()
	if err != nil {
		return nil, err
	}
	for _, path := range mounts {
		left = append(left, "mount "+path)
	}
	cgroups, err := g.Cgroups()
	if err != nil {
		return nil, err
	}
	for _, path := range cgroups {
		left = append(left, "cgroup "+path)
	}
	sockets, err := linesWith("/proc/net/unix", g.Token)
	if err != nil {
		return nil, err
	}
	for _, line := range sockets {
		fields := strings.Fields(line)
		left = append(left, "unix socket "+fields[len(fields)-1])
	}
	links, err := Links()
	if err != nil {
		return nil, err
	}
	for _, name := range links {
		if !slices.Contains(before, name) {
			left = append(left, "network interface "+name)
		}
	}
	return left, nil
}

// NothingLeft gives what has just been killed moments to go, and then complains
// of what Left lists.
func (g *Ground) NothingLeft(before []string) error {
	for deadline := time.Now().Add(leftTime); ; time.Sleep(leftPause) {
		left, err := g.Left(before)
		if err != nil {
			return err
		}
		if len(left) == 0 {
			return nil
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("left behind after %s:\n  %s", leftTime, strings.Join(left, "\n  "))
		}
	}
}

// Found is a process of ours.
type Found struct {
	PID     int
	Exe     string
	Command string
}

// String leaves the directory of the program out: that of a forked QEMU is another once the mounts of what has forked it are gone.
func (f Found) String() string {
	return fmt.Sprintf("%d %s: %.200s", f.PID, filepath.Base(f.Exe), f.Command)
}

// Processes finds the processes whose executable, command line or cgroup carries
// the token, but for the suite's own helpers.
func (g *Ground) Processes() ([]Found, error) {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil, err
	}
	var found []Found
	self, err := os.Readlink("/proc/self/exe")
	if err != nil {
		return nil, err
	}
	for _, entry := range entries {
		pid, err := strconv.Atoi(entry.Name())
		if err != nil {
			continue
		}
		exe, err := os.Readlink(filepath.Join("/proc", entry.Name(), "exe"))
		if err != nil || exe == self {
			continue // gone, a zombie, a thread of the kernel, or one of us
		}
		raw, _ := os.ReadFile(filepath.Join("/proc", entry.Name(), "cmdline"))
		command := strings.TrimSpace(strings.ReplaceAll(string(raw), "\x00", " "))
		if strings.Contains(exe, g.Token) || strings.Contains(command, g.Token) || g.holds(entry.Name(), exe) {
			found = append(found, Found{PID: pid, Exe: exe, Command: command})
		}
	}
	return found, nil
}

// holds tells a process that names nothing of ours on its command line: by its
// cgroup, and a jailed QEMU also by the files of ours that are bound into its
// jail.
func (g *Ground) holds(pid, exe string) bool {
	if lines, err := linesWith(filepath.Join("/proc", pid, "cgroup"), g.Token); err == nil && len(lines) > 0 {
		return true
	}
	if !strings.HasPrefix(filepath.Base(exe), "qemu-") {
		return false
	}
	// Not jailed, and so nobody's of ours: in the host's own table our engines' binds are seen by everybody.
	if ns, err := os.Readlink(filepath.Join("/proc", pid, "ns/mnt")); err != nil || ns == hostMounts() {
		return false
	}
	lines, err := linesWith(filepath.Join("/proc", pid, "mountinfo"), g.Token)
	return err == nil && slices.ContainsFunc(lines, func(line string) bool {
		// What is bound is the fourth field (proc(5)); mount points tell of the host's table only.
		return strings.Contains(strings.Fields(line)[3], g.Token)
	})
}

// hostMounts names the mount namespace of the tests, which is the host's.
var hostMounts = sync.OnceValue(func() string {
	ns, _ := os.Readlink("/proc/self/ns/mnt")
	return ns
})

// Named keeps the processes that run a binary.
func Named(processes []Found, binary string) []Found {
	return slices.DeleteFunc(slices.Clone(processes), func(f Found) bool {
		return !strings.HasPrefix(filepath.Base(f.Exe), binary)
	})
}

// mounts are the mount points that carry the token, in their path, source or
// options; deepest first.
func (g *Ground) mounts() ([]string, error) {
	lines, err := linesWith("/proc/self/mountinfo", g.Token)
	if err != nil {
		return nil, err
	}
	var points []string
	for _, line := range lines {
		points = append(points, strings.Fields(line)[4]) // proc(5), mountinfo
	}
	slices.Reverse(points)
	return points, nil
}

// Cgroups are the cgroups that carry the token in their name, deepest first.
func (g *Ground) Cgroups() ([]string, error) {
	var found []string
	err := filepath.WalkDir(cgroupMount, func(path string, entry fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil // went while we looked
		}
		if err != nil {
			return err
		}
		if entry.IsDir() && strings.Contains(path, g.Token) {
			found = append(found, path)
		}
		return nil
	})
	slices.Reverse(found)
	return found, err
}

func linesWith(path, part string) ([]string, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	return slices.DeleteFunc(strings.Split(string(text), "\n"), func(line string) bool { return !strings.Contains(line, part) }), nil
}

// Spare are the VMs that no container has: those of the pool, and guests that become templates. They are told by their
// directories, and by their processes as far as these run.
func (h *Host) Spare() (dirs []string, pids []int) {
	all, err := filepath.Glob(filepath.Join(h.RunDir, "vm", "*"))
	if err != nil {
		return nil, nil
	}
	for _, dir := range all {
		record := struct{ State string }{}
		text, err := os.ReadFile(filepath.Join(dir, "sandbox.json"))
		if err == nil {
			err = json.Unmarshal(text, &record)
		}
		taken, globErr := filepath.Glob(filepath.Join(dir, "container-*.json"))
		pooled := err == nil && record.State == "pooled" && globErr == nil && len(taken) == 0
		if !pooled && !strings.HasPrefix(filepath.Base(dir), "template-") {
			continue
		}
		dirs = append(dirs, dir)
		process := struct{ PID int }{}
		if text, err = os.ReadFile(filepath.Join(dir, "vm.json")); err == nil && json.Unmarshal(text, &process) == nil && process.PID > 0 {
			pids = append(pids, process.PID)
		}
	}
	return dirs, pids
}

// VMFiles are the entries below the directories of VMs and relays.
func (h *Host) VMFiles() ([]string, error) {
	var files []string
	for _, dir := range []string{"vm", "relay"} {
		entries, err := os.ReadDir(filepath.Join(h.RunDir, dir))
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, err
		}
		for _, entry := range entries {
			if dir == "vm" && !entry.IsDir() {
				continue // the worker's own, such as its lock
			}
			files = append(files, filepath.Join(h.RunDir, dir, entry.Name()))
		}
	}
	return files, nil
}

// NoRecords complains of containers and VMs that the host still knows after a
// while.
func (h *Host) NoRecords() error {
	ctx, cancel := context.WithTimeout(context.Background(), recordTime)
	defer cancel()
	var known []string
	var fault error
	for {
		now, err := h.records(ctx)
		if err == nil && len(now) == 0 {
			return nil
		}
		if ctx.Err() == nil { // a look that the end of the time has cut short says nothing of the host
			known, fault = now, err
		}
		select {
		case <-time.After(leftPause):
		case <-ctx.Done():
			return errors.Join(fault, fmt.Errorf("host %s still knows %s", h.ID, strings.Join(known, ", ")))
		}
	}
}

func (h *Host) records(ctx context.Context) ([]string, error) {
	conn, err := h.Dial(ctx)
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	list, err := vmv1.ListAll("", func(req *vmv1.ListRequest) (*vmv1.ListReply, error) {
		return bus.Call[vmv1.ListReply](ctx, conn, conn.Subject("vm", "list"), req)
	})
	if err != nil {
		return nil, err
	}
	var known []string
	for _, c := range list.GetContainers() {
		known = append(known, "container "+c.GetRef().GetId())
	}
	for _, s := range list.GetSandboxes() {
		known = append(known, "VM "+s.GetId())
	}
	for _, bucket := range []string{bus.BucketContainers, bus.BucketSandboxes} {
		kv, err := conn.JetStream().KeyValue(ctx, bucket)
		if err != nil {
			return known, err
		}
		keys, err := kv.ListKeys(ctx)
		if err != nil {
			return known, err
		}
		for key := range keys.Keys() {
			if entry, err := kv.Get(ctx, key); err == nil && bytes.Contains(bytes.ReplaceAll(entry.Value(), []byte(" "), nil), []byte(`"state":"pooled"`)) {
				continue // it waits for a container
			}
			known = append(known, "record "+bucket+"/"+key)
		}
	}
	return known, nil
}

// leftFiles complains of what a stopped host left: VMs, relays, sockets and the
// operator's context.
func (h *Host) leftFiles() error {
	left, err := h.VMFiles()
	if err != nil {
		return err
	}
	for _, pattern := range []string{filepath.Join(h.RunDir, "*.sock"), filepath.Join(h.ConfigHome, "nats", "context", "*")} {
		matches, err := filepath.Glob(pattern)
		if err != nil {
			return err
		}
		left = append(left, matches...)
	}
	if len(left) > 0 {
		return fmt.Errorf("host %s stopped and left:\n  %s", h.ID, strings.Join(left, "\n  "))
	}
	return nil
}
