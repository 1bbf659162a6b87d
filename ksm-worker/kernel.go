// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package ksmworker

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	ksmv1 "bulkhead/proto/ksm/v1"
)

// kernel reads the kernel's files on same-page merging
// (Documentation/admin-guide/mm/ksm.rst).
type kernel struct{ dir string }

// read returns what the kernel says now. A kernel without KSM is no error.
func (k kernel) read() (*ksmv1.KernelState, error) {
	state := &ksmv1.KernelState{}
	if _, err := os.Stat(k.dir); errors.Is(err, fs.ErrNotExist) {
		return state, nil
	}
	state.Available = true
	for _, f := range []struct {
		name string
		to   *int64
	}{
		{"run", &state.Run},
		{"pages_shared", &state.PagesShared},
		{"pages_sharing", &state.PagesSharing},
		{"pages_to_scan", &state.PagesToScan},
		{"sleep_millisecs", &state.SleepMillisecs},
		{"full_scans", &state.FullScans},
	} {
		raw, err := os.ReadFile(filepath.Join(k.dir, f.name))
		if err != nil {
			return nil, fmt.Errorf("read the kernel's ksm state: %w", err)
		}
		*f.to, err = strconv.ParseInt(strings.TrimSpace(string(raw)), 10, 64)
		if err != nil {
			return nil, fmt.Errorf("read the kernel's ksm state from %s: %w", f.name, err)
		}
	}
	return state, nil
}

// sentence is what "status" says.
func (k kernel) sentence() string {
	state, err := k.read()
	switch {
	case err != nil:
		return err.Error()
	case !state.Available:
		return "this kernel has no same-page merging; nothing to do"
	case state.Run == 1:
		return fmt.Sprintf("the kernel merges pages (%d sharing %d); this version reads its state and steers nothing", state.PagesSharing, state.PagesShared)
	default:
		return "the kernel's same-page merging is off; this version reads its state and steers nothing"
	}
}
