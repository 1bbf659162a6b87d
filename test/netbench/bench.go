// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"

	"bulkhead/test/e2e/host"
)

// bench is one run of the program.
type bench struct {
	options
	ground  *host.Ground
	janitor func() error
	host    *host.Host // nil when only runc is measured
	probe   string
	berths  []*berth
}

func newBench(ctx context.Context, o options) (_ *bench, err error) {
	build := ""
	if len(o.models) > 0 {
		if build = os.Getenv("BULKHEAD_BUILD"); build == "" {
			return nil, errors.New("BULKHEAD_BUILD must name the build directory; use make bench-net")
		}
	}
	b := &bench{options: o}
	if b.ground, err = host.NewGround(build); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, b.close())
		}
	}()
	if b.janitor, err = b.ground.StartJanitor(); err != nil {
		return nil, err
	}
	b.probe = filepath.Join(b.ground.Data, "netprobe")
	compile := exec.CommandContext(ctx, "go", "build", "-buildvcs=false", "-trimpath", "-ldflags", "-s -w", "-o", b.probe, "./test/netprobe")
	compile.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := compile.CombinedOutput(); err != nil {
		return nil, fmt.Errorf("build netprobe (run this from the top of the tree): %w: %s", err, out)
	}
	if len(o.models) > 0 {
		if b.host, err = b.ground.NewHost("netbench", host.Settings{}); err != nil {
			return nil, err
		}
		if err := b.host.Start(ctx); err != nil {
			return nil, err
		}
	}
	for _, name := range append([]string{reference}, o.models...) {
		one, err := b.moor(ctx, name)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", name, err)
		}
		b.berths = append(b.berths, one)
	}
	return b, nil
}

// describe says where to look at what is set up.
func (b *bench) describe(w io.Writer) {
	for _, one := range b.berths {
		fmt.Fprintf(w, "%s: container %s, pid %d; netprobe is %s\n  beside it: nsenter --net=%s\n", one.name, one.id, one.pid, b.probe, one.near.Path())
	}
}

func (b *bench) close() error {
	var errs []error
	for _, one := range b.berths {
		errs = append(errs, one.close())
	}
	if b.host != nil {
		errs = append(errs, b.host.Stop())
	}
	if b.janitor != nil {
		return errors.Join(append(errs, b.janitor())...)
	}
	return errors.Join(append(errs, b.ground.Remove())...)
}
