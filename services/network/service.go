// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package network

import (
	"context"
	"errors"
	"time"

	"github.com/hashicorp/go-hclog"

	"bulkhead/bus"
	netv1 "bulkhead/proto/net/v1"
)

// Deps is what the net service needs to run.
type Deps struct {
	Conn    *bus.Conn
	Log     hclog.Logger
	Version string
	// Serving, when set, is called once the service answers.
	Serving func()
}

const drainTime = 10 * time.Second

// Run serves until ctx ends.
func Run(ctx context.Context, d Deps) error {
	svc, err := bus.NewService(ctx, d.Conn, bus.ServiceConfig{
		Name: "net", Version: d.Version,
		Description: "networks of VMs",
		Detail:      func() string { return "this version attaches no VM to a network; containers run with network none" },
		Log:         d.Log,
	})
	if err != nil {
		return err
	}
	err = bus.Handle(svc, "list", func(context.Context, *netv1.ListRequest) (*netv1.ListReply, error) {
		return &netv1.ListReply{}, nil // true: nothing is ever attached
	})
	if err != nil {
		return errors.Join(err, svc.Stop(ctx))
	}
	if d.Serving != nil {
		d.Serving()
	}
	return svc.ServeUntil(ctx, drainTime)
}
