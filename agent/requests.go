// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"bulkhead/agent/container"
	"bulkhead/agent/guest"
	"bulkhead/agent/network"
	agentv1 "bulkhead/proto/agent/v1"
	vmv1 "bulkhead/proto/vm/v1"
)

// setNetwork gives the guest the network that its container has on the host, and what
// listens there on loopback addresses.
func (a *agent) setNetwork(ctx context.Context, req *agentv1.NetworkRequest) (*agentv1.NetworkReply, error) {
	reply, err := a.network.Apply(ctx, req)
	if err != nil {
		return nil, err
	}
	reply.Problems = append(reply.Problems, a.loopback.Set(a.network.Inside, req.GetNetwork().GetListeners())...)
	return reply, nil
}

// moveNetwork puts the network into the namespace of a container.
func (a *agent) moveNetwork(ctx context.Context, pid int, parameters map[string]string) error {
	if err := a.network.Move(ctx, pid, parameters); err != nil {
		return err
	}
	if problems := a.loopback.Moved(a.network.Inside); len(problems) > 0 {
		return errors.New(problems[0])
	}
	return nil
}

func (a *agent) create(ctx context.Context, req *agentv1.CreateRequest) (*agentv1.CreateReply, error) {
	shares := make([]container.Share, 0, len(req.GetShares()))
	for _, s := range req.GetShares() {
		shares = append(shares, container.Share{Destination: s.GetDestination(), Source: s.GetSource(), ReadOnly: s.GetReadOnly(),
			Memory: s.GetMemory(), MemoryBytes: s.GetMemoryBytes()})
	}
	joins := make([]container.Join, 0, len(req.GetJoins()))
	for _, j := range req.GetJoins() {
		joins = append(joins, container.Join{Type: specs.LinuxNamespaceType(j.GetType()), Container: j.GetContainer()})
	}
	disks := make([]container.Disk, 0, len(req.GetDisks()))
	for _, d := range req.GetDisks() {
		disk := container.Disk{Serial: d.GetSerial(), HostMajor: d.GetHostMajor(), HostMinor: d.GetHostMinor()}
		for _, b := range d.GetBinds() {
			disk.Binds = append(disk.Binds, container.DiskBind{
				Destination: b.GetDestination(), Mode: b.GetMode(), UID: int(b.GetUid()), GID: int(b.GetGid()),
			})
		}
		disks = append(disks, disk)
	}
	pid, err := a.containers.Create(ctx, container.CreateRequest{
		Key: req.GetContainer(), Config: req.GetConfig(), Channel: req.GetChannel(), Rootfs: req.GetRootfs(), Shares: shares,
		Joins: joins, ID: req.GetId(), Bundle: req.GetBundle(), Disks: disks, Share: req.GetShare(), OwnNetwork: req.GetOwnNetwork(),
	})
	if err != nil {
		return nil, err
	}
	return &agentv1.CreateReply{Pid: int32(pid)}, nil
}

func (a *agent) start(ctx context.Context, req *agentv1.StartRequest) (*agentv1.StartReply, error) {
	c, err := a.containers.Get(req.GetContainer())
	if err != nil {
		return nil, err
	}
	return &agentv1.StartReply{}, c.Start(ctx)
}

func (a *agent) exec(ctx context.Context, req *agentv1.ExecRequest) (*agentv1.ExecReply, error) {
	c, err := a.containers.Get(req.GetContainer())
	if err != nil {
		return nil, err
	}
	pid, err := c.Exec(ctx, container.ExecRequest{
		ExecID: req.GetExecId(), Process: req.GetProcess(), Channel: req.GetChannel(), IgnorePaused: req.GetIgnorePaused(),
	})
	if err != nil {
		return nil, err
	}
	return &agentv1.ExecReply{Pid: int32(pid)}, nil
}

func (a *agent) signal(ctx context.Context, req *agentv1.SignalRequest) (*agentv1.SignalReply, error) {
	c, err := a.containers.Get(req.GetContainer())
	if err != nil {
		return nil, err
	}
	sig := unix.Signal(req.GetSignal())
	if req.GetAll() {
		return &agentv1.SignalReply{}, c.SignalAll(ctx, sig)
	}
	return &agentv1.SignalReply{}, c.Signal(req.GetExecId(), sig)
}

func (a *agent) update(ctx context.Context, req *agentv1.UpdateRequest) (*agentv1.UpdateReply, error) {
	c, err := a.containers.Get(req.GetContainer())
	if err != nil {
		return nil, err
	}
	return &agentv1.UpdateReply{}, c.Update(ctx, req.GetResources())
}

func (a *agent) pause(ctx context.Context, req *agentv1.PauseRequest) (*agentv1.PauseReply, error) {
	c, err := a.containers.Get(req.GetContainer())
	if err != nil {
		return nil, err
	}
	return &agentv1.PauseReply{}, c.Pause(ctx)
}

func (a *agent) resume(ctx context.Context, req *agentv1.ResumeRequest) (*agentv1.ResumeReply, error) {
	c, err := a.containers.Get(req.GetContainer())
	if err != nil {
		return nil, err
	}
	return &agentv1.ResumeReply{}, c.Resume(ctx)
}

func (a *agent) delete(ctx context.Context, req *agentv1.DeleteRequest) (*agentv1.DeleteReply, error) {
	return &agentv1.DeleteReply{}, a.containers.Delete(ctx, req.GetContainer())
}

func (a *agent) status(context.Context, *agentv1.StatusRequest) (*agentv1.StatusReply, error) {
	reply := &agentv1.StatusReply{}
	for _, info := range a.containers.List() {
		c := &agentv1.ContainerInfo{Container: info.Key, Status: string(info.Status)}
		for _, p := range info.Processes {
			c.Processes = append(c.Processes, &agentv1.Process{
				ExecId: p.ExecID, Channel: p.Channel, Pid: int32(p.Pid), Exited: p.Exited, ExitCode: int32(p.ExitCode), OomKilled: p.OOMKilled,
			})
		}
		reply.Containers = append(reply.Containers, c)
	}
	reply.MemoryTotal, reply.MemoryFree = guest.Memory()
	return reply, nil
}

func (a *agent) stats(_ context.Context, req *agentv1.StatsRequest) (*agentv1.StatsReply, error) {
	total, available, err := guest.MemoryAvailable()
	if err != nil {
		return nil, err
	}
	if req.GetContainer() == "" {
		return &agentv1.StatsReply{GuestTotalBytes: total, GuestAvailableBytes: available}, nil
	}
	c, err := a.containers.Get(req.GetContainer())
	if err != nil {
		return nil, err
	}
	s, err := c.Stats()
	if err != nil {
		return nil, err
	}
	if s.NetworkInterfaces, err = interfaces(c); err != nil {
		return nil, err
	}
	text, err := json.Marshal(s)
	if err != nil {
		return nil, fmt.Errorf("encoding the statistics: %w", err)
	}
	return &agentv1.StatsReply{
		MemoryBytes: s.Memory.Usage.Usage, CpuNs: s.CPU.Usage.Total, Pids: s.Pids.Current, Stats: string(text),
		GuestTotalBytes: total, GuestAvailableBytes: available,
	}, nil
}

// interfaces counts in the container's network namespace; one without a process has that of the guest.
func interfaces(c *container.Container) ([]vmv1.InterfaceStats, error) {
	namespace, err := c.NetworkNamespace()
	if errors.Is(err, container.ErrNotRunning) {
		return network.Counters(nil)
	}
	if err != nil {
		return nil, err
	}
	defer namespace.Close()
	return network.Counters(namespace)
}
