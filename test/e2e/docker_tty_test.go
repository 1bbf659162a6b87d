// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"errors"
	"io"
	"os"
	"os/exec"
	"testing"

	"github.com/creack/pty"

	"bulkhead/test/e2e/host"
)

// terminal is a person at a Docker client.
type terminal struct {
	t      *testing.T
	master *os.File
	cmd    *exec.Cmd
	screen *host.Output
	ended  chan error
}

func (d dockerUser) terminal(rows, columns uint16, args ...string) *terminal {
	d.t.Helper()
	return d.client().terminal(rows, columns, args...)
}

func (c client) terminal(rows, columns uint16, args ...string) *terminal {
	c.t.Helper()
	argv := c.argv(args...)
	cmd := exec.CommandContext(within(c.t, launchTime), argv[0], argv[1:]...)
	cmd.Env = append(cmd.Environ(), c.env...)
	master, err := pty.StartWithSize(cmd, &pty.Winsize{Rows: rows, Cols: columns})
	if err != nil {
		c.t.Fatal(err)
	}
	tt := &terminal{t: c.t, master: master, cmd: cmd, screen: host.NewOutput(), ended: make(chan error, 1)}
	go func() {
		_, _ = io.Copy(tt.screen, master) // EIO is how a terminal ends
		tt.ended <- cmd.Wait()
	}()
	c.t.Cleanup(func() { master.Close() })
	return tt
}

func (tt *terminal) shows(text string) {
	tt.t.Helper()
	if err := tt.screen.Until(within(tt.t, launchTime), text); err != nil {
		tt.t.Fatal(err)
	}
}

func (tt *terminal) types(keys string) {
	tt.t.Helper()
	if _, err := io.WriteString(tt.master, keys); err != nil {
		tt.t.Fatal(err)
	}
}

func (tt *terminal) resize(rows, columns uint16) {
	tt.t.Helper()
	if err := pty.Setsize(tt.master, &pty.Winsize{Rows: rows, Cols: columns}); err != nil {
		tt.t.Fatal(err)
	}
}

func (tt *terminal) ends(code int) {
	tt.t.Helper()
	err := <-tt.ended
	var exit *exec.ExitError
	got := 0
	switch {
	case errors.As(err, &exit):
		got = exit.ExitCode()
	case err != nil:
		tt.t.Fatal(err)
	}
	if got != code {
		tt.t.Errorf("the terminal's client ended with %d instead of %d; the screen: %q", got, code, tt.screen)
	}
}

const sizeScript = `trap 'echo "changed to $(stty size)."' WINCH
trap 'echo interrupted; exit 7' INT
echo "tty: $(tty)"; echo "size: $(stty size)."
while :; do sleep 0.1; done`

func TestATerminalHasASizeThatChangesAndSignalsThatArrive(t *testing.T) {
	d := newDocker(t)
	tt := d.terminal(33, 101, runArgs(opts("--rm", "-it"), "sh", "-c", sizeScript)...)
	tt.shows("tty: /dev/pts/0")
	tt.shows("33 101.") // at once, or by the client's first resize
	tt.resize(44, 123)
	tt.shows("changed to 44 123.")
	tt.types("\x03")
	tt.shows("interrupted")
	tt.ends(7)
}

func TestATerminalEchoesEditsAndEndsLines(t *testing.T) {
	d := newDocker(t)
	tt := d.terminal(24, 80, runArgs(opts("--rm", "-it"), "sh", "-c", `echo ready; read line; echo "<$line>"; cat; exit 9`)...)
	tt.shows("ready\r\n")
	tt.types("wrong\x15right\r") // ^U takes the line back
	tt.shows("<right>\r\n")
	tt.types("echoed\r")
	tt.shows("echoed\r\nechoed\r\n")
	tt.types("\x04")
	tt.ends(9)
}

func TestExecHasATerminalOfItsOwn(t *testing.T) {
	d := newDocker(t)
	name := d.launch(nil, "sleep", "1000")
	tt := d.terminal(31, 97, "exec", "-it", name, "sh", "-c", sizeScript)
	tt.shows("tty: /dev/pts/")
	tt.shows("31 97.")
	tt.resize(40, 120)
	tt.shows("changed to 40 120.")
	tt.types("\x03")
	tt.ends(7)
	expect(t, "the container's state", d.inspect(name, ".State.Status"), "running")
}
