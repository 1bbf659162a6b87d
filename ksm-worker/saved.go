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

// saved is what must outlive the service.
type saved struct {
	Boot string `json:"boot"` // of the kernel whose settings these are
	// While settings of ours are in force, in the host's file:
	Host knobs               `json:"host,omitempty"` // the host's own; nil: nothing is ours
	Ours map[string][]string `json:"ours,omitempty"` // what we wrote last, then what before that
	// In the daemon's file:
	Yielded string `json:"yielded,omitempty"` // why they were left to somebody else
}

// savedFile is where it is kept: below /run, which a reboot empties as it resets the kernel.
type savedFile struct{ path string }

// hostFile is one for all daemons of a host, as the kernel is: whoever steers next must know what the last one found, and not take
// that one's settings for the host's own. It belongs to who holds the lock.
func hostFile(k kernel) savedFile {
	if k.dir == sysfsKSM { // which holds no file of ours
		return savedFile{"/run/bulkhead-ksm.json"}
	}
	return savedFile{k.dir + ".json"}
}

// daemonFile is the daemon's own, below its run directory.
func daemonFile(dir string) savedFile { return savedFile{filepath.Join(dir, "yielded.json")} }

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
	raw, err := os.ReadFile(f.path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read what is kept of the ksm settings: %w", err)
	}
	s := &saved{}
	if err := json.Unmarshal(raw, s); err != nil {
		return nil, fmt.Errorf("what is kept of the ksm settings in %s cannot be read; restore the host's by hand and remove the file: %w", f.path, err)
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
		return fmt.Errorf("encode the ksm settings: %w", err)
	}
	if err := os.MkdirAll(filepath.Dir(f.path), 0o700); err != nil {
		return fmt.Errorf("keep the ksm settings: %w", err)
	}
	tmp := f.path + ".tmp"
	if err := writeSynced(tmp, append(text, '\n')); err != nil {
		return fmt.Errorf("keep the ksm settings: %w", err)
	}
	if err := os.Rename(tmp, f.path); err != nil {
		return fmt.Errorf("keep the ksm settings: %w", err)
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
	if err := os.Remove(f.path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("forget the ksm settings: %w", err)
	}
	return nil
}
