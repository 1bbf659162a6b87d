// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package router_test

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"bulkhead/bus/stdio"
)

func TestProcessGetsInputAndItsOutputAndExitCodeArrive(t *testing.T) {
	r := newRig(t)
	c := r.run(1, []string{"sh", "-c", "read x; echo out $x; echo err $x >&2; exit 42"})
	fmt.Fprintln(c.stdin, "hello")
	out, errs := readAll(t, c.stdout), readAll(t, c.stderr)
	if out != "out hello\n" || errs != "err hello\n" {
		t.Errorf("stdout %q, stderr %q", out, errs)
	}
	if code := c.code(t, patience); code != 42 {
		t.Errorf("exit code %d", code)
	}
	if got := <-r.exits; got != [2]int{1, 42} {
		t.Errorf("OnExit was told %v", got)
	}
	c.forgotten(t)
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
	if code := c.code(t, patience); code != 0 {
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
	if code := c.code(t, patience); code != 0 {
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
	if code := c.code(t, patience); code != 3 {
		t.Errorf("exit code %d", code)
	}
}

func TestClosedStdinStopsTheReading(t *testing.T) {
	r := newRig(t)
	c := r.run(1, []string{"sh", "-c", "exec <&-; sleep 60"})
	deadline := time.Now().Add(patience)
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
	if code := c.code(t, patience); code != 7 {
		t.Errorf("exit code %d", code)
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
	if code := c.code(t, patience); code != 4 {
		t.Errorf("exit code %d", code)
	}
}

func TestExitIsToldAlthoughNobodyReads(t *testing.T) {
	const size = stdio.Window + 40_000 // fills the window, and half of the process's own pipe
	run := func(t *testing.T) *container {
		r := newRig(t)
		c := r.run(1, []string{"sh", "-c", fmt.Sprintf("head -c %d /dev/zero; exit 5", size)})
		if got := receive(t, r.exits); got != [2]int{1, 5} {
			t.Errorf("exit %v", got)
		}
		return c
	}
	t.Run("what is left goes out when somebody reads", func(t *testing.T) {
		c := run(t)
		if got := readAll(t, c.stdout); len(got) != size {
			t.Errorf("%d bytes on stdout", len(got))
		}
		if code := c.code(t, patience); code != 5 {
			t.Errorf("exit code %d", code)
		}
	})
	t.Run("who asks for the end gets it, with the process's own code", func(t *testing.T) {
		c := run(t)
		stop := make(chan struct{})
		defer close(stop)
		go func() { // the router hears of the exit first: an early signal is still the process's
			for syscall.Kill(c.relay.PID, unix.SIGTERM) == nil {
				select {
				case <-time.After(20 * time.Millisecond):
				case <-stop:
					return
				}
			}
		}()
		if code := c.code(t, patience); code != 5 {
			t.Errorf("exit code %d", code)
		}
	})
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
	if code := slow.code(t, patience); code != 0 {
		t.Errorf("exit code %d", code)
	}
}

func TestRelayAttachedAfterTheProcessLosesNothing(t *testing.T) {
	r := newRig(t)
	c := &container{signals: make(chan int, 8)}
	c.deaf.Store(true)
	c.relay = r.startRelay(c)
	const size = stdio.Window + 150_000 // more than fits without a relay
	// It lives until the signal has come: the relay may have heard of that only when all output was out.
	c.cmd = exec.Command("sh", "-c", fmt.Sprintf("head -c %d /dev/zero; read x; exit 6", size))
	in, inW := pipe(t)
	out, outW := pipe(t)
	c.cmd.Stdin, c.cmd.Stdout = in, outW
	r.start(9, c, stdio.Streams{Stdout: out})
	outW.Close()
	syscall.Kill(c.relay.PID, unix.SIGUSR2)
	r.attach(9, c.relay.Socket)
	if n := receive(t, c.signals); n != int(unix.SIGUSR2) {
		t.Errorf("signal %d", n)
	}
	inW.Close()
	if got := readAll(t, c.stdout); len(got) != size {
		t.Errorf("%d bytes", len(got))
	}
	if code := c.code(t, patience); code != 6 {
		t.Errorf("exit code %d", code)
	}
}

func readAll(t *testing.T, f *os.File) string {
	t.Helper()
	f.SetReadDeadline(time.Now().Add(patience))
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
	case <-time.After(patience):
		t.Fatal("nothing came")
		panic("unreachable")
	}
}
