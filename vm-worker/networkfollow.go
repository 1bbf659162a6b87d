// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package vmworker

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"slices"
	"strings"
	"time"

	"bulkhead/bus"
	netv1 "bulkhead/proto/net/v1"
)

const (
	// watchTime is how long the net service may keep a question for changes.
	watchTime = 50 * time.Second
	// Between two attempts to ask a net service that is not there.
	askAgainMin = 50 * time.Millisecond
	askAgainMax = 2 * time.Second
	// Between two attempts to give a VM what it did not take.
	syncAgainMin = 500 * time.Millisecond
	syncAgainMax = 30 * time.Second
)

// followNetworks has the net service tell of every change of the networks of all
// sandboxes, for as long as the worker lives, through restarts of the service. Each
// run of it tells everything anew, so that nothing that happened meanwhile is lost:
// sandboxes it does not know are attached, those of VMs that are no more detached.
func (w *Worker) followNetworks() {
	ctx := w.context()
	epoch, after := "", uint64(0)
	for pause := askAgainMin; ctx.Err() == nil; {
		reply, err := w.askNetworks(ctx, epoch, after)
		if err != nil {
			if bus.ReasonOf(err) != bus.Unavailable && bus.ReasonOf(err) != bus.DeadlineExceeded {
				w.log.Warn("changes of networks are not told", "error", err)
			}
			epoch, after = "", 0 // what was missed is told anew
			select {
			case <-time.After(pause):
			case <-ctx.Done():
			}
			pause = min(2*pause, askAgainMax)
			continue
		}
		pause = askAgainMin
		w.takeNetworks(reply, reply.GetEpoch() != epoch)
		epoch, after = reply.GetEpoch(), reply.GetRevision()
	}
}

// askNetworks waits for changes. What comes in several answers it puts together.
func (w *Worker) askNetworks(ctx context.Context, epoch string, after uint64) (*netv1.WatchReply, error) {
	ctx, cancel := context.WithTimeout(ctx, watchTime)
	defer cancel()
	var whole *netv1.WatchReply
	for {
		reply, err := callNet[netv1.WatchReply](ctx, w, "watch", &netv1.WatchRequest{Epoch: epoch, After: after})
		if err != nil {
			return nil, err
		}
		if whole != nil && whole.Epoch == reply.GetEpoch() { // else another run tells everything anew
			reply.Attachments = append(whole.Attachments, reply.Attachments...)
			reply.Detached = append(whole.Detached, reply.Detached...)
		}
		if !reply.GetMore() {
			return reply, nil
		}
		whole, epoch, after = reply, reply.GetEpoch(), reply.GetRevision()
	}
}

// takeNetworks passes on what the net service has told, which is all it knows when it is a new one.
func (w *Worker) takeNetworks(reply *netv1.WatchReply, all bool) {
	told := map[string]bool{}
	for _, a := range reply.GetAttachments() {
		told[a.GetSandbox()] = true
		if s := w.attachable(a.GetSandbox()); s != nil {
			s.network.want(a)
			if !permits(a.GetPolicy(), s.record().GetNetworkPolicy()) { // its record was lost
				w.attachAgain(s)
			}
			continue
		}
		if strings.HasPrefix(a.GetSandbox(), sandboxPrefix) { // the others are a person's
			w.tasks.Go(func() { w.detachLeft(a.GetSandbox()) })
		}
	}
	lost := map[string]bool{}
	for _, id := range reply.GetDetached() {
		lost[id] = true
	}
	if !all && len(lost) == 0 {
		return
	}
	w.mu.Lock()
	var sandboxes []*sandbox
	for _, s := range w.sandboxes {
		sandboxes = append(sandboxes, s)
	}
	w.mu.Unlock()
	for _, s := range sandboxes {
		if (all && !told[s.id] || lost[s.id]) && s.alive() && w.attachable(s.id) == s {
			w.attachAgain(s)
		}
	}
}

func (w *Worker) attachAgain(s *sandbox) {
	w.tasks.Go(func() {
		err := s.network.attach(w.context())
		switch {
		case err == nil:
		case s.inUse():
			w.log.Warn("sandbox not attached to its network", "sandbox", s.id, "error", err)
		default: // its containers have ended, and their namespace with them; the VM is about to
			w.log.Debug("sandbox not attached to its network any more", "sandbox", s.id, "error", err)
		}
	})
}

// inUse tells whether a container of the VM still runs.
func (s *sandbox) inUse() bool {
	return slices.ContainsFunc(s.memberList(), func(c *container) bool {
		c.mu.Lock()
		defer c.mu.Unlock()
		return c.relay != nil && !c.relay.ended()
	})
}

// permits tells whether a policy in force lets a VM send what was asked for, and no more
// where that was denied. What is configured may permit more.
func permits(inForce, asked *netv1.Policy) bool {
	if asked.GetDenySpoofing() && inForce.GetAllowSpoofing() {
		return false
	}
	return inForce.GetAllowSpoofing() || !asked.GetAllowSpoofing() &&
		holdsAll(inForce.GetAllowedMacs(), asked.GetAllowedMacs()) && holdsAll(inForce.GetAllowedAddresses(), asked.GetAllowedAddresses())
}

// holdsAll tells whether a list has all addresses of another, however they are written.
func holdsAll(list, others []string) bool {
	has := map[string]bool{}
	for _, address := range list {
		has[plainAddress(address)] = true
	}
	return !slices.ContainsFunc(others, func(address string) bool { return !has[plainAddress(address)] })
}

// plainAddress is a MAC address or a prefix in the one way in which equal ones are written.
func plainAddress(text string) string {
	if prefix, err := netip.ParsePrefix(text); err == nil {
		return prefix.Masked().String()
	}
	if mac, err := net.ParseMAC(text); err == nil {
		return mac.String()
	}
	return text
}

// attachable finds a sandbox that has or will have a VM.
func (w *Worker) attachable(id string) *sandbox {
	w.mu.Lock()
	s := w.sandboxes[id]
	w.mu.Unlock()
	if s == nil {
		return nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closing {
		return nil
	}
	return s
}

// detachLeft detaches a sandbox that is no more, whose end nobody could tell the net service.
func (w *Worker) detachLeft(id string) {
	ctx, cancel := context.WithTimeout(w.context(), netTime)
	defer cancel()
	if err := w.detachNetwork(ctx, id); err != nil {
		w.log.Warn("network of a VM that is no more not taken back", "sandbox", id, "error", err)
	}
}

// follow keeps the VM's network what is wanted, until the VM or the worker ends.
func (n *network) follow() {
	ctx, cancel := context.WithCancel(n.s.lifetime())
	defer cancel()
	defer context.AfterFunc(n.s.w.context(), cancel)()
	said := ""
	for pause := syncAgainMin; ; {
		err := n.settle(ctx)
		switch {
		case ctx.Err() != nil:
			return
		case err == nil:
			said, pause = "", syncAgainMin
		case said != err.Error(): // once, not at each attempt
			said = err.Error()
			n.s.w.log.Warn("the VM's network is not as its namespace", "sandbox", n.s.id, "error", err)
			n.s.w.event(ctx, "sandbox", n.s.id, "network_failed", map[string]string{"error": said})
		}
		var again <-chan time.Time
		if err != nil && bus.ReasonOf(err) != bus.FailedPrecondition { // what the guest cannot have it cannot have later
			again = time.After(pause)
			pause = min(2*pause, syncAgainMax)
		}
		select {
		case <-n.changed:
			pause = syncAgainMin
		case <-again:
		case <-ctx.Done():
			return
		}
	}
}

func (n *network) settle(ctx context.Context) error {
	if n.settled() {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, syncTime)
	defer cancel()
	err := n.sync(ctx)
	if err != nil && errors.Is(ctx.Err(), context.DeadlineExceeded) {
		return bus.Errorf(bus.DeadlineExceeded, "%w", err)
	}
	return err
}
