// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package guest

import (
	"errors"
	"fmt"
	"os"
	"sync"

	"golang.org/x/sys/unix"
)

// ShareDir is where the host's share is mounted.
const ShareDir = "/run/share"

const (
	shareTag = "share"
	// cache=mmap allows shared writable mappings, which databases need, and caches nothing
	// else: what the host changes is seen at once. msize is the most virtio can carry
	// (net/9p/trans_virtio.c: 125 pages). access=user attaches once per uid, which is how the
	// host learns whose file it makes. Without posixacl the modes alone decide.
	shareOptions = "trans=virtio,version=9p2000.L,msize=512000,cache=mmap,access=user"
)

// Share mounts the host's share when it is first needed.
type Share struct {
	mu      sync.Mutex // guards mounted and label
	mounted bool
	label   string
}

// ErrLabel is the refusal of a second label for the share.
var ErrLabel = errors.New("the files of a virtual machine have one SELinux label")

// Mount makes the share available at ShareDir, with this SELinux label on all its files; empty is the policy's
// own. It may be called again, with the same label or none: a virtio device carries one 9p mount, and that has one label.
func (s *Share) Mount(label string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.mounted {
		if label != "" && label != s.label {
			return fmt.Errorf("%w: it is %q here, and cannot be %q for one more container", ErrLabel, s.label, label)
		}
		return nil
	}
	options := shareOptions
	if label != "" {
		options += fmt.Sprintf(",context=%q", label)
	}
	if err := os.MkdirAll(ShareDir, 0o755); err != nil {
		return fmt.Errorf("mounting the host's share: %w", err)
	}
	if err := unix.Mount(shareTag, ShareDir, "9p", 0, options); err != nil {
		return fmt.Errorf("mounting the host's share %q with %q: %w", shareTag, options, err)
	}
	s.mounted, s.label = true, label
	return nil
}
