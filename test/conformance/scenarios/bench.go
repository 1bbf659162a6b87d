// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package scenarios

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"bulkhead/test/conformance"
	"bulkhead/test/e2e/engine"
	"bulkhead/test/e2e/host"
)

// client is how a person calls an engine.
type client struct {
	argv func(args ...string) []string
	env  []string
}

// bench is where the chains of a group meet a runtime: the engines of the group,
// on a ground of their own.
type bench struct {
	stage   *conformance.Stage
	ground  *host.Ground
	records []string // glob patterns of what the runtime must not keep

	// Of the group's engines; the others are nil, and nobody asks for them.
	docker, ctr, podman, crictl client
	dockerEngine                *engine.Engine
	ctrEngine                   *engine.Ctr
	podmanEngine                *engine.Podman
	criEngine                   *engine.CRI
}

func (b *bench) runtime() engine.Runtime {
	return engine.Runtime{Path: b.stage.Runtime.Path, Args: b.stage.Runtime.Flags}
}

// scenario is one thing that people do.
type scenario struct {
	name     string
	says     string
	declared map[string]conformance.Declaration
	act      func(*trial)
}

// caseIn is the name of the case. Some scenarios name their client.
func (s scenario) caseIn(group string) string {
	switch client, _, _ := strings.Cut(s.name, " "); client {
	case "docker", "ctr", "podman":
		return s.name
	}
	return group + ": " + s.name
}

// chain is scenarios that follow one another.
type chain []scenario

const (
	// together is how many chains of a group run at the same time.
	together = 3
	// goneTime bounds the traces of what has ended: the product's promise.
	goneTime = 10 * time.Second
)

// group makes a group of the conformance tests: the engines that open starts,
// all chains, and at last the search for what they left.
func group(name string, open func(context.Context, *bench) (func() error, error), chains []chain) conformance.Group {
	nothing := scenario{name: "nothing is left behind"}
	g := conformance.Group{Name: "scenarios/" + name}
	for _, chain := range chains {
		for _, s := range chain {
			g.Cases = append(g.Cases, conformance.Case{Name: s.caseIn(name), Says: s.says, Declared: s.declared})
		}
	}
	g.Cases = append(g.Cases, conformance.Case{
		Name: nothing.caseIn(name),
		Says: "after all of it and the removal of its containers: no process, mount, cgroup, socket, network interface or record",
	})
	g.Run = func(ctx context.Context, s *conformance.Stage) (err error) {
		links, err := host.Links()
		if err != nil {
			return err
		}
		ground, err := s.Ground.Below(name[:1] + s.Runtime.Name[:1])
		if err != nil {
			return err
		}
		remove := func() error { return errors.Join(ground.Remove(), removeParents(s.Ground)) }
		b := &bench{stage: s, ground: ground}
		end, err := open(ctx, b)
		if err != nil {
			return errors.Join(err, remove())
		}
		before, err := ground.Left(links)
		if err != nil {
			return errors.Join(err, end(), remove())
		}
		var workers errgroup.Group
		workers.SetLimit(together)
		for _, chain := range chains {
			workers.Go(func() error {
				shared := map[string]string{}
				for _, scenario := range chain {
					t := &trial{ctx: ctx, bench: b, shared: shared}
					scenario.act(t)
					s.Verdict(scenario.caseIn(name), t.verdict())
				}
				return nil
			})
		}
		err = workers.Wait()
		s.Verdict(nothing.caseIn(name), errors.Join(err, b.nothingLeft(before, links), end(), remove()))
		return nil
	}
	return g
}

// removeParents removes the cgroups above those that engines were given, unless
// another group still uses them.
func removeParents(g *host.Ground) error {
	var errs []error
	cgroups, err := g.Cgroups()
	for _, path := range cgroups {
		if !strings.HasSuffix(path, g.Token) {
			continue
		}
		if err := os.Remove(path); err != nil && !errors.Is(err, unix.EBUSY) && !errors.Is(err, unix.ENOTEMPTY) && !errors.Is(err, os.ErrNotExist) {
			errs = append(errs, err)
		}
	}
	return errors.Join(append(errs, err)...)
}

// nothingLeft gives what has just ended moments to go, and then complains.
func (b *bench) nothingLeft(before, links []string) error {
	const pause = 100 * time.Millisecond
	for deadline := time.Now().Add(goneTime); ; time.Sleep(pause) {
		left, err := b.left(before, links)
		if err != nil {
			return err
		}
		if len(left) == 0 {
			return nil
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("left behind after %s: %s", goneTime, strings.Join(left, "; "))
		}
	}
}

func (b *bench) left(before, links []string) ([]string, error) {
	left, err := b.ground.Left(links)
	if err != nil {
		return nil, err
	}
	left = slices.DeleteFunc(left, func(line string) bool { return slices.Contains(before, line) || b.engines(line) })
	for _, pattern := range b.records {
		found, err := filepath.Glob(pattern)
		if err != nil {
			return nil, err
		}
		left = append(left, found...)
	}
	return left, nil
}

// engines tells what an engine makes for all its containers and keeps until its
// end: cgroups, dockerd's handle of the host's network namespace, and its ends of the connections of
// clients, which are listed here while its socket itself is of another network namespace.
func (b *bench) engines(line string) bool {
	if line == "unix socket "+filepath.Join(b.ground.Dir, "engine", "docker.sock") {
		return true
	}
	if line == "mount "+filepath.Join(b.ground.Dir, "engine", "exec", "netns", "default") {
		return true
	}
	path, ok := strings.CutPrefix(line, "cgroup ")
	return ok && slices.ContainsFunc([]string{"", "-ctr", "-podman", "-podman/conmon", "-cri"}, func(suffix string) bool {
		return strings.HasSuffix(path, b.ground.Token+suffix)
	})
}

func openDocker(ctx context.Context, b *bench) (_ func() error, err error) {
	plain := b.runtime()
	debug := plain
	debug.Args = append(slices.Clone(plain.Args), "--debug")
	plain.Default = true
	e, err := engine.Start(ctx, b.ground, map[string]engine.Runtime{"tested": plain, "tested-debug": debug})
	if err != nil {
		return nil, err
	}
	b.dockerEngine = e
	b.docker = client{e.Args, e.Env()}
	b.records = []string{filepath.Join(b.ground.Dir, "engine", "exec", "runtime-*", "moby", "*")}
	b.ctrEngine, err = e.NewCtr(ctx, plain)
	if err != nil {
		return nil, errors.Join(err, e.Stop())
	}
	b.ctr = client{b.ctrEngine.Args, nil}
	b.records = append(b.records, filepath.Join(b.ground.Dir, "engine", "ctr-root", "*", "*"))
	return e.Stop, nil
}

func openPodman(ctx context.Context, b *bench) (func() error, error) {
	p, err := engine.NewPodman(ctx, b.ground, b.stage.Runtime.Name, b.runtime(), engine.PodmanSetUp(b.stage.Runtime.Name, b.stage.Runtime.Path))
	if err != nil {
		return nil, err
	}
	b.podmanEngine = p
	b.podman = client{p.Args, p.Env()}
	return p.Stop, nil
}

func openCRI(crictl string) func(context.Context, *bench) (func() error, error) {
	return func(ctx context.Context, b *bench) (func() error, error) {
		if crictl == "" {
			return nil, errors.New("BULKHEAD_CRICTL names no crictl; \"make conformance\" builds one and names it")
		}
		c, err := engine.StartCRI(ctx, b.ground, b.runtime(), crictl)
		if err != nil {
			return nil, err
		}
		b.criEngine = c
		b.crictl = client{c.Args, nil}
		b.records = []string{filepath.Join(b.ground.Dir, "cri", "runtime", "*", "*")}
		return c.Stop, nil
	}
}
