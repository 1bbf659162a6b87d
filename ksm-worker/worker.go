// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package ksmworker

import (
	"context"
	"errors"
	"time"

	"github.com/hashicorp/go-hclog"

	"bulkhead/bus"
	ksmv1 "bulkhead/proto/ksm/v1"
)

// Deps is what the ksm service needs to run.
type Deps struct {
	Conn    *bus.Conn
	Log     hclog.Logger
	Version string
	// Sysfs is where the kernel shows KSM; empty means /sys/kernel/mm/ksm.
	Sysfs string
	// Serving, when set, is called once the service answers.
	Serving func()
}

const drainTime = 10 * time.Second

// Run serves until ctx ends.
func Run(ctx context.Context, d Deps) error {
	k := kernel{dir: d.Sysfs}
	if k.dir == "" {
		k.dir = "/sys/kernel/mm/ksm"
	}
	svc, err := bus.NewService(ctx, d.Conn, bus.ServiceConfig{
		Name: "ksm", Version: d.Version,
		Description: "the kernel's same-page merging, as it is",
		Detail:      k.sentence,
		Log:         d.Log,
	})
	if err != nil {
		return err
	}
	err = bus.Handle(svc, "kernel", func(context.Context, *ksmv1.KernelStateRequest) (*ksmv1.KernelStateReply, error) {
		state, err := k.read()
		if err != nil {
			return nil, err
		}
		return &ksmv1.KernelStateReply{State: state}, nil
	})
	if err != nil {
		return errors.Join(err, svc.Stop(ctx))
	}
	if d.Serving != nil {
		d.Serving()
	}
	return svc.ServeUntil(ctx, drainTime)
}
