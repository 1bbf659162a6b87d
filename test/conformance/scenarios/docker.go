// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package scenarios

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"bulkhead/test/e2e/engine"
)

// docker runs a Docker command.
func (t *trial) docker(args ...string) outcome { return t.run(t.bench.docker, "", args...) }

// dockerRun is "docker run" on network none.
func dockerRun(options []string, command ...string) []string {
	return slices.Concat([]string{"run", "--network", "none"}, options, []string{engine.Image}, command)
}

// opts makes options readable in a call.
func opts(options ...string) []string { return options }

// inspect gives fields of a container, with a blank between them.
func (t *trial) inspect(name string, fields ...string) string {
	return t.docker("inspect", "--format", "{{"+strings.Join(fields, "}} {{")+"}}", name).succeeds().text()
}

// start is "docker run -d" of a script.
func (t *trial) start(what string, options []string, script string) (name string) {
	name = t.name(what)
	t.docker(dockerRun(append([]string{"-d", "--name", name}, options...), "sh", "-c", script)...).succeeds()
	return name
}

// logged waits until the log of a container is a text.
func (t *trial) logged(c client, name, text string) {
	t.until("the log of "+name, text, func() string { return t.run(c, "", "logs", name).Stdout })
}

// removed is "docker rm -f", after which nobody knows the container.
func (t *trial) removed(name string) {
	t.docker("rm", "-f", name).ends(0, name+"\n")
	t.docker("inspect", name).fails(1, "No such object")
}

const (
	// talker says what it gets, and ends with 3 when asked to; it has one child, and makes no more.
	talker = `trap 'echo usr1' USR1; trap 'echo bye; exit 3' TERM; sleep 777 & echo up; while :; do wait; done`
	// memoryLimit tells the limit of whom it runs in, with either version of cgroups.
	memoryLimit = `cat /sys/fs/cgroup/memory.max 2>/dev/null || cat /sys/fs/cgroup/memory/memory.limit_in_bytes`
	cpuQuota    = `cut -d' ' -f1 /sys/fs/cgroup/cpu.max 2>/dev/null || cat /sys/fs/cgroup/cpu/cpu.cfs_quota_us`
	// deaf ignores every request to end.
	deaf = `trap '' TERM INT HUP; echo up; exec sleep 1000`
)

var dockerChains = []chain{
	{{
		name: "docker info/version", says: "the default runtime is named, with its version",
		act: func(t *trial) {
			t.docker("info", "--format", "{{.DefaultRuntime}}").ends(0, "tested\n")
			version := t.run(client{argv: t.bench.stage.Runtime.Args}, "", "--version").succeeds()
			first, rest, _ := strings.Cut(version.text(), "\n")
			words := strings.Fields(first)
			docker := t.docker("version", "--format", `{{range .Server.Components}}{{if eq .Name "tested"}}{{.Version}} {{.Details.GitCommit}}{{end}}{{end}}`).succeeds().text()
			told, commit, _ := strings.Cut(docker, " ")
			equal(t, "the version that Docker knows", told, words[len(words)-1])
			t.holds("the commit that Docker knows is the runtime's", commit != "" && strings.Contains(rest, "commit: "+commit))
		},
	}},
	{{
		name: "docker run --rm echo hi", says: "a command's output and its end",
		act: func(t *trial) { t.docker(dockerRun(opts("--rm"), "echo", "hi")...).ends(0, "hi\n") },
	}, {
		name: "docker run --rm exit 7", says: "the exit code is the command's",
		act: func(t *trial) { t.docker(dockerRun(opts("--rm"), "sh", "-c", "exit 7")...).ends(7, "") },
	}},
	{{
		name: "docker run -i --rm cat", says: "input and its end reach the command",
		act: func(t *trial) {
			t.run(t.bench.docker, "typed\nand more", dockerRun(opts("-i", "--rm"), "cat")...).ends(0, "typed\nand more")
		},
	}, {
		name: "docker run -t --rm (script)", says: "a terminal: its name, its echo, its end",
		act: func(t *trial) {
			o := t.terminal(t.bench.docker, "ready\r\n", "word\r", dockerRun(opts("-it", "--rm"), "sh", "-c", `tty; echo ready; read line; echo "<$line>"; exit 5`)...)
			o.ends(5, "/dev/pts/0\r\nready\r\nword\r\n<word>\r\n")
		},
	}},
	{{
		name: "docker run --rm nosuchcmd", says: "127 and the name of what was not found",
		act: func(t *trial) {
			t.docker(dockerRun(opts("--rm"), "nosuchcmd")...).fails(127, `exec: "nosuchcmd": executable file not found in $PATH`)
		},
	}, {
		name: "docker run --rm noexec", says: "126 and the name of what is no program",
		act: func(t *trial) {
			t.docker(dockerRun(opts("--rm"), "/etc/passwd")...).fails(126, `exec: "/etc/passwd": permission denied`)
		},
	}},
	dockerLife,
	{{
		name: "run -d ignoring TERM; docker stop -t 1", says: "stop kills what does not end by itself",
		act: func(t *trial) {
			name := t.start("deaf", nil, deaf)
			t.logged(t.bench.docker, name, "up\n")
			t.docker("stop", "-t", "1", name).ends(0, name+"\n")
			equal(t, "the record", t.inspect(name, ".State.Status", ".State.ExitCode", ".State.OOMKilled"), "exited 137 false")
			t.removed(name)
		},
	}},
	{{
		name: "run --pid=host exits", says: "the container sees the host's processes",
		declared: differs("cannot share the host's processes; do without --pid=host", "a VM cannot be in a namespace of the host's kernel; refused"),
		act: func(t *trial) {
			t.docker(dockerRun(opts("--rm", "--pid=host"), "sh", "-c", `test "$$" != 1 && echo "among others"`)...).ends(0, "among others\n")
		},
	}, {
		name: "run --network host", says: "the container has the host's network interfaces",
		declared: differs("cannot share the host's network namespace; use --network none", "a VM cannot be in a namespace of the host's kernel; refused"),
		act: func(t *trial) {
			t.docker("run", "--rm", "--network", "host", engine.Image, "sh", "-c", `test "$(ls /sys/class/net | wc -l)" -gt 1 && echo "more than lo"`).ends(0, "more than lo\n")
		},
	}},
	{{
		name: "run --network none", says: "the loopback device is up, and no route leads elsewhere",
		act: func(t *trial) {
			t.docker(dockerRun(opts("--rm"), "sh", "-c", `ping -c 1 -W 5 127.0.0.1 > /dev/null && tail -n +2 /proc/net/route | wc -l`)...).ends(0, "0\n")
		},
	}, {
		name: "container netns/ipc/pid share", says: "a second container joins the network, IPC and PID namespaces of the first",
		act: func(t *trial) {
			first := t.name("shared")
			t.docker(dockerRun(opts("-d", "--name", first, "--ipc", "shareable"), "sh", "-c", "echo shared > /dev/shm/file; echo up; exec sleep 1000")...).succeeds()
			t.logged(t.bench.docker, first, "up\n")
			of := "container:" + first
			t.docker("run", "--rm", "--network", of, "--ipc", of, "--pid", of, engine.Image, "sh", "-c", `cat /dev/shm/file; test "$$" != 1 && echo "not the first process"`).ends(0, "shared\nnot the first process\n")
			equal(t, "the first's state", t.inspect(first, ".State.Status", ".State.ExitCode", ".State.OOMKilled"), "running 0 false")
			t.removed(first)
		},
	}},
	{{
		name: "rm -f running", says: "a running container is ended and removed",
		act: func(t *trial) {
			name := t.start("forced", nil, deaf)
			t.removed(name)
		},
	}, {
		name: "OOM", says: "a container that takes more memory than it may ends with 137 and is recorded as OOM-killed",
		act: func(t *trial) {
			// Docker hears of the kill and of the exit by two events of containerd's, in either order, and records
			// the kill only when it has come first: on a busy machine now and then not, with any runtime.
			const killed = "exited 137 true"
			var record string
			for i := range 4 {
				name := t.name(fmt.Sprint("oom", i))
				t.docker(dockerRun(opts("-d", "--name", name, "-m", "64m", "--memory-swap", "64m"), "dd", "if=/dev/zero", "of=/dev/null", "bs=200M", "count=1")...).succeeds()
				t.docker("wait", name).ends(0, "137\n")
				record = t.inspect(name, ".State.Status", ".State.ExitCode", ".State.OOMKilled")
				t.removed(name)
				if record == killed {
					break
				}
			}
			equal(t, "the record", record, killed)
		},
	}},
	{{
		name: "runtimeArgs", says: "a runtime of daemon.json with arguments of its own",
		act: func(t *trial) {
			t.docker(dockerRun(opts("--rm", "--runtime", "tested-debug"), "echo", "hi")...).ends(0, "hi\n")
		},
	}, {
		name: "diff/commit", says: "changes are listed; an image of them can be run; the container runs on",
		act: func(t *trial) {
			name := t.start("diff", nil, "echo new > /tmp/made; rm /etc/not-a-script; echo up; exec sleep 1000")
			t.logged(t.bench.docker, name, "up\n")
			lines := strings.Split(t.docker("diff", name).succeeds().text(), "\n")
			slices.Sort(lines)
			equal(t, "the list of changes", strings.Join(lines, ", "), "A /tmp/made, C /etc, C /tmp, D /etc/not-a-script")
			image := name + ":made"
			t.docker("commit", name, image).succeeds()
			equal(t, "the container's state", t.inspect(name, ".State.Status"), "running")
			t.removed(name)
			t.docker("run", "--rm", "--network", "none", image, "sh", "-c", "cat /tmp/made; ls /etc").ends(0, "new\ngroup\nhostname\nhosts\nmtab\npasswd\nresolv.conf\n")
			t.docker("rmi", image).succeeds()
		},
	}},
	dockerFaults,
}

// dockerLife is the life of one container.
var dockerLife = chain{
	{
		name: "docker run -d sleep", says: "it runs in the background, under a pid of the host",
		act: func(t *trial) {
			name := t.start("life", nil, talker)
			t.logged(t.bench.docker, name, "up\n")
			equal(t, "the state", t.inspect(name, ".State.Status", ".State.ExitCode"), "running 0")
			t.holds("its process exists", exists("/proc/"+t.inspect(name, ".State.Pid")))
		},
	},
	{
		name: "docker exec c1 id", says: "a further process in the container",
		act: func(t *trial) {
			t.docker("exec", t.name("life"), "id").ends(0, "uid=0(root) gid=0(root) groups=0(root)\n")
		},
	},
	{
		name: "docker exec -it", says: "a further process with a terminal of its own",
		act: func(t *trial) {
			o := t.terminal(t.bench.docker, "ready\r\n", "word\r", "exec", "-it", t.name("life"), "sh", "-c", `tty; echo ready; read line; echo "<$line>"; exit 6`)
			o.ends(6, "/dev/pts/0\r\nready\r\nword\r\n<word>\r\n")
		},
	},
	{
		name: "docker exec -d", says: "a further process that nobody waits for",
		act: func(t *trial) {
			t.docker("exec", "-d", t.name("life"), "sh", "-c", "echo detached > /tmp/detached").ends(0, "")
			t.until("the file it writes", "detached\n", func() string { return t.docker("exec", t.name("life"), "cat", "/tmp/detached").Stdout })
		},
	},
	{
		name: "docker exec exit 9", says: "its exit code is its own",
		act: func(t *trial) { t.docker("exec", t.name("life"), "sh", "-c", "exit 9").ends(9, "") },
	},
	{
		name: "docker exec nosuch", says: "a code for people and the name of what was not found",
		act: func(t *trial) {
			// 126 is Docker 20.10's; later ones say 127.
			t.docker("exec", t.name("life"), "nosuch").fails(126, `exec: "nosuch": executable file not found in $PATH`)
		},
	},
	{
		name: "docker top", says: "the processes of the container, by their pids on the host",
		declared: differs("sleep 777", notTheGuests),
		act: func(t *trial) {
			name := t.name("life")
			lines := strings.Split(t.docker("top", name, "-eo", "pid,args").succeeds().text(), "\n")
			t.holds("the first line is a header", strings.Fields(lines[0])[0] == "PID")
			pid := t.inspect(name, ".State.Pid")
			t.holds("a line begins with the container's pid", slices.ContainsFunc(lines, func(line string) bool { return strings.HasPrefix(strings.TrimSpace(line), pid+" ") }))
			t.child(lines)
		},
	},
	{
		name: "docker stats", says: "memory and processes of the container are counted",
		act: func(t *trial) {
			fields := strings.Fields(t.docker("stats", "--no-stream", "--format", "{{.Name}} {{.PIDs}} {{.MemUsage}}", t.name("life")).succeeds().text())
			equal(t, "the number of fields", len(fields), 5)
			if len(fields) == 5 {
				equal(t, "the name", fields[0], t.name("life"))
				t.holds("it has processes: "+fields[1], fields[1] != "0" && fields[1] != "--")
				t.holds("it uses memory: "+fields[2], fields[2] != "0B" && fields[2] != "--")
			}
		},
	},
	{
		name: "docker pause", says: "it is recorded as paused",
		act: func(t *trial) {
			t.docker("pause", t.name("life")).ends(0, t.name("life")+"\n")
			equal(t, "the state", t.inspect(t.name("life"), ".State.Status", ".State.Paused"), "paused true")
		},
	},
	{
		name: "docker exec while paused", says: "refused by the engine",
		act: func(t *trial) { t.docker("exec", t.name("life"), "true").fails(1, "is paused") },
	},
	{
		name: "docker unpause", says: "it runs again",
		act: func(t *trial) {
			t.docker("unpause", t.name("life")).ends(0, t.name("life")+"\n")
			equal(t, "the state", t.inspect(t.name("life"), ".State.Status", ".State.Paused"), "running false")
			t.docker("exec", t.name("life"), "echo", "alive").ends(0, "alive\n")
		},
	},
	{
		name: "docker update", says: "limits of memory and processor change while it runs, and are recorded",
		act: func(t *trial) {
			name := t.name("life")
			t.docker("update", "--memory", "128m", "--memory-swap", "256m", "--cpus", "0.5", name).succeeds()
			equal(t, "the record", t.inspect(name, ".HostConfig.Memory", ".HostConfig.MemorySwap", ".HostConfig.NanoCpus"), "134217728 268435456 500000000")
			t.docker("exec", name, "sh", "-c", memoryLimit+"; "+cpuQuota).ends(0, "134217728\n50000\n")
		},
	},
	{
		name: "docker kill -s USR1", says: "a signal reaches the program, and nothing else happens",
		act: func(t *trial) {
			t.docker("kill", "-s", "USR1", t.name("life")).ends(0, t.name("life")+"\n")
			t.logged(t.bench.docker, t.name("life"), "up\nusr1\n")
			equal(t, "the state", t.inspect(t.name("life"), ".State.Status"), "running")
		},
	},
	{
		name: "docker restart", says: "it is asked to end, and begins again with its files",
		act: func(t *trial) {
			name := t.name("life")
			before := t.inspect(name, ".State.StartedAt")
			t.docker("restart", "-t", "60", name).ends(0, name+"\n")
			t.logged(t.bench.docker, name, "up\nusr1\nbye\nup\n")
			equal(t, "the state", t.inspect(name, ".State.Status"), "running")
			t.holds("it is recorded as started again", before != t.inspect(name, ".State.StartedAt"))
			t.docker("exec", name, "cat", "/tmp/detached").ends(0, "detached\n")
		},
	},
	{
		name: "docker cp", says: "files go both ways while it runs",
		act: func(t *trial) {
			name, dir := t.name("life"), t.bench.stage.Dir
			given, taken := filepath.Join(dir, "given"), filepath.Join(dir, "taken")
			if err := os.WriteFile(given, []byte("from the host\n"), 0o640); err != nil {
				t.complain("%w", err)
			}
			t.docker("cp", given, name+":/tmp/given").succeeds()
			t.docker("exec", name, "sh", "-c", "cat /tmp/given; stat -c %a /tmp/given; echo back > /tmp/back").ends(0, "from the host\n640\n")
			t.docker("cp", name+":/tmp/back", taken).succeeds()
			text, err := os.ReadFile(taken)
			if err != nil {
				t.complain("%w", err)
			}
			equal(t, "the file that came back", string(text), "back\n")
		},
	},
	{
		name: "docker logs", says: "all that it wrote, of each of its runs",
		act: func(t *trial) {
			t.docker("logs", t.name("life")).ends(0, "up\nusr1\nbye\nup\n")
			t.docker("logs", "--tail", "1", t.name("life")).ends(0, "up\n")
		},
	},
	{
		name: "docker stop", says: "it is asked to end, and its code is recorded",
		act: func(t *trial) {
			t.docker("stop", "-t", "60", t.name("life")).ends(0, t.name("life")+"\n")
			equal(t, "the record", t.inspect(t.name("life"), ".State.Status", ".State.ExitCode", ".State.OOMKilled", ".State.Pid"), "exited 3 false 0")
		},
	},
	{
		name: "docker start", says: "it begins again",
		act: func(t *trial) {
			t.docker("start", t.name("life")).ends(0, t.name("life")+"\n")
			equal(t, "the state", t.inspect(t.name("life"), ".State.Status"), "running")
		},
	},
	{
		name: "docker kill", says: "it ends with 137",
		act: func(t *trial) {
			t.docker("kill", t.name("life")).ends(0, t.name("life")+"\n")
			t.docker("wait", t.name("life")).ends(0, "137\n")
			equal(t, "the record", t.inspect(t.name("life"), ".State.Status", ".State.ExitCode", ".State.OOMKilled"), "exited 137 false")
		},
	},
	{
		name: "docker rm -f", says: "an ended container is removed",
		act: func(t *trial) { t.removed(t.name("life")) },
	},
}

// child looks for the child of talker in lines that end with command lines.
func (t *trial) child(lines []string) {
	t.holds("sleep 777, which the program started, is listed", slices.ContainsFunc(lines, func(line string) bool { return strings.HasSuffix(strings.TrimSpace(line), " sleep 777") }))
}

func exists(path string) bool {
	_, err := os.Lstat(path)
	return err == nil
}
