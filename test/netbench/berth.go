// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/opencontainers/runtime-spec/specs-go"

	"bulkhead/test/e2e/host"
)

// reference is the berth of runc; the others are named for a model.
const reference = "runc"

// The addresses of both ends of a veth; every pair has the same.
const (
	nearAddress = "10.230.0.1/24"
	farAddress  = "10.230.0.2/24"
	far         = "10.230.0.2"
)

const (
	launchTime  = 2 * time.Minute
	commandTime = time.Minute
)

// berth is a container with one end of a veth, and a namespace with the other.
type berth struct {
	name  string
	id    string
	pid   int
	qemu  int // the pid of its VM; 0 of runc
	probe string
	near  *host.Netns
	argv  func(args ...string) []string // of its runtime
}

// moor makes a berth with a container that serves.
func (b *bench) moor(ctx context.Context, name string) (_ *berth, err error) {
	ctx, cancel := context.WithTimeout(ctx, launchTime)
	defer cancel()
	one := &berth{name: name, id: b.ground.Token + "-" + name, probe: b.probe}
	root := filepath.Join(b.ground.Dir, name)
	one.argv = func(args ...string) []string { return append([]string{"runc", "--root", root}, args...) }
	if name != reference {
		one.argv = func(args ...string) []string { return b.host.Args(root, args...) }
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, one.close())
		}
	}()
	if one.near, err = host.NewNetns(); err != nil {
		return nil, err
	}
	other, err := host.NewNetns()
	if err != nil {
		return nil, err
	}
	defer other.Close() // the container stands in it by then
	if err := one.plug(ctx, other); err != nil {
		return nil, err
	}
	bundle := filepath.Join(b.ground.Data, name)
	if err := host.Bundle(bundle, b.spec(one, other)); err != nil {
		return nil, err
	}
	program, err := os.ReadFile(b.probe)
	if err == nil {
		err = os.WriteFile(filepath.Join(bundle, "rootfs", "bin", "netprobe"), program, 0o755)
	}
	if err != nil {
		return nil, err
	}
	before, err := b.qemus()
	if err != nil {
		return nil, err
	}
	pidFile := filepath.Join(b.ground.Dir, name+".pid")
	m, err := host.Monitor(ctx, pidFile, one.argv("create", "--bundle", bundle, "--pid-file", pidFile, one.id)...)
	if err != nil {
		return nil, err
	}
	if m.Code != 0 {
		return nil, fmt.Errorf("create ended with %d: %s", m.Code, m.Stderr)
	}
	one.pid = m.PID
	after, err := b.qemus()
	if err != nil {
		return nil, err
	}
	for pid := range after {
		if !before[pid] && name != reference {
			one.qemu = pid
		}
	}
	if err := command(ctx, one.argv("start", one.id)...); err != nil {
		return nil, err
	}
	return one, m.Stdout.Until(ctx, "serving")
}

// plug makes the veth.
func (one *berth) plug(ctx context.Context, other *host.Netns) error {
	for _, step := range []struct {
		where *host.Netns
		args  string
	}{
		{one.near, "link add peer0 type veth peer name eth0 netns " + other.Path()},
		{one.near, "addr add " + nearAddress + " dev peer0"},
		{one.near, "link set peer0 up"},
		{other, "addr add " + farAddress + " dev eth0"},
		{other, "link set eth0 up"},
	} {
		if err := command(ctx, step.where.Args(append([]string{"ip"}, strings.Fields(step.args)...)...)...); err != nil {
			return err
		}
	}
	return nil
}

func (b *bench) spec(one *berth, other *host.Netns) *specs.Spec {
	spec := host.NewSpec("/bin/netprobe", "serve", ":7000")
	for i := range spec.Linux.Namespaces {
		if spec.Linux.Namespaces[i].Type == specs.NetworkNamespace {
			spec.Linux.Namespaces[i].Path = other.Path()
		}
	}
	if one.name != reference {
		spec.Annotations = map[string]string{"io.bulkhead.network.model": one.name}
	}
	return spec
}

// ask runs a netprobe at the other end and reads what it measured.
func (one *berth) ask(ctx context.Context, answer any, args ...string) error {
	ctx, cancel := context.WithTimeout(ctx, commandTime)
	defer cancel()
	argv := one.near.Args(append([]string{one.probe}, args...)...)
	r, err := host.Run(ctx, nil, nil, argv...)
	if err == nil && r.Code != 0 {
		err = errors.New(r.Stderr)
	}
	if err != nil {
		return fmt.Errorf("%s: netprobe %s: %w", one.name, strings.Join(args, " "), err)
	}
	return json.Unmarshal([]byte(r.Stdout), answer)
}

func (one *berth) close() error {
	ctx, cancel := context.WithTimeout(context.Background(), commandTime)
	defer cancel()
	err := command(ctx, one.argv("delete", "--force", one.id)...)
	if one.near != nil {
		err = errors.Join(err, one.near.Close())
	}
	return err
}

// command runs one that must succeed.
func command(ctx context.Context, argv ...string) error {
	r, err := host.Run(ctx, nil, nil, argv...)
	if err == nil && r.Code != 0 {
		err = fmt.Errorf("%s ended with %d: %s", strings.Join(argv, " "), r.Code, r.Stderr)
	}
	return err
}
