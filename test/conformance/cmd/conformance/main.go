// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

// Command conformance runs the parts of the conformance suite against Bulkhead
// and runc, prints what is not kept, and holds docs/conformance.md against it.
// It ends with 0 if every verdict was the declared one, the page is the run's,
// and nothing is left behind.
//
// It composes the parts and starts the one daemon that they share. Like them it
// imports no room of the product.
//
// usage: BULKHEAD_BUILD=DIR conformance [-part NAME] [-run REGEXP] [-workers N] [-out FILE] [-page FILE [-update]]
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"time"

	"bulkhead/test/conformance"
	"bulkhead/test/conformance/scenarios"
	"bulkhead/test/conformance/spec"
	"bulkhead/test/e2e/host"
)

// wholeRun bounds the program: several times what it needs on a slow machine.
const wholeRun = 30 * time.Minute

// parts are all there are, in the order of the page.
func parts(build string) []conformance.Part {
	return []conformance.Part{spec.Part(filepath.Join(build, "conformance", "probe")), scenarios.Part(os.Getenv("BULKHEAD_CRICTL"))}
}

type options struct {
	part, only, out, page string
	workers               int
	update                bool
}

func main() {
	host.Main()
	var o options
	flag.StringVar(&o.part, "part", "", "run only the part of this `name`")
	flag.StringVar(&o.only, "run", "", "run only groups with a name, or a case, that matches this `regexp`; nothing is written then")
	flag.IntVar(&o.workers, "workers", 3, "`number` of groups that run at the same time")
	flag.StringVar(&o.out, "out", "", "write the results as JSON to this `file`")
	flag.StringVar(&o.page, "page", "", "hold this `file` against the run")
	flag.BoolVar(&o.update, "update", false, "write the page instead")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	ctx, cancel := context.WithTimeoutCause(ctx, wholeRun, fmt.Errorf("the conformance suite took longer than %s", wholeRun))
	defer cancel()
	if err := run(ctx, o); err != nil {
		fmt.Fprintln(os.Stderr, "conformance:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, o options) (err error) {
	if os.Geteuid() != 0 {
		return errors.New("run it as root: containers need mounts and cgroups")
	}
	build, err := filepath.Abs(os.Getenv("BULKHEAD_BUILD"))
	if err != nil {
		return err
	}
	chosen := slices.DeleteFunc(parts(build), func(p conformance.Part) bool { return o.part != "" && p.Name != o.part })
	if len(chosen) == 0 {
		return fmt.Errorf("there is no part %q", o.part)
	}
	var only *regexp.Regexp
	if o.only != "" {
		if only, err = regexp.Compile(o.only); err != nil {
			return err
		}
	}
	links, err := host.Links()
	if err != nil {
		return err
	}
	ground, err := host.NewGround(build)
	if err != nil {
		return err
	}
	janitor, err := ground.StartJanitor()
	if err != nil {
		return errors.Join(err, ground.Remove())
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, ground.KeepLogs())
		}
		err = errors.Join(err, janitor())
	}()
	h, err := ground.NewHost("conformance", host.Settings{MaxVMs: 32})
	if err != nil {
		return err
	}
	if err := h.Start(ctx); err != nil {
		return err
	}
	runtimes, err := runtimes(ctx, h)
	if err != nil {
		return errors.Join(err, h.Stop())
	}
	var differs []string
	results, err := conformance.Run(ctx, conformance.Options{
		Ground: ground, Runtimes: runtimes, Only: only, Workers: o.workers,
		Progress: func(line string) {
			differs = append(differs, line)
			fmt.Println("DIFFERS", line)
		},
	}, chosen...)
	// Again at the end: who keeps only the tail of a log has the reason in it.
	defer func() {
		for _, line := range differs {
			fmt.Println("FAILED", line)
		}
	}()
	err = errors.Join(err, h.NoRecords(), h.Stop(), ground.NothingLeft(links))
	if err != nil {
		return err
	}
	return conclude(o, runtimes, results)
}

// conclude prints, writes and judges.
func conclude(o options, runtimes []conformance.Runtime, results *conformance.Results) error {
	fmt.Print(results.Text())
	for _, rt := range runtimes {
		fmt.Printf("%s is %s\n", rt.Name, rt.Version)
	}
	deviations := results.Deviations()
	// The line by which CI counts: what is kept as declared is a pass.
	fmt.Printf("%d passed, %d failed\n", results.Verdicts()-deviations, deviations)
	var errs []error
	if deviations > 0 {
		errs = append(errs, fmt.Errorf("%d verdicts are not as declared: mend the runtime, or declare the difference with its reason", deviations))
	}
	if o.only != "" {
		return errors.Join(errs...)
	}
	if o.out != "" {
		errs = append(errs, results.Write(o.out))
	}
	if o.page != "" {
		errs = append(errs, results.CheckPage(o.page, o.update))
	}
	return errors.Join(errs...)
}

// runtimes are those that are compared.
func runtimes(ctx context.Context, h *host.Host) ([]conformance.Runtime, error) {
	runc, err := exec.LookPath("runc")
	if err != nil {
		return nil, fmt.Errorf("there is no runc to compare with; install the Debian package runc: %w", err)
	}
	all := []conformance.Runtime{
		{Name: conformance.Bulkhead, Path: h.Binary("bulkhead"), Flags: []string{"--config", h.Config}},
		{Name: conformance.Runc, Path: runc},
	}
	for i, rt := range all {
		r, err := host.Run(ctx, nil, nil, rt.Args("--version")...)
		if err != nil || r.Code != 0 {
			return nil, errors.Join(err, fmt.Errorf("%s --version ended with %d: %s", rt.Name, r.Code, r.Stderr))
		}
		all[i].Version, _, _ = strings.Cut(r.Stdout, "\n")
	}
	return all, nil
}
