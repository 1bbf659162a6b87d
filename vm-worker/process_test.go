// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package vmworker

import (
	"os/exec"
	"testing"
	"time"

	"bulkhead/vm-worker/hypervisor"
)

func TestProcessHandleSeesTheEndAndRefusesAReusedPid(t *testing.T) {
	t.Parallel()
	cmd := exec.Command("sleep", "60")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })

	found, err := hypervisor.FindProcess(cmd.Process.Pid)
	if err != nil {
		t.Fatal(err)
	}
	started := found.StartTime
	if _, err := openProcess(cmd.Process.Pid, started+1); err == nil {
		t.Fatal("a process with another start time was accepted")
	}
	p, err := openProcess(cmd.Process.Pid, started)
	if err != nil {
		t.Fatal(err)
	}
	defer p.close()
	if p.ended() {
		t.Fatal("a living process is said to have ended")
	}
	done := make(chan struct{})
	go func() { p.wait(); close(done) }()
	if err := p.signal(9); err != nil {
		t.Fatal(err)
	}
	select {
	case <-done:
	case <-time.After(30 * time.Second):
		t.Fatal("the end of the process was not seen")
	}
	if !p.ended() {
		t.Fatal("a dead process (still a zombie) is said to live")
	}
	if _, err := openProcess(cmd.Process.Pid, 0); err == nil {
		t.Fatal("a zombie was accepted as a living process")
	}
}

func TestClosingAProcessHandleEndsItsWaiter(t *testing.T) {
	t.Parallel()
	cmd := exec.Command("sleep", "60")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
	p, err := openProcess(cmd.Process.Pid, 0)
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() { p.wait(); close(done) }()
	p.close()
	select {
	case <-done:
	case <-time.After(30 * time.Second):
		t.Fatal("the waiter outlived its handle")
	}
}
