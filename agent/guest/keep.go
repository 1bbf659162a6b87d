// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package guest

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
)

// keptParameters are those that follow the machine's size: of the kernel, and of the cgroup of all containers.
func keptParameters() []string {
	files := []string{"/proc/sys/vm/min_free_kbytes", transparentHugePages, "/proc/sys/kernel/hostname"}
	for _, p := range scaled(0) {
		files = append(files, p.path)
	}
	for _, name := range []string{"memory.max", "memory.max.later", "memory.max.wait"} {
		files = append(files, filepath.Join(cgroupMount, "containers", name))
	}
	return files
}

// KeepParameters remembers what of the guest follows the size of the machine, and its name, and returns what puts all
// of that back.
func KeepParameters() (restore func() error, err error) {
	kept := map[string][]byte{}
	for _, path := range keptParameters() {
		text, err := os.ReadFile(path)
		if errors.Is(err, os.ErrNotExist) {
			continue // this kernel lacks it
		}
		if err != nil {
			return nil, fmt.Errorf("remembering the guest's parameters: %w", err)
		}
		kept[path] = text
	}
	var signals syscall.Rlimit
	if err := syscall.Getrlimit(sigpending, &signals); err != nil {
		return nil, fmt.Errorf("remembering the limit of pending signals: %w", err)
	}
	return func() error {
		var errs []error
		for path, text := range kept {
			if now, err := os.ReadFile(path); err == nil && bytes.Equal(now, text) {
				continue
			}
			if err := os.WriteFile(path, []byte(chosen(string(text))), 0); err != nil {
				errs = append(errs, fmt.Errorf("restoring the guest's parameters: %w", err))
			}
		}
		if err := syscall.Setrlimit(sigpending, &signals); err != nil {
			errs = append(errs, fmt.Errorf("restoring the limit of pending signals: %w", err))
		}
		return errors.Join(errs...)
	}, nil
}

// chosen is the one of several choices that is in force, as sysfs writes it; what is no choice is itself.
func chosen(text string) string {
	if _, after, found := strings.Cut(text, "["); found {
		is, _, _ := strings.Cut(after, "]")
		return is
	}
	return strings.TrimSpace(text)
}
