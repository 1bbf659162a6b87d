// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package conformance

import (
	"fmt"
	"os"
	"strings"
)

// The marks around what is generated of a part in docs/conformance.md.
func marks(part string) (begin, end string) {
	return "<!-- part " + part + ": written by make conformance UPDATE=1 -->", "<!-- end of part " + part + " -->"
}

// Page is the page with the tables of this run in the place of those it holds.
// Nothing in them depends on times, so that a committed page is the run's or it
// is wrong.
func (r *Results) Page(page string) (string, error) {
	for _, part := range r.Parts {
		begin, end := marks(part.Name)
		before, rest, found := strings.Cut(page, begin)
		_, after, closed := strings.Cut(rest, end)
		if !found || !closed {
			return "", fmt.Errorf("the page has no place for part %s: it needs the lines %q and %q", part.Name, begin, end)
		}
		page = before + begin + "\n" + r.markdown(part) + end + after
	}
	return page, nil
}

// CheckPage holds the committed page against the run, or writes it.
func (r *Results) CheckPage(path string, update bool) error {
	text, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	page, err := r.Page(string(text))
	if err != nil || page == string(text) {
		return err
	}
	if update {
		return os.WriteFile(path, []byte(page), 0o644)
	}
	return fmt.Errorf("%s is not what this run found, from the line %q on: run \"make conformance UPDATE=1\" and commit it", path, firstDifference(string(text), page))
}

func firstDifference(a, b string) string {
	left, right := strings.Split(a, "\n"), strings.Split(b, "\n")
	for i, line := range right {
		if i >= len(left) || left[i] != line {
			return line
		}
	}
	return "(the end)"
}

func (r *Results) markdown(part PartResult) string {
	var b strings.Builder
	fmt.Fprintf(&b, "\n%s\n\n", strings.TrimSpace(part.about))
	b.WriteString("| | kept | not kept | not asked |\n|---|---|---|---|\n")
	for _, runtime := range r.Runtimes {
		n := part.Counts[runtime]
		fmt.Fprintf(&b, "| %s | %d | %d | %d |\n", runtime, n.Passed, n.Failed, n.Skipped)
	}
	var differ, same strings.Builder
	for _, c := range part.Cases {
		var reasons []string
		verdicts := ""
		for _, runtime := range r.Runtimes {
			got := c.By[runtime]
			verdicts += " " + string(got.Verdict) + " |"
			if got.Reason != "" {
				reasons = append(reasons, runtime+": "+got.Reason)
			}
		}
		fmt.Fprintf(&same, "| `%s` |%s %s |\n", c.Name, verdicts, cell(c.Says))
		if len(reasons) > 0 {
			fmt.Fprintf(&differ, "| `%s` |%s %s |\n", c.Name, verdicts, cell(strings.Join(reasons, "; ")))
		}
	}
	head := "| | " + strings.Join(r.Runtimes, " | ") + " | %s |\n|---" + strings.Repeat("|---", len(r.Runtimes)) + "|---|\n"
	if differ.Len() > 0 {
		fmt.Fprintf(&b, "\nWhat is not kept or not asked, and why:\n\n"+head+"%s", "why", differ.String())
	}
	fmt.Fprintf(&b, "\nAll of it:\n\n"+head+"%s\n", "promise", same.String())
	return b.String()
}

func cell(text string) string { return strings.ReplaceAll(text, "|", "\\|") }
