// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package hypervisor

import (
	"context"
	"errors"
)

// Templater is a driver that can stop a VM whose guest is ready and start any
// number of others from that point, which share its memory until they write to it.
type Templater interface {
	Driver

	// TemplateKey tells what a template for spec is made of, as a digest of the
	// contents of its parts and of the machine's options: specs with equal keys can
	// start from the same template. It is quick as long as no file has changed.
	TemplateKey(ctx context.Context, spec Spec) (string, error)

	// TemplateFiles are the host's files that a template for spec is made of, for whoever wants to be told
	// when one changes. Not all of them need be there.
	TemplateFiles(ctx context.Context, spec Spec) ([]string, error)

	// MakeTemplate boots a VM in spec.Dir, waits for ready, which is to return when
	// the guest waits for its identity, and keeps its state. The VM has ended when
	// it returns, also with an error; the directory is the caller's to remove: with an
	// error or without a Process at once, else with the template, as that process is recorded there.
	MakeTemplate(ctx context.Context, spec Spec, ready func(context.Context, VM) error) (Template, error)
}

// Template is the memory and the state of a VM that was stopped when its guest
// was ready and had no identity. Nobody can change it any more, also not a
// hypervisor that has been taken over and runs a VM from it.
type Template interface {
	// Key is what TemplateKey told when it was made.
	Key() string
	// Bytes is the memory of the host that it holds.
	Bytes() int64
	// Process is that of the stopped VM which forks those that start from the template; 0: they start by themselves.
	Process() int
	// Worn tells why VMs that start from it take longer and share less than they could, so that it is worth
	// making another; nil while there is no reason.
	Worn() error
	// Close gives it up. What was started from it lives on, and shares its memory
	// with others that were.
	Close() error
}

// ErrTemplateGone says that a template was given up, or is of another key, so
// that no VM can be started from it any more.
var ErrTemplateGone = errors.New("the template is gone")
