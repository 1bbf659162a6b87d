// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package frontend

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/urfave/cli/v3"
	"golang.org/x/sys/unix"

	"bulkhead/bus"
	busv1 "bulkhead/proto/bus/v1"
	vmv1 "bulkhead/proto/vm/v1"
)

var eventsCommand = command{
	name: "events", usage: "print a container's statistics, and kills for want of memory, as they come", args: "ID",
	description: "Prints one JSON object a line, as runc does, until the container ends: \"stats\" at each interval, and \"oom\" when\n" +
		"the virtual machine's kernel has killed a process of the container for want of memory. The numbers are those of the\n" +
		"container's cgroup in its virtual machine; what the machine itself costs is in the container's cgroup on the host.",
	flags: func() []cli.Flag {
		return []cli.Flag{
			&cli.DurationFlag{Name: "interval", Usage: "`TIME` between two statistics", Value: 5 * time.Second},
			&cli.BoolFlag{Name: "stats", Usage: "print the statistics once and end"},
		}
	},
	minArgs: 1, maxArgs: 1,
	run: func(ctx context.Context, inv *invocation) error {
		ref, err := inv.ref()
		if err != nil {
			return err
		}
		interval := inv.Duration("interval")
		if interval <= 0 {
			return errors.New("duration interval must be greater than 0")
		}
		looking, cancel := context.WithTimeout(ctx, commandDeadline)
		defer cancel()
		record, err := lookUp(looking, inv, ref)
		if err != nil {
			return err
		}
		if newState(record).Status == "stopped" {
			return fmt.Errorf("container with id %s is not running", ref.GetId())
		}
		if inv.Bool("stats") {
			return printStats(ctx, inv, ref)
		}
		return follow(ctx, inv, record, interval)
	},
}

// event is a line that events prints: the keys are runc's (types/events.go).
type event struct {
	Type string          `json:"type"`
	ID   string          `json:"id"`
	Data json.RawMessage `json:"data,omitempty"`
}

func printEvent(w io.Writer, e event) error { return json.NewEncoder(w).Encode(e) }

// printStats asks for the statistics and prints them.
func printStats(ctx context.Context, inv *invocation, ref *vmv1.ContainerRef) error {
	ctx, cancel := context.WithTimeout(ctx, commandDeadline)
	defer cancel()
	reply, err := call[vmv1.StatsReply](ctx, inv, "stats", &vmv1.StatsRequest{Ref: ref})
	if err != nil {
		return orNotFound(err)
	}
	return printEvent(inv.std.Out, event{Type: "stats", ID: ref.GetId(), Data: json.RawMessage(reply.GetContainerStats())})
}

// follow prints what comes until the container's relay ends, which is the end of
// the container whatever becomes of the daemon meanwhile.
func follow(ctx context.Context, inv *invocation, record *vmv1.Container, interval time.Duration) error {
	ended, release, err := relayEnd(record.GetRelay())
	if err != nil {
		return err
	}
	defer release()
	conn, err := inv.dial(ctx)
	if err != nil {
		return err
	}
	kills := make(chan struct{}, 1024)
	sub, err := bus.OnEvent(conn, "container", func(e *busv1.Event) {
		if e.GetEvent() == "oom" && e.GetAttributes()["key"] == record.GetKey() {
			select {
			case kills <- struct{}{}:
			default: // nobody reads what is printed
			}
		}
	})
	if err != nil {
		return err
	}
	defer func() { _ = sub.Unsubscribe() }()
	oom := event{Type: "oom", ID: record.GetRef().GetId()}
	ticks := time.NewTicker(interval)
	defer ticks.Stop()
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-kills:
			if err := printEvent(inv.std.Out, oom); err != nil {
				return err
			}
		case <-ticks.C:
			err := printStats(ctx, inv, record.GetRef())
			if err != nil && !isEnded(ended) { // the daemon may be away for a moment
				inv.reporter().Warn("no statistics: " + errorText(err))
			}
		case <-ended:
			drain(sub)
			for len(kills) > 0 {
				<-kills
				if err := printEvent(inv.std.Out, oom); err != nil {
					return err
				}
			}
			return nil
		}
	}
}

func isEnded(ended <-chan struct{}) bool {
	select {
	case <-ended:
		return true
	default:
		return false
	}
}

// lastEventsTime bounds the wait for events that were told before the end.
const lastEventsTime = 2 * time.Second

// drain waits until what was published before the container's end is handled.
func drain(sub *nats.Subscription) {
	closed := sub.StatusChanged(nats.SubscriptionClosed)
	if sub.Drain() != nil {
		return // the bus is gone, and its events with it
	}
	select {
	case <-closed:
	case <-time.After(lastEventsTime):
	}
}

// relayEnd returns a channel that closes with the end of a relay.
func relayEnd(relay *vmv1.Relay) (ended <-chan struct{}, release func(), err error) {
	fd, err := unix.PidfdOpen(int(relay.GetPid()), unix.PIDFD_NONBLOCK)
	if err != nil {
		return nil, nil, fmt.Errorf("watching the container's host process %d: %w", relay.GetPid(), err)
	}
	if !alive(relay) { // asked after the descriptor holds the pid
		unix.Close(fd)
		return nil, nil, errors.New("the container has ended")
	}
	process := os.NewFile(uintptr(fd), "pidfd")
	raw, err := process.SyscallConn()
	if err != nil {
		process.Close()
		return nil, nil, fmt.Errorf("watching the container's host process: %w", err)
	}
	gone, watched := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(watched)
		err := raw.Read(func(fd uintptr) bool { return pidfdEnded(int(fd)) }) // waits in Go's poller, which closing ends
		if err == nil {
			close(gone)
		}
	}()
	return gone, func() {
		process.Close()
		<-watched
	}, nil
}
