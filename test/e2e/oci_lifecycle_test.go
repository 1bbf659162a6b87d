// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

func TestOCILifecycle(t *testing.T) {
	o := newOCI(t, sharedHost(t))
	id := newID("life")
	spec := newSpec("sh", "-c", `echo running as $$; read line; echo "got $line"; exit 42`)
	spec.Annotations = map[string]string{"org.example.mark": "kept"}
	m := o.create(id, spec)

	expect(t, "the pid-file", m.PidFile, strconv.Itoa(m.PID)) // digits and nothing else
	s := o.state(id)
	expect(t, "the status", s.Status, specs.StateCreated)
	expect(t, "the pid", s.Pid, m.PID)
	expect(t, "the id", s.ID, id)
	expect(t, "the version", s.Version, "1.0.2")
	expect(t, "the annotation", s.Annotations["org.example.mark"], "kept")
	if info, err := os.Stat(filepath.Join(s.Bundle, "config.json")); err != nil || info.IsDir() {
		t.Errorf("the bundle %q: %v", s.Bundle, err)
	}
	expect(t, "the output before start", m.Stdout.String(), "")
	// The configuration was read by create; later edits change nothing.
	if err := os.WriteFile(filepath.Join(s.Bundle, "config.json"), []byte("{}"), 0o644); err != nil {
		t.Fatal(err)
	}

	expect(t, "what start prints", o.do("start", id), "")
	until(t, m, "running as 1\n")
	expect(t, "the status", o.status(id), "running")
	o.fails(1, "cannot start an already running container", "start", id)
	o.fails(1, "container with given ID already exists", "create", "--bundle", o.bundle(spec), id)
	o.fails(1, "cannot delete container "+id+" that is not stopped: running", "delete", id)
	expect(t, "the status after refused commands", o.status(id), "running")

	if _, err := m.Stdin.WriteString("a line\n"); err != nil {
		t.Fatal(err)
	}
	exits(t, m, 42)
	expect(t, "the output", wholeOutput(t, m), "running as 1\ngot a line\n")
	s = o.state(id)
	expect(t, "the status", s.Status, specs.StateStopped)
	expect(t, "the pid of a stopped container", s.Pid, 0)

	o.fails(1, "cannot start a container that has stopped", "start", id)
	o.fails(1, "container not running", "kill", id, "15")
	o.do("kill", "--all", id, "9")
	o.fails(255, "cannot exec in a stopped container", "exec", id, "true")
	o.do("delete", id)
	o.fails(1, "container does not exist", "state", id)
	o.fails(1, "container does not exist", "kill", id, "9")
	o.fails(1, "container does not exist", "delete", id)
	expect(t, "what delete --force of an unknown container prints", o.do("delete", "--force", id), "")
}

func TestOCIRunWaitsForTheEnd(t *testing.T) {
	o := newOCI(t, sharedHost(t))
	id := newID("run")
	r := o.cli("run", "--bundle", o.bundle(newSpec("sh", "-c", "echo out; echo err >&2; exit 42")), id)
	expect(t, "the exit code", r.Code, 42)
	expect(t, "stdout", r.Stdout, "out\n")
	expect(t, "stderr", r.Stderr, "err\n")
	o.fails(1, "container does not exist", "state", id)
}

// TestOCIRunOfATerminalEndsWithItsInput: the default configuration asks for a
// terminal, and a script that runs it has none to give; the end of what it has
// must be the end of what the shell reads.
func TestOCIRunOfATerminalEndsWithItsInput(t *testing.T) {
	o := newOCI(t, sharedHost(t))
	id := newID("run")
	spec := newSpec("sh", "-c", "cat; exit 7")
	spec.Process.Terminal = true
	r := o.cli("run", "--bundle", o.bundle(spec), id) // standard input is /dev/null
	expect(t, "the exit code", r.Code, 7)
	o.fails(1, "container does not exist", "state", id)
}

func TestOCIKill(t *testing.T) {
	o := newOCI(t, sharedHost(t))
	const script = `for n in 13 23 27 34 64; do trap "echo got $n" $n; done; trap 'echo got usr1' USR1; trap 'echo got term; exit 43' TERM; echo ready; while :; do sleep 0.1; done`
	t.Run("by name, number and on the host's process", func(t *testing.T) {
		o := ociUser{t, o.host, o.root, t.TempDir()}
		id := newID("kill")
		m := o.launch(id, newSpec("sh", "-c", script))
		until(t, m, "ready")
		o.fails(1, "", "kill", id, "NOSUCHSIGNAL")
		o.do("kill", id, "SIGUSR1")
		until(t, m, "got usr1\n")
		o.do("kill", id, strconv.Itoa(int(unix.SIGUSR1)))
		until(t, m, "got usr1\ngot usr1\n")
		if err := unix.Kill(m.PID, unix.SIGUSR1); err != nil {
			t.Fatal(err)
		}
		until(t, m, "got usr1\ngot usr1\ngot usr1\n")
		for i, n := range []int{13, 23, 27, 34, 64} { // the first three are the Go runtime's
			if err := unix.Kill(m.PID, unix.Signal(n)); err != nil {
				t.Fatal(err)
			}
			until(t, m, fmt.Sprintf("got %d\n", n))
			if i%2 == 0 {
				o.do("kill", id, strconv.Itoa(n))
				until(t, m, fmt.Sprintf("got %d\ngot %d\n", n, n))
			}
		}
		// What a paused container is sent waits for it.
		o.do("pause", id)
		o.do("kill", id, "RTMIN")
		o.do("kill", "--all", id, "USR1")
		expect(t, "the status", o.status(id), "paused")
		o.fails(1, "cannot delete container "+id+" that is not stopped: paused", "delete", id)
		if strings.HasSuffix(m.Stdout.String(), "got usr1\n") {
			t.Error("a paused container obeyed a signal")
		}
		o.do("resume", id)
		until(t, m, "got usr1\ngot 34\n")
		o.do("kill", id) // TERM
		exits(t, m, 43)
	})
	t.Run("created", func(t *testing.T) {
		o := ociUser{t, o.host, o.root, t.TempDir()}
		id := newID("unborn")
		m := o.create(id, newSpec("sh", "-c", script))
		o.do("kill", id, "KILL")
		exits(t, m, 137)
		must(t, deathTime, func() error { return is(o.status(id), "stopped") })
		o.do("delete", id)
	})
}

func TestOCIPauseAndResume(t *testing.T) {
	o := newOCI(t, sharedHost(t))
	id := newID("pause")
	m := o.launch(id, newSpec("sh", "-c", ticker))
	until(t, m, "3\n")
	o.fails(1, "container not paused", "resume", id)
	o.do("pause", id)
	expect(t, "the status", o.status(id), "paused")
	before := stands(t, "the output of a paused container", m.Stdout.String)
	o.fails(255, "", "exec", id, "true")
	o.do("resume", id)
	expect(t, "the status", o.status(id), "running")
	lines := strings.Fields(before)
	last, err := strconv.Atoi(lines[len(lines)-1])
	if err != nil {
		t.Fatal(err)
	}
	until(t, m, fmt.Sprintf("\n%d\n%d\n", last+1, last+2))
	o.do("pause", id)
	o.do("kill", id, "KILL") // needs no resume
	exits(t, m, 137)
}

func TestOCIExec(t *testing.T) {
	o := newOCI(t, sharedHost(t))
	id := newID("exec")
	init := o.launch(id, newSpec("sleep", "1000"))

	r := o.cli("exec", "--env", "X=1", "--cwd", "/tmp", "--user", "1000:2000", id, "sh", "-c", "echo $X; pwd; id -u; id -g; exit 9")
	expect(t, "the exit code in the foreground", r.Code, 9)
	expect(t, "the output", r.Stdout, "1\n/tmp\n1000\n2000\n")

	process, err := json.Marshal(newSpec("sh", "-c", "cat; exit 7").Process)
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(o.dir, "process.json")
	if err := os.WriteFile(file, process, 0o644); err != nil {
		t.Fatal(err)
	}
	m := o.exec(id, "--process", file)
	expect(t, "the pid-file", m.PidFile, strconv.Itoa(m.PID))
	var pids []int
	if err := json.Unmarshal([]byte(o.do("ps", "--format", "json", id)), &pids); err != nil {
		t.Fatal(err)
	}
	expect(t, "the processes", fmt.Sprint(pids), fmt.Sprint([]int{init.PID, m.PID}))
	if _, err := m.Stdin.WriteString("through the exec"); err != nil {
		t.Fatal(err)
	}
	m.Stdin.Close()
	exits(t, m, 7)
	expect(t, "its output", wholeOutput(t, m), "through the exec")

	// Engines signal an exec by its host process.
	m = o.exec(id, "--process", file)
	if err := unix.Kill(m.PID, unix.SIGTERM); err != nil {
		t.Fatal(err)
	}
	exits(t, m, 143)
	m = o.exec(id, "--process", file)
	if err := unix.Kill(m.PID, unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	exits(t, m, 137)
	must(t, cleanTime, func() error {
		return is(o.do("exec", id, "sh", "-c", "ps | grep -c '[c]at$' || true"), "0\n") // it ended in the guest, too
	})

	// The end of the container is the end of its execs.
	m = o.exec(id, "--process", file)
	o.do("kill", id, "9")
	exits(t, init, 137)
	exits(t, m, 137)
}

func TestOCITerminal(t *testing.T) {
	o := newOCI(t, sharedHost(t))
	id := newID("tty")
	spec := newSpec("sh", "-c", `trap 'exit 12' HUP; trap 'echo "now $(stty size)."' WINCH; echo "tty $(tty), size $(stty size)."; read line; echo "<$line>"; while :; do sleep 0.1; done`)
	spec.Process.Terminal = true
	spec.Process.ConsoleSize = &specs.Box{Height: 21, Width: 83}
	socket := filepath.Join(ground.Dir, id[len(id)-6:]+".sock")
	console, err := listenConsole(t, socket)
	if err != nil {
		t.Fatal(err)
	}
	m := o.create(id, spec, "--console-socket", socket)
	master, err := console.Receive(within(t, commandTime))
	if err != nil {
		t.Fatal(err)
	}
	defer master.Close()
	// Nothing of a terminal's process may hold the command's output.
	wholeOutput(t, m)
	screen := copyScreen(master)
	o.do("start", id)
	show := func(text string) {
		t.Helper()
		if err := screen.Until(within(t, commandTime), text); err != nil {
			t.Fatal(err)
		}
	}
	show("tty /dev/pts/0, size 21 83.")
	if _, err := master.WriteString("hello\n"); err != nil {
		t.Fatal(err)
	}
	show("<hello>")
	if err := unix.IoctlSetWinsize(int(master.Fd()), unix.TIOCSWINSZ, &unix.Winsize{Row: 50, Col: 132}); err != nil {
		t.Fatal(err)
	}
	show("now 50 132.")
	master.Close() // the caller hangs up
	exits(t, m, 12)
}

func TestOCITerminalNeedsItsSocket(t *testing.T) {
	o := newOCI(t, sharedHost(t))
	spec := newSpec("sh")
	spec.Process.Terminal = true
	o.fails(1, "cannot allocate tty if bulkhead will detach without setting console socket", "create", "--bundle", o.bundle(spec), newID("tty"))
	o.fails(1, "cannot use console socket", "create", "--console-socket", "/nowhere", "--bundle", o.bundle(newSpec("sh")), newID("tty"))
}

func TestOCIRootsAreWorldsOfTheirOwn(t *testing.T) {
	h := sharedHost(t)
	here, there := newOCI(t, h), newOCI(t, h)
	id := newID("same")
	one, two := here.create(id, newSpec("sleep", "1000")), there.create(id, newSpec("sleep", "1000"))
	if one.PID == two.PID {
		t.Fatal("both are one process")
	}
	here.do("delete", "--force", id)
	exits(t, one, 137)
	here.fails(1, "container does not exist", "state", id)
	expect(t, "the status of the other", there.status(id), "created")
	expect(t, "the ids here", here.do("list", "-q"), "")
	expect(t, "the ids there", there.do("list", "-q"), id+"\n")
	var all []specs.State
	if err := json.Unmarshal([]byte(there.do("list", "--format", "json")), &all); err != nil {
		t.Fatal(err)
	}
	if len(all) != 1 || all[0].ID != id || all[0].Pid != two.PID || all[0].Status != specs.StateCreated {
		t.Errorf("the list is %+v", all)
	}
	header, row, _ := strings.Cut(there.do("list"), "\n")
	expect(t, "the columns of the table", strings.Join(strings.Fields(header), " "), "ID PID STATUS BUNDLE CREATED OWNER")
	if !strings.HasPrefix(row, id) {
		t.Errorf("the table's row is %q", row)
	}
}
