// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"bulkhead/bus"
	vmv1 "bulkhead/proto/vm/v1"
)

// variant is a way in which a container's VM comes to be.
type variant struct {
	name   string
	config string // lines of the section [vm] that leave this way alone; empty: the default
}

// The default configuration is the one whose name has no lines.
var variants = []variant{
	{name: "run_true_cold", config: "templates = false\npool = 0"},
	{name: "run_true_template", config: "pool = 0"},
	{name: "run_true_pool"},
}

// measureRun takes the life of a container whose program ends at once.
func measureRun(ctx context.Context, b *bench) error {
	type run struct {
		name string
		rt   *runtime
	}
	var runs []run
	for _, v := range variants {
		wanted := b.only.MatchString(v.name) || v.config == "" && slices.ContainsFunc(partNames, b.only.MatchString)
		switch {
		case b.bulkhead == nil || !wanted:
		case v.config == "":
			runs = append(runs, run{v.name, b.bulkhead})
		default:
			in, err := b.startDaemon(ctx, strings.TrimPrefix(v.name, "run_true_"), v.config)
			if err != nil {
				return err
			}
			if err := b.warm(ctx, in.runtime); err != nil {
				return err
			}
			runs = append(runs, run{v.name, in.runtime})
		}
	}
	for _, rt := range b.runtimes(slices.Concat(runNames, partNames)...) {
		if rt != b.bulkhead {
			runs = append(runs, run{twin(rt.prefix, runNames[0]), rt})
		}
	}
	n := b.samples(30)
	for i := range n {
		for _, r := range runs {
			b.progress("%s %d/%d", r.name, i+1, n)
			if err := b.calm(ctx); err != nil {
				return err
			}
			if err := b.runOnce(ctx, r.rt, r.name, numbered("run", i)); err != nil {
				return err
			}
		}
	}
	return nil
}

// calm waits until no daemon makes a VM or a template ahead of time: that is work of the sample before, and
// must not slow the next one, whose ever it is.
func (b *bench) calm(ctx context.Context) error {
	for _, in := range b.instances {
		if err := awaitStock(ctx, in.conn); err != nil {
			return err
		}
	}
	return nil
}

// awaitStock waits until what the daemon keeps ready is ready.
func awaitStock(ctx context.Context, conn *bus.Conn) error {
	ctx, cancel := context.WithTimeout(ctx, daemonTime)
	defer cancel()
	for {
		stock, err := bus.Call[vmv1.PoolReply](ctx, conn, conn.Subject("vm", "pool"), &vmv1.PoolRequest{})
		if err != nil {
			return err
		}
		making := slices.ContainsFunc(stock.Templates, func(t *vmv1.Template) bool { return t.State == "making" })
		if stock.Ready >= stock.Target && !making {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("the pool does not fill: %s", stock.Waiting)
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// runOnce takes one life. Its parts are kept of the runtimes that have parts, and of
// bulkhead in its default configuration.
func (b *bench) runOnce(ctx context.Context, rt *runtime, name, id string) (err error) {
	began := time.Now()
	c, err := rt.create(ctx, id, b.bundles.yes, stdio{})
	if err != nil {
		return err
	}
	created := time.Now()
	deleted := false
	defer func() {
		if !deleted {
			err = errors.Join(err, c.remove(ctx))
		}
	}()
	if err := c.start(ctx); err != nil {
		return err
	}
	started := time.Now()
	if err := c.wait(ctx); err != nil {
		return err
	}
	ended := time.Now()
	if err := c.delete(ctx); err != nil {
		return err
	}
	deleted = true
	done := time.Now()
	b.results.addTime(name, done.Sub(began))
	if !rt.has(partNames[0]) || rt.prefix == "" && rt != b.bulkhead {
		return nil
	}
	for i, took := range []time.Duration{created.Sub(began), started.Sub(created), ended.Sub(started), done.Sub(ended)} {
		b.results.addTime(rt.prefix+partNames[i], took)
	}
	return nil
}

// measureExec takes a further process in a running container.
func measureExec(ctx context.Context, b *bench) error {
	return b.inIdleContainers(ctx, "exec_true", b.samples(30), func(c *container) error {
		return c.exec(ctx, b.bundles.exec)
	})
}

// measureState takes the command that engines' users ask most.
func measureState(ctx context.Context, b *bench) error {
	return b.inIdleContainers(ctx, "state", b.samples(50), func(c *container) error {
		return c.rt.call(ctx, stdio{}, "state", c.id)
	})
}

// inIdleContainers starts one idle container for each runtime and times the
// action in them, taking turns. The first turn is not counted.
func (b *bench) inIdleContainers(ctx context.Context, name string, n int, action func(*container) error) (err error) {
	var containers []*container
	defer func() {
		for _, c := range containers {
			err = errors.Join(err, c.remove(ctx))
		}
	}()
	runtimes := b.runtimes(name)
	if len(runtimes) == 0 {
		return nil
	}
	for _, rt := range runtimes {
		c, err := rt.launch(ctx, "idle", b.bundles.sleep, stdio{})
		if err != nil {
			return err
		}
		containers = append(containers, c)
	}
	if err := b.calm(ctx); err != nil {
		return err
	}
	for i := range n + 1 {
		for _, c := range containers {
			b.progress("%s%s %d/%d", c.rt.prefix, name, i, n)
			began := time.Now()
			if err := action(c); err != nil {
				return err
			}
			if i > 0 {
				b.results.addTime(twin(c.rt.prefix, name), time.Since(began))
			}
		}
	}
	return nil
}
