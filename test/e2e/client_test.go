// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"io"
	"os/exec"
	"strings"
	"testing"
	"time"

	"bulkhead/test/e2e/host"
)

// client is someone with an engine's command line.
type client struct {
	t    *testing.T
	argv func(args ...string) []string
	env  []string
}

// tryFor runs a command, whatever its code.
func (c client) tryFor(limit time.Duration, stdin io.Reader, args ...string) host.Result {
	c.t.Helper()
	argv := c.argv(args...)
	r, err := host.Run(within(c.t, limit), stdin, c.env, argv...)
	if err != nil {
		c.t.Fatalf("%s: %v\nstdout: %.2000s\nstderr: %s", strings.Join(argv, " "), err, r.Stdout, r.Stderr)
	}
	return r
}

func (c client) try(args ...string) host.Result {
	c.t.Helper()
	return c.tryFor(launchTime, nil, args...)
}

// do runs a command that must succeed and gives what it printed, without the last
// newline.
func (c client) do(args ...string) string {
	c.t.Helper()
	r := c.try(args...)
	if r.Code != 0 {
		c.t.Fatalf("%s ended with %d\nstdout: %.2000s\nstderr: %s", strings.Join(c.argv(args...), " "), r.Code, r.Stdout, r.Stderr)
	}
	return strings.TrimSuffix(r.Stdout, "\n")
}

// cleanUp runs commands for the end of a test, when its context is over; one that
// fails is a failure unless it says one of the words.
func (c client) cleanUp(allowed []string, args ...string) {
	argv := c.argv(args...)
	cmd := exec.Command(argv[0], argv[1:]...)
	cmd.Env = append(cmd.Environ(), c.env...)
	timer := time.AfterFunc(commandTime, func() { _ = cmd.Process.Kill() })
	defer timer.Stop()
	out, err := cmd.CombinedOutput()
	if err == nil {
		return
	}
	for _, words := range allowed {
		if strings.Contains(string(out), words) {
			return
		}
	}
	c.t.Errorf("%s: %v: %s", strings.Join(argv, " "), err, out)
}
