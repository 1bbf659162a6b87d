// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"fmt"
	"io"
	"slices"
	"strings"
	"testing"
	"time"

	"bulkhead/test/e2e/engine"
	"bulkhead/test/e2e/host"
)

// podmanUser is someone with Podman.
type podmanUser struct {
	t      *testing.T
	podman *engine.Podman
}

func newPodman(t *testing.T) podmanUser {
	t.Helper()
	return podmanUser{t, podmanEngine(t)}
}

func (p podmanUser) client() client { return client{p.t, p.podman.Args, p.podman.Env()} }

func (p podmanUser) tryFor(limit time.Duration, stdin io.Reader, args ...string) host.Result {
	p.t.Helper()
	return p.client().tryFor(limit, stdin, args...)
}

func (p podmanUser) try(args ...string) host.Result {
	p.t.Helper()
	return p.client().try(args...)
}

func (p podmanUser) do(args ...string) string {
	p.t.Helper()
	return p.client().do(args...)
}

// runArgs are the arguments of "podman run"; --network none is the default of the
// tests' containers.conf.
func (p podmanUser) runArgs(options []string, command ...string) []string {
	return slices.Concat([]string{"run", "--cgroup-parent", p.podman.CgroupParent()}, options, []string{engine.PodmanImage}, command)
}

// launch is "podman run -d"; the container is removed after the test.
func (p podmanUser) launch(options []string, command ...string) string {
	p.t.Helper()
	name := newID("podman")
	p.t.Cleanup(func() { p.remove(name) })
	p.do(p.runArgs(append([]string{"-d", "--name", name}, options...), command...)...)
	return name
}

func (p podmanUser) remove(name string) {
	p.client().cleanUp(nil, "rm", "--force", "--ignore", "--time", "0", "--volumes", name)
}

// inspect gives a field of a container.
func (p podmanUser) inspect(name, field string) string {
	p.t.Helper()
	return p.do("inspect", "--format", "{{"+field+"}}", name)
}

// says waits until a container's log holds a text.
func (p podmanUser) says(name, text string) {
	p.t.Helper()
	must(p.t, launchTime, func() error {
		r := p.try("logs", name)
		if !strings.Contains(r.Stdout+r.Stderr, text) {
			return fmt.Errorf("the log of %s has no %q: %.300q %.300q", name, text, r.Stdout, r.Stderr)
		}
		return nil
	})
}
