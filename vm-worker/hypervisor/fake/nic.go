// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package fake

import (
	"context"
	"fmt"
	"maps"
	"slices"

	"bulkhead/vm-worker/hypervisor"
)

// AttachNIC notes the card; the guest knows it by its MAC address from then on.
func (v *vm) AttachNIC(ctx context.Context, n hypervisor.NIC) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if v.driver.options.NICError != nil {
		if err := v.driver.options.NICError(n.ID); err != nil {
			return fmt.Errorf("attaching network card %s: %w", n.ID, err)
		}
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	if _, taken := v.nics[n.ID]; taken {
		return fmt.Errorf("attaching network card %s: there is one with this id", n.ID)
	}
	v.nics[n.ID] = n.MAC
	return nil
}

func (v *vm) DetachNIC(_ context.Context, id string) error {
	v.mu.Lock()
	defer v.mu.Unlock()
	delete(v.nics, id)
	return nil
}

func (v *vm) NICs(context.Context) ([]hypervisor.PluggedNIC, error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	var nics []hypervisor.PluggedNIC
	for _, id := range slices.Sorted(maps.Keys(v.nics)) {
		nics = append(nics, hypervisor.PluggedNIC{ID: id, MAC: v.nics[id]})
	}
	return nics, nil
}
