// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"errors"
	"fmt"
	"net"
	"strings"
	"testing"
	"time"
)

func TestAContainerHasWhatDockerWiredUp(t *testing.T) {
	t.Parallel()
	d := newDocker(t)
	network := d.network("--ipv6", "--subnet", "10.210.0.0/24", "--subnet", "fd21::/64", "-o", "com.docker.network.driver.mtu=9000")
	peer := d.serveOn(neighbour, network)
	name := d.serveOn(runtimeUnderTest(), network, "--ip", "10.210.0.77", "--ip6", "fd21::77", "--mac-address", "02:42:00:00:12:34",
		"--hostname", "harbour", "--dns", "192.0.2.53", "--dns-search", "example.test", "--dns-option", "ndots:3", "--add-host", "lighthouse:192.0.2.9")

	for _, c := range []struct{ what, script, want string }{
		{"the MAC address and the MTU", "cat /sys/class/net/eth0/address /sys/class/net/eth0/mtu", "02:42:00:00:12:34\n9000"},
		{"the addresses", `ip -o addr show dev eth0 scope global | awk '{print $4}'`, "10.210.0.77/24\nfd21::77/64"},
		{"the IPv4 routes", "ip route", "default via 10.210.0.1 dev eth0 \n10.210.0.0/24 dev eth0 scope link  src 10.210.0.77 "},
		{"the way to all of IPv6", `ip -6 route | awk '$1 == "default" {print $3, $5}'`, "fd21::1 eth0"},
		{"the state of the link", "cat /sys/class/net/eth0/operstate", "up"},
		{"the host name", "hostname", "harbour"},
		{"its own name in /etc/hosts", "grep -w harbour /etc/hosts | head -1 | cut -f 1", "10.210.0.77"},
		{"a host that was added", "grep -w lighthouse /etc/hosts", "192.0.2.9\tlighthouse"},
		{"the resolver", "grep -v '^#' /etc/resolv.conf", "search example.test\nnameserver 127.0.0.11\noptions ndots:3"},
	} {
		if got := d.script(name, c.script); got != c.want && !(reference() && c.what == "the state of the link") {
			t.Errorf("%s: %q instead of %q", c.what, got, c.want)
		}
	}
	theirs, theirs6 := d.endpoint(peer, network, "IPAddress"), d.endpoint(peer, network, "GlobalIPv6Address")
	d.script(name, "ping -c 2 -W 60 -s 8900 "+theirs+" && ping6 -c 2 -W 60 -s 8900 "+theirs6)
	d.script(peer, "ping -c 2 -W 60 -s 8900 10.210.0.77 && ping6 -c 2 -W 60 -s 8900 fd21::77")
	for _, address := range []string{theirs, theirs6} {
		d.probe(name, "-size", "8000", "datagram", net.JoinHostPort(address, probePort))
		d.probe(name, "-bytes", "1000000", "upload", net.JoinHostPort(address, probePort))
	}
	for _, address := range []string{"10.210.0.77", "fd21::77"} {
		d.probe(peer, "-size", "8000", "datagram", net.JoinHostPort(address, probePort))
		d.probe(peer, "-bytes", "1000000", "upload", net.JoinHostPort(address, probePort))
	}
}

func TestPublishedPortsLeadToTheContainer(t *testing.T) {
	t.Parallel()
	d := newDocker(t)
	name := d.serveOn(runtimeUnderTest(), "bridge", "-p", "17000:7000/tcp", "-p", "17000:7000/udp", "-p", "127.0.0.1:17001:7001", "--dns", "192.0.2.53")
	expect(t, "the resolver on the default bridge", d.script(name, "grep -v '^#' /etc/resolv.conf"), "nameserver 192.0.2.53")
	own, gateway := d.inspect(name, ".NetworkSettings.IPAddress"), d.inspect(name, ".NetworkSettings.Gateway")
	for _, c := range []struct{ way, address string }{
		{"directly", own + ":7000"},
		{"by the firewall's rules", gateway + ":17000"},
		{"by docker-proxy on the loopback device", "127.0.0.1:17000"},
		{"by docker-proxy with IPv6", "[::1]:17000"},
	} {
		t.Run(strings.ReplaceAll(c.way, " ", "-"), func(t *testing.T) {
			probeIn(t, d.engine.Net, "-bytes", "4000000", "upload", c.address)
			probeIn(t, d.engine.Net, "-bytes", "4000000", "download", c.address)
			probeIn(t, d.engine.Net, "-size", "1000", "datagram", c.address)
		})
	}
	probeIn(t, d.engine.Net, "-n", "4", "-for", "500ms", "requests", "127.0.0.1:17001")
	t.Run("from another container", func(t *testing.T) {
		d := dockerUser{t, d.engine}
		network := d.network("--subnet", "10.212.0.0/24")
		d.do(d.onNetwork(neighbour, network, opts("--rm"), "netprobe", "-bytes", "100000", "upload", gateway+":17000")...)
	})
	d.do("stop", "-t", "0", name)
	if conn, err := d.engine.Net.Dial(within(t, commandTime), "tcp", gateway+":17000"); err == nil {
		t.Error("the port is still open when the container has ended", conn.Close())
	}
	d.do("start", name)
	reaches(t, d.engine.Net, "127.0.0.1:17000")
}

func TestOldLinksNameTheirTargets(t *testing.T) {
	t.Parallel()
	d := newDocker(t)
	target := d.serveOn(runtimeUnderTest(), "", "-e", "DEPTH=7", "--expose", "7000")
	out := d.do(d.onNetwork(runtimeUnderTest(), "", opts("--rm", "--link", target+":quay"), "sh", "-c",
		"netprobe -bytes 100000 upload quay:7000 > /dev/null && ping -c 1 -W 60 quay > /dev/null && echo $QUAY_ENV_DEPTH $QUAY_PORT")...)
	expect(t, "what the link tells", out, "7 tcp://"+d.inspect(target, ".NetworkSettings.IPAddress")+":7000")
}

func TestNetworksComeAndGoWhileAContainerRuns(t *testing.T) {
	t.Parallel()
	d := newDocker(t)
	first, second := d.network("--subnet", "10.213.0.0/24"), d.network("--subnet", "10.214.0.0/24", "--ipv6", "--subnet", "fd24::/64")
	peer := d.serveOn(neighbour, second)
	name := d.serveOn(runtimeUnderTest(), first)
	addresses := func() string { return d.script(name, `ip -o -4 addr show scope global | awk '{print $2, $4}'`) }
	becomes := func(what, want string) {
		t.Helper()
		began := time.Now()
		must(t, launchTime, func() error {
			if got := addresses(); got != want {
				return fmt.Errorf("%s: the container has %q instead of %q", what, got, want)
			}
			return nil
		})
		t.Logf("%s: seen by an exec after %s", what, time.Since(began).Round(10*time.Millisecond))
	}
	own := "eth0 " + d.endpoint(name, first, "IPAddress") + "/24"
	expect(t, "the addresses before", addresses(), own)

	d.do("network", "connect", "--alias", "newcomer", "--ip", "10.214.0.99", second, name)
	t.Logf("connected: answers at its new address after %s", reaches(t, d.engine.Net, "10.214.0.99:7000").Round(10*time.Millisecond))
	becomes("connected", own+"\neth1 10.214.0.99/24")
	expect(t, "the MAC address", d.script(name, "cat /sys/class/net/eth1/address"), d.endpoint(name, second, "MacAddress"))
	d.probe(peer, "-bytes", "100000", "upload", "newcomer:7000")
	d.probe(name, "-bytes", "100000", "upload", peer+":7000")
	must(t, launchTime, func() error { // addresses of IPv6 are tentative first
		if r := d.try("exec", name, "ping6", "-c", "1", "-W", "60", d.endpoint(peer, second, "GlobalIPv6Address")); r.Code != 0 {
			return errors.New(r.Stdout + r.Stderr)
		}
		return nil
	})

	d.do("network", "disconnect", first, name)
	becomes("disconnected from the first", "eth1 10.214.0.99/24")
	reaches(t, d.engine.Net, "10.214.0.99:7000")
	expect(t, "the way out", d.script(name, wayOut), "10.214.0.1 eth1")
	d.do("network", "disconnect", second, name)
	becomes("disconnected from both", "")
	d.do("network", "connect", second, name)
	reaches(t, d.engine.Net, d.endpoint(name, second, "IPAddress")+":7000")
}

// wayOut prints the gateway and the interface of the default route.
const wayOut = `ip route | awk '$1 == "default" {print $3, $5}'`

func TestAContainerMayStartInTwoNetworks(t *testing.T) {
	t.Parallel()
	d := newDocker(t)
	outer, inner := d.network("--subnet", "10.215.0.0/24"), d.network("--internal", "--subnet", "10.216.0.0/24")
	hidden := d.endpoint(d.serveOn(neighbour, inner), inner, "IPAddress")
	name := newID("two")
	t.Cleanup(func() { d.remove(name) })
	args := d.onNetwork(runtimeUnderTest(), outer, opts("--name", name), "netprobe", "serve", ":7000")
	d.do(append([]string{"create"}, args[1:]...)...)
	d.do("network", "connect", inner, name)
	d.do("start", name)
	d.says(name, "serving")
	for _, network := range []string{outer, inner} {
		reaches(t, d.engine.Net, d.endpoint(name, network, "IPAddress")+":7000")
	}
	d.probe(name, "-bytes", "100000", "upload", hidden+":7000")
	expect(t, "the way out", d.script(name, wayOut), "10.215.0.1 "+d.script(name, `ip -o addr | awk '/ 10.215/ {print $2}'`))

	// What is only in the internal network has no way out of it.
	alone := d.launchOn(runtimeUnderTest(), inner, nil, "sleep", "1000")
	d.probe(alone, "-bytes", "100000", "upload", hidden+":7000")
	if r := d.try("exec", alone, "ping", "-c", "1", "-W", "2", d.endpoint(name, outer, "IPAddress")); r.Code == 0 {
		t.Errorf("it reaches another network: %s", r.Stdout)
	}
}

func TestAContainerMayJoinTheNetworkOfAnother(t *testing.T) {
	t.Parallel()
	d := newDocker(t)
	network, later := d.network("--subnet", "10.217.0.0/24"), d.network("--subnet", "10.218.0.0/24")
	target := d.serveOn(runtimeUnderTest(), network, "--hostname", "harbour")
	joined := d.launchOn(runtimeUnderTest(), "container:"+target, nil, "sleep", "1000")
	const look = `hostname; ip -o addr show scope global | awk '{print $2, $4}'; ip route; cat /sys/class/net/eth0/address`
	expect(t, "what the second has", d.script(joined, look), d.script(target, look))
	d.probe(joined, "-bytes", "100000", "upload", "127.0.0.1:7000")
	d.do("network", "connect", later, target)
	must(t, launchTime, func() error {
		if got := d.script(joined, "ip -o addr show dev eth1 2> /dev/null"); !strings.Contains(got, d.endpoint(target, later, "IPAddress")+"/24") {
			return fmt.Errorf("the second has %q", got)
		}
		return nil
	})
	reaches(t, d.engine.Net, d.endpoint(target, later, "IPAddress")+":7000")
}

func TestTheHostsNetworkIsRefusedInASentence(t *testing.T) {
	needsProduct(t)
	t.Parallel()
	d := newDocker(t)
	before := ipIn(t, d.engine.Net, "-o", "link", "show", "dev", "lo")
	r := d.try("run", "--rm", "--runtime", runtimeUnderTest(), "--network", "host", "busybox:e2e", "true")
	if r.Code == 0 {
		t.Fatal("a container in the host's network ran")
	}
	sentence(t, r.Stderr, "network", "--network none")
	expect(t, "the host's loopback device", ipIn(t, d.engine.Net, "-o", "link", "show", "dev", "lo"), before)
	out := d.do("ps", "-aq", "--filter", "status=created", "--filter", "network=host")
	expect(t, "what is left", out, "")
}

func TestAMacvlanNetworkIsTheContainers(t *testing.T) {
	t.Parallel()
	d := newDocker(t)
	// The parent is one end of a veth; at the other end is the wire.
	parent, wire := "mv-parent", "mv-wire"
	ipIn(t, d.engine.Net, "link", "add", parent, "type", "veth", "peer", "name", wire)
	t.Cleanup(func() {
		_, _ = d.engine.Docker(t.Context(), nil, "network", "prune", "-f")
		argv := d.engine.Net.Args("ip", "link", "delete", parent)
		client{t, func(...string) []string { return argv }, nil}.cleanUp(nil)
	})
	for _, args := range [][]string{{"link", "set", parent, "up"}, {"link", "set", wire, "up"}, {"addr", "add", "10.219.0.1/24", "dev", wire}} {
		ipIn(t, d.engine.Net, args...)
	}
	network := d.network("--driver", "macvlan", "-o", "parent="+parent, "--subnet", "10.219.0.0/24", "--gateway", "10.219.0.1")
	peer := d.serveOn(neighbour, network)
	name := d.serveOn(runtimeUnderTest(), network, "--ip", "10.219.0.50")
	d.probe(peer, "-bytes", "1000000", "upload", "10.219.0.50:7000")
	d.probe(name, "-bytes", "1000000", "upload", d.endpoint(peer, network, "IPAddress")+":7000")
	reaches(t, d.engine.Net, "10.219.0.50:7000")
	d.script(name, "ping -c 1 -W 60 10.219.0.1")
}
