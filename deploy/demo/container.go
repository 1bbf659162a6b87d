// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os/exec"
	"strings"
	"time"

	"bulkhead/bus"
	vmv1 "bulkhead/proto/vm/v1"
)

// outcome is what the demo saw of its container.
type outcome struct {
	output  []string
	code    int
	total   time.Duration // from the command to the first line of output
	sandbox *vmv1.Sandbox
	stats   *vmv1.StatsReply
}

const containerID = "demo"

// runContainer runs the container as a user would, by "bulkhead run", and looks
// at its VM while it waits for a line.
func runContainer(ctx context.Context, h *host, bundle string) (*outcome, error) {
	step("bulkhead run: relay, VM, agent, container")
	began := time.Now()
	cmd := exec.CommandContext(ctx, h.cli, "--config", h.Config, "--root", h.root, "run", "--bundle", bundle, containerID)
	stdin, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	var stderr strings.Builder
	cmd.Stderr = &stderr
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	o := &outcome{}
	defer func() { // a demo that fails half way leaves nothing either
		_ = exec.Command(h.cli, "--config", h.Config, "--root", h.root, "delete", "--force", containerID).Run()
	}()
	lines := bufio.NewScanner(stdout)
	for lines.Scan() {
		if len(o.output) == 0 {
			o.total = time.Since(began)
			done(began)
		}
		o.output = append(o.output, lines.Text())
		if strings.HasPrefix(lines.Text(), "root") { // the last line before it waits
			if err := o.look(ctx, h); err != nil {
				return nil, err
			}
			if _, err := io.WriteString(stdin, "a line\n"); err != nil {
				return nil, err
			}
			stdin.Close()
		}
	}
	err = cmd.Wait()
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		o.code = exit.ExitCode()
	} else if err != nil {
		return nil, err
	}
	if o.code != exitCode {
		return nil, fmt.Errorf("the container ended with %d instead of %d: %s\n%s", o.code, exitCode, stderr.String(), h.LastLog())
	}
	return o, nil
}

// look asks the bus about the VM.
func (o *outcome) look(ctx context.Context, h *host) error {
	list, err := bus.Call[vmv1.ListReply](ctx, h.conn, h.conn.Subject("vm", "list"), &vmv1.ListRequest{Root: h.root})
	if err != nil {
		return err
	}
	if len(list.Sandboxes) != 1 {
		return fmt.Errorf("%d VMs run instead of one", len(list.Sandboxes))
	}
	o.sandbox = list.Sandboxes[0]
	o.stats, err = bus.Call[vmv1.StatsReply](ctx, h.conn, h.conn.Subject("vm", "stats"),
		&vmv1.StatsRequest{Ref: &vmv1.ContainerRef{Root: h.root, Id: containerID}})
	return err
}
