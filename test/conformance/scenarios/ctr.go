// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package scenarios

import "strings"

// ctr runs a command of containerd's client.
func (t *trial) ctr(args ...string) outcome { return t.run(t.bench.ctr, "", args...) }

func (t *trial) ctrRun(options []string, name string, command ...string) []string {
	return t.bench.ctrEngine.RunArgs(options, name, command...)
}

// task is the status of a task, as "ctr task ls" has it; empty for none.
func (t *trial) task(name string) string {
	for line := range strings.Lines(t.ctr("task", "ls").succeeds().Stdout) {
		if fields := strings.Fields(line); len(fields) == 3 && fields[0] == name {
			return fields[2]
		}
	}
	return ""
}

var ctrChains = []chain{
	{{
		name: "ctr run --rm", says: "a command's output and its end",
		act: func(t *trial) {
			t.ctr(t.ctrRun(opts("--rm"), t.name("ctr1"), "sh", "-c", "echo hi; exit 7")...).ends(7, "hi\n")
		},
	}, {
		name: "ctr run -t", says: "a terminal: its name, its echo, its end",
		act: func(t *trial) {
			// ctr leaves the ends of lines to the terminal, which then sees two.
			o := t.terminal(t.bench.ctr, "ready\r\r\n", "word\r", t.ctrRun(opts("--rm", "-t"), t.name("ctr2"), "sh", "-c", `tty; echo ready; read line; echo "<$line>"; exit 5`)...)
			o.ends(5, "/dev/pts/0\r\r\nready\r\r\nword\r\r\n<word>\r\r\n")
		},
	}},
	{{
		name: "ctr run --null-io -d", says: "it runs in the background without input and output",
		act: func(t *trial) {
			t.ctr(t.ctrRun(opts("--null-io", "-d"), t.name("ctr3"), "sh", "-c", talker)...).ends(0, "")
			equal(t, "the status", t.task(t.name("ctr3")), "RUNNING")
		},
	}, {
		name: "ctr task exec", says: "a further process, its output and its code",
		act: func(t *trial) {
			t.ctr(t.ctrExec("e1", nil, "sh", "-c", "echo more; exit 9")...).ends(9, "more\n")
		},
	}, {
		name: "ctr task exec -d then kill exec", says: "a further process that nobody waits for, and a signal to it alone",
		act: func(t *trial) {
			name := t.name("ctr3")
			t.ctr(t.ctrExec("e2", opts("--detach"), "sh", "-c", "trap 'echo killed > /tmp/trapped; exit 0' USR1; sleep 777 & echo > /tmp/ready; wait")...).ends(0, "")
			n := 0
			seen := func(path string) func() string {
				return func() string {
					n++
					return t.ctr(t.ctrExec("look"+strings.Repeat("i", n), nil, "cat", path)...).Stdout
				}
			}
			t.until("the file that says that it runs", "\n", seen("/tmp/ready"))
			t.ctr("task", "kill", "--exec-id", "e2", "--signal", "SIGUSR1", name).ends(0, "")
			t.until("the file that it writes", "killed\n", seen("/tmp/trapped"))
			equal(t, "the status of the container", t.task(name), "RUNNING")
		},
	}, {
		name: "ctr task ps", says: "the processes of the container, by their pids on the host",
		declared: differs("2 processes are listed", notTheGuests),
		act: func(t *trial) {
			lines := strings.Split(t.ctr("task", "ps", t.name("ctr3")).succeeds().text(), "\n")
			t.holds("the first line is a header", strings.HasPrefix(lines[0], "PID"))
			t.holds("at least 2 processes are listed", len(lines) > 2)
		},
	}, {
		name: "ctr task metrics", says: "memory, processor and processes of the container are counted",
		act: func(t *trial) {
			fields := strings.Fields(t.ctr("task", "metrics", t.name("ctr3")).succeeds().Stdout)
			for _, what := range []string{"memory.usage_in_bytes", "pids.current"} {
				value := ""
				for i := range fields[:max(0, len(fields)-1)] {
					if fields[i] == what {
						value = fields[i+1]
					}
				}
				t.holds(what+" is counted: "+value, value != "" && value != "0")
			}
		},
	}, {
		name: "ctr task pause/resume", says: "its status follows",
		act: func(t *trial) {
			name := t.name("ctr3")
			t.ctr("task", "pause", name).ends(0, "")
			equal(t, "the status", t.task(name), "PAUSED")
			t.ctr("task", "resume", name).ends(0, "")
			equal(t, "the status", t.task(name), "RUNNING")
		},
	}, {
		name: "ctr task kill -a", says: "every process of the container is killed",
		act: func(t *trial) {
			t.ctr("task", "kill", "-a", "-s", "SIGKILL", t.name("ctr3")).ends(0, "")
			t.until("the status", "STOPPED", func() string { return t.task(t.name("ctr3")) })
		},
	}, {
		name: "ctr task rm; c rm", says: "task and container are removed; the code is 137",
		act: func(t *trial) {
			t.ctr("task", "rm", t.name("ctr3")).ends(0, "").says("exit code 137")
			t.ctr("containers", "rm", t.name("ctr3")).ends(0, "")
			equal(t, "the status", t.task(t.name("ctr3")), "")
		},
	}},
	{{
		name: "ctr task create only, then task rm -f", says: "a task is removed by force, without having been ended",
		act: func(t *trial) {
			name := t.name("ctr5")
			t.ctr(t.ctrRun(opts("--null-io", "-d"), name, "sh", "-c", deaf)...).ends(0, "")
			t.ctr("task", "rm", "-f", name).ends(0, "").says("exit code 137")
			t.ctr("containers", "rm", name).ends(0, "")
			equal(t, "the status", t.task(name), "")
		},
	}, {
		name: "ctr checkpoint", says: "refused on this machine, where runc finds no CRIU; the container runs on",
		act: func(t *trial) {
			name := t.name("ctr6")
			t.ctr(t.ctrRun(opts("--null-io", "-d"), name, "sh", "-c", talker)...).ends(0, "")
			t.ctr("task", "checkpoint", name).fails(1, "did not terminate successfully: exit status 1: ")
			equal(t, "the status", t.task(name), "RUNNING")
			t.ctr("task", "kill", "-s", "SIGKILL", name).ends(0, "")
			t.until("the status", "STOPPED", func() string { return t.task(name) })
			t.ctr("task", "rm", name).ends(0, "").says("exit code 137")
			t.ctr("containers", "rm", name).ends(0, "")
		},
	}, {
		name: "ctr run kill twice", says: "the second signal finds nothing, and that is said",
		act: func(t *trial) {
			name := t.name("ctr7")
			t.ctr(t.ctrRun(opts("--null-io", "-d"), name, "sh", "-c", deaf)...).ends(0, "")
			t.ctr("task", "kill", "-s", "SIGKILL", name).ends(0, "")
			t.until("the status", "STOPPED", func() string { return t.task(name) })
			t.ctr("task", "kill", "-s", "SIGKILL", name).fails(1, "not found")
			t.ctr("task", "rm", name).ends(0, "").says("exit code 137")
			t.ctr("containers", "rm", name).ends(0, "")
		},
	}},
}

// ctrExec is "ctr task exec" in the container that stays.
func (t *trial) ctrExec(execID string, options []string, command ...string) []string {
	return t.bench.ctrEngine.ExecArgs(options, t.name("ctr3"), execID, command...)
}
