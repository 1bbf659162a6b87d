// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// measureRun takes the life of a container whose program ends at once.
func measureRun(ctx context.Context, b *bench) error {
	runtimes := b.runtimes("run_true_cold", "create", "start", "end", "delete")
	n := b.samples(15)
	for i := range n {
		for _, rt := range runtimes {
			b.progress("%srun_true_cold %d/%d", rt.prefix, i+1, n)
			if err := b.runOnce(ctx, rt, fmt.Sprintf("run-%d", i)); err != nil {
				return err
			}
		}
	}
	return nil
}

func (b *bench) runOnce(ctx context.Context, rt *runtime, id string) (err error) {
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
	b.results.addTime(rt.prefix+"run_true_cold", done.Sub(began))
	b.results.addTime(rt.prefix+"create", created.Sub(began))
	b.results.addTime(rt.prefix+"start", started.Sub(created))
	b.results.addTime(rt.prefix+"end", ended.Sub(started))
	b.results.addTime(rt.prefix+"delete", done.Sub(ended))
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
	for _, rt := range b.runtimes(name) {
		c, err := rt.launch(ctx, "idle", b.bundles.sleep, stdio{})
		if err != nil {
			return err
		}
		containers = append(containers, c)
	}
	for i := range n + 1 {
		for _, c := range containers {
			b.progress("%s%s %d/%d", c.rt.prefix, name, i, n)
			began := time.Now()
			if err := action(c); err != nil {
				return err
			}
			if i > 0 {
				b.results.addTime(c.rt.prefix+name, time.Since(began))
			}
		}
	}
	return nil
}
