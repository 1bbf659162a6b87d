// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package conformance

import (
	"context"
	"errors"
	"strings"
	"testing"

	"bulkhead/test/e2e/host"
)

// tried runs one case with verdicts of the two runtimes.
func tried(t *testing.T, declared map[string]Declaration, verdicts map[string]error, silent bool) *Results {
	t.Helper()
	dir := t.TempDir()
	o := Options{
		Ground: &host.Ground{Token: "t", Dir: dir, Data: dir}, Workers: 2, Progress: func(string) {},
		Runtimes: []Runtime{{Name: Bulkhead}, {Name: Runc}},
	}
	r, err := Run(t.Context(), o, Part{Name: "p", About: "About.", Groups: []Group{{
		Name: "g", Cases: []Case{{Name: "a.md#b/c", Says: "it is so", Declared: declared}},
		Run: func(_ context.Context, s *Stage) error {
			if !silent {
				s.Verdict("a.md#b/c", verdicts[s.Runtime.Name])
			}
			return nil
		},
	}}})
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func TestARunIsGoodOnlyIfEveryVerdictIsTheDeclaredOne(t *testing.T) {
	broken := errors.New("broken")
	for name, c := range map[string]struct {
		declared map[string]Declaration
		verdicts map[string]error
		silent   bool
		bad      int
	}{
		"both pass":                     {},
		"an undeclared failure":         {verdicts: map[string]error{Bulkhead: broken}, bad: 1},
		"both fail, undeclared":         {verdicts: map[string]error{Bulkhead: broken, Runc: broken}, bad: 2},
		"a declared failure":            {declared: map[string]Declaration{Runc: Fails("old")}, verdicts: map[string]error{Runc: broken}},
		"a declared failure that works": {declared: map[string]Declaration{Runc: Fails("old")}, bad: 1},
		"a failure in declared words":   {declared: map[string]Declaration{Runc: FailsSaying("rok", "old")}, verdicts: map[string]error{Runc: broken}},
		"a failure in other words":      {declared: map[string]Declaration{Runc: FailsSaying("refused", "old")}, verdicts: map[string]error{Runc: broken}, bad: 1},
		"an undeclared skip":            {verdicts: map[string]error{Runc: Skipped{"no such thing here"}}, bad: 1},
		"a declared skip is not run":    {declared: map[string]Declaration{Runc: Skips("cannot be asked")}, verdicts: map[string]error{Runc: broken}},
		"a failure in place of a skip that the test finds": {
			declared: map[string]Declaration{Bulkhead: Fails("old")}, verdicts: map[string]error{Bulkhead: Skipped{"no"}}, bad: 1,
		},
		"no verdict": {silent: true, bad: 2},
	} {
		if got := tried(t, c.declared, c.verdicts, c.silent).Deviations(); got != c.bad {
			t.Errorf("%s: %d deviations instead of %d", name, got, c.bad)
		}
	}
}

func TestAVerdictThatWasNotDeclaredIsAskedForTwice(t *testing.T) {
	dir := t.TempDir()
	var told []string
	o := Options{
		Ground: &host.Ground{Token: "t", Dir: dir, Data: dir}, Workers: 1, Progress: func(line string) { told = append(told, line) },
		Runtimes: []Runtime{{Name: Bulkhead}, {Name: Runc}},
	}
	runs := map[string]int{}
	r, err := Run(t.Context(), o, Part{Name: "p", About: "About.", Groups: []Group{{
		Name: "g", Cases: []Case{{Name: "a.md#b/c", Says: "it is so"}, {Name: "a.md#b/d", Says: "it is so"}},
		Run: func(_ context.Context, s *Stage) error {
			var busy, worse error
			switch runs[s.Runtime.Name]++; {
			case s.Runtime.Name == Runc && runs[Runc] == 1:
				busy = errors.New("busy")
			case s.Runtime.Name == Runc:
				worse = errors.New("asked though it was well")
			}
			s.Verdict("a.md#b/c", busy)
			s.Verdict("a.md#b/d", worse)
			return nil
		},
	}}})
	if err != nil || r.Deviations() != 0 || runs[Bulkhead] != 1 || runs[Runc] != 2 {
		t.Errorf("%v, %d deviations after %v runs", err, r.Deviations(), runs)
	}
	if len(told) != 1 || !strings.HasPrefix(told[0], "once: runc: a.md#b/c: ") {
		t.Errorf("it was told %q", told)
	}
}

func TestDeclarationsNeedReasonsAndNamesAreUnique(t *testing.T) {
	for name, part := range map[string]Part{
		"no reason":  {Groups: []Group{{Cases: []Case{{Name: "a", Declared: map[string]Declaration{Runc: Fails("")}}}}}},
		"one name":   {Groups: []Group{{Name: "g", Cases: []Case{{Name: "a"}}}, {Name: "h", Cases: []Case{{Name: "a"}}}}},
		"two groups": {Groups: []Group{{Name: "g"}, {Name: "g"}}},
	} {
		if check([]Part{part}) == nil {
			t.Errorf("%s: nothing is said", name)
		}
	}
}

func TestThePageHoldsVerdictsAndReasons(t *testing.T) {
	r := tried(t, map[string]Declaration{Runc: Fails("it is old")}, map[string]error{Runc: errors.New("pid 4711 is wrong")}, false)
	begin, end := marks("p")
	page, err := r.Page("before\n" + begin + "\nstale\n" + end + "\nafter\n")
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"before\n", "\nafter\n", "| `a.md#b/c` | pass | fail | runc: it is old |", "| `a.md#b/c` | pass | fail | it is so |", "| runc | 0 | 1 | 0 |"} {
		if !strings.Contains(page, want) {
			t.Errorf("the page has no %q:\n%s", want, page)
		}
	}
	for _, never := range []string{"stale", "4711"} {
		if strings.Contains(page, never) {
			t.Errorf("the page has %q:\n%s", never, page)
		}
	}
	if again, err := r.Page(page); err != nil || again != page {
		t.Errorf("a page is not its own: %v\n%s", err, again)
	}
	if _, err := r.Page("no place"); err == nil {
		t.Error("a page without a place was written")
	}
}
