// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package ksmworker

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
)

// saved is what must outlive the service while the kernel's settings are ours.
type saved struct {
	Boot    string              `json:"boot"`              // of the kernel whose settings these are
	Host    knobs               `json:"host,omitempty"`    // the host's own; nil: nothing is ours
	Ours    map[string][]string `json:"ours,omitempty"`    // what we wrote last, then what before that
	Yielded string              `json:"yielded,omitempty"` // why they were left to somebody else
}

// savedFile is where it is kept: below the run directory, which a reboot empties as it
// resets the kernel.
type savedFile struct{ dir string }

func (f savedFile) path() string { return filepath.Join(f.dir, "settings.json") }

// bootID tells the running kernel from those before.
func bootID() (string, error) {
	raw, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return "", fmt.Errorf("read the kernel's boot id: %w", err)
	}
	return string(bytes.TrimSpace(raw)), nil
}

// load returns nil where there is nothing, or only something of an earlier boot.
func (f savedFile) load() (*saved, error) {
	raw, err := os.ReadFile(f.path())
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read the host's own ksm settings: %w", err)
	}
	s := &saved{}
	if err := json.Unmarshal(raw, s); err != nil {
		return nil, fmt.Errorf("the host's own ksm settings, kept in %s, cannot be read; restore them by hand and remove the file: %w", f.path(), err)
	}
	boot, err := bootID()
	if err != nil || s.Boot != boot {
		return nil, errors.Join(err, f.remove())
	}
	return s, nil
}

// save writes whole or not at all, and before it returns.
func (f savedFile) save(s saved) error {
	var err error
	if s.Boot, err = bootID(); err != nil {
		return err
	}
	text, err := json.Marshal(s)
	if err != nil {
		return fmt.Errorf("encode the host's own ksm settings: %w", err)
	}
	if err := os.MkdirAll(f.dir, 0o700); err != nil {
		return fmt.Errorf("keep the host's own ksm settings: %w", err)
	}
	tmp := f.path() + ".tmp"
	if err := writeSynced(tmp, append(text, '\n')); err != nil {
		return fmt.Errorf("keep the host's own ksm settings: %w", err)
	}
	if err := os.Rename(tmp, f.path()); err != nil {
		return fmt.Errorf("keep the host's own ksm settings: %w", err)
	}
	return nil
}

func writeSynced(path string, text []byte) error {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(text)
	return errors.Join(err, f.Sync(), f.Close())
}

func (f savedFile) remove() error {
	if err := os.Remove(f.path()); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("forget the host's own ksm settings: %w", err)
	}
	return nil
}
