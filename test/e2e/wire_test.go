// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"bulkhead/bus"
	netv1 "bulkhead/proto/net/v1"
	"bulkhead/test/e2e/host"
)

// wire is a network namespace for a container with one veth, and the namespace at
// the other end of it, as CNI would leave them.
type wire struct {
	inside, outside *host.Netns
	path            string // of inside
	before          string // how inside was
}

// What a wire's ends have.
const (
	wireMAC  = "02:00:00:00:00:01"
	wireOwn4 = "10.9.0.2"
	wireOwn6 = "fd09::2"
	wireFar4 = "10.9.0.1"
)

func newWire(t *testing.T) *wire {
	t.Helper()
	w := &wire{}
	for _, n := range []**host.Netns{&w.inside, &w.outside} {
		made, err := host.NewNetns()
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { made.Close() })
		*n = made
	}
	// Pinned by a mount: so those who make namespaces keep them, and so they are found when no process stands in them.
	pin := filepath.Join(ground.Dir, newID("netns"))
	if err := os.WriteFile(pin, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount(w.inside.Path(), pin, "", unix.MS_BIND, ""); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := errors.Join(unix.Unmount(pin, unix.MNT_DETACH), os.Remove(pin)); err != nil {
			t.Error(err)
		}
	})
	w.path = pin
	ipIn(t, w.inside, "link", "add", "eth0", "address", wireMAC, "type", "veth", "peer", "name", "far", "netns", w.outside.Path())
	ipIn(t, w.outside, "addr", "add", wireFar4+"/24", "dev", "far")
	ipIn(t, w.outside, "link", "set", "far", "up")
	ipIn(t, w.inside, "addr", "add", wireOwn4+"/24", "dev", "eth0")
	ipIn(t, w.inside, "addr", "add", wireOwn6+"/64", "dev", "eth0", "nodad")
	ipIn(t, w.inside, "link", "set", "eth0", "up")
	must(t, commandTime, func() error {
		link, addresses := ipIn(t, w.inside, "link", "show", "eth0"), ipIn(t, w.inside, "addr", "show", "eth0")
		if !strings.Contains(link, "state UP") || !strings.Contains(addresses, "inet6 fe80::") || strings.Contains(addresses, "tentative") {
			return fmt.Errorf("the link is not as it will be: %s", addresses)
		}
		return nil
	})
	w.before = w.state(t)
	return w
}

// state is all that somebody could have changed in the container's namespace.
func (w *wire) state(t *testing.T) string {
	t.Helper()
	parts := []string{ipIn(t, w.inside, "-o", "-d", "link", "show"), ipIn(t, w.inside, "-o", "addr", "show"), ipIn(t, w.inside, "route"), tcIn(t, w.inside, "qdisc", "show")}
	for _, hook := range []string{"ingress", "egress"} { // of a qdisc that is not there nothing is said
		parts = append(parts, tcIn(t, w.inside, "filter", "show", "dev", "eth0", hook))
	}
	return strings.Join(parts, "--\n")
}

// untouched complains unless the namespace is as it was made.
func (w *wire) untouched(t *testing.T) error {
	if now := w.state(t); now != w.before {
		return fmt.Errorf("the namespace has\n%s\nand had\n%s", now, w.before)
	}
	return nil
}

// spec is a container in the namespace that has netprobe and may do what it likes with its network.
func (w *wire) spec(t *testing.T, annotations map[string]string, args ...string) *specs.Spec {
	t.Helper()
	spec := newSpec(args...)
	for i, n := range spec.Linux.Namespaces {
		if n.Type == specs.NetworkNamespace {
			spec.Linux.Namespaces[i].Path = w.path
		}
	}
	capabilities := append([]string{"CAP_NET_RAW", "CAP_NET_ADMIN"}, spec.Process.Capabilities.Bounding...)
	spec.Process.Capabilities.Bounding, spec.Process.Capabilities.Effective, spec.Process.Capabilities.Permitted = capabilities, capabilities, capabilities
	spec.Annotations = annotations
	probe := probeProgram(t)
	spec.Mounts = append(spec.Mounts, specs.Mount{Destination: "/test", Type: "bind", Source: filepath.Dir(probe), Options: []string{"rbind", "ro"}})
	spec.Process.Env = []string{"PATH=/bin:/test", "TERM=xterm"}
	return spec
}

// nicStats are those of a container's only network card.
func nicStats(o ociUser, conn *bus.Conn, id string) *netv1.NicStats {
	o.t.Helper()
	reply, err := bus.Call[netv1.StatsReply](within(o.t, commandTime), conn, conn.Subject("net", "stats"), &netv1.StatsRequest{Sandbox: o.sandbox(conn, id).Id})
	if err != nil || len(reply.Nics) != 1 {
		o.t.Fatalf("the statistics are %v, %v", reply, err)
	}
	return reply.Nics[0]
}
