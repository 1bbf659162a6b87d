// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package vmworker

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// parts tells when files that templates are made of may have changed, so that what was made of the
// former ones does not keep its memory until somebody would have used it. That it is not used does not depend
// on this: each use asks for itself.
type parts struct{ inotify *os.File }

// partsChange is what becomes of a file that is written, replaced or removed.
const partsChange = unix.IN_CLOSE_WRITE | unix.IN_MOVED_TO | unix.IN_CREATE | unix.IN_DELETE

func newParts() (*parts, error) {
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		return nil, fmt.Errorf("inotify_init1: %w", err)
	}
	return &parts{os.NewFile(uintptr(fd), "inotify")}, nil
}

// add has changes of the file told from now on. Its directory is watched, as a file that is
// replaced is another; that of what a symbolic link names, too.
func (p *parts) add(file string) error {
	dirs := []string{filepath.Dir(file)}
	if real, err := filepath.EvalSymlinks(file); err == nil && filepath.Dir(real) != dirs[0] {
		dirs = append(dirs, filepath.Dir(real))
	}
	for _, dir := range dirs {
		if _, err := os.Stat(dir); err != nil {
			continue // what is there is in another one
		}
		raw, err := p.inotify.SyscallConn()
		if err != nil {
			return fmt.Errorf("watch %s: %w", dir, err)
		}
		var addErr error
		err = raw.Control(func(fd uintptr) {
			_, addErr = unix.InotifyAddWatch(int(fd), dir, partsChange|unix.IN_ONLYDIR)
		})
		if err := errors.Join(err, addErr); err != nil {
			return fmt.Errorf("watch %s: %w", dir, err)
		}
	}
	return nil
}

// followParts begins to give up what was made of files that have changed, until the worker stops.
func (k *stock) followParts() {
	p, err := newParts()
	if err != nil {
		k.w.log.Warn("templates of changed files keep their memory until they would be used", "error", err)
		return
	}
	k.parts = p
	k.w.tasks.Go(func() {
		defer p.inotify.Close()
		stop := context.AfterFunc(k.w.context(), func() { p.inotify.Close() })
		defer stop()
		events := make([]byte, 16<<10)
		for {
			if _, err := p.inotify.Read(events); err != nil {
				return // the worker stops
			}
			k.templates.dropStale(k.w.context())
		}
	})
}

// watchParts has changes of what a template is made of told, and returns the key of what that is now; empty when it
// cannot be told.
func (k *stock) watchParts(ctx context.Context, of kind) string {
	base, err := k.w.base(of)
	if err != nil {
		return ""
	}
	if files, err := k.templates.driver.TemplateFiles(ctx, base); err == nil && k.parts != nil {
		for _, file := range files {
			if err := k.parts.add(file); err != nil {
				k.w.log.Warn("a template of this file keeps its memory until it would be used, should the file change", "file", file, "error", err)
			}
		}
	}
	key, err := k.templates.driver.TemplateKey(ctx, base)
	if err != nil {
		return ""
	}
	return key
}
