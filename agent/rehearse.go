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
	"bulkhead/agent/network"
	"bulkhead/agent/rehearsal"
	"bulkhead/bus"
	"bulkhead/bus/link"
	"bulkhead/bus/stdio"
	agentv1 "bulkhead/proto/agent/v1"
)

const (
	rehearsalTime = 60 * time.Second
	// settleTime bounds the wait for the ends of what has ended.
	settleTime   = 5 * time.Second
	rehearsalDir = "/run/rehearsal"
)

// kept is what libcontainer opens once, for itself: the roots of the cgroups and of a /proc of its own.
var kept = []string{"descriptor of /sys/fs/cgroup", "descriptor of /"}

// rehearse answers a host that wants to keep this guest as one from which others continue, as
// long as it is nobody.
func (a *agent) rehearse(ctx context.Context, session *link.Session) error {
	answer := &agentv1.Rehearsed{}
	if a.sandbox != "" {
		answer.Error = fmt.Sprintf("this guest is %q already and does not rehearse", a.sandbox)
		return bus.TellRehearsed(session, answer)
	}
	ctx, cancel := context.WithTimeout(ctx, rehearsalTime)
	defer cancel()
	begun := time.Now()
	rounds, err := a.rehearseUnseen(ctx)
	answer.Rounds, answer.TookNanos = uint32(rounds), int64(time.Since(begun))
	if err != nil {
		answer.Error = err.Error()
	}
	// What it used is every clone's otherwise.
	debug.FreeOSMemory()
	return bus.TellRehearsed(session, answer)
}

// rehearseUnseen leaves the guest as it was, or says what is left.
func (a *agent) rehearseUnseen(ctx context.Context) (rounds int, err error) {
	before, err := guest.TakeInventory()
	if err != nil {
		return 0, err
	}
	if rounds, err = a.rehearseContainers(ctx); err != nil {
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
func (a *agent) rehearseContainers(ctx context.Context) (rounds int, err error) {
	remove, err := rehearsal.Files(rehearsalDir)
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, remove()) }()
	ctl, ctlPort, err := channel()
	if err != nil {
		return 0, err
	}
	io, ioPort, err := channel()
	if err != nil {
		return 0, errors.Join(err, ctl.Close(), ctlPort.Close())
	}
	double := &agent{log: a.log.Named("rehearsal"), network: network.New()}
	double.loopback = loopback.New(double.log, func(context.Context) (*link.Listener, error) {
		return nil, errors.New("the rehearsal has no third port")
	})
	endpoint := stdio.NewEndpoint(stdio.EndpointConfig{})
	double.containers = container.NewManager(container.Config{
		Log: double.log, Reaper: a.orphans, Streams: streams{endpoint}, Exited: double.exited, OOMKilled: double.outOfMemory,
		Prepare:     func(context.Context, string, string) (string, error) { return rehearsalDir, nil },
		MoveNetwork: double.moveNetwork, FindDisk: findDisk, WeighDisk: guest.WeighDisk,
		StateDir: rehearsalDir + "/state", MemoryDir: rehearsalDir + "/memory",
	})
	serving, stop := context.WithCancel(ctx)
	group, serving := errgroup.WithContext(serving)
	group.Go(func() error { return double.serveStreams(serving, link.Listen(ioPort), endpoint) })
	group.Go(func() error { return double.serveRequests(serving, link.Listen(ctlPort)) })
	rounds, err = rehearsal.Run(ctx, rehearsal.Ports{Ctl: ctl, IO: io}, func() error {
		stop()
		return group.Wait()
	})
	ending, cancel := context.WithTimeout(context.WithoutCancel(ctx), closeTimeout)
	defer cancel()
	return rounds, errors.Join(err, double.containers.Close(ending))
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
