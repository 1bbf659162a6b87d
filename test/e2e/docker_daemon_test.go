// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func TestContainersLiveThroughRestartsOfDockerd(t *testing.T) {
	d := newDocker(t)
	name := d.launch(nil, "sh", "-c", `trap 'echo bye; exit 43' TERM; i=0; while :; do i=$((i+1)); echo $i; sleep 0.1; done`)
	dying := d.launch(opts("--restart", "unless-stopped"), "sh", "-c", "echo x >> /starts; exec sleep 1000")
	stopped := d.launch(opts("--restart", "unless-stopped"), "sleep", "1000")
	d.do("stop", "-t", "0", stopped)
	d.says(name, "3\n")
	boot := d.do("exec", name, "cat", "/proc/sys/kernel/random/boot_id")
	for _, kill := range []bool{true, false} {
		err := d.engine.WithoutDockerd(t.Context(), kill, func() error { return nil })
		if err != nil {
			t.Fatal(err)
		}
		expect(t, "the state after a restart of dockerd", d.inspect(name, ".State.Status"), "running")
		expect(t, "the boot", d.do("exec", name, "cat", "/proc/sys/kernel/random/boot_id"), boot)
	}
	pid, err := strconv.Atoi(d.inspect(dying, ".State.Pid"))
	if err != nil {
		t.Fatal(err)
	}
	if err := d.engine.WithoutDockerd(t.Context(), true, func() error { return unix.Kill(pid, unix.SIGKILL) }); err != nil {
		t.Fatal(err)
	}
	t.Run("the log goes on", func(t *testing.T) {
		d := dockerUser{t, d.engine}
		lines := strings.Fields(d.do("logs", name))
		for i, line := range lines {
			if line != strconv.Itoa(i+1) {
				t.Fatalf("line %d of the log is %q", i+1, line)
			}
		}
		d.says(name, fmt.Sprintf("\n%d\n", len(lines)+3))
	})
	t.Run("what died meanwhile is restarted", func(t *testing.T) {
		d := dockerUser{t, d.engine}
		must(t, launchTime, func() error {
			if r := d.try("exec", dying, "wc", "-l", "/starts"); r.Stdout != "2 /starts\n" {
				return fmt.Errorf("it has counted %q: %s", r.Stdout, r.Stderr)
			}
			return nil
		})
		expect(t, "the state of one that was stopped", d.inspect(stopped, ".State.Status"), "exited")
	})
	d.do("stop", "-t", "30", name)
	expect(t, "the exit code", d.inspect(name, ".State.ExitCode"), "43")
	d.says(name, "bye")
}

func TestRestartPoliciesCount(t *testing.T) {
	t.Parallel()
	d := newDocker(t)
	t.Run("on-failure", func(t *testing.T) {
		t.Parallel()
		d := dockerUser{t, d.engine}
		name := d.launch(opts("--restart", "on-failure:2"), "sh", "-c", "echo started; exit 5")
		must(t, launchTime, func() error {
			if got := d.inspect(name, ".State.Status") + " " + d.inspect(name, ".RestartCount"); got != "exited 2" {
				return fmt.Errorf("it is %s", got)
			}
			return nil
		})
		expect(t, "the exit code", d.inspect(name, ".State.ExitCode"), "5")
		expect(t, "the log", d.do("logs", name), "started\nstarted\nstarted")
	})
	t.Run("always", func(t *testing.T) {
		t.Parallel()
		d := dockerUser{t, d.engine}
		name := d.launch(opts("--restart", "always"), "sh", "-c", "echo started; test -e /second && exec sleep 1000; touch /second")
		d.says(name, "started\nstarted\n")
		must(t, launchTime, func() error {
			if got := d.inspect(name, ".State.Status") + " " + d.inspect(name, ".RestartCount"); got != "running 1" {
				return fmt.Errorf("it is %s", got)
			}
			return nil
		})
		d.do("stop", "-t", "0", name)
		expect(t, "the state once stopped", d.inspect(name, ".State.Status"), "exited")
	})
}

func TestHealthIsProbedInTheContainer(t *testing.T) {
	t.Parallel()
	d := newDocker(t)
	name := d.launch(opts("--health-interval", "1s", "--health-timeout", "5s", "--health-retries", "1",
		"--health-cmd", `case $(cat /health) in ok) echo fine ;; slow) touch /slow; exec sleep 4321 ;; *) echo ill; exit 1 ;; esac`),
		"sh", "-c", "echo ok > /health; exec sleep 1000")
	is := func(status, says string) {
		t.Helper()
		must(t, launchTime, func() error {
			got := d.inspect(name, "json .State.Health")
			if !strings.Contains(got, `"Status":"`+status+`"`) || !strings.Contains(got, says) {
				return fmt.Errorf("its health is %s", got)
			}
			return nil
		})
	}
	become := func(health string) { d.do("exec", name, "sh", "-c", "echo "+health+" > /health") }
	is("healthy", "fine")
	become("bad")
	is("unhealthy", "ill")
	become("ok")
	is("healthy", "fine")
	become("slow")
	is("unhealthy", "exceeded timeout")
	become("ok")
	must(t, commandTime, func() error {
		if ps := d.do("exec", name, "ps"); strings.Contains(ps, "4321") {
			return fmt.Errorf("the probe that took too long lives: %s", ps)
		}
		return nil
	})
	is("healthy", "fine")
}

func TestEventsTellTheLifeOfAContainer(t *testing.T) {
	t.Parallel()
	d := newDocker(t)
	// As they come: dockerd keeps the last 256, which other tests' containers fill within seconds.
	label := "events=" + newID("label")
	all := d.follow("events", "--since", strconv.FormatInt(time.Now().Unix(), 10), "--filter", "label="+label,
		"--format", "{{.Actor.Attributes.name}}|{{.Action}}|{{.Actor.Attributes.exitCode}}|")
	events := func(name string) []string {
		var actions []string
		for line := range strings.Lines(all.String()) {
			if words := strings.Split(line, "|"); len(words) > 3 && words[0] == name {
				action, _, _ := strings.Cut(words[1], ":") // what an exec runs
				actions = append(actions, strings.TrimSuffix(action+" "+words[2], " <no value>"))
			}
		}
		return actions
	}
	hungry := d.launch(opts("-m", "64m", "--label", label), "dd", "if=/dev/zero", "of=/dev/null", "bs=200M", "count=1")
	expect(t, "the exit code", d.do("wait", hungry), "137")
	name := d.launch(opts("--label", label), "sleep", "1000")
	d.try("exec", name, "false")
	d.do("pause", name)
	d.do("unpause", name)
	d.do("kill", name)
	d.do("wait", name)
	must(t, commandTime, func() error {
		for _, want := range []struct {
			name   string
			events []string
		}{
			{name, []string{"create", "start", "exec_create", "exec_start", "exec_die 1", "pause", "unpause", "kill", "die 137"}},
			{hungry, []string{"create", "start", "oom", "die 137"}},
		} {
			got := events(want.name)
			for _, event := range want.events {
				if !slices.Contains(got, event) {
					return fmt.Errorf("the events of %s are %q, without %q", want.name, got, event)
				}
			}
		}
		return nil
	})
}
