// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package router_test

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"bulkhead/bus/stdio"
	"bulkhead/vm-worker/router"
)

func TestProcessGetsInputAndItsOutputAndExitCodeArrive(t *testing.T) {
	r := newRig(t)
	c := r.run(1, []string{"sh", "-c", "read x; echo out $x; echo err $x >&2; exit 42"})
	fmt.Fprintln(c.stdin, "hello")
	out, errs := readAll(t, c.stdout), readAll(t, c.stderr)
	if out != "out hello\n" || errs != "err hello\n" {
		t.Errorf("stdout %q, stderr %q", out, errs)
	}
	if code := c.code(t, 5*time.Second); code != 42 {
		t.Errorf("exit code %d", code)
	}
	if got := <-r.exits; got != [2]int{1, 42} {
		t.Errorf("OnExit was told %v", got)
	}
	select {
	case <-c.process.Done():
	case <-time.After(5 * time.Second):
		t.Error("the agent was never told that the exit was delivered")
	}
}

func TestOutputAndInputAreExactAtVolume(t *testing.T) {
	size := int64(256 << 20)
	if testing.Short() {
		size = 16 << 20
	}
	r := newRig(t)
	c := r.run(1, []string{"cat"})
	began := time.Now()
	echo(t, c, size)
	t.Logf("%d MiB through stdin and back in %v: %.0f MB/s each way", size>>20, time.Since(began).Round(time.Millisecond), float64(size)/1e6/time.Since(began).Seconds())
	if code := c.code(t, 5*time.Second); code != 0 {
		t.Errorf("exit code %d", code)
	}
}

func TestNothingIsLostOrRepeatedWhenWorkerAndLinkRestart(t *testing.T) {
	r := newRig(t)
	c := r.run(1, []string{"cat"})
	stop := make(chan struct{})
	restarted := make(chan int)
	go func() {
		n := 0
		defer func() { restarted <- n }()
		for ; n < 10; n++ {
			select {
			case <-stop:
				return
			case <-time.After(30 * time.Millisecond): // spread over the transfer; no outcome depends on it
			}
			if n%2 == 0 {
				r.newSession()
				continue
			}
			r.router.Close()
			r.newRouter()
			r.newSession()
			r.attach(1, c.relay.Socket)
		}
	}()
	echo(t, c, 96<<20)
	close(stop)
	t.Logf("%d restarts", <-restarted)
	if code := c.code(t, 5*time.Second); code != 0 {
		t.Errorf("exit code %d", code)
	}
}

// echo sends size random bytes to a process that answers with the same, and compares.
func echo(t *testing.T, c *container, size int64) {
	t.Helper()
	sent := make(chan [32]byte, 1)
	go func() {
		h := sha256.New()
		src := io.LimitReader(rand.NewChaCha8([32]byte{1}), size)
		io.Copy(io.MultiWriter(c.stdin, h), src)
		c.stdin.Close()
		sent <- [32]byte(h.Sum(nil))
	}()
	h := sha256.New()
	n, err := io.Copy(h, c.stdout)
	if err != nil {
		t.Fatal(err)
	}
	if want := <-sent; n != size || [32]byte(h.Sum(nil)) != want {
		t.Fatalf("%d bytes came back of %d, or not the same", n, size)
	}
}

func TestStuckStdoutDoesNotStopStderr(t *testing.T) {
	r := newRig(t)
	c := r.run(1, []string{"sh", "-c", "yes | head -c 4000000 & for i in 1 2 3; do echo $i >&2; done; wait"})
	buf := make([]byte, 100)
	n, err := io.ReadAtLeast(c.stderr, buf, 6)
	if err != nil || string(buf[:n]) != "1\n2\n3\n" {
		t.Fatalf("stderr %q, %v", buf[:n], err)
	}
	if got := readAll(t, c.stdout); len(got) != 4000000 {
		t.Errorf("%d bytes on stdout", len(got))
	}
}

func TestClosedStdoutReachesTheProcessAsBrokenPipe(t *testing.T) {
	r := newRig(t)
	c := r.run(1, []string{"sh", "-c", "yes; echo $? >&2; exit 3"})
	io.ReadFull(c.stdout, make([]byte, 1000))
	c.stdout.Close()
	if got := readAll(t, c.stderr); !strings.Contains(got, "141") && !strings.Contains(got, "Broken pipe") {
		t.Errorf("the process did not see the broken pipe: %q", got)
	}
	if code := c.code(t, 5*time.Second); code != 3 {
		t.Errorf("exit code %d", code)
	}
}

func TestClosedStdinStopsTheReading(t *testing.T) {
	r := newRig(t)
	c := r.run(1, []string{"sh", "-c", "exec <&-; sleep 60"})
	deadline := time.Now().Add(5 * time.Second)
	c.stdin.SetWriteDeadline(deadline)
	for {
		if _, err := c.stdin.Write(make([]byte, 4096)); err != nil {
			if time.Now().After(deadline) {
				t.Errorf("writing to a closed stdin blocks: %v", err)
			}
			return
		}
	}
}

func TestBackgroundChildDoesNotHoldTheExit(t *testing.T) {
	r := newRig(t)
	c := r.run(1, []string{"sh", "-c", "sleep 60 & echo done; exit 7"})
	if got := readAll(t, c.stdout); got != "done\n" {
		t.Errorf("stdout %q", got)
	}
	if code := c.code(t, 5*time.Second); code != 7 {
		t.Errorf("exit code %d", code)
	}
}

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
	if code := c.code(t, 5*time.Second); code != 9 {
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
	skip := map[int]bool{9: true, 19: true, 13: true, 17: true, 23: true, 27: true, 32: true, 33: true, 34: true}
	for _, n := range []int{27, 32, 33, 34} { // of no use to the process, but no harm either
		syscall.Kill(c.relay.PID, syscall.Signal(n))
	}
	for n := 1; n <= 64; n++ {
		if skip[n] {
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
		case <-time.After(time.Second):
			t.Errorf("signal %d did not arrive", n)
		}
	}
}

func TestExitCodesOfSignalsAre128PlusN(t *testing.T) {
	r := newRig(t)
	c := r.run(1, []string{"sleep", "60"})
	syscall.Kill(c.relay.PID, unix.SIGTERM)
	if code := c.code(t, 5*time.Second); code != 128+15 {
		t.Errorf("exit code %d", code)
	}
}

func TestGoneEndsTheRelayAfterItHasWrittenWhatItGot(t *testing.T) {
	r := newRig(t)
	c := r.run(1, []string{"sh", "-c", "echo last words; sleep 60"})
	io.ReadFull(c.stdout, make([]byte, 4))
	r.router.Gone(137, "the VM died")
	began := time.Now()
	if got := readAll(t, c.stdout); got != " words\n" {
		t.Errorf("stdout %q", got)
	}
	if code := c.code(t, 2*time.Second); code != 137 {
		t.Errorf("exit code %d", code)
	}
	if took := time.Since(began); took > 1500*time.Millisecond {
		t.Errorf("it took %v", took)
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
	if code := c.code(t, 2*time.Second); code != 137 {
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
	if code := c.code(t, time.Second); code != 137 {
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
}

func TestExitWaitsForTheOutputToBeRead(t *testing.T) {
	r := newRig(t)
	c := r.run(1, []string{"sh", "-c", "head -c 200000 /dev/zero; exit 4"})
	if got := receive(t, r.exits); got != [2]int{1, 4} {
		t.Errorf("exit %v", got)
	}
	if syscall.Kill(c.relay.PID, 0) != nil {
		t.Error("the relay ended before its output was read")
	}
	if got := readAll(t, c.stdout); len(got) != 200000 || strings.Trim(got, "\x00") != "" {
		t.Errorf("%d bytes on stdout", len(got))
	}
	if code := c.code(t, 5*time.Second); code != 4 {
		t.Errorf("exit code %d", code)
	}
}

func readAll(t *testing.T, f *os.File) string {
	t.Helper()
	f.SetReadDeadline(time.Now().Add(10 * time.Second))
	var b bytes.Buffer
	if _, err := b.ReadFrom(f); err != nil {
		t.Fatalf("after %d bytes: %v", b.Len(), err)
	}
	return b.String()
}

func receive[T any](t *testing.T, c <-chan T) T {
	t.Helper()
	select {
	case v := <-c:
		return v
	case <-time.After(5 * time.Second):
		t.Fatal("nothing came")
		panic("unreachable")
	}
}

func TestSlowRelayStallsNobodyElse(t *testing.T) {
	r := newRig(t)
	slow := r.run(1, []string{"sh", "-c", "yes | head -c 3000000"})
	io.ReadFull(slow.stdout, make([]byte, 10))
	syscall.Kill(slow.relay.PID, unix.SIGSTOP)
	other := r.run(2, []string{"cat"})
	echo(t, other, 8<<20)
	syscall.Kill(slow.relay.PID, unix.SIGCONT)
	if got := readAll(t, slow.stdout); len(got) != 3000000-10 {
		t.Errorf("%d bytes from the slow one", len(got))
	}
	if code := slow.code(t, 5*time.Second); code != 0 {
		t.Errorf("exit code %d", code)
	}
}

func TestRelayAttachedAfterTheProcessLosesNothing(t *testing.T) {
	r := newRig(t)
	c := &container{signals: make(chan int, 8)}
	c.deaf.Store(true)
	c.relay = r.startRelay(c)
	c.cmd = exec.Command("sh", "-c", "head -c 400000 /dev/zero; exit 6")
	out, outW := pipe(t)
	c.cmd.Stdout = outW
	r.start(9, c, stdio.Streams{Stdout: out})
	outW.Close()
	syscall.Kill(c.relay.PID, unix.SIGUSR2)
	r.attach(9, c.relay.Socket)
	if got := readAll(t, c.stdout); len(got) != 400000 {
		t.Errorf("%d bytes", len(got))
	}
	if n := receive(t, c.signals); n != int(unix.SIGUSR2) {
		t.Errorf("signal %d", n)
	}
	if code := c.code(t, 5*time.Second); code != 6 {
		t.Errorf("exit code %d", code)
	}
}

func TestGuestThatBreaksTheRulesLosesItsSession(t *testing.T) {
	data := func(stream uint8, off uint64, n int) []byte {
		b := make([]byte, stdio.HeaderSize+n)
		stdio.Header{Type: stdio.TypeData, Stream: stream, Channel: 1, Off: off, Len: uint32(n)}.Put(b)
		return b
	}
	cases := map[string]struct {
		frame  []byte
		repeat int
	}{
		"no frame":               {[]byte("hello"), 1},
		"data beyond the window": {data(1, stdio.Window, 1), 1},
		"standard input":         {data(0, 0, 1), 1},
		"a frame for agents":     {stdio.AppendSignal(nil, 1, 1, 9), 1},
		"ack of its own output":  {stdio.AppendWindow(nil, stdio.TypeAck, 1, 0, 1, 0, 0), 1},
		"a flood of syncs":       {stdio.AppendSimple(nil, stdio.TypeSync, 0, 1, 0), 300_000},
		"unknown channels":       {stdio.AppendSimple(nil, stdio.TypeSync, 0, 77, 0), 300_000},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			rt := router.New(router.Config{})
			t.Cleanup(rt.Close)
			rg := &rig{t: t, ctx: t.Context(), router: rt}
			relay := rg.startRelay(&container{})
			rg.attach(1, relay.Socket)
			g := newFakeGuest()
			served := make(chan error, 1)
			go func() { served <- rt.ServeGuest(t.Context(), g) }()
			g.await(stdio.TypeResume, stdio.TypeSync) // the relay has granted its windows
			for range c.repeat {
				if !g.say(c.frame) {
					break
				}
			}
			if err := receive(t, served); !errors.Is(err, router.ErrViolation) {
				t.Errorf("ended with %v", err)
			}
		})
	}
}

// fakeGuest is a session whose guest is the test.
type fakeGuest struct {
	in, out chan []byte
	done    chan struct{}
	once    sync.Once
}

func newFakeGuest() *fakeGuest {
	return &fakeGuest{in: make(chan []byte), out: make(chan []byte), done: make(chan struct{})}
}

func (g *fakeGuest) Close() error {
	g.once.Do(func() { close(g.done) })
	return nil
}

func (g *fakeGuest) Send(b []byte) error {
	select {
	case g.out <- bytes.Clone(b):
		return nil
	case <-g.done:
		return io.ErrClosedPipe
	}
}

func (g *fakeGuest) Recv() ([]byte, error) {
	select {
	case b := <-g.in:
		return b, nil
	case <-g.done:
		return nil, io.EOF
	}
}

// await takes frames until one of each type has come, and goes on taking them.
func (g *fakeGuest) await(types ...stdio.Type) {
	seen := map[stdio.Type]bool{}
	for {
		f, err := stdio.Parse(<-g.out)
		if err == nil {
			seen[f.Type] = true
		}
		missing := false
		for _, want := range types {
			missing = missing || !seen[want]
		}
		if !missing {
			break
		}
	}
	go func() {
		for {
			select {
			case <-g.out:
			case <-g.done:
				return
			}
		}
	}()
}

func (g *fakeGuest) say(b []byte) bool {
	select {
	case g.in <- b:
		return true
	case <-g.done:
		return false
	}
}
