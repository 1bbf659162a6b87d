// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package server_test

import (
	"context"
	"io"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"bulkhead/bus"
	"bulkhead/bus/bustest"
	agentv1 "bulkhead/proto/agent/v1"
)

// serveAgent makes a well-behaved guest that answers "status".
func serveAgent(t *testing.T, b *bustest.Bus, sandbox string) {
	t.Helper()
	nc := b.Guest(sandbox)
	a := bus.NewAgentServer(nc, sandbox)
	if err := bus.HandleAgent(a, "status", func(context.Context, *agentv1.StatusRequest) (*agentv1.StatusReply, error) {
		return &agentv1.StatusReply{}, nil
	}); err != nil {
		t.Fatal(err)
	}
	if err := nc.Flush(); err != nil {
		t.Fatal(err)
	}
}

// callTimes asks a guest until the end of ctx, at least 50 times, and gives the
// median and the slowest.
func callTimes(t *testing.T, b *bustest.Bus, sandbox string, ctx context.Context) (median, worst time.Duration) {
	t.Helper()
	var all []time.Duration
	for len(all) < 50 || ctx.Err() == nil {
		begin := time.Now()
		if _, err := bus.CallAgent[agentv1.StatusReply](t.Context(), b.Conn(), sandbox, "status", &agentv1.StatusRequest{}); err != nil {
			t.Fatalf("call to %s: %v", sandbox, err)
		}
		all = append(all, time.Since(begin))
	}
	slices.Sort(all)
	return all[len(all)/2], all[len(all)-1]
}

func TestHostileGuestThatFloodsIsCutAndSlowsNobody(t *testing.T) {
	b, cut := startWithCuts(t)
	serveAgent(t, b, "b")
	if _, err := b.Conn().NATS().Subscribe("agent.a.ev.>", func(*nats.Msg) {}); err != nil {
		t.Fatal(err)
	}
	quiet, done := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer done()
	baseline, _ := callTimes(t, b, "b", quiet)
	for name, message := range map[string]string{
		"small messages": strings.Repeat("PUB agent.a.ev.x 0\r\n\r\n", 500),
		"large messages": "PUB agent.a.ev.x 60000\r\n" + strings.Repeat("x", 60000) + "\r\n",
		"pings":          strings.Repeat("PING\r\n", 500),
	} {
		t.Run(name, func(t *testing.T) {
			g := newRawGuest(t, b, "a").connected()
			go func() { _, _ = io.Copy(io.Discard, g.r) }()
			flooding, stop := context.WithTimeout(t.Context(), cutWithin)
			begin := time.Now()
			go func() {
				defer stop()
				for {
					if _, err := io.WriteString(g.conn, message); err != nil {
						return
					}
				}
			}()
			median, worst := callTimes(t, b, "b", flooding)
			took := time.Since(begin)
			select {
			case got := <-cut.got:
				if !strings.Contains(got, "flooded") {
					t.Errorf("cut for %q", got)
				}
			case <-time.After(cutWithin):
				t.Fatalf("not cut within %v", time.Since(begin))
			}
			// How long after is shown with a clock of its own, by the test of the rate: on a busy machine a flood has pauses.
			if took < time.Second {
				t.Errorf("cut after %v, want about 1.5 s", took)
			}
			if limit := max(20*baseline, 5*time.Millisecond); median > limit {
				t.Errorf("meanwhile another guest's call took %v at the median, %v alone", median, baseline)
			}
			t.Logf("cut after %v; other guest %v median, %v worst, %v alone", took, median, worst, baseline)
		})
	}
}

func TestGuestThatDoesNotReadIsCutAndSlowsNobody(t *testing.T) {
	b, cut := startWithCuts(t)
	serveAgent(t, b, "b")
	now, done := context.WithCancel(t.Context())
	done()
	alone, _ := callTimes(t, b, "b", now)
	g := newRawGuest(t, b, "a").connected()
	g.send("SUB agent.a.rpc.> 1\r\n")
	g.sync()
	nc := b.Conn().NATS()
	body := make([]byte, 256<<10)
	for range 64 { // 16 MiB, more than the sockets and MaxPending hold
		if err := nc.PublishRequest("agent.a.rpc.x", "_INBOX.t.x", body); err != nil {
			t.Fatal(err)
		}
	}
	if err := nc.FlushTimeout(cutWithin); err != nil {
		t.Errorf("the host was held up: %v", err)
	}
	if median, _ := callTimes(t, b, "b", now); median > max(20*alone, 50*time.Millisecond) {
		t.Errorf("another guest's call took %v, %v alone", median, alone)
	}
	select {
	case <-cut.got:
	case <-time.After(cutWithin):
		t.Error("the guest is not cut")
	}
}

func TestNewestGuestConnectionWins(t *testing.T) {
	b, cut := startWithCuts(t)
	old := newRawGuest(t, b, "a").connected()
	old.send("SUB agent.a.rpc.> 1\r\n")
	old.sync()
	serveAgent(t, b, "a")
	old.waitCut()
	for range 20 { // the old subscription would take its share of these
		if _, err := bus.CallAgent[agentv1.StatusReply](t.Context(), b.Conn(), "a", "status", &agentv1.StatusRequest{}); err != nil {
			t.Fatal(err)
		}
	}
	b.Server.DisconnectGuest("a")
	b.Server.DisconnectGuest("absent")
	if len(cut.got) != 0 {
		t.Errorf("replacing and disconnecting count as a cut: %s", <-cut.got)
	}
}
