// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"os/exec"
	stdruntime "runtime"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"bulkhead/bus/config"
	vmv1 "bulkhead/proto/vm/v1"
)

// facts are what a number means nothing without.
type facts struct {
	date   time.Time
	kernel string
	cpu    string
	cores  int
	memory float64 // bytes
	load   string  // before the first sample
	busy   bool    // the load was such that it shows in the numbers
	runc   string
	runsc  string // empty: it is not here
	qemu   string
	vm     *vmv1.Sandbox // of the first VM; nil when none ran
}

func hostFacts(ctx context.Context) facts {
	f := facts{date: time.Now(), cores: stdruntime.NumCPU(), cpu: cpuModel()}
	var name unix.Utsname
	if unix.Uname(&name) == nil {
		f.kernel = unix.ByteSliceToString(name.Release[:])
	}
	f.memory, _ = field("/proc/meminfo", "MemTotal:")
	load, _ := os.ReadFile("/proc/loadavg")
	if words := strings.Fields(string(load)); len(words) >= 3 {
		f.load = strings.Join(words[:3], " ")
		if last, err := strconv.ParseFloat(words[0], 64); err == nil {
			f.busy = last > float64(f.cores)/2
		}
	}
	f.runc = version(ctx, "runc")
	f.qemu = version(ctx, config.Default().VM.QEMU)
	return f
}

// versionTime bounds asking a program for its version.
const versionTime = 10 * time.Second

// version is the first line of what a program says of itself.
func version(ctx context.Context, program string) string {
	ctx, cancel := context.WithTimeout(ctx, versionTime)
	defer cancel()
	out, err := exec.CommandContext(ctx, program, "--version").Output()
	if err != nil {
		return program + " does not tell its version"
	}
	line, _, _ := strings.Cut(string(out), "\n")
	return line
}

func cpuModel() string {
	f, err := os.Open("/proc/cpuinfo")
	if err != nil {
		return "unknown"
	}
	defer f.Close()
	for lines := bufio.NewScanner(f); lines.Scan(); {
		if name, value, ok := strings.Cut(lines.Text(), ":"); ok && strings.TrimSpace(name) == "model name" {
			return strings.TrimSpace(value)
		}
	}
	return "unknown"
}

// lines are the facts for people.
func (f facts) lines() []string {
	l := []string{
		fmt.Sprintf("%s; host kernel %s; %d cores (%s), %.1f GB; load before %s",
			f.date.UTC().Format("2006-01-02 15:04 MST"), f.kernel, f.cores, f.cpu, f.memory/1e9, f.load),
		strings.Join(slices.DeleteFunc([]string{f.runc, f.runsc, f.qemu}, func(s string) bool { return s == "" }), "; "),
	}
	if f.busy {
		l = append(l, "The machine was busy with other work before the first sample: times are upper bounds, rates lower ones.")
	}
	if f.vm != nil {
		l = append(l, fmt.Sprintf("VMs: %s, accelerator %s (%s), %d vCPU, %.0f MiB, guest kernel %s",
			f.vm.Hypervisor, f.vm.Accelerator, f.vm.AcceleratorReason, f.vm.Vcpus, float64(f.vm.MemoryBytes)/(1<<20), f.vm.Kernel))
	}
	return l
}
