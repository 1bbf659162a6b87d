// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package vmworker

import (
	"fmt"

	"github.com/hashicorp/go-hclog"

	"bulkhead/bus/config"
	"bulkhead/vm-worker/hypervisor"
	"bulkhead/vm-worker/hypervisor/fake"
	"bulkhead/vm-worker/hypervisor/qemu"
)

// NewDriver returns the driver that the configuration names.
func NewDriver(cfg config.VM, log hclog.Logger) (hypervisor.Driver, error) {
	switch cfg.Hypervisor {
	case qemu.Name:
		return qemu.New(qemu.Options{Binary: cfg.QEMU, Log: log.Named("qemu")}), nil
	case fake.Name:
		return fake.New(fake.Options{Log: log.Named("fake")}), nil
	default:
		return nil, fmt.Errorf("[vm] hypervisor = %q is not known; it can be %q or %q", cfg.Hypervisor, qemu.Name, fake.Name)
	}
}
