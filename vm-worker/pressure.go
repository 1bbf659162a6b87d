// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package vmworker

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

const (
	// poolReserve is the part of the host's memory that VMs of the pool leave alone.
	poolReserve = 10 // one part in
	// pressureTrigger has the kernel tell when processes have waited for memory for 150 ms within
	// 2 s (Documentation/accounting/psi.rst, "Monitoring for pressure thresholds").
	pressureTrigger = "some 150000 2000000"
	hostPressure    = "/proc/pressure/memory"
	// pressureHigh is the share of the last ten seconds in which somebody waited, in percent.
	pressureHigh = 10.0
)

// memoryShort says in a sentence why the host has no memory for what nobody uses yet;
// empty when it has.
func (k *stock) memoryShort() string {
	total, available := meminfo()
	if available < total/poolReserve {
		return fmt.Sprintf("the host has %d MiB of memory left, less than a tenth of all", available>>20)
	}
	if waited := memoryPressure(k.w.pressure); waited > pressureHigh {
		return fmt.Sprintf("processes of the host waited for memory for %.0f %% of the last 10 s", waited)
	}
	return ""
}

// meminfo is the host's memory and what of it can be had without swapping, in bytes.
func meminfo() (total, available uint64) {
	text, err := os.ReadFile("/proc/meminfo")
	if err != nil {
		return 0, 0
	}
	for line := range strings.Lines(string(text)) {
		f := strings.Fields(line)
		if len(f) < 2 {
			continue
		}
		kib, err := strconv.ParseUint(f[1], 10, 64)
		if err != nil {
			continue
		}
		switch f[0] {
		case "MemTotal:":
			total = kib << 10
		case "MemAvailable:":
			available = kib << 10
		}
	}
	return total, available
}

// memoryPressure is avg10 of "some" in percent; 0 where the kernel does not tell.
func memoryPressure(file string) float64 {
	text, err := os.ReadFile(file)
	if err != nil {
		return 0
	}
	_, rest, _ := bytes.Cut(text, []byte("some avg10="))
	number, _, _ := bytes.Cut(rest, []byte(" "))
	waited, err := strconv.ParseFloat(string(number), 64)
	if err != nil {
		return 0
	}
	return waited
}

// watchPressure empties the pool whenever the kernel says that the host is short of memory, until
// the worker stops. Where it does not say so, the pool only stops to be filled.
func (k *stock) watchPressure() {
	psi, err := unix.Open(k.w.pressure, unix.O_RDWR|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		k.w.log.Debug("no word from the kernel when memory is short", "error", err)
		return
	}
	defer unix.Close(psi)
	if _, err := unix.Write(psi, append([]byte(pressureTrigger), 0)); err != nil {
		k.w.log.Debug("no word from the kernel when memory is short", "error", err)
		return
	}
	stop, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		k.w.log.Warn("not listening for a shortage of memory", "error", err)
		return
	}
	defer unix.Close(stop)
	stopped := context.AfterFunc(k.w.context(), func() { _, _ = unix.Write(stop, []byte{1, 0, 0, 0, 0, 0, 0, 0}) })
	defer stopped()
	for {
		fds := []unix.PollFd{{Fd: int32(psi), Events: unix.POLLPRI}, {Fd: int32(stop), Events: unix.POLLIN}}
		if _, err := unix.Poll(fds, -1); err != nil && err != unix.EINTR {
			k.w.log.Warn("not listening for a shortage of memory any more", "error", err)
			return
		}
		switch {
		case fds[1].Revents != 0 || k.w.context().Err() != nil:
			return
		case fds[0].Revents&unix.POLLERR != 0:
			return
		case fds[0].Revents&unix.POLLPRI != 0:
			if short := k.memoryShort(); short != "" {
				k.say(short)
				k.drain(k.w.context(), "the host is short of memory")
				k.wake() // which asks again, and then waits
			}
		}
	}
}
