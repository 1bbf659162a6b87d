// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"cmp"
	"net"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// floodShare is how much longer another VM's calls may take, in the middle, while one
// floods its tap than while that one burns as much of its processor without a network:
// QEMU's own thread and the kernel move the packets, on processors of the host.
const floodShare = 4

// One VM sends as fast as it can; the calls to another one and its connections are
// compared with those beside a VM that only computes. The two take turns, so that
// whatever else the machine does meets both.
func TestAVMThatFloodsItsTapSlowsNoOther(t *testing.T) {
	h := sharedHost(t)
	o, mine, others := newOCI(t, h), newWire(t), newWire(t)
	// A neighbour that nobody asks for and nobody is: no program on the host takes part in the flood, and nothing is answered.
	ipIn(t, mine.inside, "neighbour", "add", "10.9.0.200", "lladdr", "02:00:00:00:00:c8", "dev", "eth0")
	noisy, quiet := newID("noisy"), newID("quiet")
	o.launch(noisy, mine.spec(t, nil, "sleep", "1000"))
	until(t, o.launch(quiet, others.spec(t, nil, "netprobe", "serve", ":"+probePort)), "serving")
	o.do("exec", noisy, "ping", "-c", "1", "-W", "60", wireFar4)
	reaches(t, others.outside, net.JoinHostPort(wireOwn4, probePort))
	conn, err := others.outside.Dial(within(t, launchTime), "tcp", net.JoinHostPort(wireOwn4, probePort))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if _, err := conn.Write([]byte("echo\n")); err != nil {
		t.Fatal(err)
	}
	var calls, echoes [2][]time.Duration // beside one that computes, beside one that floods
	for range 2 {
		for i, noise := range []string{"while :; do :; done", "exec /test/netprobe -limit 10m -for 9m -size 1400 flood 10.9.0.200:7"} {
			x := o.exec(noisy, "--process", o.processFile("sh", "-c", "echo begins; "+noise))
			until(t, x, "begins")
			for range 4 {
				calls[i] = append(calls[i], took(func() { o.do("exec", quiet, "true") }))
			}
			for range 40 {
				echoes[i] = append(echoes[i], took(func() { echoByte(t, conn) }))
			}
			if err := unix.Kill(x.PID, unix.SIGTERM); err != nil { // the relay of the process passes it on
				t.Fatal(err)
			}
			exits(t, x, 143)
		}
	}
	stats := nicStats(o, dial(t, h), noisy)
	t.Logf("the flood was %d packets", stats.TxPackets)
	if stats.TxPackets < 10000 {
		t.Error("that is no flood")
	}
	for what, both := range map[string][2][]time.Duration{"exec": calls, "an echo by TCP": echoes} {
		computing, flooding := median(both[0]), median(both[1])
		t.Logf("%s takes %s beside a VM that computes and %s beside one that floods", what, computing, flooding)
		if flooding > floodShare*computing {
			t.Errorf("%s takes %s instead of %s while another VM floods its tap", what, flooding, computing)
		}
	}
}

func took(do func()) time.Duration {
	began := time.Now()
	do()
	return time.Since(began)
}

// echoByte has one byte come back.
func echoByte(t *testing.T, conn net.Conn) {
	t.Helper()
	b := []byte{'x'}
	err := conn.SetDeadline(time.Now().Add(echoTime))
	if err == nil {
		_, err = conn.Write(b)
	}
	if err == nil {
		_, err = conn.Read(b)
	}
	if err != nil {
		t.Fatal(err)
	}
}

func median[T cmp.Ordered](of []T) T {
	sorted := slices.Sorted(slices.Values(of))
	return sorted[len(sorted)/2]
}
