// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package spec

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/opencontainers/runtime-spec/specs-go"

	"bulkhead/test/conformance"
	"bulkhead/test/conformance/probe"
	"bulkhead/test/e2e/host"
)

// inside is a group of cases that one run of the probe answers for.
type inside struct {
	name string
	// configure changes the configuration of an ordinary container that runs the
	// probe, and may put things into its bundle.
	configure func(spec *specs.Spec, bundle string) error
	ask       probe.Ask
	cases     []look
}

// look is a case that a report answers for.
type look struct {
	name, says string
	see        func(r *found) error
	declared   map[string]conformance.Declaration
}

// found is what the probe reported, and the bundle that it ran from.
type found struct {
	*probe.Report
	bundle string
}

func (i inside) group() conformance.Group {
	g := conformance.Group{Name: i.name}
	for _, l := range i.cases {
		g.Cases = append(g.Cases, conformance.Case{Name: l.name, Says: l.says, Declared: l.declared})
	}
	g.Run = func(ctx context.Context, s *conformance.Stage) (err error) {
		o := newOCI(s)
		defer func() { err = errors.Join(err, o.close()) }()
		report, err := i.report(ctx, o)
		if err != nil {
			return err
		}
		for _, l := range i.cases {
			s.Verdict(l.name, l.see(report))
		}
		return nil
	}
	return g
}

func (i inside) report(ctx context.Context, o *oci) (*found, error) {
	spec := host.NewSpec("/bin/probe")
	bundle, err := o.bundle(spec)
	if err != nil {
		return nil, err
	}
	if i.configure != nil {
		if err := i.configure(spec, bundle); err != nil {
			return nil, err
		}
	}
	if err := errors.Join(writeJSON(filepath.Join(bundle, "config.json"), spec), writeJSON(filepath.Join(bundle, "rootfs", probe.AskPath), i.ask)); err != nil {
		return nil, err
	}
	c, err := o.create(ctx, bundle)
	if err == nil {
		err = c.start(ctx)
	}
	if err == nil {
		err = c.finish(ctx)
	}
	if err != nil {
		return nil, err
	}
	report := &found{&probe.Report{}, bundle}
	if err := json.Unmarshal([]byte(c.Stdout.String()), report.Report); err != nil {
		return nil, fmt.Errorf("the probe said %q and %q: %w", c.Stdout, c.Stderr, err)
	}
	return report, nil
}

func writeJSON(path string, value any) error {
	text, err := json.MarshalIndent(value, "", "  ")
	if err != nil {
		return err
	}
	return os.WriteFile(path, text, 0o644)
}

// equal complains unless got is want.
func equal[T comparable](what string, got, want T) error {
	if got != want {
		return fmt.Errorf("%s is %v instead of %v", what, got, want)
	}
	return nil
}
