// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package vmworker

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"strings"
	"time"

	"google.golang.org/protobuf/proto"

	"bulkhead/bus"
	agentv1 "bulkhead/proto/agent/v1"
	vmv1 "bulkhead/proto/vm/v1"
)

// agentTime bounds a request to an agent that has nothing long to do.
const agentTime = 10 * time.Second

// processorTime bounds a request in which a guest brings up processors: its kernel
// gives each ten seconds, and a busy host needs them.
const processorTime = 30 * time.Second

// entropyBytes seeds a guest's random number generator: twice what its
// ChaCha20 key holds.
const entropyBytes = 64

// callAgent asks the agent of a sandbox. After a restart of the worker the
// guest's link is opened anew, so a request waits for the agent's first word. The
// end of the VM ends it.
func callAgent[Resp any, PResp interface {
	*Resp
	proto.Message
}](ctx context.Context, s *sandbox, method string, req proto.Message) (PResp, error) {
	if s.living() == nil {
		return nil, errVMEnded(s.id)
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	life := s.lifetime()
	defer context.AfterFunc(life, cancel)()
	wait, stop := context.WithTimeout(ctx, agentTime)
	defer stop()
	select { // whatever else ends the wait, the request tells what that means for it
	case <-s.answers():
	case <-wait.Done():
	}
	reply, err := bus.CallAgent[Resp, PResp](ctx, s.w.conn, s.id, method, req)
	if err != nil && life.Err() != nil {
		return nil, errVMEnded(s.id)
	}
	return reply, err
}

// errVMEnded is the answer for a guest that is no more.
func errVMEnded(id string) error {
	return bus.Errorf(bus.Unavailable, "the VM %s has ended", id)
}

// configure gives the guest its identity, clock and entropy.
func (s *sandbox) configure(ctx context.Context, p *plan, limit time.Duration) error {
	entropy := make([]byte, entropyBytes)
	_, _ = rand.Read(entropy) // never fails: crypto/rand ends the program instead
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	_, err := callAgent[agentv1.ConfigureReply](ctx, s, "configure", &agentv1.ConfigureRequest{
		Vm: s.id, Hostname: p.spec.Hostname, UnixNanos: time.Now().UnixNano(), Entropy: entropy, Vcpus: p.size.VCPUs, Memory: s.machineMemory(),
	})
	return err
}

// agentResize tells the guest what its machine has become.
func (s *sandbox) agentResize(ctx context.Context, vcpus uint32) error {
	ctx, cancel := context.WithTimeout(ctx, processorTime)
	defer cancel()
	_, err := callAgent[agentv1.ResizeReply](ctx, s, "resize", &agentv1.ResizeRequest{Vcpus: vcpus, Memory: s.machineMemory()})
	return err
}

// agentMemory tells the guest what has become of its memory.
func (s *sandbox) agentMemory(ctx context.Context, req *agentv1.MemoryRequest) error {
	ctx, cancel := context.WithTimeout(ctx, agentTime)
	defer cancel()
	_, err := callAgent[agentv1.MemoryReply](ctx, s, "memory", req)
	return err
}

// agentAgrees asks the guest whether what a wish of its leaves may be taken.
func (s *sandbox) agentAgrees(ctx context.Context, number uint64) (bool, error) {
	ctx, cancel := context.WithTimeout(ctx, agentTime)
	defer cancel()
	reply, err := callAgent[agentv1.MemoryReply](ctx, s, "memory", &agentv1.MemoryRequest{Ask: true, Number: number})
	return reply.GetAgreed(), err
}

// agentCreate makes the container in the guest; the deadline is the create's own,
// since nobody can say how long a big configuration takes under emulation.
func (s *sandbox) agentCreate(ctx context.Context, rec *vmv1.Container, p *plan) error {
	req := &agentv1.CreateRequest{
		Container: rec.Key, Config: p.req.Config, Channel: rec.Channel, Rootfs: rec.Key + "/rootfs",
		Joins: p.joins, Id: rec.Ref.Id, Bundle: rec.Bundle,
		Disks: p.disksForAgent(), Share: p.share, OwnNetwork: p.ownNetwork,
	}
	for _, m := range p.mounts {
		if m.Destination == "/" {
			continue
		}
		share := &agentv1.ShareMount{Destination: m.Destination, Source: m.source, ReadOnly: m.ReadOnly}
		if memory := m.Memory; memory != nil {
			share.Memory, share.MemoryBytes = fmt.Sprintf("%x-%x", memory.Device, memory.Inode), memory.SizeBytes
		}
		req.Shares = append(req.Shares, share)
	}
	_, err := callAgent[agentv1.CreateReply](ctx, s, "create", req)
	return s.plainWords(err)
}

func (s *sandbox) agentStart(ctx context.Context, key string) error {
	_, err := callAgent[agentv1.StartReply](ctx, s, "start", &agentv1.StartRequest{Container: key})
	return s.plainWords(err)
}

func (s *sandbox) agentExec(ctx context.Context, key string, channel uint32, req *vmv1.ExecRequest) error {
	_, err := callAgent[agentv1.ExecReply](ctx, s, "exec", &agentv1.ExecRequest{
		Container: key, ExecId: req.ExecId, Process: req.Process, Channel: channel, IgnorePaused: req.IgnorePaused,
	})
	return s.plainWords(err)
}

// plainWords takes the mark of the guest off what it says about a user's own
// program: engines and people know these sentences as runc's. The metadata
// still tell where it comes from, and its text stays bounded and clean.
func (s *sandbox) plainWords(err error) error {
	var told *bus.Error
	if errors.As(err, &told) && told.Metadata["from"] == "guest" {
		told.Message = strings.TrimPrefix(told.Message, "guest "+s.id+": ")
	}
	return err
}

func (s *sandbox) agentSignal(ctx context.Context, key, exec string, signal int32, all bool) error {
	ctx, cancel := context.WithTimeout(ctx, agentTime)
	defer cancel()
	_, err := callAgent[agentv1.SignalReply](ctx, s, "signal", &agentv1.SignalRequest{
		Container: key, ExecId: exec, Signal: signal, All: all,
	})
	return err
}

func (s *sandbox) agentUpdate(ctx context.Context, key, resources string) error {
	ctx, cancel := context.WithTimeout(ctx, agentTime)
	defer cancel()
	_, err := callAgent[agentv1.UpdateReply](ctx, s, "update", &agentv1.UpdateRequest{Container: key, Resources: resources})
	return err
}

func (s *sandbox) agentPause(ctx context.Context, key string) error {
	ctx, cancel := context.WithTimeout(ctx, agentTime)
	defer cancel()
	_, err := callAgent[agentv1.PauseReply](ctx, s, "pause", &agentv1.PauseRequest{Container: key})
	return err
}

func (s *sandbox) agentResume(ctx context.Context, key string) error {
	ctx, cancel := context.WithTimeout(ctx, agentTime)
	defer cancel()
	_, err := callAgent[agentv1.ResumeReply](ctx, s, "resume", &agentv1.ResumeRequest{Container: key})
	return err
}

// agentStatus tells what exists in the guest, by the guest's own word.
func (s *sandbox) agentStatus(ctx context.Context) (*agentv1.StatusReply, error) {
	return callAgent[agentv1.StatusReply](ctx, s, "status", &agentv1.StatusRequest{})
}

func (s *sandbox) agentDelete(ctx context.Context, key string) error {
	ctx, cancel := context.WithTimeout(ctx, agentTime)
	defer cancel()
	_, err := callAgent[agentv1.DeleteReply](ctx, s, "delete", &agentv1.DeleteRequest{Container: key})
	return err
}
