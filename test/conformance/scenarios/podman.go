// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package scenarios

import (
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"bulkhead/test/e2e/engine"
)

// podman runs a podman command.
func (t *trial) podman(args ...string) outcome { return t.run(t.bench.podman, "", args...) }

// podmanRun is "podman run"; network none is the engine's default.
func (t *trial) podmanRun(options []string, command ...string) []string {
	return t.podmanMake("run", options, command...)
}

func (t *trial) podmanMake(verb string, options []string, command ...string) []string {
	return slices.Concat([]string{verb, "--cgroup-parent", t.bench.podmanEngine.CgroupParent()}, options, []string{engine.PodmanImage}, command)
}

// podmanInspect gives fields of a container, with a blank between them.
func (t *trial) podmanInspect(name string, fields ...string) string {
	return t.podman("inspect", "--format", "{{"+strings.Join(fields, "}} {{")+"}}", name).succeeds().text()
}

// podmanRemoved is "podman rm -f", after which nobody knows the container.
func (t *trial) podmanRemoved(name string) {
	t.podman("rm", "-f", "-t", "0", name).succeeds()
	t.podman("container", "exists", name).ends(1, "")
}

// podmanKilled waits for a container's end by SIGKILL. It is "stopped" until
// conmon's clean-up makes that "exited".
func (t *trial) podmanKilled(name string) {
	t.podman("wait", name).ends(0, "137\n")
	t.until("the record", "exited 137 false", func() string {
		return t.podmanInspect(name, ".State.Status", ".State.ExitCode", ".State.OOMKilled")
	})
}

var podmanChains = []chain{
	{{
		name: "podman run --rm", says: "a command's output and its end",
		act: func(t *trial) { t.podman(t.podmanRun(opts("--rm"), "echo", "hi")...).ends(0, "hi\n") },
	}, {
		name: "podman run exit 7", says: "the exit code is the command's",
		act: func(t *trial) { t.podman(t.podmanRun(opts("--rm"), "sh", "-c", "exit 7")...).ends(7, "") },
	}, {
		name: "podman run -i", says: "input and its end reach the command",
		act: func(t *trial) {
			t.run(t.bench.podman, "typed\nand more", t.podmanRun(opts("--rm", "-i"), "cat")...).ends(0, "typed\nand more")
		},
	}},
	{{
		name: "podman run nosuch", says: "127 and the name of what was not found",
		act: func(t *trial) {
			t.podman(t.podmanRun(opts("--rm"), "nosuch")...).fails(127, `exec: "nosuch": executable file not found in $PATH`)
		},
	}, {
		name: "podman run noexec", says: "126 and the name of what is no program",
		act: func(t *trial) {
			t.podman(t.podmanRun(opts("--rm"), "/etc/passwd")...).fails(126, `exec: "/etc/passwd": permission denied`, "OCI permission denied")
		},
	}, {
		name: "podman run -it", says: "a terminal: its name, its echo, its end",
		act: func(t *trial) {
			o := t.terminal(t.bench.podman, "ready\r\n", "word\r", t.podmanRun(opts("--rm", "-it"), "sh", "-c", `tty; echo ready; read line; echo "<$line>"; exit 5`)...)
			o.ends(5, "/dev/pts/0\r\nready\r\nword\r\n<word>\r\n")
		},
	}},
	{{
		name: "podman run --rm bridge", says: "the container has an interface of a network of CNI",
		act: func(t *trial) {
			t.podman(t.podmanRun(opts("--rm", "--network", engine.PodmanNetwork), "sh", "-c", "grep -c eth0: /proc/net/dev")...).ends(0, "1\n")
		},
	}, {
		name: "podman run preserve-fds", says: "a descriptor of the caller is the container's, too",
		declared: differs("open files of the host cannot be passed into a virtual machine", "an open file of the host's kernel does not exist in the VM's; refused"),
		act: func(t *trial) {
			path := filepath.Join(t.bench.stage.Dir, "preserved")
			if err := os.WriteFile(path, []byte("handed on\n"), 0o644); err != nil {
				t.complain("%w", err)
			}
			shell := client{func(args ...string) []string {
				return append([]string{"/bin/sh", "-c", `exec "$@" 3< "$0"`, path}, t.bench.podman.argv(args...)...)
			}, t.bench.podman.env}
			t.run(shell, "", t.podmanRun(opts("--rm", "--preserve-fds", "1"), "sh", "-c", "cat <&3")...).ends(0, "handed on\n")
		},
	}, {
		name: "podman run --cgroups=disabled", says: "podman asks for that only of a runtime that is configured as able to; no runtime of this list is",
		act: func(t *trial) {
			t.podman("run", "--rm", "--cgroups=disabled", engine.PodmanImage, "echo", "hi").fails(125, "requested OCI runtime "+t.bench.stage.Runtime.Name+" is not compatible with NoCgroups")
		},
	}},
	podmanLife,
	{{
		name: "podman create+init", says: "a container that is made but not started",
		act: func(t *trial) {
			name := t.name("p2")
			t.podman(t.podmanMake("create", opts("--name", name), "sh", "-c", talker)...).succeeds()
			equal(t, "the state", t.podmanInspect(name, ".State.Status"), "created")
			t.podman("init", name).succeeds()
			equal(t, "the state", t.podmanInspect(name, ".State.Status"), "initialized")
			t.podman("logs", name).ends(0, "")
		},
	}, {
		name: "podman start p2", says: "it starts then",
		act: func(t *trial) {
			t.podman("start", t.name("p2")).ends(0, t.name("p2")+"\n")
			t.logged(t.bench.podman, t.name("p2"), "up\n")
		},
	}, {
		name: "podman checkpoint", says: "refused on this machine, which has no CRIU; the container runs on",
		act: func(t *trial) {
			t.podman("container", "checkpoint", t.name("p2")).fails(125, "heckpoint")
			equal(t, "the state", t.podmanInspect(t.name("p2"), ".State.Status"), "running")
		},
	}, {
		name: "podman rm -f p2 -t 0", says: "a running container is removed without being asked",
		act: func(t *trial) { t.podmanRemoved(t.name("p2")) },
	}, {
		name: "podman conmon ctr killed -9 pid",
		says: "the death of the container's process on the host is its end with 137; the death of conmon ends no container, which can be removed",
		act: func(t *trial) {
			name := t.name("p3")
			t.podman(t.podmanRun(opts("-d", "--name", name), "sh", "-c", deaf)...).succeeds()
			t.killContainer(t.podmanInspect(name, ".State.Pid"))
			t.podmanKilled(name)
			t.podman("start", name).succeeds()
			id := t.podmanInspect(name, ".Id")
			t.killContainer(t.podmanInspect(name, ".State.ConmonPid"))
			equal(t, "the state", t.podmanInspect(name, ".State.Status"), "running")
			t.podmanRemoved(name)
			// This podman has its conmon delete what the runtime knows, and so nobody now.
			t.run(client{argv: t.bench.stage.Runtime.Args}, "", "delete", "--force", id).ends(0, "")
		},
	}},
	{{
		name: "pod", says: "two containers of a pod share its host name and its shared memory",
		act: func(t *trial) {
			pod := t.name("pod")
			t.podman("pod", "create", "--name", pod, "--cgroup-parent", t.bench.podmanEngine.CgroupParent(), "--hostname", "porthole",
				"--infra-image", engine.PodmanImage, "--infra-command", "sleep 1000000").succeeds()
			t.podman("run", "-d", "--pod", pod, "--name", t.name("in-pod"), engine.PodmanImage, "sh", "-c", "echo shared > /dev/shm/file; "+deaf).succeeds()
			t.podman("run", "--rm", "--pod", pod, engine.PodmanImage, "sh", "-c", "hostname; cat /dev/shm/file").ends(0, "porthole\nshared\n")
			equal(t, "the pod's state", t.podState(pod), "Running")
		},
	}, {
		name: "pod pause/stop/rm", says: "the pod's containers are paused, ended and removed together",
		act: func(t *trial) {
			pod := t.name("pod")
			t.podman("pod", "pause", pod).succeeds()
			equal(t, "the pod's state", t.podState(pod), "Paused")
			t.podman("pod", "unpause", pod).succeeds()
			equal(t, "the pod's state", t.podState(pod), "Running")
			t.podman("pod", "stop", "-t", "1", pod).succeeds()
			equal(t, "the pod's state", t.podState(pod), "Exited")
			equal(t, "the container's code", t.podmanInspect(t.name("in-pod"), ".State.ExitCode"), "137")
			id := t.podman("pod", "inspect", "--format", "{{.ID}}", pod).succeeds().text()
			t.podman("pod", "rm", "-f", pod).succeeds()
			t.podman("pod", "exists", pod).ends(1, "")
			if err := t.bench.podmanEngine.RemovePodCgroup(id); err != nil {
				t.complain("%w", err)
			}
		},
	}},
}

func (t *trial) podState(pod string) string {
	return t.podman("pod", "inspect", "--format", "{{.State}}", pod).succeeds().text()
}

// podmanLife is the life of one container.
var podmanLife = chain{
	{
		name: "podman run -d", says: "it runs in the background, under a pid of the host and a conmon",
		act: func(t *trial) {
			name := t.name("p1")
			t.podman(t.podmanRun(opts("-d", "--name", name), "sh", "-c", "trap 'echo hup' HUP; "+talker)...).succeeds()
			t.logged(t.bench.podman, name, "up\n")
			equal(t, "the state", t.podmanInspect(name, ".State.Status", ".State.ExitCode"), "running 0")
			for _, pid := range strings.Fields(t.podmanInspect(name, ".State.Pid", ".State.ConmonPid")) {
				t.holds("process "+pid+" exists", pid != "0" && exists("/proc/"+pid))
			}
		},
	},
	{
		name: "podman exec", says: "a further process in the container",
		act: func(t *trial) {
			t.podman("exec", t.name("p1"), "sh", "-c", "echo more; cat /proc/1/comm").ends(0, "more\nsh\n")
		},
	},
	{
		name: "podman exec exit 9", says: "its exit code is its own",
		act: func(t *trial) { t.podman("exec", t.name("p1"), "sh", "-c", "exit 9").ends(9, "") },
	},
	{
		name: "podman exec nosuch", says: "127 and the name of what was not found",
		act: func(t *trial) {
			t.podman("exec", t.name("p1"), "nosuch").fails(127, `exec: "nosuch": executable file not found in $PATH`)
		},
	},
	{
		name: "podman exec -it", says: "a further process with a terminal of its own",
		act: func(t *trial) {
			o := t.terminal(t.bench.podman, "ready\r\n", "word\r", "exec", "-it", t.name("p1"), "sh", "-c", `tty; echo ready; read line; echo "<$line>"; exit 6`)
			o.ends(6, "/dev/pts/0\r\nready\r\nword\r\n<word>\r\n")
		},
	},
	{
		name: "podman exec -d", says: "a further process that nobody waits for",
		act: func(t *trial) {
			t.podman("exec", "-d", t.name("p1"), "sh", "-c", "echo detached > /tmp/detached").succeeds()
			t.until("the file it writes", "detached\n", func() string { return t.podman("exec", t.name("p1"), "cat", "/tmp/detached").Stdout })
		},
	},
	{
		name: "podman ps/inspect/top/stats", says: "it is listed, with its processes and what it uses",
		declared: differs("sleep 777", notTheGuests),
		act: func(t *trial) {
			name := t.name("p1")
			t.podman("ps", "--filter", "name="+name, "--filter", "status=running", "--format", "{{.Names}}").ends(0, name+"\n")
			equal(t, "the runtime", t.podmanInspect(name, ".OCIRuntime"), t.bench.stage.Runtime.Name)
			t.child(strings.Split(t.podman("top", name, "hpid", "args").succeeds().says(t.podmanInspect(name, ".State.Pid")).Stdout, "\n"))
			var stats []map[string]string
			if err := json.Unmarshal([]byte(t.podman("stats", "--no-stream", "--format", "json", name).succeeds().Stdout), &stats); err != nil && !t.hung {
				t.complain("podman stats: %w", err)
			}
			equal(t, "the number of containers in the statistics", len(stats), 1)
			if len(stats) == 1 {
				pids, err := strconv.Atoi(stats[0]["pids"])
				t.holds("it has processes: "+stats[0]["pids"], err == nil && pids > 0)
				t.holds("it uses memory: "+stats[0]["mem_usage"], !strings.HasPrefix(stats[0]["mem_usage"], "0B") && stats[0]["mem_usage"] != "")
			}
		},
	},
	{
		name: "podman pause/unpause", says: "its state follows",
		act: func(t *trial) {
			t.podman("pause", t.name("p1")).succeeds()
			equal(t, "the state", t.podmanInspect(t.name("p1"), ".State.Status"), "paused")
			t.podman("unpause", t.name("p1")).succeeds()
			equal(t, "the state", t.podmanInspect(t.name("p1"), ".State.Status"), "running")
		},
	},
	{
		name: "podman update", says: "a limit of memory changes while it runs",
		act: func(t *trial) {
			t.podman("update", "--memory", "100m", t.name("p1")).succeeds()
			t.podman("exec", t.name("p1"), "sh", "-c", memoryLimit).ends(0, "104857600\n")
		},
	},
	{
		name: "podman kill HUP", says: "a signal reaches the program, and nothing else happens",
		act: func(t *trial) {
			t.podman("kill", "-s", "HUP", t.name("p1")).succeeds()
			t.logged(t.bench.podman, t.name("p1"), "up\nhup\n")
			equal(t, "the state", t.podmanInspect(t.name("p1"), ".State.Status"), "running")
		},
	},
	{
		name: "podman stop", says: "it is asked to end, and its code is recorded",
		act: func(t *trial) {
			t.podman("stop", "-t", "60", t.name("p1")).succeeds()
			t.until("the record", "exited 3 false", func() string {
				return t.podmanInspect(t.name("p1"), ".State.Status", ".State.ExitCode", ".State.OOMKilled")
			})
		},
	},
	{
		name: "podman start", says: "it begins again with its files",
		act: func(t *trial) {
			t.podman("start", t.name("p1")).succeeds()
			equal(t, "the state", t.podmanInspect(t.name("p1"), ".State.Status"), "running")
			t.podman("exec", t.name("p1"), "cat", "/tmp/detached").ends(0, "detached\n")
		},
	},
	{
		name: "podman restart", says: "it is asked to end and begins again",
		act: func(t *trial) {
			before := t.podmanInspect(t.name("p1"), ".State.Pid")
			t.podman("restart", "-t", "60", t.name("p1")).succeeds()
			after := t.podmanInspect(t.name("p1"), ".State.Pid")
			t.holds("its process is another one: "+before+", "+after, before != after && after != "0")
			equal(t, "the state", t.podmanInspect(t.name("p1"), ".State.Status"), "running")
		},
	},
	{
		name: "podman kill", says: "it ends with 137",
		act: func(t *trial) {
			t.podman("kill", t.name("p1")).succeeds()
			t.podmanKilled(t.name("p1"))
		},
	},
	{
		name: "podman rm -f", says: "an ended container is removed",
		act: func(t *trial) { t.podmanRemoved(t.name("p1")) },
	},
}
