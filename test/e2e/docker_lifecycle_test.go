// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"
)

// ticker counts on its output, ten times a second.
const ticker = `i=0; while :; do i=$((i+1)); echo $i; sleep 0.1; done`

func TestADetachedContainerKeepsItsLog(t *testing.T) {
	d := newDocker(t)
	name := d.launch(nil, "sh", "-c", "echo out; echo err >&2; exit 3")
	expect(t, "the code that wait gives", d.do("wait", name), "3")
	r := d.try("logs", name)
	expect(t, "the log of stdout", r.Stdout, "out\n")
	expect(t, "the log of stderr", r.Stderr, "err\n")
	expect(t, "the recorded code", d.inspect(name, ".State.ExitCode"), "3")
}

func TestExecRunsInTheContainer(t *testing.T) {
	d := newDocker(t)
	name := d.launch(opts("-e", "FROM=container"), "sh", "-c", "echo main > /main; exec sleep 1000")
	for _, c := range []struct {
		test    string
		options []string
		script  string
		want    string
		code    int
	}{
		{"sees the files and processes", nil, `cat /main; cat /proc/1/comm`, "main\nsleep\n", 0},
		{"has the container's environment", nil, `echo $FROM`, "container\n", 0},
		{"-e", opts("-e", "FROM=exec"), `echo $FROM`, "exec\n", 0},
		{"-w", opts("-w", "/var"), `pwd`, "/var\n", 0},
		{"-u", opts("-u", "1000:77"), `id -u; id -g`, "1000\n77\n", 0},
		{"exit code", nil, `exit 42`, "", 42},
		{"signal", nil, `kill -9 $$`, "", 137},
		{"has the container's filter", nil, `unshare -U true 2>&1 | grep -o 'Operation not permitted'`, "Operation not permitted\n", 0},
		{"--privileged", opts("--privileged"), `grep -q 'CapEff:.*ffffffff$' /proc/self/status && echo all`, "all\n", 0},
	} {
		t.Run(c.test, func(t *testing.T) {
			if c.test == "--privileged" {
				needsProduct(t) // a host may have fewer capabilities than Docker asks for; a guest has all
			}
			t.Parallel()
			r := dockerUser{t, d.engine}.try(append(append([]string{"exec"}, c.options...), name, "sh", "-c", c.script)...)
			expect(t, "the output", r.Stdout, c.want)
			expect(t, "the exit code", r.Code, c.code)
		})
	}
	t.Run("-i", func(t *testing.T) {
		r := dockerUser{t, d.engine}.tryFor(commandTime, strings.NewReader("typed\n"), "exec", "-i", name, "cat")
		expect(t, "the output", r.Stdout, "typed\n")
	})
	t.Run("missing program", func(t *testing.T) {
		r := dockerUser{t, d.engine}.try("exec", name, "no-such-program")
		if r.Code != 126 && r.Code != 127 { // Docker 20.10 says the one, later ones the other
			t.Errorf("the exit code is %d", r.Code)
		}
		if all := r.Stdout + r.Stderr; !strings.Contains(all, "executable file not found") {
			t.Errorf("docker says %q", all)
		}
	})
	t.Run("-d", func(t *testing.T) {
		d := dockerUser{t, d.engine}
		d.do("exec", "-d", name, "sh", "-c", "echo detached > /detached")
		must(t, commandTime, func() error {
			if out := d.try("exec", name, "cat", "/detached").Stdout; out != "detached\n" {
				return fmt.Errorf("it wrote %q", out)
			}
			return nil
		})
	})
	expect(t, "the container's state", d.inspect(name, ".State.Status"), "running")
}

func TestStopIsTermThenKill(t *testing.T) {
	d := newDocker(t)
	for _, c := range []struct{ name, script, timeout, code string }{
		{"handled", `trap 'echo bye; exit 43' TERM; echo ready; while :; do sleep 0.1; done`, "30", "43"},
		{"ignored", `trap '' TERM; echo ready; while :; do sleep 0.1; done`, "1", "137"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			d := dockerUser{t, d.engine}
			name := d.launch(nil, "sh", "-c", c.script)
			d.says(name, "ready")
			d.do("stop", "-t", c.timeout, name)
			expect(t, "the exit code", d.inspect(name, ".State.ExitCode"), c.code)
			expect(t, "the state", d.inspect(name, ".State.Status"), "exited")
			if c.name == "handled" {
				d.says(name, "bye")
			}
		})
	}
}

func TestKillSendsAnySignal(t *testing.T) {
	d := newDocker(t)
	name := d.launch(nil, "sh", "-c", `trap 'echo usr1' USR1; trap 'echo hup' HUP; trap 'echo rt; exit 9' RTMIN+3; echo ready; while :; do sleep 0.1; done`)
	d.says(name, "ready")
	d.do("kill", "-s", "USR1", name)
	d.says(name, "usr1")
	d.do("kill", "-s", "HUP", name)
	d.says(name, "hup")
	expect(t, "the state", d.inspect(name, ".State.Status"), "running")
	d.do("kill", name)
	expect(t, "the exit code", d.do("wait", name), "137")
}

func TestPauseStopsTimeForTheContainer(t *testing.T) {
	d := newDocker(t)
	name := d.launch(nil, "sh", "-c", ticker)
	d.says(name, "3\n")
	d.do("pause", name)
	expect(t, "the state", d.inspect(name, ".State.Status"), "paused")
	before := stands(t, "the log of a paused container", func() string { return d.do("logs", name) })
	if r := d.try("exec", name, "true"); r.Code == 0 {
		t.Error("an exec ran in a paused container")
	}
	d.do("unpause", name)
	expect(t, "the state", d.inspect(name, ".State.Status"), "running")
	lines := strings.Fields(before)
	last, err := strconv.Atoi(lines[len(lines)-1])
	if err != nil {
		t.Fatal(err)
	}
	d.says(name, fmt.Sprintf("\n%d\n%d\n", last+1, last+2))
}

func TestAPausedContainerCanBeStoppedAndRemoved(t *testing.T) {
	d := newDocker(t)
	name := d.launch(nil, "sh", "-c", `trap 'exit 43' TERM; echo ready; while :; do sleep 0.1; done`)
	d.says(name, "ready")
	d.do("pause", name)
	d.do("stop", "-t", "30", name) // the signal waits for the resume that Docker does then
	expect(t, "the exit code", d.inspect(name, ".State.ExitCode"), "43")
	d.do("start", name)
	d.do("pause", name)
	d.do("rm", "-f", name)
	if r := d.try("inspect", name); r.Code == 0 {
		t.Error("the container is still there")
	}
}

func TestTopShowsTheContainer(t *testing.T) {
	d := newDocker(t)
	name := d.launch(nil, "sleep", "1000")
	lines := strings.Split(d.do("top", name), "\n")
	if len(lines) < 2 || !strings.Contains(lines[0], "PID") {
		t.Fatalf("docker top says %q", lines)
	}
	if pid := d.inspect(name, ".State.Pid"); !strings.Contains(lines[1], pid) {
		t.Errorf("docker top does not list the container's process %s: %q", pid, lines)
	}
}

func TestCopyWorksBothWaysWhileTheContainerRuns(t *testing.T) {
	d := newDocker(t)
	name := d.launch(nil, "sh", "-c", "mkdir /made; echo from the container > /made/file; ln -s file /made/link; echo ready; exec sleep 1000")
	d.says(name, "ready")
	dir := t.TempDir()
	d.do("cp", name+":/made", filepath.Join(dir, "copied"))
	text, err := os.ReadFile(filepath.Join(dir, "copied", "file"))
	if err != nil {
		t.Fatal(err)
	}
	expect(t, "the copied file", string(text), "from the container\n")
	if target, err := os.Readlink(filepath.Join(dir, "copied", "link")); err != nil || target != "file" {
		t.Errorf("the copied link points to %q: %v", target, err)
	}
	if err := os.WriteFile(filepath.Join(dir, "given"), []byte("from the host\n"), 0o640); err != nil {
		t.Fatal(err)
	}
	d.do("cp", filepath.Join(dir, "given"), name+":/tmp/given")
	expect(t, "the file seen in the container", d.do("exec", name, "sh", "-c", "cat /tmp/given; stat -c %a /tmp/given"), "from the host\n640")
	// A second version of a file that was read before must be seen, too.
	if err := os.WriteFile(filepath.Join(dir, "given"), []byte("a longer text from the host\n"), 0o640); err != nil {
		t.Fatal(err)
	}
	d.do("cp", filepath.Join(dir, "given"), name+":/tmp/given")
	expect(t, "the file's second version", d.do("exec", name, "cat", "/tmp/given"), "a longer text from the host")
}

func TestRestartKeepsTheFilesAndChangesTheMachine(t *testing.T) {
	d := newDocker(t)
	name := d.launch(nil, "sh", "-c", "cat /proc/sys/kernel/random/boot_id >> /starts; echo ready $(wc -l < /starts); exec sleep 1000")
	d.says(name, "ready 1")
	d.do("restart", "-t", "1", name)
	d.says(name, "ready 2")
	starts := strings.Fields(d.do("exec", name, "cat", "/starts"))
	expect(t, "the number of starts", len(starts), 2)
	if !reference() && starts[0] == starts[1] {
		t.Error("the restart ran in the old machine")
	}
	d.do("stop", "-t", "0", name)
	d.do("start", name)
	d.says(name, "ready 3")
}

func TestRemoveByForceEndsARunningContainer(t *testing.T) {
	d := newDocker(t)
	name := d.launch(nil, "sh", "-c", "trap '' TERM HUP INT; while :; do sleep 0.1; done")
	pid := d.inspect(name, ".State.Pid")
	began := time.Now()
	d.do("rm", "-f", name)
	if took := time.Since(began); took > cleanTime {
		t.Errorf("docker rm -f took %s", took)
	}
	must(t, cleanTime, func() error { return gone("/proc/" + pid) })
}

func TestACreatedContainerCanBeRemovedUnstarted(t *testing.T) {
	d := newDocker(t)
	name := newID("created")
	d.do(append([]string{"create", "--name", name}, runArgs(nil, "true")[1:]...)...)
	expect(t, "the state", d.inspect(name, ".State.Status"), "created")
	d.do("rm", name)
}

func TestContainersAreNamedByTheirHostProcess(t *testing.T) {
	d := newDocker(t)
	name := d.launch(opts("--hostname", "porthole"), "sleep", "1000")
	pid := d.inspect(name, ".State.Pid")
	for _, ns := range []string{"net", "ipc", "uts", "mnt", "pid"} {
		container, err := os.Readlink("/proc/" + pid + "/ns/" + ns)
		if err != nil {
			t.Fatal(err)
		}
		own, err := os.Readlink("/proc/self/ns/" + ns)
		if err != nil {
			t.Fatal(err)
		}
		if container == own {
			t.Errorf("process %s, which is the container to engines, stands in the host's %s namespace", pid, ns)
		}
	}
	if text, err := os.ReadFile("/proc/" + pid + "/cgroup"); err != nil || !strings.Contains(string(text), ground.Token) {
		t.Errorf("process %s is not in the cgroup that Docker named: %v %s", pid, err, text)
	}
}
