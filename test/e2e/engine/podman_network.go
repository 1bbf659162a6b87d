// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package engine

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"bulkhead/test/e2e/host"
)

// PodmanNetwork is a network of CNI with a bridge that leads nowhere.
const PodmanNetwork = "e2e"

// networkConf is: name, plugin, bridge, where addresses are noted. Without a gateway nothing of
// the host's forwarding is changed.
const networkConf = `{"cniVersion":"0.4.0","name":%q,"plugins":[{"type":"bridge","bridge":%q,
"ipam":{"type":"host-local","dataDir":%q,"ranges":[[{"subnet":"192.0.2.0/24"}]]}}]}`

// AddNetwork makes PodmanNetwork known.
func (p *Podman) AddNetwork() error {
	dir := filepath.Join(p.dir, "networks")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	text := fmt.Sprintf(networkConf, PodmanNetwork, p.bridge(), filepath.Join(p.dir, "addresses"))
	return os.WriteFile(filepath.Join(dir, PodmanNetwork+".conflist"), []byte(text), 0o600)
}

// RemoveBridge removes what the CNI plugin leaves when the last container has
// gone.
func (p *Podman) RemoveBridge(ctx context.Context) error {
	if _, err := os.Stat("/sys/class/net/" + p.bridge()); err != nil {
		return nil // no container came so far
	}
	if err := succeed(host.Run(ctx, nil, nil, "ip", "link", "delete", p.bridge())); err != nil {
		return fmt.Errorf("remove the bridge of podman's network: %w", err)
	}
	return nil
}

// bridge is short enough for an interface.
func (p *Podman) bridge() string {
	_, rest, _ := strings.Cut(p.ground.Token, "-")
	return "bh" + strings.ReplaceAll(rest, "/", "")
}
