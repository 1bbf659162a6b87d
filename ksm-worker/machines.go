// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package ksmworker

import (
	"context"
	"time"

	"bulkhead/bus"
	busv1 "bulkhead/proto/bus/v1"
	vmv1 "bulkhead/proto/vm/v1"
)

// watchRetry is the pause after a watch that broke: the bus restarts.
const watchRetry = time.Second

// watchMachines follows the VMs of this host until ctx ends: their records, which also tell a
// service that starts late of those that run, and their events, which say that something happened. wake is called after each.
func watchMachines(ctx context.Context, conn *bus.Conn, c *controller, wake func()) error {
	events, err := bus.OnEvent(conn, "sandbox", func(*busv1.Event) { wake() })
	if err != nil {
		return err
	}
	defer events.Unsubscribe() //nolint:errcheck // it ends with the connection otherwise
	for ctx.Err() == nil {
		err := followRecords(ctx, conn, c, wake)
		if err != nil && ctx.Err() == nil {
			c.log.Debug("the records of VMs are watched anew", "reason", err)
			select {
			case <-time.After(watchRetry):
			case <-ctx.Done():
			}
		}
	}
	return nil
}

func followRecords(ctx context.Context, conn *bus.Conn, c *controller, wake func()) error {
	records, err := bus.OpenBucket[*vmv1.Sandbox](ctx, conn, bus.BucketSandboxes)
	if err != nil {
		return err
	}
	// What went while nobody watched is not told of: the whole is read once.
	all, err := records.All(ctx)
	if err != nil {
		return err
	}
	there := map[string]bool{}
	for _, e := range all {
		there[e.Value.Id] = true
		c.record(e.Value)
	}
	c.forgetOthers(there)
	wake()
	return records.Watch(ctx, "", func(e bus.Entry[*vmv1.Sandbox]) {
		if e.Deleted {
			c.gone(e.Key) // an id is its own token
		} else {
			c.record(e.Value)
		}
		wake()
	})
}

// record takes what a VM's record says.
func (c *controller) record(r *vmv1.Sandbox) {
	if r.Pid == 0 || r.State == "stopped" || !r.Mergeable {
		c.gone(r.Id)
		return
	}
	c.come(vm{sandbox: r.Id, pid: int(r.Pid), start: r.PidStartTime})
}

// forgetOthers drops the VMs that have no record any more.
func (c *controller) forgetOthers(there map[string]bool) {
	c.mu.Lock()
	var gone []string
	for name := range c.vms {
		if !there[name] {
			gone = append(gone, name)
		}
	}
	c.mu.Unlock()
	for _, name := range gone {
		c.gone(name)
	}
}
