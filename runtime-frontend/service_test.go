// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package frontend

import (
	"context"
	"encoding/json"
	"maps"
	"path/filepath"
	"slices"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"bulkhead/bus"
	"bulkhead/bus/handover"
	vmv1 "bulkhead/proto/vm/v1"
)

// handle adds a method that runs under the host's lock.
func handle[Req, Resp proto.Message](h *host, method string, fn func(Req) (Resp, error)) {
	h.t.Helper()
	err := bus.Handle(h.service, method, func(_ context.Context, req Req) (Resp, error) {
		h.mu.Lock()
		defer h.mu.Unlock()
		return fn(req)
	})
	if err != nil {
		h.t.Fatal(err)
	}
}

func (h *host) find(ref *vmv1.ContainerRef) (*vmv1.Container, error) {
	record, ok := h.records[bus.ContainerKey(ref.GetRoot(), ref.GetId())]
	if !ok {
		return nil, bus.Errorf(bus.NotFound, "container does not exist")
	}
	return record, nil
}

// hooks is the part of a created container's configuration that the worker
// gives back.
func (h *host) hooks(ref *vmv1.ContainerRef) string {
	var config struct{ Hooks json.RawMessage }
	if err := json.Unmarshal([]byte(h.configs[bus.ContainerKey(ref.GetRoot(), ref.GetId())]), &config); err != nil {
		h.t.Error(err)
	}
	return string(config.Hooks)
}

// serve answers with runc's rules and words, as the worker does.
func (h *host) serve() {
	handle(h, "create", func(req *vmv1.CreateRequest) (*vmv1.CreateReply, error) {
		h.creates = append(h.creates, req)
		if _, err := h.find(req.GetRef()); err == nil {
			return nil, bus.Errorf(bus.AlreadyExists, "container with given ID already exists")
		}
		var spec specs.Spec
		if err := json.Unmarshal([]byte(req.GetConfig()), &spec); err != nil {
			return nil, err
		}
		record := &vmv1.Container{
			Ref: req.GetRef(), Status: vmv1.ContainerStatus_CONTAINER_STATUS_CREATED, Bundle: req.GetBundle(), Rootfs: req.GetRootfs(),
			OciVersion: spec.Version, Annotations: spec.Annotations, Relay: req.GetRelay(), Created: timestamppb.Now(), Owner: req.GetOwner(),
			OperationId: req.GetHandover(), Key: bus.ContainerKey(req.GetRef().GetRoot(), req.GetRef().GetId()),
		}
		key := bus.ContainerKey(req.GetRef().GetRoot(), req.GetRef().GetId())
		h.records[key] = record
		h.configs[key] = req.GetConfig()
		if h.onCreate != nil {
			if err := h.onCreate(req); err != nil {
				return nil, err
			}
		}
		return &vmv1.CreateReply{Container: record}, nil
	})
	handle(h, "start", func(req *vmv1.StartRequest) (*vmv1.StartReply, error) {
		record, err := h.find(req.GetRef())
		if err != nil {
			return nil, err
		}
		if h.onStart != nil {
			if err := h.onStart(record); err != nil {
				return nil, err
			}
		}
		switch record.GetStatus() {
		case vmv1.ContainerStatus_CONTAINER_STATUS_CREATED:
		case vmv1.ContainerStatus_CONTAINER_STATUS_STOPPED:
			return nil, bus.Errorf(bus.FailedPrecondition, "cannot start a container that has stopped")
		default:
			return nil, bus.Errorf(bus.FailedPrecondition, "cannot start an already running container")
		}
		record.Status = vmv1.ContainerStatus_CONTAINER_STATUS_RUNNING
		return &vmv1.StartReply{Container: record, Hooks: h.hooks(req.GetRef())}, nil
	})
	handle(h, "state", func(req *vmv1.StateRequest) (*vmv1.StateReply, error) {
		record, err := h.find(req.GetRef())
		return &vmv1.StateReply{Container: record}, err
	})
	handle(h, "list", func(req *vmv1.ListRequest) (*vmv1.ListReply, error) {
		for _, key := range slices.Sorted(maps.Keys(h.records)) {
			if key > req.GetAfter() { // one a part
				return &vmv1.ListReply{Containers: []*vmv1.Container{h.records[key]}, Next: key}, nil
			}
		}
		return &vmv1.ListReply{}, nil
	})
	handle(h, "kill", func(req *vmv1.KillRequest) (*vmv1.KillReply, error) {
		h.kills = append(h.kills, req)
		record, err := h.find(req.GetRef())
		if err != nil {
			return nil, err
		}
		if record.GetStatus() == vmv1.ContainerStatus_CONTAINER_STATUS_STOPPED {
			return nil, bus.Errorf(bus.FailedPrecondition, "container not running")
		}
		return &vmv1.KillReply{}, nil
	})
	handle(h, "delete", func(req *vmv1.DeleteRequest) (*vmv1.DeleteReply, error) {
		h.deletes = append(h.deletes, req)
		record, err := h.find(req.GetRef())
		if err != nil {
			return nil, err
		}
		if record.GetStatus() == vmv1.ContainerStatus_CONTAINER_STATUS_RUNNING && !req.GetForce() {
			return nil, bus.Errorf(bus.FailedPrecondition, "cannot delete container %s that is not stopped: running", req.GetRef().GetId())
		}
		delete(h.records, bus.ContainerKey(req.GetRef().GetRoot(), req.GetRef().GetId()))
		return &vmv1.DeleteReply{Container: record, Existed: true, Hooks: h.hooks(req.GetRef())}, nil
	})
	handle(h, "stats", func(req *vmv1.StatsRequest) (*vmv1.StatsReply, error) {
		if _, err := h.find(req.GetRef()); err != nil {
			return nil, err
		}
		select {
		case h.asked <- struct{}{}:
		default:
		}
		return &vmv1.StatsReply{ContainerStats: `{"cpu":{"usage":{"total":5}},"pids":{"current":1}}`}, nil
	})
	handle(h, "update", func(req *vmv1.UpdateRequest) (*vmv1.UpdateReply, error) {
		h.updates = append(h.updates, req)
		record, err := h.find(req.GetRef())
		return &vmv1.UpdateReply{Container: record}, err
	})
	handle(h, "config", func(req *vmv1.ConfigRequest) (*vmv1.ConfigReply, error) {
		if _, err := h.find(req.GetRef()); err != nil {
			return nil, err
		}
		return &vmv1.ConfigReply{Config: h.configs[bus.ContainerKey(req.GetRef().GetRoot(), req.GetRef().GetId())]}, nil
	})
	handle(h, "exec", func(req *vmv1.ExecRequest) (*vmv1.ExecReply, error) {
		h.execs = append(h.execs, req)
		if h.onExec != nil {
			if err := h.onExec(req); err != nil {
				return nil, err
			}
		}
		return &vmv1.ExecReply{Channel: 1}, nil
	})
	handle(h, "processes", func(req *vmv1.ProcessesRequest) (*vmv1.ProcessesReply, error) {
		record, err := h.find(req.GetRef())
		if err != nil {
			return nil, err
		}
		reply := &vmv1.ProcessesReply{}
		if record.GetStatus() != vmv1.ContainerStatus_CONTAINER_STATUS_STOPPED {
			reply.Pids = []int32{record.GetRelay().GetPid()}
		}
		return reply, nil
	})
	handle(h, "pause", func(req *vmv1.PauseRequest) (*vmv1.PauseReply, error) {
		record, err := h.find(req.GetRef())
		if err != nil {
			return nil, err
		}
		record.Status = vmv1.ContainerStatus_CONTAINER_STATUS_PAUSED
		return &vmv1.PauseReply{}, nil
	})
	handle(h, "resume", func(req *vmv1.ResumeRequest) (*vmv1.ResumeReply, error) {
		record, err := h.find(req.GetRef())
		if err != nil {
			return nil, err
		}
		if record.GetStatus() != vmv1.ContainerStatus_CONTAINER_STATUS_PAUSED {
			return nil, bus.Errorf(bus.FailedPrecondition, "container not paused")
		}
		record.Status = vmv1.ContainerStatus_CONTAINER_STATUS_RUNNING
		return &vmv1.ResumeReply{}, nil
	})
}

// takeDescriptors is the worker's end of the handover.
func (h *host) takeDescriptors() {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		h.t.Fatal(err)
	}
	if err := unix.Bind(fd, &unix.SockaddrUnix{Name: filepath.Join(h.bus.RunDir, handoverSocket)}); err != nil {
		h.t.Fatal(err)
	}
	if err := unix.Listen(fd, 8); err != nil {
		h.t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			conn, _, err := unix.Accept(fd)
			if err != nil {
				return
			}
			h.takeFrom(conn)
			unix.Close(conn)
		}
	}()
	h.t.Cleanup(func() {
		unix.Shutdown(fd, unix.SHUT_RDWR)
		<-done
		unix.Close(fd)
	})
}

func (h *host) takeFrom(conn int) {
	text, rights := make([]byte, handover.MaxPacket), make([]byte, 4096)
	for {
		n, rn, _, _, err := unix.Recvmsg(conn, text, rights, unix.MSG_CMSG_CLOEXEC)
		if err != nil || n == 0 {
			return
		}
		var packet handover.Packet
		if err := json.Unmarshal(text[:n], &packet); err != nil {
			h.t.Errorf("handover packet %q: %v", text[:n], err)
			return
		}
		messages, _ := unix.ParseSocketControlMessage(rights[:rn])
		for _, m := range messages {
			fds, _ := unix.ParseUnixRights(&m)
			h.mu.Lock()
			h.handed[packet.Token] += len(fds)
			h.mu.Unlock()
			for _, fd := range fds {
				unix.Close(fd)
			}
		}
		if packet.Last {
			unix.Write(conn, []byte(`{"ok":true}`))
			return
		}
	}
}
