// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package network

import (
	"context"
	"errors"
	"fmt"
	"os"
	"runtime"
	"sync"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"

	agentv1 "bulkhead/proto/agent/v1"
	netv1 "bulkhead/proto/net/v1"
)

// ErrOld says that a later network was given already.
var ErrOld = errors.New("this network is older than the one the guest has")

// ErrInvalid says that a request contradicts itself.
var ErrInvalid = errors.New("invalid network")

// Network is the network of a guest. Its methods may be called concurrently.
type Network struct {
	mu   sync.Mutex              // guards all below, and the devices
	last *agentv1.NetworkRequest // nil before the first
	home *os.File                // the network namespace it is in; nil: the agent's own
	made made
	// processors is how many the guest runs on.
	processors int
}

// made is what this package has put into the guest's kernel and may take away again.
type made struct {
	devices    map[string]string // address that a device was made with, by link
	addresses  map[string]map[string]*netlink.Addr
	routes     map[string]*netlink.Route
	rules      map[string]*netlink.Rule
	neighbours map[string]*netlink.Neigh
}

// New returns a network without anything.
func New() *Network {
	n := &Network{made: made{devices: map[string]string{}}, processors: runtime.NumCPU()}
	n.made.forget()
	return n
}

// forget is for when the devices have left their namespace: the kernel has
// taken everything off them.
func (m *made) forget() {
	m.addresses, m.routes = map[string]map[string]*netlink.Addr{}, map[string]*netlink.Route{}
	m.rules, m.neighbours = map[string]*netlink.Rule{}, map[string]*netlink.Neigh{}
}

// Apply makes the guest's network what the request says and answers with what the
// kernel has then. Cards that are on their way are waited for until ctx ends; one that
// does not come is an error. What the kernel refuses is a problem, and the rest is done.
func (n *Network) Apply(ctx context.Context, req *agentv1.NetworkRequest) (*agentv1.NetworkReply, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.last != nil && req.GetRevision() < n.last.GetRevision() {
		return nil, fmt.Errorf("%w: revision %d was said after %d", ErrOld, req.GetRevision(), n.last.GetRevision())
	}
	if err := check(req); err != nil {
		return nil, err
	}
	reply, err := n.apply(ctx, req)
	if err == nil {
		n.last = req
	}
	return reply, err
}

// check holds a request against itself: each link has one card.
func check(req *agentv1.NetworkRequest) error {
	cards := map[string]bool{}
	for _, nic := range req.GetNics() {
		if cards[nic.GetLink()] {
			return fmt.Errorf("%w: link %q has two cards", ErrInvalid, nic.GetLink())
		}
		cards[nic.GetLink()] = true
	}
	names := map[string]bool{}
	for _, link := range req.GetNetwork().GetLinks() {
		if !cards[link.GetId()] {
			return fmt.Errorf("%w: link %q has no card", ErrInvalid, link.GetId())
		}
		if name := link.GetName(); !validName(name) || names[name] {
			return fmt.Errorf("%w: two links have the name %q, or it is none", ErrInvalid, name)
		}
		names[link.GetName()] = true
		delete(cards, link.GetId())
	}
	for id := range cards {
		return fmt.Errorf("%w: the card of link %q belongs to no link", ErrInvalid, id)
	}
	return nil
}

func (n *Network) apply(ctx context.Context, req *agentv1.NetworkRequest) (*agentv1.NetworkReply, error) {
	if err := n.gather(ctx, req.GetNics()); err != nil {
		return nil, err
	}
	var reply *agentv1.NetworkReply
	err := inside(n.home, func() error {
		h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
		if err != nil {
			return fmt.Errorf("opening a socket of the guest's network: %w", err)
		}
		defer h.Close()
		w := &work{handle: h, made: &n.made, network: req.GetNetwork(), processors: n.processors}
		if err := w.find(req.GetNics()); err != nil {
			return err
		}
		w.takeAway()
		w.setLinks()
		w.setAddresses()
		w.setRoutes()
		w.setRules()
		w.setNeighbours()
		if reply, err = w.report(); err != nil {
			return err
		}
		reply.Revision = req.GetRevision()
		return nil
	})
	return reply, err
}

// Move puts the network into the namespace of another process, for a container
// whose root has power over no other. The devices go there and are set up anew, and then
// the parameters are written: files of /proc/sys.
func (n *Network) Move(ctx context.Context, pid int, parameters map[string]string) error {
	home, err := os.Open(fmt.Sprintf("/proc/%d/ns/net", pid))
	if err != nil {
		return fmt.Errorf("opening the container's network namespace: %w", err)
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	old := n.home
	if err := n.send(old, home); err != nil {
		return errors.Join(err, home.Close())
	}
	n.home = home // held: the devices stay in it for as long as the guest lives
	if old != nil {
		_ = old.Close()
	}
	n.made.forget()
	if n.last != nil {
		reply, err := n.apply(ctx, n.last)
		if err != nil {
			return err
		}
		if problems := reply.GetProblems(); len(problems) > 0 {
			return errors.New(problems[0])
		}
	}
	return inside(home, func() error {
		for path, value := range parameters {
			if err := os.WriteFile(path, []byte(value), 0); errors.Is(err, os.ErrNotExist) {
				return fmt.Errorf("%w: linux.sysctl: there is no %s in the guest", ErrInvalid, path)
			} else if err != nil {
				return fmt.Errorf("%w: linux.sysctl: writing %q to %s: %w", ErrInvalid, value, path, err)
			}
		}
		return nil
	})
}

// Inside runs fn on a thread in the network namespace that the network is in.
func (n *Network) Inside(fn func() error) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	return inside(n.home, fn)
}

// work is one pass over the namespace the network is in.
type work struct {
	handle     *netlink.Handle
	made       *made
	network    *netv1.Network
	processors int
	links      map[string]netlink.Link // by link id
	problems   []string
}

// maxProblems bounds what the answer complains about.
const maxProblems = 50

// refused notes what the kernel did not take.
func (w *work) refused(err error, what string, args ...any) {
	if err != nil && len(w.problems) < maxProblems {
		w.problems = append(w.problems, fmt.Sprintf("the guest's kernel refuses %s: %v", fmt.Sprintf(what, args...), err))
	}
}

// identity tells messages apart by all they say.
func identity(m proto.Message) string {
	b, err := proto.MarshalOptions{Deterministic: true}.Marshal(m)
	if err != nil {
		return "" // it came out of a message; there is nothing in it that cannot go back
	}
	return string(b)
}
