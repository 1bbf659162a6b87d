// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package guest

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// shareTag is the share that every VM has.
	shareTag = "share"
	// cache=mmap allows shared writable mappings, which databases need, and caches nothing
	// else: what the host changes is seen at once. msize is the most virtio can carry
	// (net/9p/trans_virtio.c: 125 pages). access=user attaches once per uid, which is how the
	// host learns whose file it makes. Without posixacl the modes alone decide.
	shareOptions = "trans=virtio,version=9p2000.L,msize=512000,cache=mmap,access=user"
	releaseRetry = 20 * time.Millisecond
	shareDriver  = "/sys/bus/virtio/drivers/9pnet_virtio"
)

// Shares mounts the host's files when they are first needed: once for each SELinux label, as a device carries one 9p
// session, that one mount, and a mount has one label.
type Shares struct {
	mu     sync.Mutex // guards labels, and is held while one is mounted
	labels map[string]string
}

// ErrLabel is the refusal of a second label for a share.
var ErrLabel = errors.New("a share has one SELinux label")

// Mount makes the share of this tag available and returns where; "" is the tag of the one that every VM has. All its files have
// the SELinux label, or, when that is empty, the one of the policy. It may be called again, with the same label or none.
func (s *Shares) Mount(ctx context.Context, tag, label string) (dir string, err error) {
	if tag == "" {
		tag = shareTag
	}
	if !strings.HasPrefix(tag, shareTag) || strings.Contains(tag, "/") {
		return "", fmt.Errorf("tag %q is not that of a share", tag)
	}
	dir = "/run/" + tag
	s.mu.Lock()
	defer s.mu.Unlock()
	if has, ok := s.labels[tag]; ok {
		if label != "" && label != has {
			return "", fmt.Errorf("%w: that of %q is %q, and cannot be %q for one more container", ErrLabel, tag, has, label)
		}
		return dir, nil
	}
	if err := awaitShare(ctx, tag); err != nil {
		return "", err
	}
	options := shareOptions
	if label != "" {
		options += fmt.Sprintf(",context=%q", label)
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", fmt.Errorf("mounting the host's share: %w", err)
	}
	if err := unix.Mount(tag, dir, "9p", 0, options); err != nil {
		return "", fmt.Errorf("mounting the host's share %q with %q: %w", tag, options, err)
	}
	if s.labels == nil {
		s.labels = map[string]string{}
	}
	s.labels[tag] = label
	return dir, nil
}

// Release gives up the share that every VM has, so that the host can stop the machine and keep it: a device with a 9p
// session cannot be kept. It waits for those who have it mounted still, in namespaces that are ending.
func (s *Shares) Release(ctx context.Context) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	dir := "/run/" + shareTag
	if _, ok := s.labels[shareTag]; !ok {
		return nil
	}
	delete(s.labels, shareTag)
	if err := unix.Unmount(dir, 0); err != nil {
		return fmt.Errorf("giving up the host's share: %w", err)
	}
	// A device takes one session at a time: when there can be another, that one is over, and this one ends with its only mount.
	for {
		err := unix.Mount(shareTag, dir, "9p", 0, shareOptions)
		if err == nil {
			break
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("the host's share is still mounted somewhere: %w: %w", ctx.Err(), err)
		case <-time.After(releaseRetry): // the kernel tells nobody
		}
	}
	if err := errors.Join(unix.Unmount(dir, 0), os.Remove(dir)); err != nil {
		return fmt.Errorf("giving up the host's share: %w", err)
	}
	return nil
}

// awaitShare waits for a device that the host has plugged in just now. The first is there from the start.
func awaitShare(ctx context.Context, tag string) error {
	if tag == shareTag {
		return nil
	}
	if _, err := awaitDevice(ctx, shareDriver, "mount_tag", tag); err != nil {
		return fmt.Errorf("waiting for the share %q: %w", tag, err)
	}
	return nil
}
