// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

// Package hooks runs the hooks of a bundle that belong to the host
// (runtime-spec, config.md#posix-platform-hooks). It may import the
// runtime-spec and nothing of ours.
//
// The invariant: a hook sees exactly what its entry says. Its path, arguments and environment are taken as they
// are, its standard input is the container's state, and when its time is over its whole process group is gone.
package hooks

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"time"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// State is what a hook reads on its standard input: the container's state with
// the host pid that stands for it.
type State struct {
	specs.State
	Rootfs string `json:"rootfs,omitempty"`
}

// maxOutput bounds what of a hook's output is repeated in an error.
const maxOutput = 4 << 10

// reapTime bounds the wait for a hook whose process group was killed.
const reapTime = 2 * time.Second

// Run runs hooks in order and stops at the first that fails. kind is the name of the list in the bundle and is
// only told in errors; dir is the working directory, the bundle.
func Run(ctx context.Context, kind, dir string, hooks []specs.Hook, state State) error {
	for i, hook := range hooks {
		if err := run(ctx, dir, hook, state); err != nil {
			return fmt.Errorf("error running %s hook #%d: %s: %w", kind, i, hook.Path, err)
		}
	}
	return nil
}

// RunAll runs every hook, also after one that failed, as poststop wants it, and
// returns all failures.
func RunAll(ctx context.Context, kind, dir string, hooks []specs.Hook, state State) error {
	var errs []error
	for i, hook := range hooks {
		if err := run(ctx, dir, hook, state); err != nil {
			errs = append(errs, fmt.Errorf("error running %s hook #%d: %s: %w", kind, i, hook.Path, err))
		}
	}
	return errors.Join(errs...)
}

func run(ctx context.Context, dir string, hook specs.Hook, state State) error {
	text, err := json.Marshal(state)
	if err != nil {
		return fmt.Errorf("writing the container's state: %w", err)
	}
	// Files instead of pipes: nothing has to be copied, and a daemon that the hook
	// leaves behind with our pipe in its hands cannot hold us.
	stdin, err := memory("hook-state", text)
	if err != nil {
		return err
	}
	defer stdin.Close()
	output, err := memory("hook-output", nil)
	if err != nil {
		return err
	}
	defer output.Close()

	if hook.Timeout != nil {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeoutCause(ctx, time.Duration(*hook.Timeout)*time.Second,
			fmt.Errorf("it did not end within its timeout of %d s and was killed", *hook.Timeout))
		defer cancel()
	}
	cmd := exec.CommandContext(ctx, hook.Path)
	cmd.Args = hook.Args
	if len(cmd.Args) == 0 {
		cmd.Args = []string{hook.Path}
	}
	cmd.Env = append([]string{}, hook.Env...) // never nil, which would mean ours
	cmd.Stdin, cmd.Stdout, cmd.Stderr = stdin, output, output
	if info, err := os.Stat(dir); err == nil && info.IsDir() {
		cmd.Dir = dir
	}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	cmd.WaitDelay = reapTime
	err = cmd.Run()
	if err == nil {
		return nil
	}
	if ctx.Err() != nil {
		err = context.Cause(ctx)
	}
	return withOutput(err, output)
}

// withOutput adds what the hook said to why it failed.
func withOutput(err error, output *os.File) error {
	said, readErr := io.ReadAll(io.NewSectionReader(output, 0, maxOutput))
	said = bytes.TrimSpace(said)
	if readErr != nil || len(said) == 0 {
		return err
	}
	return fmt.Errorf("%w, output: %s", err, strings.ReplaceAll(string(said), "\n", "; "))
}

// memory returns an anonymous file with the given contents, read from its
// beginning.
func memory(name string, contents []byte) (*os.File, error) {
	fd, err := unix.MemfdCreate(name, unix.MFD_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("making an anonymous file: %w", err)
	}
	f := os.NewFile(uintptr(fd), name)
	if _, err = f.Write(contents); err == nil {
		_, err = f.Seek(0, io.SeekStart)
	}
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("filling an anonymous file: %w", err)
	}
	return f, nil
}
