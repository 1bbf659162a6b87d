// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package guest

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

const (
	cgroupMount = "/sys/fs/cgroup"
	agentCgroup = "agent"
)

// SetupCgroups moves the agent into a cgroup of its own and offers every
// controller to the containers' cgroups beside it.
func SetupCgroups() error {
	dir := filepath.Join(cgroupMount, agentCgroup)
	if err := os.Mkdir(dir, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
		return fmt.Errorf("making the agent's cgroup: %w", err)
	}
	if err := os.WriteFile(filepath.Join(dir, "cgroup.procs"), []byte("0"), 0); err != nil {
		return fmt.Errorf("moving the agent into its cgroup: %w", err)
	}
	controllers, err := os.ReadFile(filepath.Join(cgroupMount, "cgroup.controllers"))
	if err != nil {
		return fmt.Errorf("listing the cgroup controllers: %w", err)
	}
	enable := delegation(string(controllers))
	if enable == "" {
		return nil
	}
	if err := os.WriteFile(filepath.Join(cgroupMount, "cgroup.subtree_control"), []byte(enable), 0); err != nil {
		return fmt.Errorf("enabling the cgroup controllers %q: %w", enable, err)
	}
	return nil
}

// delegation is the line that enables all controllers at once.
func delegation(controllers string) string {
	var b strings.Builder
	for _, name := range strings.Fields(controllers) {
		if b.Len() > 0 {
			b.WriteByte(' ')
		}
		b.WriteString("+" + name)
	}
	return b.String()
}
