// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"runtime/debug"
	"slices"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"bulkhead/agent/container"
	"bulkhead/agent/guest"
	"bulkhead/agent/loopback"
	"bulkhead/agent/memory"
	"bulkhead/agent/network"
	"bulkhead/agent/rehearsal"
	"bulkhead/bus"
	"bulkhead/bus/link"
	"bulkhead/bus/stdio"
	agentv1 "bulkhead/proto/agent/v1"
)

const (
	rehearsalTime = 50 * time.Second // less than the host waits, which should hear why
	// settleTime bounds the wait for the ends of what has ended.
	settleTime   = 10 * time.Second
	rehearsalDir = "/run/rehearsal"
)

// kept is what libcontainer opens once, for itself: the roots of the cgroups and of a /proc of its own.
var kept = []string{"descriptor of /sys/fs/cgroup", "descriptor of /"}

// rehearse answers a host that wants to keep this guest as one from which others continue, as
// long as it is nobody.
func (a *agent) rehearse(ctx context.Context, session *link.Session, with *agentv1.Rehearsal) error {
	answer := &agentv1.Rehearsed{}
	if a.sandbox != "" {
		answer.Error = fmt.Sprintf("this guest is %q already and does not rehearse", a.sandbox)
		return bus.TellRehearsed(session, answer)
	}
	ctx, cancel := context.WithTimeout(ctx, rehearsalTime)
	defer cancel()
	begun := time.Now()
	rounds, err := a.rehearseUnseen(ctx, with)
	answer.Rounds, answer.TookNanos = uint32(rounds), int64(time.Since(begun))
	if err != nil {
		answer.Error = err.Error()
	}
	// What it used is every clone's otherwise.
	debug.FreeOSMemory()
	return bus.TellRehearsed(session, answer)
}

// rehearseUnseen leaves the guest as it was, or says what is left.
func (a *agent) rehearseUnseen(ctx context.Context, with *agentv1.Rehearsal) (rounds int, err error) {
	before, err := guest.TakeInventory()
	if err != nil {
		return 0, err
	}
	restore, err := guest.KeepParameters()
	if err != nil {
		return 0, err
	}
	rounds, err = a.rehearseContainers(ctx, with)
	if err = errors.Join(err, restore()); err != nil {
		return rounds, fmt.Errorf("rehearsal: %w", err)
	}
	// Descriptors are closed by who reads them to their end, and processes are collected when they have ended: in their own time.
	for deadline := time.Now().Add(settleTime); ; time.Sleep(10 * time.Millisecond) {
		after, err := guest.TakeInventory()
		if err != nil {
			return rounds, err
		}
		left, gone := after.Since(before)
		left = slices.DeleteFunc(left, func(what string) bool { return slices.Contains(kept, what) })
		if len(gone) == 0 && len(left) == 0 {
			return rounds, nil
		}
		if time.Now().After(deadline) || ctx.Err() != nil {
			return rounds, fmt.Errorf("the rehearsal has left %q, and %q is gone", left, gone)
		}
	}
}

// rehearseContainers runs a second agent, and a host for it. It shares with the first the collector of orphans and nothing else.
func (a *agent) rehearseContainers(ctx context.Context, with *agentv1.Rehearsal) (rounds int, err error) {
	ctl, ctlPort, err := channel()
	if err != nil {
		return 0, err
	}
	io, ioPort, err := channel()
	if err != nil {
		return 0, errors.Join(err, ctl.Close(), ctlPort.Close())
	}
	double := &agent{log: a.log.Named("rehearsal"), network: network.New()}
	if double.memory, err = memory.New(memory.Config{Log: double.log, Dir: container.CgroupDir, Ask: double.wantMemory}); err != nil {
		return 0, errors.Join(err, ctl.Close(), ctlPort.Close(), io.Close(), ioPort.Close())
	}
	double.loopback = loopback.New(double.log, func(context.Context) (*link.Listener, error) {
		return nil, errors.New("the rehearsal has no third port")
	})
	endpoint := stdio.NewEndpoint(stdio.EndpointConfig{})
	double.containers = container.NewManager(container.Config{
		Log: double.log, Reaper: a.orphans, Streams: streams{endpoint}, Exited: double.exited, OOMKilled: double.outOfMemory,
		Prepare: double.mountShare, Labels: labels(),
		MoveNetwork: double.moveNetwork, FindDisk: findDisk, WeighDisk: guest.WeighDisk,
		StateDir: rehearsalDir + "/state", MemoryDir: rehearsalDir + "/memory",
	})
	serving, stop := context.WithCancel(ctx)
	group, serving := errgroup.WithContext(serving)
	group.Go(func() error { return double.memory.Run(serving) })
	group.Go(func() error { return double.serveStreams(serving, link.Listen(ioPort), endpoint) })
	group.Go(func() error { return double.serveRequests(serving, link.Listen(ctlPort)) })
	rounds, err = rehearsal.Run(ctx, with, rehearsal.Ports{Ctl: ctl, IO: io}, func() error {
		stop()
		return group.Wait()
	})
	ending, cancel := context.WithTimeout(context.WithoutCancel(ctx), closeTimeout)
	defer cancel()
	err = errors.Join(err, double.containers.Close(ending), double.shares.Release(ending))
	for _, dir := range []string{"/state", "/memory", ""} {
		_ = os.Remove(rehearsalDir + dir) // what is not empty is told as left
	}
	return rounds, err
}

// channel is a stream as long as the agent lives, and both its ends.
func channel() (host, port net.Conn, err error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, nil, os.NewSyscallError("socketpair", err)
	}
	var ends [2]net.Conn
	for i, fd := range fds {
		f := os.NewFile(uintptr(fd), "channel")
		ends[i], err = net.FileConn(f) // of a duplicate
		if err = errors.Join(err, f.Close()); err != nil {
			return nil, nil, fmt.Errorf("making a channel: %w", err)
		}
	}
	return ends[0], ends[1], nil
}
