// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"fmt"
	"net"
	"strings"
	"testing"
	"time"

	"bulkhead/test/e2e/engine"
)

func (p podmanUser) serveOn(network string, options ...string) string {
	p.t.Helper()
	name := p.launch(append(append(withProbe(p.t), "--network", network), options...), "netprobe", "serve", ":"+probePort)
	p.says(name, "serving")
	return name
}

// address is that of a container in a network of CNI.
func (p podmanUser) address(name, network string) string {
	p.t.Helper()
	return p.inspect(name, fmt.Sprintf("(index .NetworkSettings.Networks %q).IPAddress", network))
}

// address6 is the address of IPv6.
func (p podmanUser) address6(name, network string) string {
	p.t.Helper()
	return p.inspect(name, fmt.Sprintf("(index .NetworkSettings.Networks %q).GlobalIPv6Address", network))
}

func TestPodmanContainersAreInTheirNetworksOfCNI(t *testing.T) {
	t.Parallel()
	p := newPodman(t)
	name := p.serveOn(engine.PodmanNetwork, "--ip", "10.88.7.7", "--mac-address", "02:42:00:00:43:21", "-p", "17300:7000/tcp", "-p", "17300:7000/udp",
		"--hostname", "harbour", "--dns", "192.0.2.53", "--add-host", "lighthouse:192.0.2.9")
	exec := func(script string) string { t.Helper(); return p.do("exec", name, "sh", "-c", script) }
	for _, c := range []struct{ what, script, want string }{
		{"the IPv4 address", `ip -o -4 addr show dev eth0 | awk '{print $4}'`, "10.88.7.7/16"},
		{"the number of global IPv6 addresses", `ip -o -6 addr show dev eth0 scope global | wc -l`, "1"},
		{"the MAC address", "cat /sys/class/net/eth0/address", "02:42:00:00:43:21"},
		{"the way out", wayOut, "10.88.0.1 eth0"},
		{"the resolver", "grep nameserver /etc/resolv.conf", "nameserver 192.0.2.53"},
		{"a host that was added", "grep -c lighthouse /etc/hosts", "1"},
	} {
		expect(t, c.what, exec(c.script), c.want)
	}
	reaches(t, p.podman.Net, "10.88.7.7:7000")
	// The plugin portmap has nobody listen on the host: the firewall's rules do it, also for the loopback device.
	for _, address := range []string{"127.0.0.1:17300", "10.88.0.1:17300"} {
		probeIn(t, p.podman.Net, "-bytes", "1000000", "upload", address)
		probeIn(t, p.podman.Net, "-size", "1000", "datagram", address)
	}
	other := p.serveOn(engine.PodmanNetwork)
	p.do("exec", name, "netprobe", "-bytes", "1000000", "upload", p.address(other, engine.PodmanNetwork)+":7000")
	p.do("exec", other, "netprobe", "-bytes", "1000000", "upload", "10.88.7.7:7000")

	began := time.Now()
	p.do("network", "connect", engine.PodmanSecond, other)
	second := p.address(other, engine.PodmanSecond)
	reaches(t, p.podman.Net, second+":7000")
	t.Logf("connected: answers at its new address %s after the command began", time.Since(began).Round(10*time.Millisecond))
	p.do("network", "disconnect", engine.PodmanNetwork, other)
	must(t, launchTime, func() error {
		if got := p.do("exec", other, "sh", "-c", `ip -o -4 addr show scope global | awk '{print $4}'`); got != second+"/24" {
			return fmt.Errorf("after a disconnection it has %q", got)
		}
		return nil
	})
}

func TestPodmanPodsHaveOneNetwork(t *testing.T) {
	t.Parallel()
	p := newPodman(t)
	pod := p.pod(engine.PodmanNetwork, "-p", "17301:7000")
	server := p.launch(append(withProbe(t), "--pod", pod), "netprobe", "serve", ":7000")
	p.says(server, "serving")
	client := p.launch(append(withProbe(t), "--pod", pod), "sleep", "1000")
	p.do("exec", client, "netprobe", "-bytes", "100000", "upload", "127.0.0.1:7000")
	reaches(t, p.podman.Net, "127.0.0.1:17301")
	if a, b := p.do("exec", client, "ip", "-o", "addr"), p.do("exec", server, "ip", "-o", "addr"); a != b || !strings.Contains(a, "10.88.") {
		t.Errorf("the containers of a pod have\n%s\nand\n%s", a, b)
	}
}

func TestEveryModelJoinsAContainerToItsNetwork(t *testing.T) {
	t.Parallel()
	needsProduct(t)
	p := newPodman(t)
	for _, model := range []string{"tc", "macvtap", "bridge"} {
		t.Run(model, func(t *testing.T) {
			t.Parallel()
			p := podmanUser{t, p.podman}
			name := p.serveOn(engine.PodmanNetwork, "--annotation", "io.bulkhead.network.model="+model)
			for _, address := range []string{p.address(name, engine.PodmanNetwork), p.address6(name, engine.PodmanNetwork)} {
				probeIn(t, p.podman.Net, "-bytes", "4000000", "upload", net.JoinHostPort(address, probePort))
				probeIn(t, p.podman.Net, "-bytes", "4000000", "download", net.JoinHostPort(address, probePort))
				probeIn(t, p.podman.Net, "-size", "20000", "datagram", net.JoinHostPort(address, probePort))
			}
		})
	}
	t.Run("none", func(t *testing.T) {
		t.Parallel()
		p := podmanUser{t, p.podman}
		name := p.launch(opts("--network", engine.PodmanNetwork, "--annotation", "io.bulkhead.network.model=none"), "sleep", "1000")
		expect(t, "the interfaces", p.do("exec", name, "ls", "/sys/class/net"), "lo")
	})
}
