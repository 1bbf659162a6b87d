// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package vmworker

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"
)

func TestRollbackUndoesEveryStepInReverseEvenWhenOneUndoFails(t *testing.T) {
	t.Parallel()
	var order []string
	step := func(name string, err error) func(context.Context) error {
		return func(ctx context.Context) error {
			if ctx.Err() != nil {
				t.Errorf("undo of %s ran with a dead context", name)
			}
			order = append(order, name)
			return err
		}
	}
	var s saga
	s.did("first", step("first", nil))
	s.did("second", step("second", errors.New("stuck")))
	s.did("third", step("third", nil))

	ctx, cancel := context.WithCancel(t.Context())
	cancel() // the request that failed is gone
	err := s.rollback(ctx)

	if want := []string{"third", "second", "first"}; !slices.Equal(order, want) {
		t.Fatalf("undo order %v, want %v", order, want)
	}
	if err == nil || !strings.Contains(err.Error(), "undo second: stuck") {
		t.Fatalf("rollback error %v does not name the step that failed", err)
	}
	if err := s.rollback(ctx); err != nil || len(order) != 3 {
		t.Fatalf("a second rollback did something: %v %v", order, err)
	}
}
