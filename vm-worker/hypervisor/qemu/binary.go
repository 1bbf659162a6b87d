// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package qemu

import (
	"context"
	"fmt"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"time"
)

// minMajor is the first QEMU whose q35 can leave out all that args leaves out.
const minMajor = 7

// binary is QEMU's program, found and asked for its version once.
type binary struct {
	name string

	mu      sync.Mutex // guards what follows, set once found good
	path    string
	version [2]int
}

var versionPattern = regexp.MustCompile(`QEMU emulator version (\d+)\.(\d+)`)

func (b *binary) find(ctx context.Context) (string, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.path != "" {
		return b.path, nil
	}
	path, err := exec.LookPath(b.name)
	if err != nil {
		return "", fmt.Errorf("the program %s is not installed: install QEMU (on Debian: apt install qemu-system-x86)", b.name)
	}
	if path, err = filepath.EvalSymlinks(path); err != nil {
		return "", fmt.Errorf("following the links of %s: %w", b.name, err)
	}
	// The jail shows /usr, where QEMU's libraries and firmware are too.
	if !strings.HasPrefix(path, "/usr/") {
		return "", fmt.Errorf("QEMU at %s is outside /usr, the only place its jail can show with its libraries: install it there", path)
	}
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	out, err := exec.CommandContext(ctx, path, "-version").Output()
	if err != nil {
		return "", fmt.Errorf("asking %s for its version: %w", path, err)
	}
	m := versionPattern.FindSubmatch(out)
	if m == nil {
		return "", fmt.Errorf("%s does not say that it is QEMU: name a qemu-system-x86_64", path)
	}
	major, majorErr := strconv.Atoi(string(m[1]))
	minor, minorErr := strconv.Atoi(string(m[2]))
	if majorErr != nil || minorErr != nil || major < minMajor {
		return "", fmt.Errorf("%s is QEMU %s.%s: install QEMU %d.2 or newer", path, m[1], m[2], minMajor)
	}
	b.path, b.version = path, [2]int{major, minor}
	return path, nil
}

// release is the version of what find found.
func (b *binary) release() [2]int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.version
}
