// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"bulkhead/test/e2e/host"
)

func TestDataPassesTheNetworkUnchanged(t *testing.T) {
	t.Parallel()
	d := newDocker(t)
	name := d.serveOn(runtimeUnderTest(), "bridge")
	serveIn(t, d.engine.Net)
	far := farHost(t, d.engine.Net)
	inside, outside := d.inspect(name, ".NetworkSettings.IPAddress")+":7000", d.inspect(name, ".NetworkSettings.Gateway")+":7000"

	gibibyte := opts("-limit", "110s", "-bytes", fmt.Sprint(1<<30))
	for _, c := range []struct {
		what string
		args []string
	}{
		{"a GiB out", append(gibibyte, "upload")},
		{"a GiB in", append(gibibyte, "download")},
		{"200 connections at once", opts("-n", "200", "-size", "20000", "parallel")},
		{"a large datagram", opts("-size", "60000", "datagram")},
		{"a side that ends early", opts("-bytes", "4000000", "halfclose")},
		{"a reset", opts("reset")},
	} {
		t.Run("the container asks/"+c.what, func(t *testing.T) {
			t.Log(dockerUser{t, d.engine}.probe(name, append(c.args, outside)...))
		})
		if strings.HasPrefix(c.what, "a GiB") {
			continue // the other client would be the same way
		}
		t.Run("the container answers/"+c.what, func(t *testing.T) { probeIn(t, d.engine.Net, append(c.args, inside)...) })
	}
	t.Run("a port that nobody serves", func(t *testing.T) {
		dockerUser{t, d.engine}.probe(name, "refused", strings.Replace(outside, ":7000", ":7009", 1))
		probeIn(t, d.engine.Net, "refused", strings.Replace(inside, ":7000", ":7009", 1))
	})
	t.Run("the MTU of the path is learnt", func(t *testing.T) {
		d := dockerUser{t, d.engine}
		expect(t, "what is learnt", d.probe(name, "pathmtu", far), `{"interface":1500,"path":1400}`)
		d.probe(name, "-bytes", "4000000", "upload", far)
	})
}

// farHost is a netprobe behind a router, by a link that lets less through.
func farHost(t *testing.T, near *host.Netns) (address string) {
	t.Helper()
	far, err := host.NewNetns()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { far.Close() })
	ipIn(t, near, "link", "add", "far0", "mtu", "1400", "type", "veth", "peer", "name", "eth0", "mtu", "1400", "netns", far.Path())
	ipIn(t, near, "addr", "add", "192.0.2.1/24", "dev", "far0")
	ipIn(t, near, "link", "set", "far0", "up")
	ipIn(t, far, "addr", "add", "192.0.2.2/24", "dev", "eth0")
	ipIn(t, far, "link", "set", "eth0", "up")
	ipIn(t, far, "route", "add", "default", "via", "192.0.2.1")
	serveIn(t, far)
	return "192.0.2.2:7000"
}

func TestTrafficFlowsThroughRestarts(t *testing.T) {
	d := newDocker(t)
	network, second := d.network("--subnet", "10.220.0.0/24"), d.network("--subnet", "10.221.0.0/24")
	name := d.serveOn(runtimeUnderTest(), network, "-p", "127.0.0.1:17100:7000")
	address := d.endpoint(name, network, "IPAddress") + ":7000"
	conn, err := d.engine.Net.Dial(within(t, commandTime), "tcp", address)
	if err == nil {
		err = echo(conn)
	}
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	stop := make(chan struct{})
	var flowing sync.WaitGroup
	var count atomic.Int64
	var longest time.Duration
	flowing.Go(func() {
		for buf := []byte{0}; ; count.Add(1) {
			select {
			case <-stop:
				return
			case <-time.After(10 * time.Millisecond):
			}
			began := time.Now()
			mark := byte(count.Load())
			buf[0] = mark
			if err := conn.SetDeadline(began.Add(echoTime)); err != nil {
				t.Error(err)
				return
			}
			_, err := conn.Write(buf)
			if err == nil {
				_, err = conn.Read(buf)
			}
			if err != nil || buf[0] != mark {
				t.Errorf("after %d messages: %v", count.Load(), err)
				return
			}
			longest = max(longest, time.Since(began))
		}
	})
	nothing := func() error { return nil }
	if !reference() {
		h := sharedHost(t)
		if err := h.Kill(); err != nil {
			t.Error(err)
		}
		before := count.Load()
		must(t, launchTime, func() error {
			if count.Load() < before+50 {
				return errors.New("the traffic stands still while nobody is on the host")
			}
			return nil
		})
		if err := h.Start(t.Context()); err != nil {
			t.Error(err)
		}
	}
	for _, kill := range []bool{true, false} {
		if err := d.engine.WithoutDockerd(t.Context(), kill, nothing); err != nil {
			t.Error(err)
		}
	}
	close(stop)
	flowing.Wait()
	t.Logf("%d messages on one connection, the slowest took %s", count.Load(), longest)
	if count.Load() == 0 {
		t.Error("no message came through")
	}
	reaches(t, d.engine.Net, "127.0.0.1:17100")
	// What is wired up later still reaches it.
	d.do("network", "connect", "--ip", "10.221.0.9", second, name)
	reaches(t, d.engine.Net, "10.221.0.9:7000")
}
