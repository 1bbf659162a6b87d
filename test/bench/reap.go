// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// reap waits for an adopted process and returns its exit status. One that does
// not end while ctx lasts is killed.
func reap(ctx context.Context, pid int) (code int, err error) {
	p, err := os.FindProcess(pid)
	if err != nil {
		return 0, fmt.Errorf("find process %d: %w", pid, err)
	}
	ended := make(chan struct{})
	var state *os.ProcessState
	var waitErr error
	go func() {
		defer close(ended)
		state, waitErr = p.Wait()
	}()
	ctx, cancel := context.WithTimeout(ctx, commandTime)
	defer cancel()
	select {
	case <-ended:
	case <-ctx.Done():
		_ = p.Kill()
		<-ended
		return 0, fmt.Errorf("process %d did not end by itself: %w", pid, context.Cause(ctx))
	}
	if waitErr != nil {
		return 0, fmt.Errorf("wait for process %d, which should be a child of this one: %w", pid, waitErr)
	}
	return state.ExitCode(), nil
}

// endTime bounds the end of processes that were killed.
const endTime = time.Minute

// endChildren reaps what was left to this process, which adopts orphans, and
// kills what still runs: that is a leak, and an error.
func endChildren() error {
	var errs []error
	ctx, cancel := context.WithTimeout(context.Background(), endTime)
	defer cancel()
	for {
		pids, err := children()
		if err != nil {
			return errors.Join(append(errs, err)...)
		}
		if len(pids) == 0 || ctx.Err() != nil {
			return errors.Join(errs...)
		}
		for _, pid := range pids {
			if stat, name := processState(pid); stat != "Z" {
				errs = append(errs, fmt.Errorf("process %d (%s) was left behind", pid, name))
				_ = unix.Kill(pid, unix.SIGKILL)
			}
		}
		for _, pid := range pids { // they end at the same time
			if _, err := reap(ctx, pid); err != nil {
				errs = append(errs, err)
			}
		}
	}
}

func children() ([]int, error) {
	tasks, err := os.ReadDir("/proc/self/task")
	if err != nil {
		return nil, err
	}
	var pids []int
	for _, t := range tasks {
		text, _ := os.ReadFile("/proc/self/task/" + t.Name() + "/children")
		for _, field := range strings.Fields(string(text)) {
			if pid, err := strconv.Atoi(field); err == nil {
				pids = append(pids, pid)
			}
		}
	}
	return pids, nil
}

// processState reads proc(5), /proc/pid/stat: the state's letter and the name.
func processState(pid int) (state, name string) {
	text, _ := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	head, tail, _ := strings.Cut(string(text), ") ")
	_, name, _ = strings.Cut(head, "(")
	state, _, _ = strings.Cut(tail, " ")
	return state, name
}
