// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package router_test

import (
	"bufio"
	"fmt"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"bulkhead/bus/stdio"
	"bulkhead/runtime-frontend/shadow"
)

// runTerminal starts argv on a pty in the guest; the engine's master is returned.
func (r *rig) runTerminal(channel uint32, argv ...string) (*container, *os.File) {
	r.t.Helper()
	c, engine := r.openTerminal()
	r.attach(channel, c.relay.Socket)
	r.startOnTerminal(channel, c, argv...)
	return c, engine
}

// openTerminal starts a relay on a pty, of which the engine's master is returned.
func (r *rig) openTerminal() (*container, *os.File) {
	r.t.Helper()
	path := filepath.Join(r.t.TempDir(), "console.sock")
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path})
	if err != nil {
		r.t.Fatal(err)
	}
	defer l.Close()
	c := &container{signals: make(chan int, 100)}
	c.relay = r.startRelay(c, func(s *shadow.Spec) {
		s.Terminal = &shadow.Terminal{ConsoleSocket: path, Width: 80, Height: 24}
	})
	if err := c.relay.SendConsole(); err != nil {
		r.t.Fatal(err)
	}
	conn, err := l.AcceptUnix()
	if err != nil {
		r.t.Fatal(err)
	}
	defer conn.Close()
	oob := make([]byte, 256)
	_, oobn, _, _, err := conn.ReadMsgUnix(make([]byte, 100), oob)
	if err != nil {
		r.t.Fatal(err)
	}
	messages, _ := unix.ParseSocketControlMessage(oob[:oobn])
	fds, _ := unix.ParseUnixRights(&messages[0])
	unix.SetNonblock(fds[0], true)
	engine := os.NewFile(uintptr(fds[0]), "engine's master")
	r.t.Cleanup(func() { engine.Close() })
	return c, engine
}

// startOnTerminal starts argv on a pty of the guest's own.
func (r *rig) startOnTerminal(channel uint32, c *container, argv ...string) {
	r.t.Helper()
	hearHangups(r.t)
	master, slave := openPty(r.t)
	c.cmd = exec.Command(argv[0], argv[1:]...)
	c.cmd.Stdin, c.cmd.Stdout, c.cmd.Stderr = slave, slave, slave
	c.cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true}
	r.start(channel, c, stdio.Streams{Terminal: master})
	slave.Close()
}

// hearHangups has children of this process hear SIGHUP, even if it was started to
// ignore it, as by nohup: what is caught is not ignored in them.
func hearHangups(t testing.TB) {
	caught := make(chan os.Signal, 1)
	signal.Notify(caught, unix.SIGHUP)
	t.Cleanup(func() { signal.Stop(caught) })
}

func openPty(t testing.TB) (master, slave *os.File) {
	t.Helper()
	master, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	fd := int(master.Fd())
	n, err := unix.IoctlGetInt(fd, unix.TIOCGPTN)
	if err != nil {
		t.Fatal(err)
	}
	unix.IoctlSetPointerInt(fd, unix.TIOCSPTLCK, 0)
	slave, err = os.OpenFile(fmt.Sprint("/dev/pts/", n), os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	return master, slave
}

func TestTerminalEchoesResizesAndHangsUp(t *testing.T) {
	r := newRig(t)
	c, engine := r.runTerminal(1, "sh", "-c", "trap 'stty size; :' WINCH; echo ready; while :; do read x || continue; echo got $x; [ $x = size ] && stty size; [ $x = bye ] && exit 12; done")
	engine.SetReadDeadline(time.Now().Add(patience))
	out := bufio.NewReader(engine)
	expect := func(want string) {
		t.Helper()
		for {
			line, err := out.ReadString('\n')
			if err != nil {
				t.Fatalf("waiting for %q: %v", want, err)
			}
			if strings.TrimRight(line, "\r\n") == want {
				return
			}
		}
	}
	expect("ready")
	fmt.Fprintln(engine, "size")
	expect("size") // the guest's line discipline echoes
	expect("got size")
	expect("24 80")
	unix.IoctlSetWinsize(int(engine.Fd()), unix.TIOCSWINSZ, &unix.Winsize{Row: 40, Col: 100})
	unix.SetNonblock(int(engine.Fd()), true)
	fmt.Fprintln(engine, "wait")
	expect("40 100")
	fmt.Fprintln(engine, "bye")
	expect("got bye")
	if code := c.code(t, patience); code != 12 {
		t.Errorf("exit code %d", code)
	}
}

func TestClosedConsoleHangsUpTheProcess(t *testing.T) {
	// An engine may let go of the terminal at any instant, and what has happened until then is different in each.
	for _, when := range []string{"before the worker comes", "before the process", "while the process starts", "while the process runs"} {
		t.Run(when, func(t *testing.T) {
			r := newRig(t)
			c, engine := r.openTerminal()
			closing := make(chan error, 1)
			closeWhen := func(now string) {
				if when == now {
					closing <- engine.Close()
				}
			}
			closeWhen("before the worker comes")
			r.attach(1, c.relay.Socket)
			closeWhen("before the process")
			go closeWhen("while the process starts")
			r.startOnTerminal(1, c, "sleep", "60")
			closeWhen("while the process runs")
			if err := receive(t, closing); err != nil {
				t.Error(err)
			}
			if code := c.code(t, patience); code != 128+int(syscall.SIGHUP) {
				t.Errorf("exit code %d", code)
			}
		})
	}
}

func TestForegroundTerminalIsProxiedAndRestored(t *testing.T) {
	r := newRig(t)
	userMaster, userTerminal := openPty(t) // the user's terminal
	defer userMaster.Close()
	defer userTerminal.Close()
	unix.IoctlSetWinsize(int(userMaster.Fd()), unix.TIOCSWINSZ, &unix.Winsize{Row: 30, Col: 90})
	before, err := unix.IoctlGetTermios(int(userTerminal.Fd()), unix.TCGETS)
	if err != nil {
		t.Fatal(err)
	}
	c := &container{signals: make(chan int, 100)}
	c.relay = r.startRelay(c, func(s *shadow.Spec) { s.Terminal = &shadow.Terminal{Foreground: true} })
	proxied := make(chan error, 1)
	go func() { proxied <- c.relay.Proxy(r.ctx, userTerminal, userTerminal) }()
	r.attach(1, c.relay.Socket)
	master, slave := openPty(t)
	c.cmd = exec.Command("sh", "-c", "read x; stty size; echo got $x; exit 5")
	c.cmd.Stdin, c.cmd.Stdout, c.cmd.Stderr = slave, slave, slave
	c.cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true}
	r.start(1, c, stdio.Streams{Terminal: master})
	slave.Close()
	fmt.Fprint(userMaster, "word\r")
	var seen strings.Builder
	buf := make([]byte, 1000)
	for !strings.Contains(seen.String(), "got word") {
		n, err := userMaster.Read(buf)
		if err != nil {
			t.Fatal(err)
		}
		seen.Write(buf[:n])
	}
	if !strings.Contains(seen.String(), "30 90") {
		t.Errorf("the user's terminal showed %q", seen.String())
	}
	if code := c.code(t, patience); code != 5 {
		t.Errorf("exit code %d", code)
	}
	if err := receive(t, proxied); err != nil {
		t.Errorf("the proxy ended with %v", err)
	}
	after, _ := unix.IoctlGetTermios(int(userTerminal.Fd()), unix.TCGETS)
	if *after != *before {
		t.Error("the user's terminal was not restored")
	}
}
