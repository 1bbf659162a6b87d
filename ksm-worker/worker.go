// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package ksmworker

import (
	"context"
	"errors"
	"path/filepath"
	"time"

	"github.com/hashicorp/go-hclog"
	"golang.org/x/sync/errgroup"

	"bulkhead/bus"
	"bulkhead/bus/config"
	busv1 "bulkhead/proto/bus/v1"
	ksmv1 "bulkhead/proto/ksm/v1"
)

// Deps is what the ksm service needs to run.
type Deps struct {
	Conn    *bus.Conn
	RunDir  string // of the daemon; why it has yielded is kept below it
	Config  config.KSM
	Log     hclog.Logger
	Version string
	// Sysfs is where the kernel shows KSM; empty means /sys/kernel/mm/ksm. The host's own settings are
	// kept in a file beside another, for the kernel's in /run/bulkhead-ksm.json.
	Sysfs string
	// Proc is where it shows processes; empty means /proc.
	Proc string
	// Serving, when set, is called once the service answers.
	Serving func()
}

const (
	drainTime = 10 * time.Second
	// shortestLook is the least time between two looks at the host.
	shortestLook = 200 * time.Millisecond
	// tellTime bounds the publication of an event; pendingEvents may wait for it.
	tellTime      = 2 * time.Second
	pendingEvents = 64
)

// Run serves until ctx ends. The host has its own settings when it returns.
func Run(ctx context.Context, d Deps) (err error) {
	k := kernel{dir: orElse(d.Sysfs, sysfsKSM)}
	c, err := newController(k, &proc{dir: orElse(d.Proc, "/proc")}, filepath.Join(d.RunDir, "ksm"), d.Config.Mode, d.Config.MaxCPUPercent, d.Log)
	if err != nil {
		return err
	}
	wakes := make(chan struct{}, 1)
	wake := func() {
		select {
		case wakes <- struct{}{}:
		default:
		}
	}
	events := make(news, pendingEvents)
	c.tell = func(name string, attributes map[string]string) {
		for _, lost := range events.add(&busv1.Event{Kind: "ksm", Event: name, Attributes: attributes}) {
			d.Log.Warn("event not published", "event", lost.Event)
		}
	}
	ended, told := make(chan struct{}), make(chan struct{})
	lasting := context.WithoutCancel(ctx)
	go func() {
		defer close(told)
		publish(lasting, d, events, ended)
	}()
	defer func() {
		err = errors.Join(err, c.end())
		close(ended)
		<-told
	}()
	svc, err := serve(ctx, d, c, wake)
	if err != nil {
		return err
	}
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { return svc.ServeUntil(ctx, drainTime) })
	group.Go(func() error { return watchMachines(ctx, d.Conn, c, wake) })
	group.Go(func() error {
		timer := time.NewTimer(0)
		defer timer.Stop()
		var last time.Time
		for {
			select {
			case <-timer.C:
				timer.Reset(c.step())
				last = time.Now()
			case <-wakes: // many at a time, when many VMs start
				timer.Reset(max(0, shortestLook-time.Since(last)))
			case <-ctx.Done():
				return nil
			}
		}
	})
	svc.Announced(ctx)
	if d.Serving != nil {
		d.Serving()
	}
	return group.Wait()
}

// serve registers the endpoints.
func serve(ctx context.Context, d Deps, c *controller, wake func()) (*bus.Service, error) {
	svc, err := bus.NewService(ctx, d.Conn, bus.ServiceConfig{
		Name: "ksm", Version: d.Version,
		Description: "steers the kernel's same-page merging for the memory of VMs",
		Detail:      c.detail, OwnStatus: true,
		Log: d.Log,
	})
	if err != nil {
		return nil, err
	}
	status := func(after string) (*ksmv1.Status, error) { return c.status(svc.Status(), after) }
	err = errors.Join(
		bus.Handle(svc, "status", func(_ context.Context, req *ksmv1.StatusRequest) (*ksmv1.Status, error) { return status(req.After) }),
		bus.Handle(svc, "set", func(_ context.Context, req *ksmv1.SetRequest) (*ksmv1.SetReply, error) {
			if err := c.set(req.Mode, req.MaxCpuPercent); err != nil {
				return nil, err
			}
			c.step() // the answer says what came of it
			wake()   // and the loop has another idea of when to look
			s, err := status("")
			return &ksmv1.SetReply{Status: s}, err
		}),
		bus.Handle(svc, "kick", func(context.Context, *ksmv1.KickRequest) (*ksmv1.KickReply, error) {
			phase, err := c.kick()
			wake()
			return &ksmv1.KickReply{Phase: phase}, err
		}),
		bus.Handle(svc, "history", func(_ context.Context, req *ksmv1.HistoryRequest) (*ksmv1.HistoryReply, error) {
			c.mu.Lock()
			defer c.mu.Unlock()
			return &ksmv1.HistoryReply{Samples: c.history.last(int(req.Last))}, nil
		}),
		bus.Handle(svc, "kernel", func(context.Context, *ksmv1.KernelStateRequest) (*ksmv1.KernelStateReply, error) {
			state, err := c.kernel.read()
			return &ksmv1.KernelStateReply{State: state}, err
		}),
	)
	if err != nil {
		return nil, errors.Join(err, svc.Stop(ctx))
	}
	return svc, nil
}

// publish tells the bus what happens until ended is closed, and then what is left
// to tell, as far as it can within tellTime.
func publish(ctx context.Context, d Deps, events news, ended <-chan struct{}) {
	tell := func(ctx context.Context, ev *busv1.Event) {
		ctx, cancel := context.WithTimeout(ctx, tellTime)
		defer cancel()
		if err := bus.Publish(ctx, d.Conn, ev); err != nil {
			d.Log.Warn("event not published", "event", ev.Event, "error", err)
		}
	}
	for {
		select {
		case ev := <-events:
			tell(ctx, ev)
			continue
		case <-ended:
		}
		break
	}
	last, cancel := context.WithTimeout(ctx, tellTime)
	defer cancel()
	for {
		select {
		case ev := <-events:
			tell(last, ev)
		default:
			return
		}
	}
}

func orElse(s, other string) string {
	if s == "" {
		return other
	}
	return s
}
