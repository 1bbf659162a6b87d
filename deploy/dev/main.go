// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

// Command dev starts and stops a daemon from the tree, on the default run
// directory, so that the built bulkhead finds it without any option.
//
// usage: dev up|down BUILD_DIRECTORY
package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"bulkhead/bus"
	"bulkhead/bus/config"
	"bulkhead/deploy/daemon"
	vmv1 "bulkhead/proto/vm/v1"
)

func main() {
	if len(os.Args) != 3 {
		fmt.Fprintln(os.Stderr, "usage: dev up|down BUILD_DIRECTORY")
		os.Exit(2)
	}
	build, err := filepath.Abs(os.Args[2])
	if err == nil {
		switch os.Args[1] {
		case "up":
			err = up(build)
		case "down":
			err = down(build)
		default:
			err = fmt.Errorf("unknown action %q: up or down", os.Args[1])
		}
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "dev:", err)
		os.Exit(1)
	}
}

func pidFile(build string) string { return filepath.Join(build, "dev", "bulkheadd.pid") }

func up(build string) error {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	dir := filepath.Join(build, "dev")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	if pid, ok := running(build); ok {
		return fmt.Errorf("a daemon from this tree already runs (pid %d); make down stops it", pid)
	}
	def := config.Default()
	d, err := daemon.Start(ctx, daemon.Options{Build: build, Dir: dir, RunDir: def.Host.RunDir, Operator: def.Host.OperatorAddr})
	if err != nil {
		return err
	}
	if err := os.WriteFile(pidFile(build), []byte(strconv.Itoa(d.PID)), 0o600); err != nil {
		return errors.Join(err, d.Stop())
	}
	runtimes, err := json.Marshal(map[string]any{"runtimes": map[string]any{"bulkhead": map[string]any{"path": filepath.Join(build, "bin", "bulkhead")}}})
	if err != nil {
		return err
	}
	fmt.Printf(`bulkheadd runs: pid %d, log %s, run directory %s

  containers      %s list
  operators       nats --context bulkhead micro ls
  Docker          /etc/docker/daemon.json: %s
                  docker run --rm -it --runtime bulkhead IMAGE

make down stops it, and its containers.
`, d.PID, d.Log, def.Host.RunDir, filepath.Join(build, "bin", "bulkhead"), runtimes)
	return nil
}

// down ends every container, then the daemon.
func down(build string) error {
	pid, ok := running(build)
	if !ok {
		fmt.Println("no daemon from this tree runs")
		return nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	if err := endContainers(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "dev: containers not ended:", err)
	}
	if err := terminate(ctx, pid); err != nil {
		return err
	}
	fmt.Println("bulkheadd stopped")
	return os.Remove(pidFile(build))
}

func endContainers(ctx context.Context) error {
	conn, err := bus.Dial(ctx, config.Default().Host.RunDir, "make down")
	if err != nil {
		return err
	}
	defer conn.Close()
	list, err := vmv1.ListAll("", func(req *vmv1.ListRequest) (*vmv1.ListReply, error) {
		return bus.Call[vmv1.ListReply](ctx, conn, conn.Subject("vm", "list"), req)
	})
	if err != nil {
		return err
	}
	var errs []error
	for _, c := range list.Containers {
		_, err := bus.Call[vmv1.DeleteReply](bus.WithOperation(ctx, bus.NewOperationID()), conn, conn.Subject("vm", "delete"),
			&vmv1.DeleteRequest{Ref: c.Ref, Force: true})
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// running returns the pid of the daemon that up started, if it still runs.
func running(build string) (pid int, ok bool) {
	raw, err := os.ReadFile(pidFile(build))
	if err != nil {
		return 0, false
	}
	pid, err = strconv.Atoi(strings.TrimSpace(string(raw)))
	if err != nil {
		return 0, false
	}
	cmdline, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
	return pid, err == nil && bytes.HasPrefix(cmdline, []byte(filepath.Join(build, "bin", "bulkheadd")+"\x00"))
}

// terminate asks a process to end and waits until it has.
func terminate(ctx context.Context, pid int) error {
	fd, err := unix.PidfdOpen(pid, 0)
	if errors.Is(err, unix.ESRCH) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("open process %d: %w", pid, err)
	}
	defer unix.Close(fd)
	if err := unix.PidfdSendSignal(fd, unix.SIGTERM, nil, 0); err != nil && !errors.Is(err, unix.ESRCH) {
		return fmt.Errorf("stop process %d: %w", pid, err)
	}
	for {
		left := time.Minute
		if at, ok := ctx.Deadline(); ok {
			left = time.Until(at)
		}
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, int(max(left, 0).Milliseconds()))
		switch {
		case errors.Is(err, unix.EINTR):
		case err != nil:
			return err
		case n == 0:
			return fmt.Errorf("process %d did not end in time", pid)
		default:
			return nil
		}
	}
}
