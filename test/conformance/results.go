// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package conformance

import (
	"encoding/json"
	"fmt"
	"os"
	"strings"
)

// Results are what a run found.
type Results struct {
	Runtimes []string     `json:"runtimes"`
	Parts    []PartResult `json:"parts"`
}

// PartResult is what became of a part.
type PartResult struct {
	Name   string           `json:"name"`
	Counts map[string]Count `json:"counts"` // by runtime
	Cases  []CaseResult     `json:"cases"`

	about string
}

// Count counts verdicts.
type Count struct {
	Passed  int `json:"passed"`
	Failed  int `json:"failed"`
	Skipped int `json:"skipped"`
}

// CaseResult is what became of a case.
type CaseResult struct {
	Name  string            `json:"name"`
	Group string            `json:"group"`
	Says  string            `json:"says"`
	By    map[string]Result `json:"by"` // by runtime
}

// Result is what became of a case on a runtime.
type Result struct {
	Verdict   Verdict `json:"verdict"`
	Problem   string  `json:"problem,omitempty"`   // of this run
	Reason    string  `json:"reason,omitempty"`    // declared
	Deviation string  `json:"deviation,omitempty"` // from what is declared
}

func collect(part Part, runs []*run) PartResult {
	result := PartResult{Name: part.Name, about: part.About, Counts: map[string]Count{}}
	index := map[string]int{} // of a case in result.Cases
	for _, r := range runs {
		name := r.stage.Runtime.Name
		count := result.Counts[name]
		for _, c := range r.cases() {
			at, ok := index[c.Name]
			if !ok {
				at = len(result.Cases)
				index[c.Name] = at
				result.Cases = append(result.Cases, CaseResult{Name: c.Name, Group: r.group.Name, Says: c.Says, By: map[string]Result{}})
			}
			got := r.outcomes[c.Name]
			switch got.verdict {
			case Pass:
				count.Passed++
			case Skip:
				count.Skipped++
			default:
				count.Failed++
			}
			result.Cases[at].By[name] = Result{got.verdict, got.problem, c.Declared[name].Reason, c.deviation(name, got)}
		}
		result.Counts[name] = count
	}
	return result
}

// Deviations are the verdicts that were not as declared; a run without any is
// good.
func (r *Results) Deviations() int {
	n := 0
	for _, part := range r.Parts {
		for _, c := range part.Cases {
			for _, got := range c.By {
				if got.Deviation != "" {
					n++
				}
			}
		}
	}
	return n
}

// Verdicts counts all of them.
func (r *Results) Verdicts() int {
	n := 0
	for _, part := range r.Parts {
		for _, c := range part.Cases {
			n += len(c.By)
		}
	}
	return n
}

// Write writes the results as JSON.
func (r *Results) Write(path string) error {
	text, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return err
	}
	return os.WriteFile(path, append(text, '\n'), 0o644)
}

// Text is the table for a terminal: every case that does not pass everywhere,
// and the counts.
func (r *Results) Text() string {
	var b strings.Builder
	for _, part := range r.Parts {
		for _, c := range part.Cases {
			for _, runtime := range r.Runtimes {
				if got := c.By[runtime]; got.Verdict != Pass {
					fmt.Fprintf(&b, "%-9s %-4s %s: %s\n", runtime, got.Verdict, c.Name, orDefault(got.Reason, firstLine(got.Problem)))
				}
			}
		}
		for _, runtime := range r.Runtimes {
			n := part.Counts[runtime]
			fmt.Fprintf(&b, "part %s, %s: %d of %d kept, %d not kept, %d not asked\n",
				part.Name, runtime, n.Passed, n.Passed+n.Failed+n.Skipped, n.Failed, n.Skipped)
		}
	}
	return b.String()
}

func orDefault(value, otherwise string) string {
	if value == "" {
		return otherwise
	}
	return value
}

func firstLine(text string) string {
	line, _, _ := strings.Cut(strings.TrimSpace(text), "\n")
	const long = 300
	if len(line) > long {
		line = line[:long] + "…"
	}
	return line
}
