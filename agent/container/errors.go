// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package container

import "errors"

// The kinds of failure a caller maps to its own errors. The texts are those
// that engines look for in a runtime's messages.
var (
	// ErrInvalid is a request that cannot be done as it stands.
	ErrInvalid = errors.New("invalid request")
	// ErrExists is a second container or exec of the same name.
	ErrExists = errors.New("container with given ID already exists")
	// ErrNotExist is a container nobody created, or one that was deleted.
	ErrNotExist = errors.New("container does not exist")
	// ErrNotRunning is a signal to, or an exec in, a container that has ended.
	ErrNotRunning = errors.New("container not running")
	// ErrState is an operation the container's state does not allow.
	ErrState = errors.New("wrong state")
)

// stateError carries one of runc's sentences as its whole text, so that engines
// recognise it, and still is ErrState for errors.Is.
type stateError string

func (e stateError) Error() string        { return string(e) }
func (e stateError) Is(target error) bool { return target == ErrState }

type existsError string

func (e existsError) Error() string        { return string(e) }
func (e existsError) Is(target error) bool { return target == ErrExists }
