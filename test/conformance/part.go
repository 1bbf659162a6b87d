// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package conformance

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"bulkhead/test/e2e/host"
)

// The runtimes that are compared. Parts name them in what they declare.
const (
	Bulkhead = "bulkhead"
	Runc     = "runc"
)

// Runtime is one of the runtimes that are compared, as its caller knows it.
type Runtime struct {
	Name    string   // Bulkhead or Runc
	Version string   // as "--version" has it, for people
	Path    string   // of the binary
	Flags   []string // global flags that come before all others
}

// Args is a command line of the runtime.
func (r Runtime) Args(args ...string) []string {
	return append(append([]string{r.Path}, r.Flags...), args...)
}

// Part is one suite.
type Part struct {
	Name  string // one word, for file names and marks
	About string // a paragraph in Markdown above the table
	// Open starts what the groups of a runtime share, and gives what ends it; nil
	// if they share nothing.
	Open   func(ctx context.Context, s *Stage) (session any, end func() error, err error)
	Groups []Group
}

// Group is a function that answers for its cases.
type Group struct {
	Name  string
	Cases []Case
	// Run gives a verdict for each case by Stage.Verdict. Cases that it gave none
	// have failed, with its error.
	Run func(ctx context.Context, s *Stage) error
}

// Case is one promise. Names are unique within a part.
type Case struct {
	Name string // where it is promised, and what it is in a few words: "config.md#process/cwd-is-the-working-directory"
	Says string // what is promised, in a sentence
	// Declared says of a runtime, by its name, that it does not pass, and why.
	Declared map[string]Declaration
}

// Declaration is a verdict other than Pass that is expected, and its reason as
// a reader of docs/conformance.md finds it.
type Declaration struct {
	Verdict Verdict
	Reason  string
	Saying  string // what the problem must hold: a refusal is told in these words
}

// Fails declares that a runtime does not keep the promise.
func Fails(reason string) Declaration { return Declaration{Verdict: Fail, Reason: reason} }

// FailsSaying declares a failure that is told in certain words and in no others.
func FailsSaying(words, reason string) Declaration { return Declaration{Fail, reason, words} }

// Skips declares that the promise cannot be asked of a runtime.
func Skips(reason string) Declaration { return Declaration{Verdict: Skip, Reason: reason} }

// Verdict is what became of a case.
type Verdict string

// The verdicts.
const (
	Pass Verdict = "pass"
	Fail Verdict = "fail"
	Skip Verdict = "skip"
)

// Skipped is an error that makes a verdict Skip.
type Skipped struct{ Reason string }

// Error implements error.
func (s Skipped) Error() string { return s.Reason }

// check complains of parts that cannot be told apart, or declare without a reason.
func check(parts []Part) error {
	var errs []error
	for _, part := range parts {
		seen := map[string]bool{}
		for _, group := range part.Groups {
			if seen["group "+group.Name] {
				errs = append(errs, fmt.Errorf("part %s has two groups %q", part.Name, group.Name))
			}
			seen["group "+group.Name] = true
			for _, c := range group.Cases {
				if seen[c.Name] {
					errs = append(errs, fmt.Errorf("part %s has two cases %q", part.Name, c.Name))
				}
				seen[c.Name] = true
				for runtime, d := range c.Declared {
					if d.Reason == "" || d.Verdict != Fail && d.Verdict != Skip {
						errs = append(errs, fmt.Errorf("case %q declares %q of %s: a declaration is a Fails or a Skips with its reason", c.Name, d.Verdict, runtime))
					}
				}
			}
		}
	}
	return errors.Join(errs...)
}

// Stage is where a group meets a runtime.
type Stage struct {
	Runtime Runtime
	Ground  *host.Ground // its token belongs into the name of all that is made
	Dir     string       // a directory for this group and runtime alone, removed afterwards; short enough for sockets
	Data    string       // the same for bulky things
	Session any          // what Part.Open gave for this runtime

	mu       sync.Mutex         // guards verdicts
	verdicts map[string]outcome // by the case's name
}

type outcome struct {
	verdict Verdict
	problem string // of Fail and Skip
}

// Verdict gives the verdict of a case: nil passes, a Skipped skips, any other
// error fails. The first one counts. It may be called from several goroutines.
func (s *Stage) Verdict(name string, problem error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, given := s.verdicts[name]; given {
		return
	}
	var skipped Skipped
	switch {
	case problem == nil:
		s.verdicts[name] = outcome{verdict: Pass}
	case errors.As(problem, &skipped):
		s.verdicts[name] = outcome{Skip, skipped.Reason}
	default:
		s.verdicts[name] = outcome{Fail, problem.Error()}
	}
}
