// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package vmtest

import (
	"fmt"
	"net"
	"path/filepath"
	"strings"
	"time"
)

// UnplugControl takes the port of the control link away from the running
// guest, as a fault of the hypervisor would.
func (vm *VM) UnplugControl() error { return vm.Monitor("device_del ctlport") }

// AddProcessor gives the running guest the processor with this number of its
// package, for which -smp must have left room.
func (vm *VM) AddProcessor(n int) error {
	return vm.Monitor(fmt.Sprintf("device_add max-x86_64-cpu,id=added%d,socket-id=0,core-id=%d,thread-id=0", n, n))
}

// Monitor gives QEMU an order of its monitor for people.
func (vm *VM) Monitor(command string) error {
	conn, err := net.Dial("unix", filepath.Join(vm.dir, "monitor.sock"))
	if err != nil {
		return fmt.Errorf("connecting to QEMU's monitor: %w", err)
	}
	defer conn.Close()
	const prompt = "(qemu) "
	if _, err := readUntil(conn, prompt); err != nil {
		return fmt.Errorf("reading the greeting of QEMU's monitor: %w", err)
	}
	if _, err := fmt.Fprintln(conn, command); err != nil {
		return fmt.Errorf("asking QEMU to %s: %w", command, err)
	}
	// It echoes the command by the character, and prompts again when it is done.
	said, err := readUntil(conn, prompt)
	if err == nil && strings.Contains(said, "Error") {
		err = fmt.Errorf("QEMU says %q", said)
	}
	return err
}

func readUntil(conn net.Conn, end string) (string, error) {
	if err := conn.SetReadDeadline(time.Now().Add(10 * time.Second)); err != nil {
		return "", err
	}
	var said []byte
	for buf := make([]byte, 4096); !strings.HasSuffix(string(said), end); {
		n, err := conn.Read(buf)
		if said = append(said, buf[:n]...); err != nil {
			return string(said), err
		}
	}
	return string(said), nil
}

// Ended is closed when the VM is gone.
func (vm *VM) Ended() <-chan struct{} { return vm.ended }
