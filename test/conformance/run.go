// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package conformance

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"bulkhead/test/e2e/host"
)

// groupTime bounds one group on one runtime, on a busy machine under emulation:
// several times what the longest needs.
const groupTime = 10 * time.Minute

// Options are what a run may vary.
type Options struct {
	Ground   *host.Ground
	Runtimes []Runtime
	Only     *regexp.Regexp // of the names of groups and cases; nil is all
	Workers  int            // groups that run at the same time
	Progress func(string)   // is told of each verdict that is not as declared, from one goroutine at a time
}

// Run runs every group on every runtime. What fails is in the results; an error
// means that there are none.
func Run(ctx context.Context, o Options, parts ...Part) (*Results, error) {
	if err := check(parts); err != nil {
		return nil, err
	}
	r := &Results{}
	for _, rt := range o.Runtimes {
		r.Runtimes = append(r.Runtimes, rt.Name)
	}
	for _, part := range parts {
		part.Groups = selected(part.Groups, o.Only)
		if len(part.Groups) == 0 {
			continue
		}
		result, err := runPart(ctx, o, part)
		if err != nil {
			return nil, fmt.Errorf("part %s: %w", part.Name, err)
		}
		r.Parts = append(r.Parts, result)
	}
	return r, nil
}

func selected(groups []Group, only *regexp.Regexp) []Group {
	if only == nil {
		return groups
	}
	var kept []Group
	for _, group := range groups {
		wanted := only.MatchString(group.Name)
		for _, c := range group.Cases {
			wanted = wanted || only.MatchString(c.Name)
		}
		if wanted {
			kept = append(kept, group)
		}
	}
	return kept
}

// run is a group on a runtime.
type run struct {
	group    Group
	stage    *Stage
	outcomes map[string]outcome
}

func runPart(ctx context.Context, o Options, part Part) (_ PartResult, err error) {
	var runs []*run
	var undo []func() error
	defer func() {
		for _, end := range undo {
			err = errors.Join(err, end())
		}
	}()
	sessions := map[string]any{}
	for _, rt := range o.Runtimes {
		if part.Open == nil {
			continue
		}
		stage, err := o.stage(rt, part.Name+"-"+rt.Name, nil)
		if err != nil {
			return PartResult{}, err
		}
		session, end, err := part.Open(ctx, stage)
		if err != nil {
			return PartResult{}, fmt.Errorf("%s: %w", rt.Name, err)
		}
		sessions[rt.Name] = session
		undo = append(undo, end)
	}
	for i, group := range part.Groups {
		for _, rt := range o.Runtimes {
			stage, err := o.stage(rt, strconv.Itoa(i)+rt.Name[:1], sessions[rt.Name])
			if err != nil {
				return PartResult{}, err
			}
			runs = append(runs, &run{group: group, stage: stage})
		}
	}
	var mu sync.Mutex // serializes Progress
	var workers errgroup.Group
	workers.SetLimit(o.Workers)
	for _, r := range runs {
		workers.Go(func() error {
			r.run(ctx)
			tell := func(what string) (told bool) {
				mu.Lock()
				defer mu.Unlock()
				for _, line := range r.surprises() {
					o.Progress(what + line)
					told = true
				}
				return told
			}
			if tell("once: ") && ctx.Err() == nil {
				again, err := o.stage(r.stage.Runtime, filepath.Base(r.stage.Dir)+"a", r.stage.Session)
				if err != nil {
					return err
				}
				r.second(ctx, again)
				if err := errors.Join(os.RemoveAll(again.Dir), os.RemoveAll(again.Data)); err != nil {
					return err
				}
			}
			tell("")
			return errors.Join(os.RemoveAll(r.stage.Dir), os.RemoveAll(r.stage.Data))
		})
	}
	if err := errors.Join(workers.Wait(), ctx.Err()); err != nil {
		return PartResult{}, err
	}
	return collect(part, runs), nil
}

func (o Options) stage(rt Runtime, name string, session any) (*Stage, error) {
	s := &Stage{
		Runtime: rt, Ground: o.Ground, Session: session, verdicts: map[string]outcome{},
		Dir: filepath.Join(o.Ground.Dir, name), Data: filepath.Join(o.Ground.Data, name),
	}
	return s, errors.Join(os.MkdirAll(s.Dir, 0o755), os.MkdirAll(s.Data, 0o755))
}

// run runs the group and sees to it that every case has an outcome.
func (r *run) run(ctx context.Context) {
	r.outcomes = map[string]outcome{}
	ask := r.group
	ask.Cases = nil
	for _, c := range r.group.Cases {
		if d, ok := c.Declared[r.stage.Runtime.Name]; ok && d.Verdict == Skip {
			r.outcomes[c.Name] = outcome{Skip, d.Reason}
			continue
		}
		ask.Cases = append(ask.Cases, c)
	}
	if len(ask.Cases) == 0 {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, groupTime)
	defer cancel()
	err := ask.Run(ctx, r.stage)
	for _, c := range ask.Cases {
		given, ok := r.stage.verdicts[c.Name]
		switch {
		case ok:
		case err != nil:
			given = outcome{Fail, err.Error()}
		default:
			given = outcome{Fail, "the test gave no verdict"}
		}
		r.outcomes[c.Name] = given
	}
	for name := range r.stage.verdicts {
		if _, known := r.outcomes[name]; !known {
			r.outcomes[name] = outcome{Fail, "a verdict for a case that the group does not have"}
		}
	}
}

// second asks the group once more, for the cases whose verdict is not the declared one: what an engine
// does on a busy machine is not the same every time, with runc neither. A case differs that differs twice.
func (r *run) second(ctx context.Context, stage *Stage) {
	next := &run{group: r.group, stage: stage}
	next.run(ctx)
	for _, c := range r.cases() {
		got, asked := next.outcomes[c.Name]
		if asked && c.deviation(r.stage.Runtime.Name, r.outcomes[c.Name]) != "" {
			r.outcomes[c.Name] = got
		}
	}
}

// surprises tells of the outcomes that were not declared.
func (r *run) surprises() []string {
	var lines []string
	said := ""
	for _, c := range r.cases() {
		deviation := c.deviation(r.stage.Runtime.Name, r.outcomes[c.Name])
		if deviation == "" {
			continue
		}
		line := deviation
		if deviation == said {
			line = "as above"
		}
		said = deviation
		lines = append(lines, fmt.Sprintf("%s: %s: %s", r.stage.Runtime.Name, c.Name, line))
	}
	return lines
}

// cases are the group's, and what it gave verdicts for without having it.
func (r *run) cases() []Case {
	cases := append([]Case(nil), r.group.Cases...)
	known := map[string]bool{}
	for _, c := range cases {
		known[c.Name] = true
	}
	for name := range r.outcomes {
		if !known[name] {
			cases = append(cases, Case{Name: name})
		}
	}
	return cases
}

// deviation says how an outcome is not what the case declares; empty if it is.
func (c Case) deviation(runtime string, got outcome) string {
	want, declared := c.Declared[runtime]
	switch {
	case declared && got.verdict == want.Verdict && !strings.Contains(got.problem, want.Saying):
		return fmt.Sprintf("%s as declared, but without the words %q: %s", got.verdict, want.Saying, got.problem)
	case !declared && got.verdict == Pass, declared && got.verdict == want.Verdict:
		return ""
	case !declared && got.verdict == Skip:
		return "skipped, which is not declared: " + got.problem
	case !declared:
		return "failed: " + got.problem
	case got.verdict == Pass:
		return fmt.Sprintf("passes, but is declared to %s (%s): remove the declaration", want.Verdict, want.Reason)
	default:
		return fmt.Sprintf("%s instead of the declared %s: %s", got.verdict, want.Verdict, got.problem)
	}
}
