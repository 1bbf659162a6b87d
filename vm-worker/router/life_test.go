// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package router_test

import (
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"bulkhead/bus/stdio"
	"bulkhead/vm-worker/router"
)

func TestSignalsArriveOnceAcrossRestarts(t *testing.T) {
	r := newRig(t)
	c := r.run(1, []string{"sh", "-c", "trap 'exit 9' TERM; trap : USR1; trap : HUP; echo ready; while :; do sleep 0.02; done"})
	io.ReadFull(c.stdout, make([]byte, 6))
	r.session.Close() // signals sent now wait in the relay
	syscall.Kill(c.relay.PID, unix.SIGUSR1)
	syscall.Kill(c.relay.PID, unix.SIGHUP)
	r.newSession()
	want := map[int]int{int(unix.SIGUSR1): 1, int(unix.SIGHUP): 1}
	got := map[int]int{}
	for range 2 {
		got[receive(t, c.signals)]++
	}
	for range 3 { // each new session has the relay repeat what is unacknowledged
		r.newSession()
	}
	if err := r.router.Signal(1, int(unix.SIGTERM)); err != nil {
		t.Fatal(err)
	}
	if n := receive(t, c.signals); n != int(unix.SIGTERM) {
		t.Errorf("signal %d before SIGTERM", n)
	}
	if fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("signals %v", got)
	}
	if code := c.code(t, patience); code != 9 {
		t.Errorf("exit code %d", code)
	}
	if len(c.signals) != 0 {
		t.Errorf("a signal was repeated: %d", <-c.signals)
	}
}

func TestEveryCatchableSignalIsForwarded(t *testing.T) {
	r := newRig(t)
	c := r.run(1, []string{"sh", "-c", "echo ready; read x"})
	io.ReadFull(c.stdout, make([]byte, 6))
	c.deaf.Store(true)
	for n := 1; n <= 64; n++ {
		if n == int(unix.SIGKILL) || n == int(unix.SIGSTOP) {
			continue
		}
		if err := syscall.Kill(c.relay.PID, syscall.Signal(n)); err != nil {
			t.Fatal(err)
		}
		select {
		case got := <-c.signals:
			if got != n {
				t.Errorf("signal %d arrived as %d", n, got)
			}
		case <-time.After(patience):
			t.Errorf("signal %d did not arrive", n)
		}
	}
}

// The handler of the signals that the Go runtime keeps interrupts a relay at any
// instant: nothing of its work may suffer.
func TestManySignalsDisturbNoStream(t *testing.T) {
	const size = 16 << 20
	r := newRig(t)
	c := r.run(1, []string{"sh", "-c", fmt.Sprintf("head -c %d /dev/zero", size)})
	c.deaf.Store(true)
	over, sent := make(chan struct{}), make(chan int)
	go func() {
		pace := time.NewTicker(100 * time.Microsecond) // without a pause they would take the processor from the relay
		defer pace.Stop()
		for n := 0; ; {
			select {
			case <-over:
				sent <- n
				return
			case <-c.signals: // so that the guest's end does not wait for us
			case <-pace.C:
				_ = syscall.Kill(c.relay.PID, []syscall.Signal{13, 17, 23, 27, 32, 33, 34}[n%7])
				n++
			}
		}
	}()
	got := readAll(t, c.stdout)
	close(over)
	if n := <-sent; n < 100 {
		t.Errorf("only %d signals were sent meanwhile", n)
	}
	if len(got) != size || strings.Trim(got, "\x00") != "" {
		t.Errorf("%d bytes of %d arrived, or not as they were", len(got), size)
	}
	if code := c.code(t, patience); code != 0 {
		t.Errorf("exit code %d", code)
	}
}

func TestExitCodesOfSignalsAre128PlusN(t *testing.T) {
	r := newRig(t)
	c := r.run(1, []string{"sleep", "60"})
	syscall.Kill(c.relay.PID, unix.SIGTERM)
	if code := c.code(t, patience); code != 128+15 {
		t.Errorf("exit code %d", code)
	}
}

func TestGoneEndsTheRelayAfterItHasWrittenWhatItGot(t *testing.T) {
	r := newRig(t)
	c := r.run(1, []string{"sh", "-c", "echo last words; sleep 60"})
	io.ReadFull(c.stdout, make([]byte, 4))
	r.router.Gone(137, "the VM died")
	if got := readAll(t, c.stdout); got != " words\n" {
		t.Errorf("stdout %q", got)
	}
	if code := c.code(t, patience); code != 137 {
		t.Errorf("exit code %d", code)
	}
}

func TestDeathOfTheVMEndsTheRelayEvenWithoutAWorker(t *testing.T) {
	r := newRig(t)
	vm := exec.Command("sleep", "60")
	if err := vm.Start(); err != nil {
		t.Fatal(err)
	}
	defer vm.Wait()
	defer vm.Process.Kill()
	fd, err := unix.PidfdOpen(vm.Process.Pid, 0)
	if err != nil {
		t.Fatal(err)
	}
	pidfd := os.NewFile(uintptr(fd), "pidfd")
	defer pidfd.Close()
	c := &container{}
	c.relay = r.startRelay(c)
	if err := r.router.Attach(r.ctx, 1, c.relay.Socket, pidfd); err != nil {
		t.Fatal(err)
	}
	r.router.Close()
	vm.Process.Kill()
	if code := c.code(t, patience); code != 137 {
		t.Errorf("exit code %d", code)
	}
	r.newRouter()
}

func TestKilledRelayIsReported(t *testing.T) {
	r := newRig(t)
	c := r.run(1, []string{"sh", "-c", "trap '' PIPE; while :; do echo x || exit 5; done"})
	io.ReadFull(c.stdout, make([]byte, 4))
	syscall.Kill(c.relay.PID, unix.SIGKILL)
	if got := receive(t, r.lost); got != 1 {
		t.Errorf("channel %d was lost", got)
	}
	if code := c.code(t, patience); code != 137 {
		t.Errorf("exit code %d", code)
	}
	// Its output is thrown away from now on, so the process does not block.
	r.router.Detach(1)
	if err := r.router.Signal(1, 15); err == nil {
		t.Error("a signal to a dead relay was accepted")
	}
	syscall.Kill(c.cmd.Process.Pid, syscall.SIGTERM)
	if got := <-r.exits; got != [2]int{1, 143} {
		t.Errorf("exit %v", got)
	}
	c.forgotten(t)
}

// A relay may end between its writing that it has heard of the exit and our reading of it, and then
// nobody would ever say so to the guest.
func TestTheGuestKeepsNoProcessWhoseRelayEndedUnheard(t *testing.T) {
	r := newRig(t)
	c := r.run(1, []string{"sleep", "60"})
	syscall.Kill(c.relay.PID, unix.SIGSTOP)
	c.cmd.Process.Signal(syscall.SIGTERM)
	if got := <-r.exits; got != [2]int{1, 143} {
		t.Errorf("exit %v", got)
	}
	select {
	case <-c.process.Done():
		t.Error("the process is forgotten before anybody has heard of its exit")
	default:
	}
	syscall.Kill(c.relay.PID, unix.SIGKILL)
	r.router.Detach(1)
	c.forgotten(t)
}

// A relay says that it has heard of the exit, and ends: with something of ours unread, as a word that was on its way, or
// while we write to it. Either is an error of the connection, and what it said before is still there.
func TestTheLastWordsOfARelayAreHeard(t *testing.T) {
	for name, writes := range map[string]bool{"something is unread": false, "somebody writes": true} {
		t.Run(name, func(t *testing.T) {
			for range 50 { // the reader may be quicker than the end
				heard := make(chan bool, 1)
				rt := router.New(router.Config{OnRelayLost: func(_ uint32, finished bool) { heard <- finished }})
				path := filepath.Join(t.TempDir(), "relay.sock")
				l, err := net.ListenUnix("unixpacket", &net.UnixAddr{Name: path, Net: "unixpacket"})
				if err != nil {
					t.Fatal(err)
				}
				attached := make(chan error, 1)
				go func() { attached <- rt.Attach(t.Context(), 1, path, nil) }()
				conn, err := l.AcceptUnix()
				if err != nil {
					t.Fatal(err)
				}
				conn.Write(stdio.AppendHello(nil, os.Getpid()))
				if err := receive(t, attached); err != nil {
					t.Fatal(err)
				}
				over := make(chan struct{})
				writing := make(chan struct{})
				go func() {
					defer close(writing)
					for writes && rt.Signal(1, int(unix.SIGUSR1)) == nil {
						select {
						case <-over:
							return
						default:
						}
					}
				}()
				if writes {
					conn.Read(make([]byte, 100)) // ATTACH
				}
				conn.Write(stdio.AppendSimple(nil, stdio.TypeExitAck, 0, 0, 0))
				conn.Close()
				if !receive(t, heard) {
					t.Error("the relay's last words were lost")
				}
				close(over)
				<-writing
				rt.Close()
				l.Close()
			}
		})
	}
}

// forgotten waits until the guest's end has let the process go.
func (c *container) forgotten(t *testing.T) {
	t.Helper()
	select {
	case <-c.process.Done():
	case <-time.After(patience):
		t.Error("the guest's end still waits for an answer to the exit")
	}
}
