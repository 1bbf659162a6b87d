// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package vmworker

import (
	"context"
	"crypto/rand"
	"encoding/base32"
	"errors"
	"fmt"
	"os"
	"strings"

	"google.golang.org/protobuf/types/known/timestamppb"

	"bulkhead/bus"
	vmv1 "bulkhead/proto/vm/v1"
	"bulkhead/vm-worker/hostcgroup"
	"bulkhead/vm-worker/hypervisor"
)

// Reasons for the end of a create that nobody waits for any more.
var (
	errRelayGone = errors.New("the container's relay ended: the caller has gone away")
	errDeleted   = errors.New("the container was deleted while it was being created")
)

// create runs the saga of a container's creation. It is the worker's and not
// the frontend's because the worker outlives the caller: whatever happens to
// either, everything is there at the end or nothing is.
func (w *Worker) create(ctx context.Context, req *vmv1.CreateRequest) (*vmv1.CreateReply, error) {
	return repeatable(ctx, w, "create", req, func(ctx context.Context, _ bool) (*vmv1.CreateReply, error) {
		return w.createNow(ctx, req)
	})
}

func (w *Worker) createNow(ctx context.Context, req *vmv1.CreateRequest) (*vmv1.CreateReply, error) {
	// The descriptors are ours from here on, whatever becomes of the request.
	claimed, claimErr := w.handover.Claim(req.Handover)
	files := handed{files: claimed}
	defer func() { closeAll(files.files) }()
	p, err := newPlan(req, w.cfg)
	if err != nil {
		return nil, err
	}
	p.from, p.whyBoot = w.stock.templates.find(ctx, p) // it may read files, so not under a lock
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	c, mine, err := w.reserve(ctx, p, cancel)
	if err != nil {
		return nil, err
	}
	if !mine {
		return &vmv1.CreateReply{Container: c.snapshot(), Sandbox: c.sb.record()}, nil
	}
	var undo saga
	if claimErr != nil {
		err = bus.Errorf(bus.InvalidArgument, "create of %s: %w", req.Ref.Id, claimErr)
	} else {
		err = c.build(ctx, p, &files, &undo)
	}
	if releaseErr := files.release(); releaseErr != nil {
		w.log.Warn("mounts of a container not let go of", "container", req.Ref.Id, "error", releaseErr)
	}
	if err != nil {
		if cause := context.Cause(ctx); !errors.Is(err, errVMLost) && (errors.Is(cause, errRelayGone) || errors.Is(cause, errDeleted)) {
			err = fmt.Errorf("%w (%w)", cause, err)
		}
		c.abort(ctx, &undo, err)
		return nil, err
	}
	reply := &vmv1.CreateReply{Container: c.snapshot(), Sandbox: c.sb.record()}
	close(c.created)
	return reply, nil
}

// reserve makes the record of a new container and of its sandbox, or finds the
// one that the same operation has made: for a worker that died before it could
// say so. cancel ends the create.
func (w *Worker) reserve(ctx context.Context, p *plan, cancel context.CancelCauseFunc) (c *container, mine bool, err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	op := bus.OperationFrom(ctx)
	if old, ok := w.containers[p.key]; ok {
		if op != "" && old.rec.OperationId == op && closed(old.created) {
			return old, false, nil
		}
		return nil, false, bus.Errorf(bus.AlreadyExists, "container with given ID already exists: %s", p.req.Ref.Id)
	}
	root, err := p.rootfs()
	if err != nil {
		return nil, false, err
	}
	resources, err := resourcesText(p.spec.Linux.Resources)
	if err != nil {
		return nil, false, err
	}
	sb, err := w.sandboxFor(ctx, p) // last: what is taken from the pool is the container's
	if err != nil {
		return nil, false, err
	}
	c = w.newContainer(sb, &vmv1.Container{
		Ref: p.req.Ref, Key: p.key, Sandbox: sb.id,
		Status: vmv1.ContainerStatus_CONTAINER_STATUS_CREATING,
		Bundle: p.req.Bundle, Rootfs: root, OciVersion: p.spec.Version,
		Annotations: p.spec.Annotations, Owner: p.req.Owner,
		Relay: p.req.Relay, Channel: sb.channel(),
		Created: timestamppb.Now(), Cgroup: p.spec.Linux.CgroupsPath,
		Terminal: p.terminal, OperationId: op, Resources: resources, SelinuxLabel: p.processLabel, Followed: p.followed(),
	})
	c.cancel = cancel
	if !sb.join(c) {
		return nil, false, errPodOver(p.req.Ref)
	}
	w.containers[p.key] = c
	w.sandboxes[sb.id] = sb
	return c, true, nil
}

func (p *plan) rootfs() (string, error) {
	if p.req.Rootfs == "" {
		return "", bus.Errorf(bus.InvalidArgument, "create of %s names no rootfs", p.req.Ref.Id)
	}
	return p.req.Rootfs, nil
}

// sandboxFor returns the sandbox a container goes into: the one whose namespaces
// it shares, or a new one. The caller holds w.mu.
func (w *Worker) sandboxFor(ctx context.Context, p *plan) (*sandbox, error) {
	at, err := w.placeLocked(p.req.Ref, p.spec.Annotations, p.req.Joined)
	if err != nil {
		return nil, err
	}
	p.joins = at.joins
	if at.sb != nil {
		if err := at.sb.mergesLike(p); err != nil {
			return nil, err
		}
		return at.sb, at.sb.takes(p)
	}
	if running := w.runningLocked(); running >= w.cfg.MaxVMs {
		return nil, bus.Errorf(bus.ResourceExhausted, "this host already runs %d VMs, the most that [vm] max_vms allows", running)
	}
	if s := w.stock.take(ctx, p); s != nil {
		return s, nil
	}
	return w.newSandbox(&vmv1.Sandbox{
		Id: newSandboxID(), Created: timestamppb.Now(), Selinux: p.labelled(), MountLabels: []string{p.mountLabel},
		TrustClass: p.trustClass(), Mergeable: p.mergeable(w.cfg.MergeClass),
	}), nil
}

var idEncoding = base32.NewEncoding("abcdefghijklmnopqrstuvwxyz234567").WithPadding(base32.NoPadding)

// sandboxPrefix begins the id of every VM.
const sandboxPrefix = "vm-"

// newSandboxID makes an id of 50 random bits: short enough to read, one token
// of a subject, and never used before on this host.
func newSandboxID() string {
	var b [7]byte
	_, _ = rand.Read(b[:]) // never fails: crypto/rand ends the program instead
	return sandboxPrefix + strings.ToLower(idEncoding.EncodeToString(b[:])[:10])
}

// build does the steps of the saga in order, each with its undo.
func (c *container) build(ctx context.Context, p *plan, files *handed, undo *saga) error {
	w, s := c.w, c.sb
	if err := c.openBooks(ctx, p); err != nil {
		return err
	}
	relay, err := openRelay(p.req.Relay)
	if err != nil {
		return bus.Errorf(bus.FailedPrecondition, "the container's relay: %w", err)
	}
	undo.did("take the relay over", c.endRelay)
	c.mu.Lock()
	c.relay = relay
	c.mu.Unlock()
	w.tasks.Go(func() { c.watchInit(relay) })

	over := w.overhead()
	if c.owns() {
		over = w.vmOverhead(p.spec.Linux.Resources, larger(p.size, hypervisor.Size{MemoryBytes: w.baseMemory()}))
	}
	cg, err := hostcgroup.Create(p.spec, c.key, hostcgroup.Options{
		Systemd: p.req.SystemdCgroup, PID: relay.pid, End: c.endRelay, Overhead: over, StateFile: c.cgroupFile(),
	})
	if err != nil {
		return err
	}
	undo.did("make the host cgroup", cg.Destroy)
	undo.did("put the relay into it", c.endRelay)
	c.mu.Lock()
	c.cgroup = cg
	c.mu.Unlock()
	if err := cg.Enter(relay.pid); err != nil {
		return fmt.Errorf("move the relay into its cgroup: %w", err)
	}
	network, err := networkOf(relay, p.req.Relay.StartTime)
	if err != nil {
		return err
	}
	if vm := s.living(); vm != nil && !c.owns() { // a further container of a pod
		undo.did("make container in a shared VM", func(ctx context.Context) error {
			if !s.alive() {
				return nil
			}
			return errors.Join(s.agentDelete(ctx, c.key), vm.DetachMounts(ctx, c.key), vm.DetachDisks(ctx, diskPrefix(c.key)))
		})
		if err := s.admitNetwork(p, network); err != nil {
			return err
		}
		if err := s.fit(ctx); err != nil { // undone by abort, when the container has left
			return err
		}
	} else if err := s.bootWithNetwork(ctx, p, network, cg, undo); err != nil {
		return err
	}
	if err := c.makeInVM(ctx, p, cg, files); err != nil {
		return err
	}
	if c.owns() {
		w.tasks.Go(s.network.follow)
	}
	// Not before: a relay that has a VM's descriptor ends with that VM.
	undo.did("attach the relay", func(context.Context) error { s.router.Detach(c.rec.Channel); return nil })
	if err := c.finish(ctx, p, cg); err != nil {
		if ended := c.endOfVM(); ended != nil {
			return ended
		}
		return err
	}
	w.event(ctx, "container", c.rec.Ref.Id, "created", map[string]string{"sandbox": s.id, "pid": itoa(c.rec.Relay.Pid)})
	// What the host has mounted while the guest made the container was told to nobody.
	if err := c.mirrorMounts(ctx); err != nil {
		w.log.Warn("the container does not see the mounts of the host as they are", "container", c.rec.Ref.Id, "error", err)
	}
	return nil
}

// finish attaches the relay of a container that is in its VM, and makes it "created".
func (c *container) finish(ctx context.Context, p *plan, cg *hostcgroup.Cgroup) error {
	if err := c.attachRelay(ctx, c.rec.Channel, p.req.Relay.Socket); err != nil {
		return err
	}
	if err := cg.ApplyQuota(); err != nil {
		return fmt.Errorf("apply the cpu quota: %w", err)
	}
	return c.commit(ctx)
}

// openBooks writes the record before anything it speaks of exists. Its undo is the
// end of every undo: abort.
func (c *container) openBooks(ctx context.Context, p *plan) error {
	dir := c.w.store.sandboxDir(c.sb.id)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("make the sandbox's directory: %w", err)
	}
	if err := c.sb.update(ctx, func(*vmv1.Sandbox) {}); err != nil {
		return err
	}
	if err := c.set(ctx, func(*vmv1.Container) {}); err != nil {
		return err
	}
	if err := os.WriteFile(c.configFile(), []byte(p.req.Config), 0o600); err != nil {
		return fmt.Errorf("keep the container's configuration: %w", err)
	}
	c.w.event(ctx, "container", c.rec.Ref.Id, "creating", map[string]string{"sandbox": c.sb.id})
	return nil
}

// attachMounts shows the container's file systems to the guest. They end with the
// VM, so only the containers of a pod detach them one by one.
func (c *container) attachMounts(ctx context.Context, p *plan, files *handed) error {
	vm := c.sb.machine()
	if c.sb.onTrial() {
		if err := files.keep(vm); err != nil && !processGone(vm) {
			c.w.log.Debug("another VM could not take the place of this one any more", "sandbox", c.sb.id, "error", err)
		}
	}
	for _, m := range p.mounts {
		if m.Memory != nil {
			continue // the guest has its own
		}
		file, ok := files.file(m.Index)
		if !ok {
			return bus.Errorf(bus.InvalidArgument, "mount %s names descriptor %d of %d handed over", m.Destination, m.Index, len(files.files))
		}
		if err := vm.AttachMount(ctx, file, m.source, m.IsDir, m.ReadOnly); err != nil {
			return fmt.Errorf("share %s with the VM: %w", m.Destination, err)
		}
		files.gave(m.Index, m.source)
	}
	return nil
}

// attachRelay connects the router to a relay, giving it a handle of the VM.
func (c *container) attachRelay(ctx context.Context, channel uint32, socket string) error {
	qemu, err := c.sb.qemuPidfd()
	if err != nil {
		return err
	}
	defer qemu.Close()
	if err := c.sb.router.Attach(ctx, channel, socket, qemu); err != nil {
		return fmt.Errorf("attach the relay: %w", err)
	}
	return nil
}

// commit makes the container "created", unless its relay has ended meanwhile.
func (c *container) commit(ctx context.Context) error {
	err := c.sb.update(ctx, func(rec *vmv1.Sandbox) { rec.Containers = append(rec.Containers, c.key) })
	if err != nil {
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.relay.ended() {
		return errRelayGone
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	c.rec.Status = vmv1.ContainerStatus_CONTAINER_STATUS_CREATED
	return c.saveLocked(ctx)
}

// abort rolls everything back and forgets the container.
func (c *container) abort(ctx context.Context, undo *saga, err error) {
	w := c.w
	ctx = context.WithoutCancel(ctx)
	left := undo.rollback(ctx)
	if c.sb.leave(c.key) { // it may be the last of a pod by now
		left = errors.Join(left, c.sb.kill(ctx, "the creation of its last container was undone"))
	} else if c.sb.alive() {
		c.sb.refit(ctx)
	}
	c.mu.Lock()
	c.createErr = err
	c.mu.Unlock()
	if left == nil {
		left = c.remove(ctx)
	}
	if left != nil {
		w.log.Error("create not wholly rolled back; delete the container to try again", "container", c.rec.Ref.Id, "error", left)
		c.park(ctx, "it was never created, and could not be wholly undone")
	}
	w.event(ctx, "container", c.rec.Ref.Id, "create_failed", map[string]string{"error": err.Error()})
	close(c.created)
}

// overhead is what the host cgroup allows beside the container's own limits: the
// guest's kernel and agent, and the hypervisor around them.
func (w *Worker) overhead() hostcgroup.Overhead {
	o := hostcgroup.DefaultOverhead
	o.MemoryBytes += int64(w.cfg.OverheadMiB) << 20
	return o
}

func closeAll(files []*os.File) {
	for _, f := range files {
		_ = f.Close()
	}
}

func closed(c <-chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}
