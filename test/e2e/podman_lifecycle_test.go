// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"fmt"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"bulkhead/test/e2e/host"
)

// conmonPID is the process that watches a container.
func (p podmanUser) conmonPID(name string) int {
	p.t.Helper()
	pid, err := strconv.Atoi(strings.TrimSpace(read(p.t, p.inspect(name, ".ConmonPidFile"))))
	if err != nil {
		p.t.Fatal(err)
	}
	return pid
}

func TestPodmanWorksOnADetachedContainer(t *testing.T) {
	t.Parallel()
	p := newPodman(t)
	name := p.launch(opts("-e", "FROM=container"), "sh", "-c",
		`trap 'echo bye; exit 43' TERM; echo x >> /starts; echo out; echo err >&2; while :; do sleep 0.1; done`)
	p.says(name, "err\n")
	r := p.try("logs", name)
	expect(t, "the log of stdout", r.Stdout, "out\n")
	expect(t, "the log of stderr", r.Stderr, "err\n")
	expect(t, "the runtime", p.inspect(name, ".OCIRuntime"), runtimeUnderTest())
	pid := p.inspect(name, ".State.Pid")
	if err := gone("/proc/" + pid); err == nil {
		t.Errorf("there is no process %s, which is the container to podman", pid)
	}

	t.Run("exec", func(t *testing.T) { testPodmanExec(podmanUser{t, p.podman}, name) })
	t.Run("cp", func(t *testing.T) { testPodmanCopy(podmanUser{t, p.podman}, name) })

	if top := strings.Split(p.do("top", name), "\n"); len(top) < 2 || !strings.Contains(top[0], "PID") {
		t.Errorf("podman top says %q", top)
	}
	stats := strings.Fields(p.do("stats", "--no-stream", "--format", "{{.PIDs}} {{.MemUsage}}", name))
	if n, err := strconv.Atoi(stats[0]); err != nil || n < 1 || len(stats) < 2 || strings.HasPrefix(stats[1], "0B") {
		t.Errorf("podman stats says %q", stats)
	}

	p.do("pause", name)
	expect(t, "the state", p.inspect(name, ".State.Status"), "paused")
	if r := p.try("exec", name, "true"); r.Code == 0 {
		t.Error("an exec ran in a paused container")
	}
	p.do("unpause", name)
	expect(t, "the state", p.inspect(name, ".State.Status"), "running")

	p.do("stop", "--time", "30", name)
	expect(t, "the state", p.inspect(name, ".State.Status"), "exited")
	expect(t, "the exit code", p.inspect(name, ".State.ExitCode"), "43")
	p.says(name, "bye\n")
	started := func(times int) {
		t.Helper()
		must(t, commandTime, func() error {
			if r := p.try("exec", name, "wc", "-l", "/starts"); r.Stdout != fmt.Sprintf("%d /starts\n", times) {
				return fmt.Errorf("it counts its starts as %q: %s", r.Stdout, r.Stderr)
			}
			return nil
		})
	}
	p.do("start", name)
	started(2)
	p.do("restart", "--time", "0", name)
	started(3)
	p.do("kill", name)
	expect(t, "the code that wait gives", p.do("wait", name), "137")
	expect(t, "OOMKilled", p.inspect(name, ".State.OOMKilled"), "false")
	p.do("rm", name)
}

func testPodmanExec(p podmanUser, name string) {
	for _, c := range []struct {
		test    string
		options []string
		command []string
		want    string
		code    int
		says    string
	}{
		{"options", opts("-e", "MORE=exec", "-w", "/var", "-u", "1000:77"), []string{"sh", "-c", "echo $FROM $MORE; pwd; id -u; id -g; exit 42"},
			"container exec\n/var\n1000\n77\n", 42, ""},
		{"signal", nil, []string{"sh", "-c", "kill -9 $$"}, "", 137, ""},
		{"missing program", nil, []string{"no-such-program"}, "", 127, "executable file not found"},
		{"no permission", nil, []string{"/etc/not-a-script"}, "", 126, "permission denied"},
	} {
		p.t.Run(c.test, func(t *testing.T) {
			t.Parallel()
			r := podmanUser{t, p.podman}.try(append(append([]string{"exec"}, c.options...), append([]string{name}, c.command...)...)...)
			expect(t, "the output", r.Stdout, c.want)
			expect(t, "the exit code", r.Code, c.code)
			if !strings.Contains(r.Stderr, c.says) {
				t.Errorf("podman says %q without %q", r.Stderr, c.says)
			}
		})
	}
	p.t.Run("-i", func(t *testing.T) {
		t.Parallel()
		r := podmanUser{t, p.podman}.tryFor(commandTime, strings.NewReader("typed\n"), "exec", "-i", name, "cat")
		expect(t, "the output", r.Stdout, "typed\n")
	})
	p.t.Run("-it", func(t *testing.T) {
		t.Parallel()
		tt := podmanUser{t, p.podman}.client().terminal(31, 97, "exec", "-it", name, "sh", "-c", sizeScript)
		tt.shows("31 97.")
		tt.types("\x03")
		tt.ends(7)
	})
	p.t.Run("-d", func(t *testing.T) {
		t.Parallel()
		p := podmanUser{t, p.podman}
		p.do("exec", "-d", name, "sh", "-c", "echo detached > /detached")
		must(t, commandTime, func() error {
			if r := p.try("exec", name, "cat", "/detached"); r.Stdout != "detached\n" {
				return fmt.Errorf("it wrote %q: %s", r.Stdout, r.Stderr)
			}
			return nil
		})
	})
}

func testPodmanCopy(p podmanUser, name string) {
	dir := p.t.TempDir()
	write(p.t, filepath.Join(dir, "given"), "from the host\n")
	p.do("cp", filepath.Join(dir, "given"), name+":/tmp/given")
	expect(p.t, "the file in the container", p.do("exec", name, "sh", "-c", "cat /tmp/given; echo more >> /tmp/given"), "from the host")
	p.do("cp", name+":/tmp/given", filepath.Join(dir, "taken"))
	expect(p.t, "the file on the host", read(p.t, filepath.Join(dir, "taken")), "from the host\nmore\n")
}

func TestPodmanCreatesInitsAndStarts(t *testing.T) {
	t.Parallel()
	p := newPodman(t)
	create := func(p podmanUser, command ...string) string {
		name := newID("created")
		p.t.Cleanup(func() { p.remove(name) })
		p.do(append([]string{"create"}, p.runArgs(append(opts("--name"), name), command...)[1:]...)...)
		expect(p.t, "the state", p.inspect(name, ".State.Status"), "created")
		return name
	}
	t.Run("start", func(t *testing.T) {
		t.Parallel()
		p := podmanUser{t, p.podman}
		name := create(p, "sh", "-c", "echo started; exit 3")
		p.do("init", name)
		expect(t, "the state", p.inspect(name, ".State.Status"), "initialized")
		r := p.try("start", "--attach", name)
		expect(t, "the output", r.Stdout, "started\n")
		expect(t, "the exit code", r.Code, 3)
	})
	t.Run("rm -f", func(t *testing.T) {
		t.Parallel()
		p := podmanUser{t, p.podman}
		name := create(p, "true")
		p.do("init", name)
		pid := p.inspect(name, ".State.Pid")
		p.do("rm", "--force", name)
		must(t, cleanTime, func() error { return gone("/proc/" + pid) })
	})
}

func TestPodmanTellsHowAContainerEnded(t *testing.T) {
	t.Parallel()
	p := newPodman(t)
	t.Run("out of memory", func(t *testing.T) {
		t.Parallel()
		p := podmanUser{t, p.podman}
		name := p.launch(opts("-m", "64m"), "dd", "if=/dev/zero", "of=/dev/null", "bs=200M", "count=1")
		expect(t, "the exit code", p.do("wait", name), "137")
		if !reference() { // of runc, conmon 2.1 tells it where podman does not look
			expect(t, "OOMKilled", p.inspect(name, ".State.OOMKilled"), "true")
		}
	})
	t.Run("restarted on failure", func(t *testing.T) {
		t.Parallel()
		p := podmanUser{t, p.podman}
		name := p.launch(opts("--restart", "on-failure:2"), "sh", "-c", "echo x >> /starts; exit 5")
		must(t, launchTime, func() error {
			if got := p.inspect(name, ".State.Status") + " " + p.inspect(name, ".RestartCount"); got != "exited 2" {
				return fmt.Errorf("it is %s", got)
			}
			return nil
		})
		expect(t, "the exit code", p.inspect(name, ".State.ExitCode"), "5")
	})
	t.Run("removed while it runs", func(t *testing.T) {
		t.Parallel()
		p := podmanUser{t, p.podman}
		name := p.launch(opts("--rm"), "sh", "-c", "trap '' TERM HUP INT; while :; do sleep 0.1; done")
		pid := p.inspect(name, ".State.Pid")
		p.do("rm", "--force", "--time", "0", name)
		must(t, cleanTime, func() error { return gone("/proc/" + pid) })
		if r := p.try("container", "exists", name); r.Code != 1 {
			t.Errorf("podman container exists ends with %d after its removal", r.Code)
		}
	})
}

func TestAContainerOutlivesThePodmanThatRanIt(t *testing.T) {
	t.Parallel()
	p := newPodman(t)
	name := newID("outlives")
	t.Cleanup(func() { p.remove(name) })
	argv := p.podman.Args(p.runArgs(opts("--name", name), "sh", "-c", `trap 'exit 9' TERM; echo up; while test ! -e /go; do sleep 0.1; done; echo on; while :; do sleep 0.1; done`)...)
	cmd := exec.CommandContext(t.Context(), argv[0], argv[1:]...)
	cmd.Env = append(cmd.Environ(), p.podman.Env()...)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cmd.Process.Kill() })
	must(t, launchTime, func() error {
		if r := p.try("logs", name); r.Stdout != "up\n" {
			return fmt.Errorf("it says %q: %s", r.Stdout, r.Stderr)
		}
		// Podman writes down that a container runs when the runtime has answered, which its program may be quicker than.
		return is(p.inspect(name, ".State.Status"), "running")
	})
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait() // killed
	p.do("exec", name, "touch", "/go")
	p.says(name, "on\n")
	p.do("stop", "--time", "30", name)
	expect(t, "the exit code", p.inspect(name, ".State.ExitCode"), "9")
}

func TestAContainerWhoseConmonWasKilledCanBeRemoved(t *testing.T) {
	t.Parallel()
	p := newPodman(t)
	name := p.launch(nil, "sleep", "1000")
	id, pid := p.inspect(name, ".Id"), p.inspect(name, ".State.Pid")
	if err := unix.Kill(p.conmonPID(name), unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	p.do("rm", "--force", "--time", "1", name)
	must(t, cleanTime, func() error { return gone("/proc/" + pid) })
	// Podman forgets it without a word to the runtime, whichever that is.
	if r, err := host.Run(within(t, commandTime), nil, nil, p.podman.Runtime(), "delete", "--force", id); err != nil || r.Code != 0 {
		t.Errorf("delete --force: %v, code %d: %s", err, r.Code, r.Stderr)
	}
}

func TestANamespaceThatPodmanIsGivenIsTheContainers(t *testing.T) {
	t.Parallel()
	p := newPodman(t)
	namespace, err := host.NewNetns()
	if err != nil {
		t.Fatal(err)
	}
	defer namespace.Close()
	ipIn(t, namespace, "link", "add", "veth0", "type", "veth", "peer", "name", "outside", "netns", p.podman.Net.Path())
	ipIn(t, namespace, "addr", "add", "192.0.2.7/24", "dev", "veth0")
	ipIn(t, namespace, "link", "set", "veth0", "up")
	name := p.launch(append(withProbe(t), "--network", "ns:"+namespace.Path()), "netprobe", "serve", ":7000")
	p.says(name, "serving")
	expect(t, "the addresses", p.do("exec", name, "sh", "-c", `ip -o -4 addr show scope global | awk '{print $2, $4}'`), "veth0 192.0.2.7/24")
	p.remove(name)
	links, err := namespace.Links()
	if err != nil {
		t.Fatal(err)
	}
	expect(t, "what is in the namespace when the container has gone", strings.Join(links, " "), "lo veth0")
	if qdiscs := tcIn(t, namespace, "qdisc", "show", "dev", "veth0"); strings.Contains(qdiscs, "clsact") || strings.Contains(qdiscs, "ingress") {
		t.Errorf("the link keeps %s", qdiscs)
	}
}

func TestPodmanRefusesTheHostsNetworkInASentence(t *testing.T) {
	t.Parallel()
	needsProduct(t)
	p := newPodman(t)
	name := newID("refused")
	t.Cleanup(func() { p.remove(name) })
	r := p.try(p.runArgs(opts("--name", name, "--network", "host"), "true")...)
	if r.Code == 0 {
		t.Fatal("a container with that network ran")
	}
	sentence(t, r.Stderr, "network")
}
