// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package frontend

import (
	"context"
	"time"
)

// undoTime bounds taking back what a failed command did.
const undoTime = 15 * time.Second

// undoList takes steps back in reverse order, also when the command's own
// context has ended.
type undoList struct {
	steps []func(context.Context) error
	warn  func(format string, args ...any)
}

func (u *undoList) add(step func(context.Context) error) { u.steps = append(u.steps, step) }

func (u *undoList) run(ctx context.Context) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), undoTime)
	defer cancel()
	for i := len(u.steps) - 1; i >= 0; i-- {
		if err := u.steps[i](ctx); err != nil {
			u.warn("undoing: %s", errorText(err))
		}
	}
}
