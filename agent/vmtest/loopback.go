// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package vmtest

import (
	"context"
	"path/filepath"
	"time"

	"bulkhead/bus/loopback"
)

// ServeLoopback serves the guest's port for loopback connections as the worker does,
// with the test's dials, until the returned function is called or the VM ends.
func (vm *VM) ServeLoopback(dial func(context.Context, loopback.Target) (loopback.Conn, error)) (stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		for ctx.Err() == nil {
			session, err := dialPort(ctx, filepath.Join(filepath.Dir(vm.Share), "net.sock"))
			if err != nil {
				return
			}
			_ = loopback.New(session, loopback.Config{Dial: dial, Dials: 8, DialTime: 10 * time.Second, MaxFlows: 128, Idle: time.Minute}).Serve(ctx)
		}
	}()
	stop = func() { cancel(); <-done }
	vm.t.Cleanup(stop)
	return stop
}
