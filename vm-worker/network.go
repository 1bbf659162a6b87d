// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package vmworker

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	"google.golang.org/protobuf/proto"

	"bulkhead/bus"
	agentv1 "bulkhead/proto/agent/v1"
	netv1 "bulkhead/proto/net/v1"
	vmv1 "bulkhead/proto/vm/v1"
	"bulkhead/vm-worker/hypervisor"
)

// network is what a VM has of the network namespace of its first container. What
// the net service says of that namespace is wanted, QEMU and the agent say what is,
// and sync makes the one the other: after each change, in any order, again and again.
type network struct {
	s *sandbox

	turn    chan struct{} // a mutex of what the VM has, that a context can give up on: holds one token
	changed chan struct{} // capacity 1: wanted is another
	gone    chan struct{} // closed when the sandbox is detached, as far as that can be done now

	mu      sync.Mutex        // guards all below
	wanted  *netv1.Attachment // nil: not attached
	applied *netv1.Attachment // what the VM has
	told    uint64            // revision of what the agent was told last
	over    bool              // nothing is attached any more
}

func newNetwork(s *sandbox) *network {
	return &network{s: s, turn: make(chan struct{}, 1), changed: make(chan struct{}, 1), gone: make(chan struct{})}
}

// want takes what the net service says. What is older than what is known does not count.
func (n *network) want(a *netv1.Attachment) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.over || a == nil || n.wanted != nil && a.GetRevision() < n.wanted.GetRevision() && proto.Equal(a.GetAttached(), n.wanted.GetAttached()) {
		return
	}
	n.wanted = a
	select {
	case n.changed <- struct{}{}:
	default: // somebody is about to look
	}
}

func (n *network) wants() *netv1.Attachment {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.wanted
}

// settled tells whether the VM has what is wanted.
func (n *network) settled() bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.wanted == nil && n.applied == nil || n.wanted != nil && n.applied != nil && sameNetwork(n.wanted, n.applied)
}

func sameNetwork(a, b *netv1.Attachment) bool {
	return proto.Equal(a.GetAttached(), b.GetAttached()) && proto.Equal(a.GetNetwork(), b.GetNetwork()) && cardsOf(a) == cardsOf(b)
}

// cardsOf counts the cards that an attachment is for. What is about to be taken back of a link that went is none.
func cardsOf(a *netv1.Attachment) (n int) {
	for _, nic := range a.GetNics() {
		if linkOf(a, nic.GetLink()) != nil {
			n++
		}
	}
	return n
}

// lock waits for the turn to change what the VM has.
func (n *network) lock(ctx context.Context) error {
	select {
	case n.turn <- struct{}{}:
		return nil
	case <-ctx.Done():
		return bus.Errorf(bus.DeadlineExceeded, "the network of sandbox %s is being changed: %w", n.s.id, ctx.Err())
	}
}

func (n *network) unlock() { <-n.turn }

// beginning is the first attach of a sandbox, under way beside the boot of its VM.
type beginning struct {
	n     *network
	ended chan struct{}
	err   error // once ended
	stop  context.CancelCauseFunc
}

// begin attaches the sandbox to its namespace and plugs its network cards in as
// soon as there is a VM. A boot takes longer, so nobody waits for it. When it fails
// it ends the boot, by stop.
func (n *network) begin(ctx context.Context, stop context.CancelCauseFunc) *beginning {
	b := &beginning{n: n, ended: make(chan struct{}), stop: stop}
	go func() {
		defer close(b.ended)
		if b.err = n.first(ctx); b.err != nil {
			stop(b.err)
		}
	}()
	return b
}

func (n *network) first(ctx context.Context) error {
	began := time.Now()
	if err := n.attach(ctx); err != nil {
		return err
	}
	n.s.phase("net_attach", began)
	if n.wants() == nil {
		return nil // an empty namespace, and no service
	}
	select {
	case <-n.s.launched:
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	if err := n.lock(ctx); err != nil {
		return err
	}
	defer n.unlock()
	vm := n.s.machine()
	_, err := n.plug(ctx, n.wants())
	if err != nil && (vm == nil || n.s.machine() != vm || errors.Is(err, hypervisor.ErrEnding) || processGone(vm)) {
		return nil // whoever waits for the VM says so, and another in its place gets its cards by sync
	}
	return err
}

// wait is for the end of the first attach.
func (b *beginning) wait() error {
	<-b.ended
	return b.err
}

// undo ends what is under way and detaches.
func (b *beginning) undo(context.Context) error {
	b.stop(errors.New("the creation of the container is undone"))
	<-b.ended
	b.n.detach()
	return nil // what could not be detached is when the net service is there again
}

// attach has the net service wire the sandbox to its namespace. Without that
// service a container whose namespace is empty runs all the same.
func (n *network) attach(ctx context.Context) error {
	ns := n.s.namespace()
	if ns == nil {
		return nil // of a worker that knew no networks
	}
	ctx, cancel := context.WithTimeout(ctx, netTime)
	defer cancel()
	reply, err := callNet[netv1.AttachReply](ctx, n.s.w, "attach", &netv1.AttachRequest{
		Sandbox: n.s.id, Namespace: ns, Policy: n.s.record().GetNetworkPolicy(),
	})
	if bus.ReasonOf(err) == bus.Unavailable {
		return runWithoutNet(ns, err)
	}
	if err != nil {
		return err
	}
	n.want(reply.GetAttachment())
	n.mu.Lock()
	over := n.over
	n.mu.Unlock()
	if over { // the VM ended meanwhile, and its detach may have come first
		return n.s.w.detachNetwork(ctx, n.s.id)
	}
	return nil
}

// runWithoutNet permits a sandbox without the net service as long as its namespace has nothing.
func runWithoutNet(ns *netv1.Namespace, unavailable error) error {
	has, err := firstInterface(ns.GetPid())
	if err != nil {
		return err
	}
	if has == "" {
		return nil
	}
	return bus.Errorf(bus.Unavailable, "the container's network namespace has the interface %q, and the service that gives VMs their networks is not there: "+
		"start it (\"systemctl start bulkhead\", or \"net\" among [host] services, or bulkhead-network beside the daemon), or use --network none: %w", has, unavailable)
}

// refresh makes the VM's network what its namespace has at this moment, for a
// container that is about to start: engines wire networks up until then.
func (n *network) refresh(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, refreshTime)
	defer cancel()
	reply, err := callNet[netv1.InspectReply](ctx, n.s.w, "inspect", &netv1.InspectRequest{Sandbox: n.s.id})
	switch bus.ReasonOf(err) {
	case "":
		n.want(reply.GetAttachment())
	case bus.Unavailable:
		if n.wants() != nil {
			return nil // the network it has goes on without the service
		}
		return runWithoutNet(n.s.namespace(), err)
	case bus.NotFound:
		if err := n.attach(ctx); err != nil {
			return err
		}
	default:
		return err
	}
	if n.settled() {
		return nil
	}
	return n.sync(ctx)
}

// sync makes what the VM has what is wanted: cards that are missing are plugged
// in, the guest is told the whole, and cards that are too many are taken out. It may
// be done again at any time. What the guest's kernel or the VM cannot have is an error, after the rest is done.
func (n *network) sync(ctx context.Context) error {
	if err := n.lock(ctx); err != nil {
		return err
	}
	defer n.unlock()
	a := n.wants()
	vm := n.s.living()
	if a == nil || vm == nil {
		return nil
	}
	cards, err := n.plug(ctx, a)
	if err != nil {
		return err
	}
	if n.idle(a, cards) {
		return nil
	}
	problems, err := n.tell(ctx, a, cards)
	if err != nil {
		return err
	}
	for _, l := range a.GetNetwork().GetLinks() {
		if linkOf(a, l.GetId()) != nil {
			delete(cards, cardID(a, l.GetId()))
		}
	}
	for id := range cards { // what is left of them
		if err := vm.DetachNIC(ctx, id); err != nil {
			return err
		}
	}
	n.mu.Lock()
	n.applied = a
	n.mu.Unlock()
	n.s.w.event(ctx, "sandbox", n.s.id, "network", map[string]string{"revision": fmt.Sprint(a.GetRevision()), "links": linkNames(a)})
	if problems = append(problems, a.GetProblems()...); len(problems) > 0 {
		return bus.Errorf(bus.FailedPrecondition, "the VM cannot have all of the container's network: %s", strings.Join(problems, "; "))
	}
	return nil
}

// idle tells whether there is nothing to say: no network is wanted, and none was.
func (n *network) idle(a *netv1.Attachment, cards map[string]string) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.applied != nil || len(cards)+len(a.GetNics())+len(a.GetNetwork().GetListeners())+len(a.GetProblems()) > 0 {
		return false
	}
	n.applied = a
	return true
}

func linkNames(a *netv1.Attachment) string {
	var names []string
	for _, l := range a.GetNetwork().GetLinks() {
		names = append(names, l.GetName())
	}
	return strings.Join(names, ",")
}

// tell gives the agent the network, whole, as far as there are cards for it.
func (n *network) tell(ctx context.Context, a *netv1.Attachment, cards map[string]string) (problems []string, err error) {
	req := &agentv1.NetworkRequest{Revision: n.nextRevision(), Network: withCards(a)}
	for _, l := range req.Network.Links {
		nic := &agentv1.GuestNic{Link: l.GetId(), Mac: cards[cardID(a, l.GetId())]}
		for _, host := range a.GetNics() {
			if host.GetLink() == l.GetId() {
				nic.Queues = host.GetQueues()
			}
		}
		req.Nics = append(req.Nics, nic)
	}
	if len(a.GetNetwork().GetListeners()) > 0 {
		n.s.offer()
	}
	reply, err := n.s.agentNetwork(ctx, req)
	if err != nil {
		return nil, err
	}
	for _, p := range reply.GetProblems() {
		problems = append(problems, printable(p, maxProblem))
	}
	return problems[:min(len(problems), maxProblems)], nil
}

// What a guest may complain about in one answer.
const (
	maxProblems = 20
	maxProblem  = 300
)

// nextRevision numbers what the agent is told so that it grows through restarts of the worker.
func (n *network) nextRevision() uint64 {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.told = max(n.told+1, uptimeNanos())
	return n.told
}

// withCards is the network without the links that have no card, as model none has it, and
// without what leads over them.
func withCards(a *netv1.Attachment) *netv1.Network {
	all := a.GetNetwork()
	some := &netv1.Network{Listeners: all.GetListeners()}
	for _, l := range all.GetLinks() {
		if linkOf(a, l.GetId()) != nil {
			some.Links = append(some.Links, l)
		}
	}
	for _, r := range all.GetRoutes() {
		ok := r.GetLink() == "" || linkOf(a, r.GetLink()) != nil
		for _, hop := range r.GetNextHops() {
			ok = ok && linkOf(a, hop.GetLink()) != nil
		}
		if ok {
			some.Routes = append(some.Routes, r)
		}
	}
	for _, r := range all.GetRules() {
		if (r.GetInLink() == "" || linkOf(a, r.GetInLink()) != nil) && (r.GetOutLink() == "" || linkOf(a, r.GetOutLink()) != nil) {
			some.Rules = append(some.Rules, r)
		}
	}
	for _, neighbour := range all.GetNeighbours() {
		if linkOf(a, neighbour.GetLink()) != nil {
			some.Neighbours = append(some.Neighbours, neighbour)
		}
	}
	return some
}

// linkOf finds a link that the service has made a card's host side for.
func linkOf(a *netv1.Attachment, id string) *netv1.Link {
	for _, nic := range a.GetNics() {
		if nic.GetLink() != id {
			continue
		}
		for _, l := range a.GetNetwork().GetLinks() {
			if l.GetId() == id {
				return l
			}
		}
	}
	return nil
}

// detach takes back what was made in the namespace, for a VM that is no more. When the net
// service is not there it is done when it is again (followNetworks). Doing it twice is harmless.
func (n *network) detach() {
	n.mu.Lock()
	done := n.over
	n.over = true
	n.wanted = nil
	n.mu.Unlock()
	if done {
		<-n.gone
		return
	}
	defer close(n.gone)
	if n.s.record().GetNetwork() == nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), netTime)
	defer cancel()
	if err := n.s.w.detachNetwork(ctx, n.s.id); err != nil {
		n.s.w.log.Warn("sandbox not detached from its network; it is when the net service is there again", "sandbox", n.s.id, "error", err)
	}
}

// namespace names the network namespace by a process that stands in it now: the
// first container's relay, or that of another one of its pod. It is nil for none.
func (s *sandbox) namespace() *netv1.Namespace {
	ns := s.record().GetNetwork()
	if ns == nil {
		return nil
	}
	for _, c := range s.memberList() {
		c.mu.Lock()
		relay, rec := c.relay, c.rec.GetRelay()
		c.mu.Unlock()
		if relay == nil || relay.ended() {
			continue
		}
		at, err := networkOf(relay, rec.GetStartTime())
		if err == nil && at.Device == ns.Device && at.Inode == ns.Inode {
			return at
		}
	}
	return ns
}

// refreshNetwork is refresh for a container that is about to start.
func (c *container) refreshNetwork(ctx context.Context) error {
	c.mu.Lock()
	relay := c.relay
	c.mu.Unlock()
	ns := c.sb.record().GetNetwork()
	if ns == nil || relay == nil {
		return nil
	}
	if at, err := networkOf(relay, 0); err == nil && (at.Device != ns.Device || at.Inode != ns.Inode) {
		return nil // it has no part in the VM's network
	}
	return c.sb.network.refresh(ctx)
}

// admitNetwork decides what network a further container of the VM has: that of
// the VM, or, when it stands in another namespace that is empty, one to itself.
func (s *sandbox) admitNetwork(p *plan, ns *netv1.Namespace) error {
	rec := s.record()
	if asked := p.policy; !proto.Equal(asked, &netv1.Policy{}) && !proto.Equal(asked, rec.GetNetworkPolicy()) {
		return bus.Errorf(bus.FailedPrecondition, "container %s has annotations %s*, and its VM %s has its network already: give them to the first container",
			p.req.Ref.Id, netv1.AnnotationPrefix, s.id)
	}
	vms := rec.GetNetwork()
	if vms == nil || vms.GetDevice() == ns.GetDevice() && vms.GetInode() == ns.GetInode() {
		return nil
	}
	for _, j := range p.joins {
		if j.Type == "network" {
			return nil
		}
	}
	has, err := firstInterface(ns.GetPid())
	if err != nil {
		return err
	}
	if has != "" {
		return bus.Errorf(bus.FailedPrecondition, "container %s shares the VM %s and has a network of its own, with the interface %q: a VM has one network, that of its first container; "+
			"share that one too (--network container:…), or use --network none", p.req.Ref.Id, s.id, has)
	}
	p.ownNetwork = true
	return nil
}

// keepNetwork records the namespace of the first container, and how it wants to be joined to it.
func (s *sandbox) keepNetwork(ctx context.Context, p *plan, ns *netv1.Namespace) error {
	policy := proto.CloneOf(p.policy)
	if policy.Queues == 0 {
		policy.Queues = min(p.size.VCPUs, netv1.MaxQueues)
	}
	return s.update(ctx, func(rec *vmv1.Sandbox) { rec.Network, rec.NetworkPolicy = ns, policy })
}
