// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"time"

	"github.com/hashicorp/go-hclog"
	"golang.org/x/sync/errgroup"

	"bulkhead/agent/container"
	"bulkhead/agent/guest"
	"bulkhead/agent/loopback"
	"bulkhead/agent/memory"
	"bulkhead/agent/network"
	"bulkhead/agent/reaper"
	"bulkhead/bus/link"
	"bulkhead/bus/stdio"
)

const (
	ctlPort = "bulkhead.ctl"
	ioPort  = "bulkhead.io"
	netPort = "bulkhead.net"
	// portTimeout bounds the wait for a port: the hypervisor announces both while the kernel boots.
	portTimeout = 30 * time.Second
	// closeTimeout bounds the removal of the containers when the agent ends.
	closeTimeout = 10 * time.Second
	stateDir     = "/run/libcontainer"
	memoryDir    = "/run/memory"
)

// Deps is what the agent runs with.
type Deps struct {
	Log   hclog.Logger
	Begun float64 // the guest's uptime when the agent's main began, seconds
}

// agent is the state that the requests share.
type agent struct {
	log        hclog.Logger
	sandbox    string // empty until the host's first greeting; set before any request
	begun      float64
	orphans    *reaper.Reaper
	shares     guest.Shares
	containers *container.Manager
	network    *network.Network
	loopback   *loopback.Forwarder
	identity   identity
	events     events
	memory     *memory.Governor
}

// Run serves the host until the context ends or a port fails, which is fatal
// for a guest. The machine must have been prepared (guest.MountAll and the rest).
func Run(ctx context.Context, deps Deps) error {
	ctl, err := openPort(ctx, ctlPort)
	if err != nil {
		return err
	}
	io, err := openPort(ctx, ioPort)
	if err != nil {
		return errors.Join(err, ctl.Close())
	}
	runtime.GOMAXPROCS(max(runtime.GOMAXPROCS(0), container.LeastProcessors))
	orphans := reaper.New()
	endpoint := stdio.NewEndpoint(stdio.EndpointConfig{Warn: func(channel uint32, err error) {
		deps.Log.Warn("the host sent a senseless frame", "channel", channel, "error", err)
	}})
	a := &agent{log: deps.Log, begun: deps.Begun, orphans: orphans, network: network.New()}
	// The third port is opened when there is need: most guests have none.
	a.loopback = loopback.New(deps.Log.Named("loopback"), func(ctx context.Context) (*link.Listener, error) { return openPort(ctx, netPort) })
	if a.memory, err = memory.New(memory.Config{Log: deps.Log, Dir: container.CgroupDir, Ask: a.wantMemory}); err != nil {
		return errors.Join(err, ctl.Close(), io.Close())
	}
	a.containers = container.NewManager(container.Config{
		Log:         deps.Log,
		Reaper:      orphans,
		Streams:     streams{endpoint},
		Exited:      a.exited,
		OOMKilled:   a.outOfMemory,
		Prepare:     a.mountShare,
		Labels:      labels(),
		MoveNetwork: a.moveNetwork,
		FindDisk:    findDisk, WeighDisk: guest.WeighDisk,
		StateDir: stateDir, MemoryDir: memoryDir,
	})
	group, running := errgroup.WithContext(ctx)
	group.Go(func() error { return orphans.Run(running) })
	group.Go(func() error { return a.serveStreams(running, io, endpoint) })
	group.Go(func() error { return a.serveRequests(running, ctl) })
	group.Go(func() error { return a.memory.Run(running) })
	err = group.Wait()
	// What the containers wrote should reach the host even though nobody will hear of their end.
	ending, cancel := context.WithTimeout(context.WithoutCancel(ctx), closeTimeout)
	defer cancel()
	return errors.Join(err, a.containers.Close(ending))
}

// diskTimeout bounds the wait for a disk that the host has plugged in: the guest
// has to number and to start it.
const diskTimeout = 20 * time.Second

func findDisk(ctx context.Context, serial string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, diskTimeout)
	defer cancel()
	return guest.FindDisk(ctx, serial)
}

func openPort(ctx context.Context, name string) (*link.Listener, error) {
	ctx, cancel := context.WithTimeout(ctx, portTimeout)
	defer cancel()
	path, err := guest.FindPort(ctx, name)
	if err != nil {
		return nil, err
	}
	port, err := link.OpenPort(path)
	if err != nil {
		return nil, fmt.Errorf("port %s: %w", name, err)
	}
	return link.Listen(port), nil
}
