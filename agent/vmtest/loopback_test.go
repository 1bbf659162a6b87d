// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package vmtest_test

import (
	"context"
	"fmt"
	"io"
	"net"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"bulkhead/agent/vmtest"
	"bulkhead/bus/loopback"
	agentv1 "bulkhead/proto/agent/v1"
	netv1 "bulkhead/proto/net/v1"
)

// What listens on loopback addresses of the host's namespace is there for programs of
// the guest, in every way they may ask, from the first instruction of the first one;
// through a restart of the worker, which cuts what is open.
func TestLoopbackServicesAreTheGuests(t *testing.T) {
	t.Parallel()
	vm := vmtest.BootMachine(t, vmtest.Machine{Options: []string{"-smp", "2"}})
	dials := make(chan loopback.Target, 100)
	dial := func(ctx context.Context, to loopback.Target) (loopback.Conn, error) {
		dials <- to
		return (&net.Dialer{}).DialContext(ctx, to.Protocol.String(), echo(t, to.Protocol.String()))
	}
	stop := vm.ServeLoopback(dial)
	listeners := []*netv1.Listener{
		{Protocol: "udp", Address: "127.0.0.11", Port: 53}, {Protocol: "tcp", Address: "127.0.0.11", Port: 53},
		{Protocol: "tcp", Address: "::1", Port: 7}, {Protocol: "tcp", Address: "127.0.0.11", Port: 33333},
	}
	for range 2 { // said again, it changes nothing
		reply := call[agentv1.NetworkReply](t, vm, "network", &agentv1.NetworkRequest{Revision: 1, Network: &netv1.Network{Listeners: listeners}})
		if len(reply.Problems) > 0 {
			t.Fatal(reply.Problems)
		}
	}
	busyboxRootfs(t, vm, "asks")
	buildProbe(t, vm, "asks", "loopprobe")
	ct := create(t, vm, "asks", sh("loopprobe hold"))
	ct.start(t)
	holding(t, ct.Relay)
	stop()
	vm.ServeLoopback(dial)
	if code := exit(t, ct.Relay); code != 0 {
		t.Fatalf("it ended with %d and says %s%s", code, ct.Output(), ct.ErrOutput())
	}
	want := `udp connected: answered by 127.0.0.11:53
udp unconnected: answered by 127.0.0.11:53
udp of both families: answered by 127.0.0.11:53
udp large: answered by 127.0.0.11:53
tcp: answered by 127.0.0.11:53
tcp large: answered by 127.0.0.11:53
tcp over IPv6: answered by [::1]:7
a server of its own: answered by 127.0.0.1:53
nobody: refused
holding
cut: true
again: answered by 127.0.0.11:53 <nil>
`
	if got := ct.Output(); got != want {
		t.Errorf("it says\n%s\nand not\n%s", got, want)
	}
	close(dials)
	for to := range dials {
		if s := to.String(); s != "udp 127.0.0.11:53" && s != "tcp 127.0.0.11:53" && s != "tcp [::1]:7" {
			t.Errorf("dialed %s", s)
		}
	}

	// What is offered no more is not there any more.
	call[agentv1.NetworkReply](t, vm, "network", &agentv1.NetworkRequest{Revision: 2, Network: &netv1.Network{}})
	gone := create(t, vm, "gone", sh("busybox nc -w 5 127.0.0.11 53 < /dev/null 2>&1 | grep -o refused"))
	gone.start(t)
	if exit(t, gone.Relay); strings.TrimSpace(gone.Output()) != "refused" {
		t.Errorf("after the end of the offer: %q", gone.Output())
	}
}

// buildProbe puts a program of testdata into a container's root file system.
func buildProbe(t *testing.T, vm *vmtest.VM, container, program string) {
	t.Helper()
	build := exec.Command("go", "build", "-o", filepath.Join(vm.Share, container, "rootfs/bin", program), "./testdata/"+program)
	build.Env = append(build.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
}

func holding(t *testing.T, r *vmtest.Relay) {
	t.Helper()
	for end := time.Now().Add(60 * time.Second); !strings.Contains(r.Output(), "holding\n"); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("it says %s%s", r.Output(), r.ErrOutput())
		}
	}
}

// echo is a server that says what it hears.
func echo(t *testing.T, network string) string {
	if network == "udp" {
		c, err := net.ListenPacket("udp", "127.0.0.1:0")
		if err != nil {
			t.Error(err)
			return ""
		}
		t.Cleanup(func() { c.Close() })
		go func() {
			b := make([]byte, 65536)
			for {
				n, from, err := c.ReadFrom(b)
				if err != nil {
					return
				}
				c.WriteTo(b[:n], from)
			}
		}()
		return c.LocalAddr().String()
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Error(err)
		return ""
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() { io.Copy(c, c); c.Close() }()
		}
	}()
	return fmt.Sprint(l.Addr())
}
