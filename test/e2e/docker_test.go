// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"fmt"
	"io"
	"strings"
	"testing"
	"time"

	"bulkhead/test/e2e/engine"
	"bulkhead/test/e2e/host"
)

// dockerUser is someone with a Docker client.
type dockerUser struct {
	t      *testing.T
	engine *engine.Engine
}

func newDocker(t *testing.T) dockerUser {
	t.Helper()
	return dockerUser{t, dockerEngine(t)}
}

func (d dockerUser) client() client { return client{d.t, d.engine.Args, d.engine.Env()} }

// tryFor runs a Docker command, whatever its code.
func (d dockerUser) tryFor(limit time.Duration, stdin io.Reader, args ...string) host.Result {
	d.t.Helper()
	return d.client().tryFor(limit, stdin, args...)
}

func (d dockerUser) try(args ...string) host.Result {
	d.t.Helper()
	return d.client().try(args...)
}

// do runs a Docker command that must succeed and gives what it printed, without
// the last newline.
func (d dockerUser) do(args ...string) string {
	d.t.Helper()
	return d.client().do(args...)
}

// runArgs are the arguments of a run with the runtime under test.
func runArgs(options []string, command ...string) []string {
	args := append([]string{"run", "--runtime", runtimeUnderTest(), "--network", "none"}, options...)
	return append(append(args, engine.Image), command...)
}

// opts makes options readable in a call.
func opts(options ...string) []string { return options }

// run is "docker run --rm" of a command that must succeed.
func (d dockerUser) run(options []string, command ...string) string {
	d.t.Helper()
	return d.do(runArgs(append([]string{"--rm"}, options...), command...)...)
}

// tryRun is "docker run --rm", whatever its code.
func (d dockerUser) tryRun(options []string, command ...string) host.Result {
	d.t.Helper()
	return d.try(runArgs(append([]string{"--rm"}, options...), command...)...)
}

// launch is "docker run -d"; the container is removed after the test.
func (d dockerUser) launch(options []string, command ...string) string {
	d.t.Helper()
	name := newID("docker")
	d.t.Cleanup(func() { d.remove(name) })
	d.do(runArgs(append([]string{"-d", "--name", name}, options...), command...)...)
	return name
}

// remove is "docker rm -f" for the end of a test, when its context is over.
func (d dockerUser) remove(name string) {
	d.client().cleanUp(opts("No such container"), "rm", "-f", "-v", name)
}

// inspect gives a field of a container.
func (d dockerUser) inspect(name, field string) string {
	d.t.Helper()
	return d.do("inspect", "--format", "{{"+field+"}}", name)
}

// says waits until a container's log holds a text.
func (d dockerUser) says(name, text string) {
	d.t.Helper()
	must(d.t, launchTime, func() error {
		r := d.try("logs", name)
		if !strings.Contains(r.Stdout+r.Stderr, text) {
			return fmt.Errorf("the log of %s has no %q: %.300q %.300q", name, text, r.Stdout, r.Stderr)
		}
		return nil
	})
}

// expect compares a value that a container or Docker told.
func expect[T comparable](t *testing.T, what string, got, want T) {
	t.Helper()
	if got != want {
		t.Errorf("%s is %v instead of %v", what, quote(got), quote(want))
	}
}

func quote(v any) any {
	if s, ok := v.(string); ok {
		return fmt.Sprintf("%.600q", s)
	}
	return v
}
