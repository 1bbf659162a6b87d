// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package qemu

import (
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// How often others have looked for what nobody told them: gVisor for ends of processes, hypeman for the sockets of hypervisors.
const (
	endInterval    = 100 * time.Millisecond
	socketInterval = 50 * time.Millisecond
)

// BenchmarkAnEndIsSeen measures from the kill of a process until it is known to have ended: told by its pidfd, as here, and looked for.
func BenchmarkAnEndIsSeen(b *testing.B) {
	for name, await := range map[string]func(pid int, pidfd *os.File){
		"told": func(_ int, pidfd *os.File) { _ = waitExit(pidfd) },
		"looked-for": func(pid int, _ *os.File) {
			for {
				var info unix.Siginfo
				if err := unix.Waitid(unix.P_PID, pid, &info, unix.WEXITED|unix.WNOHANG|unix.WNOWAIT, nil); err != nil || info.Signo != 0 {
					return
				}
				time.Sleep(endInterval)
			}
		},
	} {
		b.Run(name, func(b *testing.B) {
			var seen time.Duration
			for b.Loop() {
				cmd := exec.Command("sleep", "1000")
				if err := cmd.Start(); err != nil {
					b.Fatal(err)
				}
				fd, err := unix.PidfdOpen(cmd.Process.Pid, unix.PIDFD_NONBLOCK)
				if err != nil {
					b.Fatal(err)
				}
				pidfd := os.NewFile(uintptr(fd), "pidfd")
				ended := make(chan time.Time)
				go func() { await(cmd.Process.Pid, pidfd); ended <- time.Now() }()
				time.Sleep(endInterval/2 + rand.N(endInterval)) // at no special moment of the interval
				killed := time.Now()
				_ = cmd.Process.Kill()
				seen += (<-ended).Sub(killed)
				_ = cmd.Wait()
				pidfd.Close()
			}
			b.ReportMetric(1000*seen.Seconds()/float64(b.N), "ms-to-seen")
		})
	}
}

// BenchmarkAMonitorGreets measures from the start of a QEMU until its monitor's greeting: on a socket that it inherits
// listening, as here, and on one that it makes and that is looked for.
func BenchmarkAMonitorGreets(b *testing.B) {
	if _, err := exec.LookPath("qemu-system-x86_64"); err != nil {
		b.Skip("QEMU is not installed")
	}
	for name, looks := range map[string]bool{"inherited": false, "looked-for": true} {
		b.Run(name, func(b *testing.B) {
			var greeted time.Duration
			for b.Loop() {
				greeted += greets(b, looks)
			}
			b.ReportMetric(1000*greeted.Seconds()/float64(b.N), "ms-to-greeting")
		})
	}
}

func greets(b *testing.B, looks bool) time.Duration {
	b.Helper()
	dir, err := os.MkdirTemp("", "greets") // short: the socket's path is
	if err != nil {
		b.Fatal(err)
	}
	defer os.RemoveAll(dir)
	where := "path=" + dir + "/qmp.sock"
	cmd := exec.Command("qemu-system-x86_64", "-S", "-no-user-config", "-nodefaults", "-display", "none", "-machine", "q35,accel=tcg", "-m", "128", "-mon", "chardev=m,mode=control")
	if !looks {
		f, err := listen(dir, socketQMP)
		if err != nil {
			b.Fatal(err)
		}
		defer f.Close()
		where, cmd.ExtraFiles = "fd=3", []*os.File{f}
	}
	cmd.Args = append(cmd.Args, "-chardev", "socket,id=m,server=on,wait=off,"+where)
	began := time.Now()
	if err := cmd.Start(); err != nil {
		b.Fatal(err)
	}
	defer func() { _ = cmd.Process.Kill(); _ = cmd.Wait() }()
	conn, err := dial(b.Context(), dir, socketQMP)
	for err != nil && looks && time.Since(began) < startTimeout {
		time.Sleep(socketInterval)
		conn, err = net.Dial("unix", dir+"/qmp.sock")
	}
	if err != nil {
		b.Fatal(err)
	}
	monitor, err := openMonitor(b.Context(), conn, func(qmpEvent) {})
	if err != nil {
		b.Fatal(err)
	}
	took := time.Since(began)
	monitor.close()
	return took
}
