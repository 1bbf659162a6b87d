// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"strings"
	"testing"
)

func TestPodmanRunGivesTheProgramsOutputAndCode(t *testing.T) {
	t.Parallel()
	p := newPodman(t)
	for _, c := range []struct {
		name, stdin    string
		options        []string
		command        []string
		stdout, stderr string
		code           int
		says           string // a part of stderr
	}{
		{name: "input, both outputs and a code", stdin: "typed\n", options: opts("-i"), command: []string{"sh", "-c", "cat; echo err >&2; exit 7"},
			stdout: "typed\n", stderr: "err\n", code: 7},
		{name: "signal", command: []string{"sh", "-c", "sh -c 'kill -9 $$'; exit $?"}, stderr: "Killed\n", code: 137},
		{name: "missing program", command: []string{"no-such-program"}, code: 127, says: "executable file not found"},
		{name: "no permission", command: []string{"/etc/not-a-script"}, code: 126, says: "permission denied"},
		{name: "options", options: opts("-e", "GREETING=hello", "-e", "EMPTY=", "-w", "/var/tmp", "-u", "app", "--hostname", "porthole", "--cap-drop", "all",
			"--read-only", "--tmpfs", "/scratch", "--ulimit", "nofile=123:456", "--ulimit", "nproc=4096:4096", "--label", "a=b"),
			command: []string{"sh", "-c", `echo "$GREETING,${EMPTY-unset}"; pwd; id -un; hostname; grep CapEff /proc/self/status | tr -d '\t'; touch /x; touch /run/x; touch /scratch/y && echo made; ulimit -Sn`},
			stdout:  "hello,\n/var/tmp\napp\nporthole\nCapEff:0000000000000000\nmade\n123\n", says: "touch: /x: Read-only file system"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			p := podmanUser{t, p.podman}
			r := p.tryFor(launchTime, strings.NewReader(c.stdin), p.runArgs(append([]string{"--rm"}, c.options...), c.command...)...)
			expect(t, "stdout", r.Stdout, c.stdout)
			if c.says == "" {
				expect(t, "stderr", r.Stderr, c.stderr)
			} else if !strings.Contains(r.Stderr, c.says) {
				t.Errorf("podman says %q without %q", r.Stderr, c.says)
			}
			expect(t, "the exit code", r.Code, c.code)
		})
	}
	t.Run("terminal", func(t *testing.T) {
		t.Parallel()
		p := podmanUser{t, p.podman}
		tt := p.client().terminal(33, 101, p.runArgs(opts("--rm", "-it"), "sh", "-c", sizeScript)...)
		tt.shows("tty: /dev/pts/0")
		tt.shows("33 101.")
		tt.resize(44, 123)
		tt.shows("changed to 44 123.")
		tt.types("\x03")
		tt.shows("interrupted")
		tt.ends(7)
	})
}
