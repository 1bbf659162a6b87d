// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package bundle

import (
	"encoding/json"
	"errors"
	"fmt"
	"reflect"

	"github.com/opencontainers/runtime-spec/specs-go"
)

// ReadResources reads what an update asks for, a linux.resources in JSON, and
// judges it by the table that judges a bundle. Device rules are dropped, as runc
// does: CRI plugins write the rules of the create again with each update.
func ReadResources(text []byte) (*specs.LinuxResources, error) {
	r := &specs.LinuxResources{}
	if err := json.Unmarshal(text, r); err != nil {
		return nil, fmt.Errorf("reading the resources: %w", err)
	}
	return r, CheckResources(r)
}

// CheckResources refuses by name what an update cannot change, and takes out
// what asks for nothing.
func CheckResources(r *specs.LinuxResources) error {
	var errs lines
	for _, err := range walk(reflect.ValueOf(r).Elem(), "linux.resources") {
		var no *refusal
		if errors.As(err, &no) {
			err = fmt.Errorf("%s: %s", no.property, no.reason)
		}
		errs = append(errs, err)
	}
	if b := r.BlockIO; b != nil && len(b.WeightDevice)+len(b.ThrottleReadBpsDevice)+len(b.ThrottleWriteBpsDevice)+
		len(b.ThrottleReadIOPSDevice)+len(b.ThrottleWriteIOPSDevice) > 0 {
		errs = append(errs, errors.New("linux.resources.blockIO: limits of single devices cannot be changed while the container lives: create it again"))
	}
	if len(errs) > 0 {
		return errs
	}
	r.Devices = nil
	if m := r.Memory; m != nil {
		m.Swappiness, m.Kernel, m.KernelTCP = nil, nil, nil
	}
	return nil
}
