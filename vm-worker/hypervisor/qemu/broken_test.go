// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package qemu

import (
	"bufio"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"bulkhead/vm-worker/hypervisor"
)

// Under TCG no machine gets there, so QEMU's part of the talk is played, and a process stands for it.
func TestAMachineThatCannotGoOnIsEnded(t *testing.T) {
	t.Parallel()
	for status, ends := range map[string]bool{brokenStatus: true, "paused": false} {
		cmd := exec.Command("sleep", "1000")
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		ended := make(chan struct{})
		go func() {
			_ = cmd.Wait()
			close(ended)
		}()
		t.Cleanup(func() {
			_ = cmd.Process.Kill()
			<-ended
		})
		process, err := hypervisor.FindProcess(cmd.Process.Pid)
		if err != nil {
			t.Fatal(err)
		}
		v := &vm{
			rec: hypervisor.Record{Process: process}, events: make(chan hypervisor.Event, 16), stopped: make(chan struct{}, 1),
			watched: make(chan struct{}), console: &console{}, stderr: os.Stderr,
		}
		asked := make(chan struct{})
		if v.monitor, err = openMonitor(t.Context(), playMonitor(t, status, asked), v.onEvent); err != nil {
			t.Fatal(err)
		}
		go v.endBroken()
		defer close(v.watched)
		defer v.monitor.close()
		v.onEvent(qmpEvent{Name: "STOP"})
		select {
		case <-asked:
		case <-time.After(30 * time.Second):
			t.Fatalf("%s: nobody asks why the machine was stopped", status)
		}
		if ends {
			select {
			case <-ended:
			case <-time.After(30 * time.Second):
				t.Errorf("%s: the process lives on", status)
			}
			v.mu.Lock()
			if !strings.Contains(v.order, brokenStatus) {
				t.Errorf("the reason is %q", v.order)
			}
			v.mu.Unlock()
			continue
		}
		if err := unix.Kill(cmd.Process.Pid, 0); err != nil {
			t.Errorf("%s: the process was ended: %v", status, err)
		}
	}
}

// playMonitor answers as QEMU's monitor does; asked is closed after the answer about the machine's status.
func playMonitor(t *testing.T, status string, asked chan<- struct{}) net.Conn {
	t.Helper()
	ours, theirs := net.Pipe()
	go func() {
		defer theirs.Close()
		fmt.Fprintln(theirs, `{"QMP": {"version": {"qemu": {"major": 7, "minor": 2, "micro": 0}}, "capabilities": []}}`)
		for lines := bufio.NewScanner(theirs); lines.Scan(); {
			var command struct {
				Execute string          `json:"execute"`
				ID      json.RawMessage `json:"id"`
			}
			if err := json.Unmarshal(lines.Bytes(), &command); err != nil {
				return
			}
			answer := `{}`
			if command.Execute == "query-status" {
				answer = fmt.Sprintf(`{"running": false, "status": %q}`, status)
			}
			id := ""
			if command.ID != nil {
				id = fmt.Sprintf(`, "id": %s`, command.ID)
			}
			fmt.Fprintf(theirs, "{\"return\": %s%s}\n", answer, id)
			if command.Execute == "query-status" {
				close(asked)
			}
		}
	}()
	return ours
}
