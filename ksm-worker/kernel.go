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

// kernel is the kernel's directory of same-page merging
// (Documentation/admin-guide/mm/ksm.rst).
type kernel struct{ dir string }

// sysfsKSM is where the kernel shows it.
const sysfsKSM = "/sys/kernel/mm/ksm"

// The settings that are steered. Not every kernel has those of the advisor and of smart_scan.
const (
	knobRun        = "run"
	knobPages      = "pages_to_scan"
	knobSleep      = "sleep_millisecs"
	knobSmartScan  = "smart_scan"
	knobAdvisor    = "advisor_mode"
	knobAdvisorCPU = "advisor_max_cpu"
	knobAdvisorMin = "advisor_min_pages_to_scan"
	knobAdvisorMax = "advisor_max_pages_to_scan"
	knobAdvisorFor = "advisor_target_scan_time"
)

// The values of knobAdvisor.
const (
	advisorNone     = "none"
	advisorScanTime = "scan-time"
)

// knobNames are all settings, in the order in which they are written: an advisor
// refuses pages_to_scan while it is there, and takes its limits before; the kernel
// runs with them last.
func knobNames() []string {
	return []string{knobAdvisorCPU, knobAdvisorFor, knobAdvisorMax, knobAdvisorMin, knobPages, knobSleep, knobSmartScan, knobAdvisor, knobRun}
}

// knobs are settings by their names.
type knobs map[string]string

// available says whether the kernel has KSM at all.
func (k kernel) available() bool {
	_, err := os.Stat(filepath.Join(k.dir, knobRun))
	return err == nil
}

// knob reads a setting; ok is false where this kernel has none of that name.
func (k kernel) knob(name string) (value string, ok bool, err error) {
	raw, err := os.ReadFile(filepath.Join(k.dir, name))
	if errors.Is(err, fs.ErrNotExist) {
		return "", false, nil
	}
	if err != nil {
		return "", false, fmt.Errorf("read the kernel's ksm setting: %w", err)
	}
	value = strings.TrimSpace(string(raw))
	if name == knobAdvisor { // "[none] scan-time"
		if _, after, found := strings.Cut(value, "["); found {
			value, _, _ = strings.Cut(after, "]")
		}
	}
	return value, true, nil
}

// knobs reads every setting that this kernel has.
func (k kernel) knobs() (knobs, error) {
	all := knobs{}
	for _, name := range knobNames() {
		value, ok, err := k.knob(name)
		if err != nil {
			return nil, err
		}
		if ok {
			all[name] = value
		}
	}
	return all, nil
}

func (k kernel) write(name, value string) error {
	f, err := os.OpenFile(filepath.Join(k.dir, name), os.O_WRONLY|os.O_TRUNC, 0)
	if err == nil {
		_, err = f.WriteString(value)
		err = errors.Join(err, f.Close())
	}
	if err != nil {
		return fmt.Errorf("set the kernel's ksm %s to %s: %w", name, value, err)
	}
	return nil
}

// read returns what the kernel says now. A kernel without KSM is no error.
func (k kernel) read() (*ksmv1.KernelState, error) {
	state := &ksmv1.KernelState{Available: k.available()}
	if !state.Available {
		return state, nil
	}
	var smart int64
	for _, f := range []struct {
		name     string
		to       *int64
		optional bool
	}{
		{knobRun, &state.Run, false},
		{"pages_shared", &state.PagesShared, false},
		{"pages_sharing", &state.PagesSharing, false},
		{"pages_unshared", &state.PagesUnshared, true},
		{"pages_volatile", &state.PagesVolatile, true},
		{"pages_skipped", &state.PagesSkipped, true},
		{"pages_scanned", &state.PagesScanned, true},
		{"ksm_zero_pages", &state.KsmZeroPages, true},
		{"general_profit", &state.GeneralProfit, true},
		{"full_scans", &state.FullScans, false},
		{knobPages, &state.PagesToScan, false},
		{knobSleep, &state.SleepMillisecs, false},
		{knobSmartScan, &smart, true},
	} {
		text, ok, err := k.knob(f.name)
		if err != nil {
			return nil, err
		}
		if !ok {
			if f.optional {
				continue
			}
			return nil, fmt.Errorf("the kernel's ksm directory %s has no %s", k.dir, f.name)
		}
		if *f.to, err = strconv.ParseInt(text, 10, 64); err != nil {
			return nil, fmt.Errorf("read the kernel's ksm state from %s: %w", f.name, err)
		}
	}
	state.SmartScan = smart == 1
	var err error
	state.AdvisorMode, _, err = k.knob(knobAdvisor)
	return state, err
}
