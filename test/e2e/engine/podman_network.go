// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package engine

import (
	"errors"
	"os"
	"path/filepath"
)

// PodmanNetwork is Podman's default network, and PodmanSecond another one.
const (
	PodmanNetwork = "podman"
	PodmanSecond  = "second"
)

func (p *Podman) networks() string { return filepath.Join(p.dir, "networks") }

// writeNetworks makes the two networks known, as "podman network create" would, but
// for the place where the addresses in use are noted.
func (p *Podman) writeNetworks() error {
	errs := []error{os.MkdirAll(p.networks(), 0o700)}
	for _, n := range []cniNetwork{
		{PodmanNetwork, "cni-podman0", []string{"10.88.0.0/16", "fd10:88::/64"}},
		{PodmanSecond, "cni-podman1", []string{"10.89.0.0/24"}},
	} {
		errs = append(errs, n.write(p.networks(), filepath.Join(p.dir, "addresses")))
	}
	return errors.Join(errs...)
}
