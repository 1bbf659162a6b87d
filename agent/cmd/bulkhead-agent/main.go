// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

// Command bulkhead-agent is PID 1 of a guest.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"runtime"
	"runtime/debug"

	"github.com/hashicorp/go-hclog"
	// Joins the namespaces of a container when started as "init", before the Go runtime starts.
	_ "github.com/opencontainers/runc/libcontainer/nsenter"
	"github.com/sirupsen/logrus"

	"bulkhead/agent"
	"bulkhead/agent/guest"
	"bulkhead/agent/heap"
	// Becomes the container's process at once when started as "init".
	_ "bulkhead/agent/reexec"
)

// libcontainer enters mount namespaces of containers with threads that it lets end. The first thread of a
// process cannot end: it would stay there, and be what /proc/1 tells of the guest. So only main runs on it.
func init() { runtime.LockOSThread() }

func main() {
	begun := guest.Uptime()
	if os.Getpid() != 1 {
		fmt.Fprintln(os.Stderr, "bulkhead-agent is PID 1 of a guest and of nothing else: put it into the guest image with deploy/guest/build-image")
		os.Exit(2)
	}
	// An agent that ends would panic the kernel; whatever happens, the machine goes off instead.
	defer off()
	defer func() {
		if p := recover(); p != nil {
			fmt.Fprintf(os.Stderr, "bulkhead-agent: panic: %v\n%s", p, debug.Stack())
		}
	}()
	log := hclog.New(&hclog.LoggerOptions{Name: "agent", Level: hclog.Info, Output: os.Stderr})
	if err := run(begun, log); err != nil {
		log.Error("the guest cannot go on and powers off", "error", err)
	}
}

func run(begun float64, log hclog.Logger) error {
	// libcontainer logs by logrus; what concerns a container comes back as an error.
	logrus.SetLevel(logrus.WarnLevel)
	heap.Follow()
	for _, prepare := range []func() error{guest.StartSELinux, guest.UseInit, guest.MountAll, guest.SetupCgroups, guest.SetParameters, guest.LoopbackUp} {
		if err := prepare(); err != nil {
			return err
		}
	}
	err := agent.Run(context.Background(), agent.Deps{Log: log, Begun: begun})
	return errors.Join(errors.New("the agent ended"), err)
}

func off() {
	if err := guest.Off(); err != nil {
		fmt.Fprintln(os.Stderr, "bulkhead-agent: cannot power off:", err)
		select {}
	}
}
