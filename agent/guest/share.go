// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package guest

import (
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
	mu      sync.Mutex // guards mounted
	mounted bool
}

// Mount makes the share available at ShareDir. It may be called again.
func (s *Share) Mount() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.mounted {
		return nil
	}
	if err := os.MkdirAll(ShareDir, 0o755); err != nil {
		return fmt.Errorf("mounting the host's share: %w", err)
	}
	if err := unix.Mount(shareTag, ShareDir, "9p", 0, shareOptions); err != nil {
		return fmt.Errorf("mounting the host's share %q with %q: %w", shareTag, shareOptions, err)
	}
	s.mounted = true
	return nil
}
