// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package vmworker

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"sync"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/types/known/timestamppb"

	"bulkhead/bus"
	vmv1 "bulkhead/proto/vm/v1"
)

// maxExecs bounds the further processes of one container: each is a relay on
// the host and a process in the guest.
const maxExecs = 1000

// execProcess is a further process in a container.
type execProcess struct {
	rec   *vmv1.Exec
	relay *hostProcess
	begun chan struct{} // closed when the request that made it is answered and told
	gone  chan struct{} // closed when its relay has ended and its record is gone

	err  error      // why it could not be begun; read once begun is closed
	exit *vmv1.Exit // what the guest said; guarded by the container's mu
}

func newExec(rec *vmv1.Exec, relay *hostProcess) *execProcess {
	return &execProcess{rec: rec, relay: relay, begun: make(chan struct{}), gone: make(chan struct{})}
}

// exec runs a further process in a running container. Execs of one container
// run side by side; only the bookkeeping is serial.
func (w *Worker) exec(ctx context.Context, req *vmv1.ExecRequest) (*vmv1.ExecReply, error) {
	c, err := w.find(req.Ref)
	if err != nil {
		return nil, err
	}
	if req.ExecId == "" {
		return nil, bus.Errorf(bus.InvalidArgument, "exec in %s needs an exec id", req.Ref.Id)
	}
	var process specs.Process
	if err := json.Unmarshal([]byte(req.Process), &process); err != nil {
		return nil, bus.Errorf(bus.InvalidArgument, "process of exec %s is not a runtime-spec process: %w", req.ExecId, err)
	}
	if err := c.sb.takesExec(&process); err != nil {
		return nil, err
	}
	if err := c.canExec(req); err != nil {
		return nil, err
	}
	relay, err := openRelay(req.Relay)
	if err != nil {
		return nil, bus.Errorf(bus.FailedPrecondition, "the exec's relay: %w", err)
	}
	x := newExec(&vmv1.Exec{Id: req.ExecId, Relay: req.Relay, Channel: c.sb.channel(), Started: timestamppb.Now()}, relay)
	earlier, err := c.addExec(ctx, x)
	if err != nil {
		relay.close()
		return nil, err
	}
	if earlier != nil {
		relay.close()
		return earlier.outcome(ctx)
	}
	// From here on the end of the relay, however it comes, cleans up.
	w.tasks.Go(func() { c.watchExec(x) })
	defer close(x.begun)
	if x.err = c.runExec(ctx, x, req); x.err != nil {
		_ = relay.signal(unix.SIGKILL)
		return nil, x.err
	}
	w.event(ctx, "container", req.Ref.Id, "exec_started", map[string]string{"exec": x.rec.Id, "pid": itoa(x.rec.Relay.Pid)})
	return &vmv1.ExecReply{Channel: x.rec.Channel}, nil
}

// outcome answers a repeated request with the outcome of the first.
func (x *execProcess) outcome(ctx context.Context) (*vmv1.ExecReply, error) {
	select {
	case <-x.begun:
	case <-ctx.Done():
		return nil, bus.Errorf(bus.DeadlineExceeded, "exec %s is still being begun: %w", x.rec.Id, ctx.Err())
	}
	if x.err != nil {
		return nil, x.err
	}
	return &vmv1.ExecReply{Channel: x.rec.Channel}, nil
}

func (c *container) canExec(req *vmv1.ExecRequest) error {
	switch status := c.status(); {
	case status == vmv1.ContainerStatus_CONTAINER_STATUS_CREATING:
		return bus.Errorf(bus.FailedPrecondition, "cannot exec in container %s: it is still being created", req.Ref.Id)
	case status == vmv1.ContainerStatus_CONTAINER_STATUS_PAUSED && !req.IgnorePaused:
		return bus.Errorf(bus.FailedPrecondition, "cannot exec in a paused container (use --ignore-paused to override)")
	case !live(status):
		return bus.Errorf(bus.FailedPrecondition, "cannot exec in a stopped container")
	}
	return nil
}

// addExec records the exec, or finds the one the same relay already serves: a
// repeated request.
func (c *container) addExec(ctx context.Context, x *execProcess) (replay *execProcess, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if old, ok := c.execs[x.rec.Id]; ok {
		if old.rec.Relay.Pid == x.rec.Relay.Pid && old.rec.Relay.StartTime == x.rec.Relay.StartTime {
			return old, nil
		}
		return nil, bus.Errorf(bus.AlreadyExists, "exec %s already exists in container %s", x.rec.Id, c.rec.Ref.Id)
	}
	if !live(c.rec.Status) { // it ended while the request was looked at
		return nil, bus.Errorf(bus.FailedPrecondition, "cannot exec in a stopped container")
	}
	if len(c.execs) >= maxExecs {
		return nil, bus.Errorf(bus.ResourceExhausted, "container %s already has %d execs", c.rec.Ref.Id, len(c.execs))
	}
	c.execs[x.rec.Id] = x
	c.rec.Execs = append(c.rec.Execs, x.rec)
	if err := c.saveLocked(ctx); err != nil {
		c.dropExecLocked(x)
		return nil, err
	}
	return nil, nil
}

// dropExecLocked takes an exec out of the books. The caller holds c.mu.
func (c *container) dropExecLocked(x *execProcess) {
	delete(c.execs, x.rec.Id)
	c.rec.Execs = slices.DeleteFunc(c.rec.Execs, func(e *vmv1.Exec) bool { return e.Id == x.rec.Id })
}

// runExec has the guest start the process. Meanwhile the relay moves into the container's cgroup, which makes the kernel wait
// until it has seen every processor (cgroup v1: percpu_down_write of cgroup_threadgroup_rwsem), for as long as a tenth of the whole.
func (c *container) runExec(ctx context.Context, x *execProcess, req *vmv1.ExecRequest) error {
	entered := make(chan error, 1)
	c.w.tasks.Go(func() { entered <- c.takeExecRelay(x) })
	err := c.attachRelay(ctx, x.rec.Channel, req.Relay.Socket)
	if err == nil {
		err = c.sb.agentExec(ctx, c.key, x.rec.Channel, req)
	}
	// Nobody is told of an exec before its relay is where it belongs: what it uses is the container's.
	if enterErr := <-entered; err == nil {
		err = enterErr
	}
	return err
}

// takeExecRelay moves an exec's relay into the container's cgroup, if it has not ended already with its process.
func (c *container) takeExecRelay(x *execProcess) error {
	cgroup := c.hostCgroup()
	if cgroup == nil || x.relay.ended() { // its pid may be another process's by now
		return nil
	}
	if err := cgroup.Enter(x.relay.pid); err != nil && !x.relay.ended() {
		return fmt.Errorf("move the exec's relay into the cgroup: %w", err)
	}
	return nil
}

// watchExec waits for the end of an exec's relay, which is the end of the exec.
func (c *container) watchExec(x *execProcess) {
	if !x.relay.wait() {
		return // the worker stops; the exec lives on
	}
	x.relay.close()
	c.forgetExec(x)
}

// forgetExec cleans up after an exec without a relay. A process that has not
// ended with its relay is taken after it.
func (c *container) forgetExec(x *execProcess) {
	ctx := context.Background()
	<-x.begun // or its process might begin after we looked for it; the request has a deadline
	c.w.removeRelaySocket(x.rec.Relay)
	c.sb.router.Detach(x.rec.Channel)
	c.mu.Lock()
	exit := x.exit
	c.mu.Unlock()
	if exit == nil && c.sb.alive() {
		// For a process that has ended this finds nothing, which is the rule.
		if err := c.sb.agentSignal(ctx, c.key, x.rec.Id, int32(unix.SIGKILL), false); err != nil && bus.ReasonOf(err) != bus.NotFound {
			c.w.log.Debug("ended exec not found in its guest", "container", c.rec.Ref.Id, "exec", x.rec.Id, "error", err)
		}
	}
	c.mu.Lock()
	c.dropExecLocked(x)
	if err := c.saveLocked(ctx); err != nil {
		c.w.log.Debug("end of exec not recorded", "container", c.rec.Ref.Id, "error", err)
	}
	c.mu.Unlock()
	attributes := map[string]string{"exec": x.rec.Id}
	if exit != nil {
		attributes["exit_code"] = itoa(exit.Code)
		attributes["oom_killed"] = boolText(exit.OomKilled)
	}
	c.w.event(ctx, "container", c.rec.Ref.Id, "exec_exited", attributes)
	close(x.gone)
}

// endExecs makes sure that the execs end with their container: their relays
// mostly do by themselves, as members of its PID namespace or holders of its VM.
func (c *container) endExecs(ctx context.Context) {
	c.mu.Lock()
	execs := slices.Collect(maps.Values(c.execs))
	c.mu.Unlock()
	var all sync.WaitGroup
	for _, x := range execs {
		all.Go(func() {
			if err := endProcess(ctx, x.relay, relayTime); err != nil {
				c.w.log.Error("relay of an exec not ended", "container", c.rec.Ref.Id, "exec", x.rec.Id, "error", err)
			}
			select {
			case <-x.gone:
			case <-c.w.stopping:
			case <-ctx.Done():
			}
		})
	}
	all.Wait()
}
