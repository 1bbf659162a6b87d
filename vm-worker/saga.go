// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package vmworker

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// undoTime bounds the undoing of one step. Undo must run even when the request
// that failed was cancelled, so it never uses the request's context.
const undoTime = 15 * time.Second

// saga is a sequence of steps, each with its undo. When a step fails, what was
// done is undone in reverse order, to the end, whatever goes wrong on the way.
type saga struct {
	undos []undo
}

type undo struct {
	name string
	run  func(context.Context) error
}

// did records how to undo a step that has just succeeded.
func (s *saga) did(name string, run func(context.Context) error) {
	s.undos = append(s.undos, undo{name, run})
}

// rollback undoes everything that was done and returns what could not be.
func (s *saga) rollback(ctx context.Context) error {
	ctx = context.WithoutCancel(ctx)
	var errs []error
	for i := len(s.undos) - 1; i >= 0; i-- {
		u := s.undos[i]
		step, cancel := context.WithTimeout(ctx, undoTime)
		if err := u.run(step); err != nil {
			errs = append(errs, fmt.Errorf("undo %s: %w", u.name, err))
		}
		cancel()
	}
	s.undos = nil
	return errors.Join(errs...)
}
